"""One generation as it lies in `snapshots/ID`: the root, and beside it the record and the marks.

They are read as they are, by descriptors; a record or mark that is damaged is as if it were not there. It must not know
which generation a slot names.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os

from apk_atomic import btrfs, files
from apk_atomic.model import DamagedRecord, Generation, Record, from_json_dict

RECORD = "generation.json"
OUR_FILES = frozenset((RECORD, "good", "failed", "attempts", "pinned"))
_RECORD_LIMIT = 1 << 24  # bytes
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


def read(snapshots: int, name: str, *, records: bool = False) -> Generation | None:
    """The generation NAME, with its record if `records`; None where there is no subvolume `@`."""
    try:
        directory = files.open_entry(snapshots, name, _DIRECTORY)
    except OSError:
        return None
    try:
        return _read_in(directory, name, records=records)
    except OSError:
        return None
    finally:
        os.close(directory)


def read_record(top: int, name: str) -> Record | None:
    """What is in `top`, the top level, as the record of NAME; None where it is foreign, or the record damaged."""
    try:
        directory = files.open_beneath(top, f"snapshots/{name}", _DIRECTORY)
    except OSError:
        return None
    try:
        return _record_in(directory)
    finally:
        os.close(directory)


def hold(top: int, name: str) -> int:
    """A descriptor that keeps generation NAME from being collected, as long as anybody has it open.

    FileNotFoundError where it is collected already: who reads without a lock may have chosen it too late.
    """
    path = f"snapshots/{name}"
    directory = files.open_beneath(top, path, _DIRECTORY)
    held = False
    try:
        fcntl.flock(directory, fcntl.LOCK_SH | fcntl.LOCK_NB)
        held = os.path.samestat(os.fstat(directory), os.stat(path, dir_fd=top, follow_symlinks=False))
    except BlockingIOError:
        held = False
    finally:
        if not held:
            os.close(directory)
    if not held:
        raise files.error(errno.ENOENT, path)
    return directory


def claim(snapshots: int, name: str, *, good: bool = False) -> int | None:
    """For who collects generation NAME: a descriptor that holds others off; None where a mark or a reader keeps it, as
    of now, or there is none. `good`: that it is so marked was known when it was chosen."""
    try:
        directory = files.open_entry(snapshots, name, _DIRECTORY)
    except FileNotFoundError:
        return None
    claimed = False
    try:
        if _is_unkept(directory, good=good):  # who reads one that stays is not to be held off
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            claimed = _is_unkept(directory, good=good)
    except BlockingIOError:
        claimed = False
    finally:
        if not claimed:
            os.close(directory)
    return directory if claimed else None


def _is_unkept(directory: int, *, good: bool) -> bool:
    beside = os.listdir(directory)
    return "@" in beside and "pinned" not in beside and (good or "good" not in beside)


def _read_in(directory: int, name: str, *, records: bool) -> Generation | None:
    beside = set(os.listdir(directory))
    if "@" not in beside:
        return None
    root = files.open_entry(directory, "@", _DIRECTORY)
    try:
        if os.fstat(root).st_ino != btrfs.SUBVOLUME_INODE:
            return None
        order, created, sealed = btrfs.rank(root)  # OSError where it is not btrfs
    finally:
        os.close(root)
    return Generation(
        id=name,
        order=order,
        created=created,
        sealed=sealed,
        foreign=not beside & OUR_FILES,
        good="good" in beside,
        failed="failed" in beside,
        pinned="pinned" in beside,
        attempts=_attempts(directory) if "attempts" in beside else 0,
        record=_record_in(directory) if records and RECORD in beside else None,
    )


def _attempts(directory: int) -> int:
    try:
        text = files.read_file(directory, "attempts", 64).strip()
    except OSError:
        return 0
    return int(text) if text.isdigit() else 0


def _record_in(directory: int) -> Record | None:
    try:
        return from_json_dict(json.loads(files.read_file(directory, RECORD, _RECORD_LIMIT)))
    except (OSError, DamagedRecord, ValueError, RecursionError):
        return None
