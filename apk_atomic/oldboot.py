"""A /boot that is not in the old root's subvolume: mounted aside, and what it holds copied into the staged root.

It is only read. What belongs to boot loaders stays where it is. Nothing here is durable: the seal is.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress

from apk_atomic import btrfs, disks, files, kernel, mounts, newroot, removal
from apk_atomic.errors import CheckFailed, NoSpace
from apk_atomic.lock import RUN
from apk_atomic.oldfstab import Separate
from apk_atomic.volume import Volume

_BOOT = f"{RUN}/boot"
_LOADERS = ("efi", "EFI", "lost+found", "grub", "loader", "limine", "syslinux", "extlinux", "extlinux.conf")
_KINDS = ("vfat", "ext4", "ext2", "btrfs", "xfs")  # what an fstab line with `auto` may mean
_LARGEST = 1 << 30  # bytes of a file in /boot
_SUBVOLUME = ("subvol=", "subvolid=")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


def copy(opened: Volume, live: int, separate: Separate, root: int) -> None:
    """Copies what a /boot of its own holds into boot/ of `root`; `live` is the old root.

    Raises CheckFailed where it is not here, or is no /boot; NoSpace, before a byte is written, where it is too large.
    """
    device = disks.find(separate.device)
    if not device:
        raise CheckFailed(f"/boot is on {separate.device}, which is not here; nothing was changed")
    os.makedirs(_BOOT, mode=0o700, exist_ok=True)
    _mount(device, separate)
    try:
        source = os.open(_BOOT, _DIRECTORY | os.O_CLOEXEC)
        try:
            _require_boot(opened, live, source)
            _require_room(opened, source)
            target = newroot.make_directory(root, "boot")
            try:
                _copy_directory(source, target, _LOADERS)
            finally:
                os.close(target)
        finally:
            os.close(source)
    finally:
        mounts.unmount(_BOOT)


def _mount(device: str, separate: Separate) -> None:
    """Read-only, or as it is mounted already: a file system is one or the other everywhere."""
    failure: OSError | None = None
    for kind in _KINDS if separate.fstype == "auto" else (separate.fstype,):
        wanted = [each for each in separate.options if kind == "btrfs" and each.startswith(_SUBVOLUME)]
        for flags in (mounts.RDONLY, 0):
            try:
                mounts.mount(device, _BOOT, kind, flags | mounts.NOSUID | mounts.NODEV, ",".join(wanted))
            except OSError as error:
                failure = failure or error
            else:
                return
    text = f"/boot on {device} cannot be mounted: {failure.strerror if failure else ''}; nothing was changed"
    raise CheckFailed(text, hint="dmesg says why")


def _require_boot(opened: Volume, live: int, source: int) -> None:
    """That it is not the top level of the volume, with all that is on it, nor the old root."""
    if not btrfs.is_btrfs(source) or btrfs.fs_info(source).fsid != opened.fsid:
        return
    if btrfs.subvolume_id(source) in (btrfs.TOP_LEVEL_ID, btrfs.subvolume_id(live)):
        raise CheckFailed(
            "what etc/fstab mounts at /boot is the whole volume, or its root; nothing was changed",
            hint="write subvol=PATH of the subvolume that /boot is into its line of etc/fstab",
        )


def _require_room(opened: Volume, source: int) -> None:
    has, needs = btrfs.space(opened.top).data_free, 0
    for size in _sizes(source, os.fstat(source).st_dev, _LOADERS):
        needs += size
        if needs > has:
            text = f"/boot is larger than what is free on the volume, {has >> 20} MiB; nothing was changed"
            raise NoSpace(text, hint="remove what is no kernel from /boot, or make room on the volume")


def _sizes(directory: int, device: int, without: tuple[str, ...]) -> Iterator[int]:
    """Bytes of each file that would be copied."""
    for name in sorted(set(os.listdir(directory)) - set(without)):
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISREG(status.st_mode):
            yield status.st_size
        elif stat.S_ISDIR(status.st_mode) and status.st_dev == device:
            below = files.open_entry(directory, name, _DIRECTORY)
            try:
                yield from _sizes(below, device, ())
            finally:
                os.close(below)


def _copy_directory(source: int, target: int, without: tuple[str, ...]) -> None:
    """Files, links and directories, but no subvolumes inside; a FAT has no modes, so that they are as packages have
    them."""
    device = os.fstat(source).st_dev
    for name in sorted(set(os.listdir(source)) - set(without)):
        status = os.stat(name, dir_fd=source, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode) and status.st_dev == device:
            _copy_below(source, target, name)
        elif stat.S_ISLNK(status.st_mode):
            _remove(target, name)
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        elif stat.S_ISREG(status.st_mode):
            mode = 0o600 if name.startswith(kernel.IMAGE_PREFIXES) else 0o644
            newroot.write(target, name, files.read_file(source, name, _LARGEST), mode)


def _copy_below(source: int, target: int, name: str) -> None:
    below = files.open_entry(source, name, _DIRECTORY)
    try:
        inside = newroot.make_directory(target, name)
        try:
            _copy_directory(below, inside, ())
        finally:
            os.close(inside)
    finally:
        os.close(below)


def _remove(target: int, name: str) -> None:
    """What a link takes the place of, in the snapshot."""
    with suppress(FileNotFoundError):
        removal.remove_tree(target, name, foreign=_remove_placeholder)


def _remove_placeholder(directory: int, name: str) -> None:
    """The empty directory that a snapshot has for a subvolume."""
    os.rmdir(name, dir_fd=directory)
