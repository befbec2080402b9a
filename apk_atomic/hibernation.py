"""Whether a hibernated system waits to come back, which has the volume mounted as it was (facts: alpine-boot 1.7).

What the next boot resumes from stands in state/boot.json, and where that is missing in the command line of this boot.
Nothing is written.
"""

from __future__ import annotations

import json
import os
from typing import NamedTuple

from apk_atomic import disks, files

_CMDLINE = "/proc/cmdline"
_MENU, _LIMIT = "state/boot.json", 1 << 20  # bytes
_SUSPENDED = (b"S1SUSPEND", b"S2SUSPEND", b"LINHIB0001")  # kernel/power/swap.c, and what uswsusp wrote
_PAGES = (4096, 16384, 65536)


class Resume(NamedTuple):
    """`spec` is what stands behind resume=; `offset`, in pages, where a swap file begins on it, 0 for a partition."""

    spec: str
    offset: int = 0


def words_of_next_boot(top: int, *, running: bool, cmdline: str = _CMDLINE) -> str:
    """What of the kernel's command line concerns resuming; `top` is the volume's top level. `running`: the system on
    it runs here."""
    try:
        found = json.loads(files.read_file(top, _MENU, _LIMIT))
        resume, append = found["resume"], found["append"]
        if isinstance(resume, str) and isinstance(append, str):
            return f"resume={resume} {append}" if resume else append
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    if not running:
        return ""
    try:
        with open(cmdline, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 16)
    except OSError:
        return ""


def resume_of(words: str) -> Resume | None:
    """What a kernel with this command line resumes from; None for nothing."""
    spec, offset = "", 0
    for word in words.split():
        key, _, value = word.partition("=")
        if word == "noresume":
            return None
        if key == "resume":
            spec = value
        elif key == "resume_offset" and value.isascii() and value.isdigit() and len(value) < 16:
            offset = int(value)
    return Resume(spec, offset) if spec else None


def is_waiting(resume: Resume) -> bool:
    """Whether a hibernated system is there; False where the device is not, or cannot be read."""
    device = disks.find(resume.spec)
    if not device:
        return False
    try:
        fd = os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return holds_hibernated_system(fd, resume.offset)
    except OSError:
        return False
    finally:
        os.close(fd)


def waiting_in(top: int, *, running: bool) -> Resume | None:
    """Where a hibernated system waits for the next boot of the volume with top level `top`; None for nowhere."""
    found = resume_of(words_of_next_boot(top, running=running))
    return found if found is not None and is_waiting(found) else None


def holds_hibernated_system(fd: int, offset: int = 0) -> bool:
    """Whether the swap device `fd`, or the swap file at page `offset` of it, holds a hibernated system."""
    pages = _PAGES if not offset else (os.sysconf("SC_PAGE_SIZE"),)
    return any(os.pread(fd, 10, (offset + 1) * page - 10).rstrip(b"\0") in _SUSPENDED for page in pages)
