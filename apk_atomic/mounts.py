"""mount(2), its relatives and the mount table: thin system calls, no policy.

Paths inside a root that is not ours are given as descriptors (`descriptor_path`), so that no symbolic link of that
root can lead a mount to the host.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from typing import NamedTuple

from apk_atomic.names import is_below

# <sys/mount.h>
RDONLY, NOSUID, NODEV, NOEXEC = 0x1, 0x2, 0x4, 0x8
REMOUNT, NOATIME, BIND, REC = 0x20, 0x400, 0x1000, 0x4000
PRIVATE, SLAVE = 0x40000, 0x80000
DETACH = 2  # umount2(2)

# <sched.h>
NEWNS, NEWPID = 0x00020000, 0x20000000

_libc = ctypes.CDLL(None, use_errno=True)
# syscall(2) numbers of pivot_root, which has no wrapper in libc
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217, "loongarch64": 41}
_PIVOT_ROOT_32 = {"armv7l": 218, "armv8l": 218, "armv6l": 218, "i686": 217, "i586": 217, "x86_64": 217}


class Mount(NamedTuple):
    """A line of /proc/PID/mountinfo, proc_pid_mountinfo(5); `root` is field 4, `source` field 10."""

    device: str
    root: str
    point: str
    fstype: str
    source: str
    super_options: tuple[str, ...]


def _checked(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def unshare(flags: int) -> None:
    """unshare(2); OSError (EPERM: not root)."""
    _checked(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2); OSError names the target."""
    encoded = [os.fsencode(text) if text else None for text in (source, target, fstype)]
    options = os.fsencode(data) if data else None
    _checked(_libc.mount(*encoded, ctypes.c_ulong(flags), options), f"mount of {source or fstype} at {target}")


def unmount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _checked(_libc.umount2(os.fsencode(target), flags), f"unmount of {target}")


def make_private() -> None:
    """A new mount namespace for this process; nothing mounted from now on is seen outside it."""
    unshare(NEWNS)
    mount("", "/", flags=REC | PRIVATE)


def pivot_to(path: str) -> None:
    """Makes the mount at `path` the root of this process; the old root is detached, no path leads to it."""
    machine = os.uname().machine
    table = _PIVOT_ROOT if ctypes.sizeof(ctypes.c_void_p) == 8 else _PIVOT_ROOT_32
    os.chdir(path)
    # pivot_root(2), "pivot_root(".", ".")": the old root is stacked on the new one and comes off at once
    _checked(_libc.syscall(ctypes.c_long(table[machine]), b".", b"."), f"pivot_root to {path}")
    unmount(".", DETACH)
    os.chdir("/")


def descriptor_path(fd: int) -> str:
    """A path that names exactly what the descriptor is open on."""
    return f"/proc/self/fd/{fd}"


def _unescape(field: str) -> str:
    """The kernel writes blanks, backslashes and `#` as three octal digits (mangle in fs/proc_namespace.c)."""
    head, *parts = field.split("\\")
    return head + "".join(_character(part[:3]) + part[3:] for part in parts)


def _character(digits: str) -> str:
    """What `digits` stand for after a backslash; the text itself where they are no such digits."""
    return chr(int(digits, 8)) if len(digits) == 3 and not digits.strip("01234567") else "\\" + digits


def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    """The mounts of a mountinfo file, oldest first."""
    found = []
    for line in text.split("\n"):  # splitlines() also splits at what names may contain
        left, _, right = line.partition(" - ")
        before, after = left.split(" "), right.split(" ")
        if len(before) < 6 or len(after) < 3:
            continue
        found.append(
            Mount(
                device=before[2],
                root=_unescape(before[3]),
                point=_unescape(before[4]),
                fstype=after[0],
                source=_unescape(after[1]),
                super_options=tuple(map(_unescape, after[2].split(","))),
            )
        )
    return tuple(found)


def mount_table(process: str = "self") -> tuple[Mount, ...]:
    """What is mounted in the namespace of a process; OSError where it is gone."""
    table = os.open(f"/proc/{process}/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(table, 1 << 16):
            parts.append(part)
    finally:
        os.close(table)
    return parse_mountinfo(b"".join(parts).decode("utf-8", "surrogateescape"))


# a process that has ended, or is a zombie, or is not for us to look into
_NOT_TO_BE_SEEN = (errno.ENOENT, errno.ESRCH, errno.EINVAL, errno.EACCES, errno.EPERM)


def mount_tables() -> Iterator[tuple[Mount, ...]]:
    """The mount tables of all processes, each once: those with the same namespace and root share one.

    To ask what a process shares costs a tenth of making and parsing its table. OSError where one that is alive cannot
    be read for want of memory or the like: then nobody knows what is mounted.
    """
    seen = set()
    for process in os.listdir("/proc"):
        if process.isdigit():
            try:
                view = _view_of(process)
                if view not in seen:
                    yield mount_table(process)
                    seen.add(view)
            except OSError as error:
                if error.errno not in _NOT_TO_BE_SEEN:
                    raise


def _view_of(process: str) -> tuple[int, str, int, int]:
    """What decides which mounts a process sees: its mount namespace, and its root in there."""
    root = f"/proc/{process}/root"
    found = os.stat(root)
    return os.stat(f"/proc/{process}/ns/mnt").st_ino, os.readlink(root), found.st_dev, found.st_ino


def covering(path: str, table: tuple[Mount, ...]) -> Mount | None:
    """The mount that `path` (absolute, normalised) lies in: the longest mount point above it, the latest of those."""
    best: Mount | None = None
    for entry in table:
        if is_below(path, entry.point) and (best is None or len(entry.point) >= len(best.point)):
            best = entry
    return best
