"""Loop devices that the kernel detaches by itself once their last user is gone, and strict mounts.

With the mount namespace of the test process (isolation) a killed session leaves neither mount nor device.
Knows nothing of btrfs layouts. Nothing here is durable.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
import time
from pathlib import Path

MS_NOATIME = 1024
MNT_DETACH = 2
LOOP_CONFIGURE, LOOP_CLR_FD, LOOP_CTL_GET_FREE = 0x4C0A, 0x4C01, 0x4C82
LOOP_CONFIG_SIZE, FLAGS_OFFSET, NAME_OFFSET, NAME_SIZE = 304, 8 + 52, 8 + 56, 63
LO_FLAGS_AUTOCLEAR = 4
BTRFS_IOC_FORGET_DEV = 0x50009405
ATTACH_ATTEMPTS = 50
RELEASE_SECONDS = 10.0
BUSY_SECONDS = 1.0

_libc = ctypes.CDLL(None, use_errno=True)


def mount_btrfs(device: str, target: Path, options: str = "", flags: int = MS_NOATIME) -> None:
    """mount(2); `options` are btrfs's own, flags those of the kernel."""
    target.mkdir(exist_ok=True)
    done = _libc.mount(
        device.encode(), os.fsencode(target), b"btrfs", ctypes.c_ulong(flags), options.encode()
    )
    _check(done, target)


def unmount(target: Path) -> None:
    """umount2(2). Something that is still in use is unmounted lazily, and reported all the same (EBUSY).

    In use for a moment is what a child has that another thread is just starting: until it executes something it has
    every descriptor of ours.
    """
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return _check(_libc.umount2(os.fsencode(target), 0), target)
        except OSError as error:
            if error.errno == errno.EBUSY and time.monotonic() < deadline:
                time.sleep(0.02)
                continue
            _check(_libc.umount2(os.fsencode(target), MNT_DETACH), target)
            raise


def _check(result: int, target: Path) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))


class Loop:
    """A loop device over a file; `path` is its node."""

    def __init__(self, image: Path) -> None:
        self.image = image
        self._fd = _attach(image)
        self.path = os.readlink(f"/proc/self/fd/{self._fd}")

    def detach(self) -> None:
        """Let go of the device and wait until the kernel has too; TimeoutError if something still uses it."""
        if self._fd >= 0:
            self.let_go()
            self._wait()

    def let_go(self) -> None:
        """Leave it to the kernel to detach the device when its last user is gone."""
        # Without this a device that nobody ever opened again would stay: autoclear acts at a mount's end.
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._fd, LOOP_CLR_FD, 0)
        os.close(self._fd)
        self._fd = -1

    def _wait(self) -> None:
        deadline = time.monotonic() + RELEASE_SECONDS
        while self._attached():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.path} is still in use")
            time.sleep(0.002)
        _forget(self.path)

    def _attached(self) -> bool:
        """Does the device still hold our image? (Another session may have taken its number.)"""
        try:
            backing = Path(f"/sys/block/{os.path.basename(self.path)}/loop/backing_file").read_text()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
                return False
            raise
        return backing.rstrip("\n") == str(self.image)


def _attach(image: Path) -> int:
    """A descriptor of a fresh loop device over `image`; another process may win the race for a free one."""
    with open(image, "r+b") as backing, open("/dev/loop-control", "r+b", buffering=0) as control:
        config = bytearray(LOOP_CONFIG_SIZE)
        struct.pack_into("=I", config, 0, backing.fileno())
        struct.pack_into("=I", config, FLAGS_OFFSET, LO_FLAGS_AUTOCLEAR)
        struct.pack_into(f"={NAME_SIZE}s", config, NAME_OFFSET, os.fsencode(image)[-NAME_SIZE:])
        for _ in range(ATTACH_ATTEMPTS):
            node = f"/dev/loop{fcntl.ioctl(control, LOOP_CTL_GET_FREE)}"
            device = os.open(node, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise
            else:
                return device
    raise OSError(errno.EBUSY, "no free loop device", str(image))


def _forget(device: str) -> None:
    """`btrfs device scan --forget DEVICE`: images that are clones of each other must not be confused."""
    argument = bytearray(4096)
    argument[8 : 8 + len(device)] = device.encode()
    with open("/dev/btrfs-control", "r+b", buffering=0) as control:
        try:
            fcntl.ioctl(control, BTRFS_IOC_FORGET_DEV, argument)
        except OSError as error:
            # ENOENT: never scanned. EBUSY: another session has taken the number and mounted it.
            if error.errno not in (errno.ENOENT, errno.EBUSY):
                raise
