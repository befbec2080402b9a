"""Immutable and append-only files (chattr +i, +a), which not even root can delete: made ordinary again.

It must not know whose files they are. Nothing here is durable.
"""

from __future__ import annotations

import fcntl
import os
import struct

TYPE_CHECKING = False  # as type checkers read it, without the price of importing typing
if TYPE_CHECKING:
    from collections.abc import Callable

_GETFLAGS, _SETFLAGS = (2 << 30 | 0x6601), (1 << 30 | 0x6602)  # FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, <linux/fs.h>
_LONG = struct.Struct("@l")
_PROTECTING = 0x10 | 0x20  # FS_IMMUTABLE_FL | FS_APPEND_FL
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC


def insist(call: Callable[..., None], name: str, fd: int) -> None:
    """`call(name, dir_fd=fd)`, a deletion or move, even where the entry or its directory `fd` was made immutable."""
    try:
        call(name, dir_fd=fd)
    except PermissionError:
        loosen(fd, ".")
        loosen(fd, name)
        call(name, dir_fd=fd)


def loosen(dirfd: int, name: str) -> None:
    """Takes both attributes from entry `name` of `dirfd`; what cannot be opened or asked has none."""
    try:
        fd = os.open(name, _FLAGS, dir_fd=dirfd)
    except OSError:
        return
    try:
        buffer = bytearray(_LONG.size)
        fcntl.ioctl(fd, _GETFLAGS | _LONG.size << 16, buffer)
        flags: int = _LONG.unpack(buffer)[0]
        if flags & _PROTECTING:
            fcntl.ioctl(fd, _SETFLAGS | _LONG.size << 16, bytearray(_LONG.pack(flags & ~_PROTECTING)))
    except OSError:
        return
    finally:
        os.close(fd)
