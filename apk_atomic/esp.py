"""The EFI system partition: reading and replacing files on its FAT, mounted, or by mtools where the kernel has no vfat.

Every file is written under a new name, flushed, and takes the old one's place, so that a power cut leaves either.
It must not know what the files are. Durable when `write` returns: that file. Paths have no leading slash.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from apk_atomic import files, fstab, mounts, process
from apk_atomic.errors import CannotRun, CheckFailed, UsageError
from apk_atomic.esp_mtools import ByTools
from apk_atomic.esp_types import LIMIT, Esp, refused
from apk_atomic.lock import RUN, make_run_directory
from apk_atomic.signals import Signals

PLACE = f"{RUN}/esp"
_VFAT = 0x4D44  # MSDOS_SUPER_MAGIC
_FLAGS = mounts.NOSUID | mounts.NODEV | mounts.NOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_USUAL = ("/boot/efi", "/efi", "/boot")


@contextmanager
def opened(place: str, signals: Signals, *, writable: bool = True) -> Iterator[Esp]:
    """The ESP that `place` names: a block device, or a directory where it is mounted.

    A device is mounted in the mount namespace of this process, which has to be private already; unless `writable`,
    nothing is changed on it. Raises UsageError for what is neither, and where nothing can be written, CheckFailed for a
    device that cannot be mounted, and Unseen where nothing here could read it.
    """
    try:
        found = os.stat(place)
    except OSError as error:
        raise UsageError(f"the ESP {place}: {error.strerror}") from error
    is_directory = stat.S_ISDIR(found.st_mode)
    there = place if is_directory or writable else _mounted_place(found.st_rdev)
    if is_directory and writable:
        _require_writable(place)
    if is_directory or (there and not writable):
        yield from _in_directory(there, mounted_at(there), writable=writable)
    elif not stat.S_ISBLK(found.st_mode):
        raise UsageError(f"the ESP {place} is neither a block device nor a directory")
    elif _mount(place, writable=writable):
        try:
            yield from _in_directory(PLACE, os.path.realpath(place), writable=writable)
        finally:
            mounts.unmount(PLACE)
    else:
        yield ByTools(os.path.realpath(place), signals)


def usual_place(text: str, signals: Signals, *, running: bool) -> str:
    """Where the ESP is that goes with a root whose etc/fstab is `text`: a directory, or a device; "" for unknown.

    `running`: that root runs here, so what is mounted at the usual places counts first.
    """
    table = mounts.mount_table() if running else ()
    for point in _USUAL:
        if any(mount.point == point and mount.fstype == "vfat" for mount in table):
            return point
    for entry in fstab.parse(text):
        if entry.fstype == "vfat" and entry.mountpoint in _USUAL:
            return _device(entry.device, signals)
    return ""


def _device(spec: str, signals: Signals) -> str:
    """The device of an fstab line's first field; "" where it is not here. findfs is util-linux's or busybox's."""
    if spec.startswith("/"):
        return spec if os.path.exists(spec) else ""
    with suppress(CannotRun):
        done = process.run(["findfs", spec], signals)
        return done.output.strip() if not done.status else ""
    return ""


def mounted_at(directory: str) -> str:
    """The block device that `directory` is on; "" for none that we could open."""
    cover = mounts.covering(os.path.realpath(directory), mounts.mount_table())
    source = cover.source if cover else ""
    with suppress(OSError):
        if stat.S_ISBLK(os.stat(source).st_mode):
            return os.path.realpath(source)
    return ""


def is_mount_point(directory: str) -> bool:
    """Whether something is mounted at `directory` itself: an ESP's files would else be on what lies below."""
    real = os.path.realpath(directory)
    return any(mount.point == real for mount in mounts.mount_table())


def _require_writable(directory: str) -> None:
    """Raises UsageError for a directory of a sealed root, and an ESP that is mounted read-only."""
    if not os.statvfs(directory).f_flag & os.ST_RDONLY:
        return
    if is_mount_point(directory):
        hint = f"mount -o remount,rw {directory}"
        raise UsageError(f"the ESP {directory} is mounted read-only; nothing was changed", hint=hint)
    hint = f"mount {directory}, or --esp with the device"
    raise UsageError(f"the ESP {directory}: nothing is mounted there; nothing was changed", hint=hint)


def _mounted_place(number: int) -> str:
    """Where the block device `number` is mounted as a FAT; "" for nowhere. The kernel refuses a second mount that is
    read-only where the first is not."""
    name = f"{os.major(number)}:{os.minor(number)}"
    table = mounts.mount_table() if number else ()
    return next((mount.point for mount in table if mount.device == name and mount.fstype == "vfat"), "")


def _in_directory(path: str, device: str, *, writable: bool) -> Iterator[Esp]:
    directory = os.open(path, _DIRECTORY | os.O_CLOEXEC)
    try:
        yield _Mounted(directory, device)
        if writable:
            files.syncfs(directory)
    finally:
        os.close(directory)


def _mount(device: str, *, writable: bool) -> bool:
    """False where the kernel does not know vfat; the system call makes it load the module if there is one."""
    make_run_directory()
    os.makedirs(PLACE, mode=0o700, exist_ok=True)
    try:
        mounts.mount(device, PLACE, "vfat", _FLAGS | (0 if writable else mounts.RDONLY))
    except OSError as error:
        if error.errno == errno.ENODEV:
            return False
        raise CheckFailed(f"{device} cannot be mounted as an ESP: {error.strerror}") from error
    return True


class _Mounted:
    """A directory of the ESP's file system, or of any other that somebody calls one."""

    def __init__(self, directory: int, device: str) -> None:
        self._directory = directory
        self.device = device
        self.is_fat = files.fs_magic(directory) == _VFAT

    def read(self, path: str) -> bytes | None:
        try:
            return files.read_file(self._directory, path, LIMIT)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise CheckFailed(f"{path} of the ESP cannot be read: {error.strerror}") from error

    def write(self, path: str, data: bytes) -> None:
        try:
            self._make_parents(path)
            self.tidy(path)
            with self._kept(path):
                files.write_durable(self._directory, path, data, 0o755)
                files.syncfs(self._directory)
        except OSError as error:
            raise refused(path, error.strerror or "", full=error.errno in (errno.ENOSPC, errno.EDQUOT)) from error

    @contextmanager
    def _kept(self, path: str) -> Iterator[None]:
        """The old file stays open, so that vfat does not free its clusters before the new one has its place on the
        disk: it writes the name of a renamed file only when that file's inode is written, for which an fsync of the
        directory is not enough (fs/fat/namei_vfat.c)."""
        try:
            old = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
        except FileNotFoundError:
            yield
            return
        try:
            yield
        finally:
            os.close(old)

    def free(self) -> int | None:
        room = os.fstatvfs(self._directory)
        return room.f_bavail * room.f_frsize

    def _make_parents(self, path: str) -> None:
        """A new directory's name is flushed by whoever flushes the directory that it is in."""
        parts = path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            with suppress(FileExistsError):
                os.mkdir("/".join(parts[:depth]), 0o755, dir_fd=self._directory)
                files.fsync_dir(self._directory, "/".join(parts[: depth - 1]) or ".")

    def tidy(self, path: str) -> None:
        directory = os.path.dirname(path)
        for name in files.list_names(self._directory, directory or "."):
            if name.startswith(files.TEMP_PREFIX):
                os.unlink(f"{directory}/{name}", dir_fd=self._directory)
