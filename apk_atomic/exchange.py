"""Two names of one file system exchanged in one step, renameat2(2): at no time is one of them missing.

Not durable by itself: after a power cut, either both are exchanged or none is.
"""

from __future__ import annotations

import ctypes
import errno
import os

_EXCHANGE = 1 << 1  # RENAME_EXCHANGE, <linux/fs.h>
# syscall(2) numbers: musl has no wrapper; the second table is of 32-bit programs, by what uname(2) calls the machine
_RENAMEAT2 = {"x86_64": 316, "aarch64": 276, "riscv64": 276, "loongarch64": 276, "ppc64le": 357, "s390x": 347}
_RENAMEAT2_32 = {"x86_64": 353, "i686": 353, "i586": 353, "aarch64": 382, "armv8l": 382, "armv7l": 382, "armv6l": 382}


def exchange(one_fd: int, one: str, other_fd: int, other: str) -> None:
    """What entry `one` of directory `one_fd` was, is entry `other` of `other_fd` after it, and the other way round.

    Both have to be there (FileNotFoundError). Subvolumes can be exchanged as well. ENOSYS on an unknown machine.
    """
    table = _RENAMEAT2 if ctypes.sizeof(ctypes.c_void_p) == 8 else _RENAMEAT2_32
    number = table.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), other)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(number), one_fd, os.fsencode(one), other_fd, os.fsencode(other), _EXCHANGE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), other)
