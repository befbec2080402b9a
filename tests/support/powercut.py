"""Power cuts and failing disks under a btrfs volume: record each write and flush below it; replay them.

    with recorded(image, workdir) as recorder:                   # image: a file, it is written to
        with mounted(recorder.device) as top:
            ...                                                  # bring the volume into its old state
            flush(top)
            recorder.mark("begin")
            ...                                                  # what is tested
            recorder.mark("success")                             # the moment that it reported success
    for state in states(recorder.log, recorder.base, workdir, Plan(first="begin")):
        with attach(state.image, BOOT_LOADER_VIEW) as top: ...   # what a boot loader sees: no log replay
        with attach(state.image, KERNEL_VIEW) as top: ...        # what the kernel mounts
        state.passed("success")                                  # may success have been reported by then?

A program under test can mark by itself: pass it `recorder.marks_fd` and let it write `name\\n` there. The
states are made in `replay` and judged in `judge`; this must not know what a generation is. Mounts are made in
the mount namespace of the test process. Nothing here is durable.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support import fusefile
from tests.support.blockdev import Loop, mount_btrfs, unmount
from tests.support.fusefile import Fault
from tests.support.isolation import copy_sparse, private_mounts
from tests.support.replay import Event, Mark, Plan, State, read_log, states

__all__ = [
    "BOOT_LOADER_VIEW", "KERNEL_VIEW", "Fault", "Mark", "Plan", "Recorder", "State", "attach", "attached",
    "flush", "mounted", "recorded", "states", "unavailable",
]  # fmt: skip

BOOT_LOADER_VIEW = "ro,rescue=nologreplay,subvolid=5"
KERNEL_VIEW = "subvolid=5"
_FLAGS = {"rw": 0, "ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "noatime": 1024}
_PATIENCE = 5.0
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Recorder:
    """A disk under record: `device` is the block device, `base` the image as it was at the start."""

    device: str
    base: Path
    log_path: Path
    marks_fd: int

    @property
    def log(self) -> tuple[Event, ...]:
        """What was recorded so far; complete after the `with` block."""
        return read_log(self.log_path)

    def mark(self, name: str) -> None:
        """Note this moment: what the disk has answered comes before it, what it is asked later after."""
        os.write(self.marks_fd, name.encode() + b"\n")

    def fault(self, fault: Fault, *, after: int = 0) -> None:
        """From now on, or after so many more writes, the disk fails or lies; `Fault.NONE` heals it.

        What it refuses or forgets is neither logged nor in the image.
        """
        self.mark(f"{fault.value} {after}" if after else fault.value)


def unavailable() -> str | None:
    """Why power cuts cannot be recorded here, or None if they can."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [node for node in ("/dev/fuse", "/dev/loop-control") if not os.path.exists(node)]
    return f"needs {missing[0]}" if missing else None


def flush(top: Path) -> None:
    """syncfs(2) of the volume mounted there."""
    handle = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(handle) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(top))
    finally:
        os.close(handle)


@contextmanager
def recorded(image: Path, workdir: Path) -> Iterator[Recorder]:
    """Put `image` on a loop device that logs; what was in it before counts as flushed.

    Use recorder.device inside the block and leave nothing mounted there. Base and log stay in `workdir` (best
    in /dev/shm): the states are replayed after the block.
    """
    private_mounts()
    name = f"{image.name}.{time.monotonic_ns()}"
    base, log, disk = (workdir / f"{name}.{kind}" for kind in ("base", "log", "disk"))
    copy_sparse(image, base)
    with ExitStack() as stack:
        disk.touch()
        stack.callback(disk.unlink)
        server, marks_fd = _serve(disk, image, log)
        stack.callback(_stop, server, marks_fd)
        stack.callback(_unmount, disk)
        loop = Loop(disk)
        stack.callback(loop.detach)
        yield Recorder(loop.path, base, log, marks_fd)


def _serve(disk: Path, image: Path, log: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Mount the one-file system on `disk`; the process that serves it, the writing end of its marks pipe."""
    with ExitStack() as stack:
        # Names are unique, so a log that exists already is a mistake.
        opened = [
            os.open("/dev/fuse", os.O_RDWR),
            os.open(image, os.O_RDWR),
            os.open(log, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600),
        ]
        for descriptor in opened:
            stack.callback(os.close, descriptor)
        fuse, image_fd, log_fd = opened
        _mount_fuse(fuse, disk)
        marks, marks_writer = os.pipe()
        stack.callback(os.close, marks)
        descriptors = (fuse, marks, image_fd, log_fd)
        argv = [sys.executable, "-I", "-S", fusefile.__file__, str(disk), *map(str, descriptors)]
        server = subprocess.Popen(argv, pass_fds=descriptors, stdin=subprocess.DEVNULL)
        return server, marks_writer


def _mount_fuse(fuse: int, disk: Path) -> None:
    options = f"fd={fuse},rootmode=100600,user_id=0,group_id=0".encode()
    if _libc.mount(b"apk-atomic-recorder", os.fsencode(disk), b"fuse", ctypes.c_ulong(0), options) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(disk))


def _stop(server: subprocess.Popen[bytes], marks_fd: int) -> None:
    """The server ends by itself: its file system is unmounted, or at the latest the marks pipe is closed."""
    os.close(marks_fd)
    try:
        status = server.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
        raise
    if status != 0:
        raise RuntimeError(f"the recorder's server ended with status {status}")


@contextmanager
def mounted(device: str, options: str = KERNEL_VIEW) -> Iterator[Path]:
    """Mount a btrfs device somewhere new, options as in an fstab; OSError if the kernel refuses.

    Not with `ro` alone on an image that must stay as it is: the kernel replays the log tree all the same.
    """
    private_mounts()
    words = [word for word in options.split(",") if word]
    flags = sum(_FLAGS.get(word, 0) for word in words)
    with ExitStack() as stack:
        target = Path(tempfile.mkdtemp(prefix="apk-atomic-top-"))
        stack.callback(target.rmdir)
        mount_btrfs(device, target, ",".join(word for word in words if word not in _FLAGS), flags)
        stack.callback(_unmount, target)
        yield target


@contextmanager
def attached(image: Path) -> Iterator[str]:
    """The image as a plain loop device, for programs that take one; detached and forgotten by btrfs after."""
    loop = Loop(image)
    try:
        yield loop.path
    finally:
        loop.detach()


@contextmanager
def attach(image: Path, options: str = KERNEL_VIEW) -> Iterator[Path]:
    """`attached` and `mounted` in one; yields the mount point."""
    with attached(image) as device, mounted(device, options) as top:
        yield top


def _unmount(target: Path) -> None:
    """Strict, but with patience for passers-by that hold something open."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return unmount(target)
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.02)
