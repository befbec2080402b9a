"""apk 3's configuration file, which may hold `simulate` or `root` and so decides what a line is (facts: apk-cli, 2.2).

The one of the root that apk runs in counts, unless $APK_CONFIG names one of the caller's.
"""

from __future__ import annotations

import os

from apk_atomic import cmdline, lookup
from apk_atomic.cmdline import Kind, Line

_PLACES = ("etc/apk/config", "lib/apk/config")
_LIMIT = 1 << 20  # bytes


class SortedAgain(Exception):
    """A line, which nothing has come of yet, is of another kind; `line` says which."""

    def __init__(self, line: Line) -> None:
        super().__init__()
        self.line = line


def lines(root: int) -> list[str]:
    """The lines of the file that counts for an apk in the root that `root` is a descriptor of."""
    named = os.environ.get("APK_CONFIG")
    if named is not None:
        return _text(_of_the_caller(named))
    return _text(next((data for path in _PLACES if (data := lookup.read(root, path, _LIMIT)) is not None), b""))


def require_sorted(line: Line, root: int) -> None:
    """Raises SortedAgain where the configuration of `root`, in which apk is to run, makes a change of what is dealt
    with as a simulation, or the other way round."""
    again = cmdline.parse(line.words, lines(root))._replace(atomic=line.atomic)
    if {again.kind, line.kind} == {Kind.CHANGE, Kind.SIMULATE}:
        raise SortedAgain(again)


def _of_the_caller(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_LIMIT)
    except OSError:
        return b""


def _text(data: bytes) -> list[str]:
    return data.decode("utf-8", "surrogateescape").splitlines()
