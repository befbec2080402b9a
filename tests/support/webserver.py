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


@dataclass(slots=True)
class Served:
    """A directory behind `url`; `requests` grows by one path per request.

    With `dies_at` the server answers the next request whose path has that text in it with half of the file, and after
    that none any more: `dead`, which a test may also set.
    """

    url: str
    requests: list[str] = field(default_factory=list)
    dies_at: str = ""
    dead: bool = False


@contextmanager
def serve(directory: str) -> Iterator[Served]:
    """Serve the directory until the end of the block."""
    served = Served("")

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            served.requests.append(self.path)

        def do_GET(self) -> None:
            if served.dead:
                self.close_connection = True
            elif served.dies_at and served.dies_at in self.path:
                served.dead = True
                _answer_half(self)
            else:
                super().do_GET()

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=directory))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        served.url = f"http://127.0.0.1:{server.server_port}"
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _answer_half(handler: SimpleHTTPRequestHandler) -> None:
    """The headers of the whole file, the first half of it, and the end of the connection."""
    handler.log_request()
    with open(handler.translate_path(handler.path), "rb") as file:
        data = file.read()
    handler.send_response_only(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])
    handler.close_connection = True
