"""A web server on the loopback address, for repositories that apk has to download and cache.

Knows nothing of apk-atomic. The log of requests lets a test say what was asked for.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True, slots=True)
class Served:
    """A directory behind `url`; `requests` grows by one path per request."""

    url: str
    requests: list[str] = field(default_factory=list)


@contextmanager
def serve(directory: str) -> Iterator[Served]:
    """Serve the directory until the end of the block."""
    requests: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            requests.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=directory))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield Served(f"http://127.0.0.1:{server.server_port}", requests)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
