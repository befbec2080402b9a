"""apk's installed database in base and in the staged root: what a change did to it.

Both are read in pieces and compared as they are read; only what differs is kept. Base is looked through while apk is
at work, so that afterwards the time depends on the change and not on the size of the system. Nothing is written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import NamedTuple

from apk_atomic import installed, lookup
from apk_atomic.installed import Package, Source
from apk_atomic.model import PackageChanges

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
    """`base` and `root` are directory descriptors of the sealed base and of the staged root, which is a snapshot of it.

    What is missing, no regular file or larger than any database (`installed.LIMIT`) counts as empty. Every method
    raises OSError when the disk cannot be read. Answers are of now: the staged one is read again when it was replaced
    or written to.
    """

    def __init__(self, base: int, root: int) -> None:
        self._base_root = base
        self._root = root
        self._state: tuple[int, ...] | None = None
        self._last = _SAME

    def prepare(self) -> None:
        """Looks through base, for the answers to come."""
        self.broken_before()

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
        return self._base.apk if name == _APK else self._find_in_base(name)

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
        """Read in the staged root while it is the same there: apk reads that file too, so the disk is read once."""
        with _file(self._base_root) as base, _file(self._root) as staged:
            state = _state_of(base)
            if _state_of(staged) == state:
                found = _looked_through(staged)
                if _state_of(staged) == state:  # not written to meanwhile
                    return found
            return _looked_through(base)

    @cached_property
    def _base_state(self) -> tuple[int, ...]:
        return _state(self._base_root)

    def _find_in_base(self, name: str) -> Package | None:
        with opened(self._base_root) as base:
            return next((found for block in installed.blocks(base) if (found := installed.find(block, name))), None)

    def _apart(self) -> _Apart:
        state = _state(self._root)
        if state == self._base_state:  # of a snapshot, the inode too, until it is replaced
            return _SAME
        if state != self._state:
            with opened(self._base_root) as base, opened(self._root) as staged:
                self._last = _Apart(*installed.parts_apart(base, staged))
            self._state = state
        return self._last


def _looked_through(fd: int | None) -> _Base:
    broken: set[str] = set()
    apk: Package | None = None
    for block in installed.blocks(_source(fd)):
        broken |= installed.broken(block)
        apk = apk or installed.find(block, _APK)
    return _Base(frozenset(broken), apk)


def _state(root: int) -> tuple[int, ...]:
    """Differs once the database of a root was replaced or written to."""
    with _file(root) as fd:
        return _state_of(fd)


def _state_of(fd: int | None) -> tuple[int, ...]:
    if fd is None:
        return ()
    found = os.fstat(fd)
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
