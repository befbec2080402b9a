"""Commit protocols, one right and four known to be wrong: what the crash-test instruments are tried on.

They use nothing of apk-atomic's, so that they cannot share its mistakes. Each function makes generation NEW
from OLD and returns when it would report success. Must be given the top level of a volume from `lay_out`.
"""

from __future__ import annotations

import fcntl
import os
import random
from pathlib import Path

from tests.support import btrfsctl
from tests.support.powercut import flush

OLD, NEW = "20240101000000aaaaaaaa", "20240102000000bbbbbbbb"
SLOTS = 3
START_SYNC, WAIT_SYNC = 0x80089418, 0x40089416


def lay_out(top: Path) -> None:
    """A volume with one generation: 60 small files, a few links, all slots on it; durable."""
    for name in ("links", "next", "snapshots", "staging", f"snapshots/{OLD}"):
        (top / name).mkdir()
    tree = top / "snapshots" / OLD / "@"
    btrfsctl.create_subvolume(tree)
    content = random.Random(1)
    for directory in ("etc", "lib", "boot"):
        (tree / directory).mkdir()
        for number in range(20):
            (tree / directory / f"file{number}").write_bytes(content.randbytes(300 * number))
        (tree / directory / "link").symlink_to("file1")
    btrfsctl.set_read_only(tree, True)
    _links(top, OLD)
    (top / "current").symlink_to(f"./links/{OLD}")
    flush(top)


def change(tree: Path) -> None:
    """As a package manager does: new files, some lines changed, a file gone, one renamed into place."""
    content = random.Random(2)
    for number in range(12):
        (tree / "lib" / f"new{number}").write_bytes(content.randbytes(30_000))
    for number in range(5, 9):
        (tree / "etc" / f"file{number}").write_bytes(content.randbytes(50))
    (tree / "etc/file9").unlink()
    (tree / "boot/.kernel").write_bytes(content.randbytes(200_000))
    (tree / "boot/.kernel").rename(tree / "boot/file2")


def right(top: Path) -> None:
    """links and scratch link, seal by a read-only snapshot, rename, syncfs."""
    work = _stage(top)
    _links(top, NEW)
    _scratch(top)
    _seal(top, work)
    _switch(top)
    flush(top)


def late_links(top: Path) -> None:
    """The links are made after the seal, so the fsync of the top directory does not carry them."""
    _seal(top, _stage(top))
    _links(top, NEW)
    _scratch(top)
    _switch(top)
    _fsync(top)


def no_sync(top: Path) -> None:
    """Success is reported while the rename is in memory only."""
    work = _stage(top)
    _links(top, NEW)
    _scratch(top)
    _seal(top, work)
    _switch(top)


def fsync_top(top: Path) -> None:
    """fsync of the top directory instead of syncfs: in the log tree, which no boot loader replays."""
    no_sync(top)
    _fsync(top)


def read_only_flag(top: Path) -> None:
    """The ro property instead of a snapshot: the commit that carries the rename does not flush file data."""
    work = _stage(top)
    _links(top, NEW)
    _scratch(top)
    (top / "snapshots" / NEW).mkdir()
    work.rename(top / "snapshots" / NEW / "@")
    btrfsctl.set_read_only(top / "snapshots" / NEW / "@", True)
    _switch(top)
    commit_metadata(top)


def commit_metadata(top: Path) -> None:
    """What the kernel does by itself every 30 s: commit the transaction, without flushing dirty file data."""
    handle = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        transaction = bytearray(8)
        fcntl.ioctl(handle, START_SYNC, transaction)
        fcntl.ioctl(handle, WAIT_SYNC, transaction)
    finally:
        os.close(handle)


def _stage(top: Path) -> Path:
    work = top / "staging" / NEW / "@"
    work.parent.mkdir()
    btrfsctl.snapshot(top / "snapshots" / OLD / "@", work, read_only=False)
    change(work)
    return work


def _links(top: Path, name: str) -> None:
    (top / "links" / name).mkdir()
    for slot in range(SLOTS):
        generation = name if slot == 0 else OLD
        (top / "links" / name / str(slot)).symlink_to(f"../../snapshots/{generation}")


def _scratch(top: Path) -> None:
    (top / "next" / f"current-{NEW}").symlink_to(f"./links/{NEW}")


def _seal(top: Path, work: Path) -> None:
    (top / "snapshots" / NEW).mkdir()
    btrfsctl.snapshot(work, top / "snapshots" / NEW / "@", read_only=True)


def _switch(top: Path) -> None:
    (top / "next" / f"current-{NEW}").rename(top / "current")


def _fsync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
