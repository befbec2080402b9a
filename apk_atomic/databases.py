"""apk's installed database in base and in the staged root: what a change did to it.

Both are read in pieces and compared as they are read; only what differs is kept. Base is looked through while apk is
at work, so that afterwards the time depends on the change and not on the size of the system. Nothing is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import NamedTuple, TypeVar

from apk_atomic import installed, lookup
from apk_atomic.installed import Package, Source
from apk_atomic.model import PackageChanges

T = TypeVar("T")
_APK = "apk-tools"


@contextmanager
def opened(root: int) -> Iterator[Source]:
    """The database of a root, to be read in pieces; empty where there is none (see `Databases`)."""
    with _file(root) as fd:
        yield _source(fd)


def _file(root: int) -> AbstractContextManager[int | None]:
    return lookup.opened(root, installed.DATABASE)


def _source(fd: int | None) -> Source:
    size = 0 if fd is None else os.fstat(fd).st_size
    if fd is None or size > installed.LIMIT:
        return installed.source(b"")
    return Source(size, lambda at, length: os.pread(fd, length, at))


class _Apart(NamedTuple):
    """The records of base, and those of the staged root, between what both begin and what both end with."""

    old: bytes
    new: bytes


_SAME = _Apart(b"", b"")


class _Base(NamedTuple):
    """What is asked of base in every transaction."""

    broken: frozenset[str]
    apk: Package | None


class Databases:
    """`base` and `root` are directory descriptors of the sealed base and of the staged root, a fresh snapshot of it.

    What is missing, no regular file or larger than any database (`installed.LIMIT`) counts as empty. Every method
    raises OSError when the disk cannot be read. Answers are of now: the staged one is read again when it was replaced
    or written to.

    Until `close` the file of the fresh snapshot is held open, and read in place of base's: apk reads it too, and what
    one has read need not come from the disk again. It stays what it is when apk replaces it.
    """

    def __init__(self, base: int, root: int) -> None:
        self._base_root = base
        self._root = root
        self._held = lookup.open_file(root, installed.DATABASE)
        self._fresh = _state_of(self._held)
        self._state: tuple[int, ...] | None = None
        self._last = _SAME

    def close(self) -> None:
        """Lets go of the held file, which must not be there any more when the staged root is searched or sealed."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def prepare(self) -> None:
        """Looks through base, for the answers to come; the sooner, the more of it apk need not read from the disk."""
        self.broken_before()

    def settle(self) -> None:
        """The change is over: finds what it did, and closes."""
        self._apart()
        self.close()

    def broken_before(self) -> frozenset[str]:
        """Names of the packages that are flagged in base."""
        return self._base.broken

    def broken(self) -> frozenset[str]:
        """Names of the packages that are flagged in the staged root."""
        apart = self._apart()
        return self._base.broken - installed.broken(apart.old) | installed.broken(apart.new)

    def find(self, name: str) -> Package | None:
        """A package of the staged root."""
        apart = self._apart()
        found = installed.find(apart.new, name)
        if found or installed.find(apart.old, name):
            return found
        return self._base.apk if name == _APK else self._of_base(lambda base: _find(base, name))

    def apk_version(self) -> str:
        """The version of the staged root's package apk-tools, "" where it has none."""
        found = self.find(_APK)
        return found.version if found else ""

    def changes(self) -> PackageChanges:
        """What was added, removed, upgraded and rebuilt."""
        apart = self._apart()
        return installed.compare(installed.packages(apart.old), installed.packages(apart.new))

    def new_files(self) -> tuple[str, ...]:
        """Paths (no leading slash) of the files of every package that came or changed."""
        return installed.new_files(*self._apart())

    @cached_property
    def _base(self) -> _Base:
        return self._of_base(_looked_through)

    def _of_base(self, ask: Callable[[Source], T]) -> T:
        """An answer from the held file, unless somebody has written to it; else from base's."""
        if self._is_intact():
            answer = ask(_source(self._held))
            if self._is_intact():
                return answer
        with opened(self._base_root) as base:
            return ask(base)

    def _is_intact(self) -> bool:
        """Its ctime changes when it is replaced, and nothing else does."""
        return self._held is not None and _state_of(self._held)[:-1] == self._fresh[:-1]

    def _apart(self) -> _Apart:
        with _file(self._root) as fd:
            state = _state_of(fd)
            if state == self._fresh:
                return _SAME
            if state != self._state:
                staged = _source(fd)
                self._last = self._of_base(lambda base: _Apart(*installed.parts_apart(base, staged)))
                self._state = state
            return self._last


def _find(database: Source, name: str) -> Package | None:
    return next((found for block in installed.blocks(database) if (found := installed.find(block, name))), None)


def _looked_through(database: Source) -> _Base:
    broken: set[str] = set()
    apk: Package | None = None
    for block in installed.blocks(database):
        broken |= installed.broken(block)
        apk = apk or installed.find(block, _APK)
    return _Base(frozenset(broken), apk)


def _state_of(fd: int | None) -> tuple[int, ...]:
    """Of a database: differs once it was replaced (the inode) or written to."""
    if fd is None:
        return ()
    found = os.fstat(fd)
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
