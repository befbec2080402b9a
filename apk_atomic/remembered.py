"""What one unattended run leaves for the next, and what who goes back leaves for it, in `state/` at the top level:
`auto.json` and `denied.json`.

Both are durable when written, under the volume's lock. A file that is missing or damaged says nothing, and nobody is
stopped by it.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

from apk_atomic import autoplan, files, installed, volume
from apk_atomic.autoplan import Denied, Memory
from apk_atomic.errors import CheckFailed
from apk_atomic.faults import point
from apk_atomic.model import State
from apk_atomic.names import iso_utc
from apk_atomic.volume import Volume

MEMORY, DENIED = "auto.json", "denied.json"
_STATE = "state"
_LIMIT = 1 << 22  # bytes


def memory(opened: Volume) -> Memory:
    """What the runs before have left."""
    return autoplan.parse_memory(_read(opened, MEMORY))


def remember(opened: Volume, memory: Memory) -> None:
    """Replaces it."""
    _write(opened, MEMORY, autoplan.format_memory(memory))
    point("remembered")


def denied(opened: Volume) -> tuple[Denied, ...]:
    """The package sets that failed or that somebody went back from, oldest first."""
    return autoplan.parse_denied(_read(opened, DENIED))


def deny(opened: Volume, entry: Denied) -> None:
    """Adds one."""
    _write(opened, DENIED, autoplan.format_denied((*denied(opened), entry)))


def went_back(opened: Volume, state: State, left: str, target: str) -> None:
    """`left` is no longer next, but `target`: what it brought over that is held back, if it is the newer one."""
    before, after = state.find(left), state.find(target)
    if before is None or after is None or before.order <= after.order:
        return
    versions = packages(opened, left)
    gone = autoplan.brought_over(packages(opened, target), versions)
    if gone:
        why = f"somebody went back from generation {left}, which had these packages,"
        deny(opened, Denied(autoplan.fingerprint(versions), iso_utc(time.time()), why, tuple(sorted(gone))))


def packages(opened: Volume, name: str) -> dict[str, str]:
    """The package set of a generation, name to version; {} where it cannot be read."""
    try:
        root = volume.open_root(opened, name)
    except CheckFailed:
        return {}
    try:
        found = installed.packages(files.read_file(root, installed.DATABASE, installed.LIMIT, resolve=files.IN_ROOT))
    except OSError:
        return {}
    finally:
        os.close(root)
    return {name: package.version for name, package in found.items()}


def _read(opened: Volume, name: str) -> bytes:
    try:
        return files.read_file(opened.top, f"{_STATE}/{name}", _LIMIT)
    except OSError:
        return b""


def _write(opened: Volume, name: str, data: bytes) -> None:
    with suppress(FileExistsError):
        os.mkdir(_STATE, 0o755, dir_fd=opened.top)
    files.write_durable(opened.top, f"{_STATE}/{name}", data, 0o600)
