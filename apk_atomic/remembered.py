"""What one unattended run leaves for the next, in `state/` at the top level: `auto.json` and `denied.json`.

Both are durable when written, under the volume's lock. A file that is missing or damaged says nothing, and nobody is
stopped by it.
"""

from __future__ import annotations

import os
from contextlib import suppress

from apk_atomic import autoplan, files
from apk_atomic.autoplan import Denied, Memory
from apk_atomic.faults import point
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
    """The package sets that failed, oldest first."""
    return autoplan.parse_denied(_read(opened, DENIED))


def deny(opened: Volume, entry: Denied) -> None:
    """Adds one."""
    _write(opened, DENIED, autoplan.format_denied((*denied(opened), entry)))


def _read(opened: Volume, name: str) -> bytes:
    try:
        return files.read_file(opened.top, f"{_STATE}/{name}", _LIMIT)
    except OSError:
        return b""


def _write(opened: Volume, name: str, data: bytes) -> None:
    with suppress(FileExistsError):
        os.mkdir(_STATE, 0o755, dir_fd=opened.top)
    files.write_durable(opened.top, f"{_STATE}/{name}", data, 0o600)
