"""Loop devices over a part of an image file, or of a disk whose kernel makes no partition nodes.

By ioctl and not by losetup(8): a device that is attached with LO_FLAGS_AUTOCLEAR goes with its last user, so it goes
with us however we end. Nothing here is durable; who writes through a device syncs it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

from apk_atomic.errors import AtomicError

# <linux/loop.h>
_CONFIGURE, _CLR_FD, _GET_FREE = 0x4C0A, 0x4C01, 0x4C82
_AUTOCLEAR, _NAME_SIZE, _CONFIG_SIZE = 4, 64, 304
_CONFIG = struct.Struct(f"=II 3Q Q Q II II {_NAME_SIZE}s")  # loop_config: fd, block_size, loop_info64 up to its name
_ATTEMPTS = 64  # somebody else may take the free device first
_FORGET = 0x50009405  # BTRFS_IOC_FORGET_DEV, <linux/btrfs.h>
_WAIT, _POLL = 10.0, 0.01  # seconds until a device has let go


@contextmanager
def attached(path: str, offset: int = 0, size: int = 0) -> Iterator[str]:
    """The node of a loop device over `size` bytes (0: all) of `path` from `offset` on; gone afterwards.

    Raises AtomicError where there is none to be had, and when it is still in use in the end.
    """
    backing = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        device = _attach(backing, path, offset, size)
    finally:
        os.close(backing)
    node = os.readlink(f"/proc/self/fd/{device}")
    try:
        yield node
    finally:
        _detach(device, node, os.path.realpath(path))


def over(path: str) -> tuple[str, ...]:
    """Nodes of the loop devices that have the file `path` attached now."""
    wanted = os.path.realpath(path)
    names = (name for name in os.listdir("/sys/block") if name.startswith("loop"))
    return tuple(sorted(f"/dev/{name}" for name in names if _backing(name) == wanted))


def _attach(backing: int, path: str, offset: int, size: int) -> int:
    config = bytearray(_CONFIG_SIZE)
    name = os.fsencode(path)[-_NAME_SIZE + 1 :]
    _CONFIG.pack_into(config, 0, backing, 0, 0, 0, 0, offset, size, 0, 0, 0, _AUTOCLEAR, name)
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise AtomicError(f"there are no loop devices here: {error.strerror}", hint="modprobe loop") from error
    try:
        for _ in range(_ATTEMPTS):
            device = os.open(f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}", os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _CONFIGURE, config)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise AtomicError(f"cannot attach {path} to a loop device: {error.strerror}") from error
            else:
                return device
    finally:
        os.close(control)
    raise AtomicError(f"cannot attach {path}: no loop device is free")


def _detach(device: int, node: str, path: str) -> None:
    """Syncs, lets go, and waits until the kernel has too: what follows may want the file for itself."""
    try:
        os.fsync(device)
        fcntl.ioctl(device, _CLR_FD, 0)
    finally:
        os.close(device)
    deadline = time.monotonic() + _WAIT
    while _backing(os.path.basename(node)) == path:
        if time.monotonic() > deadline:
            raise AtomicError(f"{node}, attached to {path}, is still in use", hint=f"losetup --detach {node}")
        time.sleep(_POLL)
    _forget(node)


def _forget(node: str) -> None:
    """btrfs remembers where it saw a file system, and would mistake the next one on this node for a moved one."""
    argument = bytearray(4096)
    argument[8 : 8 + len(node)] = node.encode()
    try:
        control = os.open("/dev/btrfs-control", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return  # then btrfs has seen nothing
    try:
        fcntl.ioctl(control, _FORGET, argument)
    except OSError as error:
        # ENOENT: never scanned. EBUSY: somebody has taken the number and mounted it.
        if error.errno not in (errno.ENOENT, errno.EBUSY, errno.ENOTTY):
            raise
    finally:
        os.close(control)


def _backing(name: str) -> str:
    """The file behind loop device `name`; "" where none is attached. Two devices over parts of one file share it."""
    try:
        with open(f"/sys/block/{name}/loop/backing_file", errors="surrogateescape") as file:
            return file.read().rstrip("\n")
    except OSError:
        return ""
