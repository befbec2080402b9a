"""The record of a generation as it is written: who made it, how long each step took, and the file itself.

What a record says is `model`'s; reading one is `generations`'. `snapshots/ID/generation.json` is durable when written.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from apk_atomic import files
from apk_atomic.faults import point
from apk_atomic.generations import RECORD
from apk_atomic.journal import SNAPSHOTS
from apk_atomic.model import Record, to_json_dict
from apk_atomic.session import Work


class Clock:
    """Seconds that each step took."""

    def __init__(self) -> None:
        self.durations: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.durations[name] = round(time.monotonic() - start, 4)


def user_name() -> str:
    """Who typed it: the user behind doas or sudo, else the user that runs us."""
    name = os.environ.get("DOAS_USER") or os.environ.get("SUDO_USER")
    if name:
        return name
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def write_record(work: Work, record: Record) -> None:
    """`snapshots/ID/generation.json`, durable when this returns."""
    directory = files.open_beneath(work.volume.top, f"{SNAPSHOTS}/{record.id}", os.O_RDONLY | os.O_DIRECTORY)
    try:
        data = json.dumps(to_json_dict(record), indent=1, ensure_ascii=True).encode()
        files.write_durable(directory, RECORD, data + b"\n", 0o600)
    finally:
        os.close(directory)
    point("record")
