"""/run/apk-atomic.auto, by which the periodic jobs know whether a run was missed, and when to come again.

Its mtime is when the daily job started the last run, for the job of each quarter of an hour, which starts one 26 hours
later: an earlier mtime makes that sooner. Its content is what failed last: `ROW TOLD WHAT`. Without the jobs there is
no such file, and none is made. Nothing here is durable: after a boot the jobs look anyway.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import NamedTuple

from apk_atomic.errors import AtomicError, ChangeFailed, Locked, NoSpace
from apk_atomic.schedule import HOUR, again_after

SEEN = "/run/apk-atomic.auto"
PATIENCE = 26 * HOUR  # from the last run that did not fail to the next one
_TELL_AGAIN = 20 * HOUR  # what has failed for days is told once in each of them
_LIMIT = 1000  # bytes


class _Failure(NamedTuple):
    """The last of so many in a `row`; `told`: when somebody was told of `what`."""

    row: int
    told: float
    what: str


_NONE = _Failure(0, 0.0, "")


def look_in(now: float, seconds: float) -> None:
    """The jobs look again in so many seconds."""
    with suppress(OSError):
        os.utime(SEEN, (now, now - PATIENCE + seconds))


def failed(now: float, error: AtomicError) -> bool:
    """A run of the jobs failed; whether that is news. They come again the sooner, the fewer have failed in a row, where
    what failed can pass by itself."""
    before, what = _read(), _words(error.message)
    news = before.what != what or not 0 <= now - before.told < _TELL_AGAIN
    row = before.row + 1
    _write(_Failure(row, now if news else before.told, what))
    if isinstance(error, Locked | NoSpace) or (isinstance(error, ChangeFailed) and not error.broken):
        look_in(now, again_after(row))
    return news


def _words(message: str) -> str:
    """What failed, without what differs each time: numbers, and what apk said."""
    said = message.partition(";")[0]
    return " ".join("".join(char for char in said if not char.isdigit()).split())


def ended() -> None:
    """A run of the jobs did not fail."""
    if _read() != _NONE:
        _write(_NONE)


def _read() -> _Failure:
    try:
        with open(SEEN, encoding="utf-8", errors="replace") as file:
            row, told, what = file.read(_LIMIT).rstrip("\n").split(" ", 2)
        return _Failure(int(row), float(told), what)
    except (OSError, ValueError):
        return _NONE


def _write(failure: _Failure) -> None:
    text = f"{failure.row} {failure.told:.0f} {failure.what}\n" if failure.row else ""
    with suppress(OSError):
        fd = os.open(SEEN, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            seen = os.fstat(fd)
            os.write(fd, text.encode(errors="replace")[:_LIMIT])
            os.utime(fd, ns=(seen.st_atime_ns, seen.st_mtime_ns))
        finally:
            os.close(fd)
