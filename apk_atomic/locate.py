"""Finding the volume: the running system's, or one that was named; and what of it runs now.

The booted generation is read from field 4 of `/` in the mount table, never from `current`: the kernel follows links
in `subvol=` once, at boot, and shows what they led to (facts: boots-seen, 8).
"""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple

from apk_atomic import btrfs, mounts
from apk_atomic.errors import CheckFailed, NotSuchRoot, UsageError
from apk_atomic.names import is_safe_name

_SUPERBLOCK = 0x10000  # offset of the first superblock, btrfs on-disk format
_HINT = (
    "apk-atomic needs the layout of the Alpine wiki's \"Immutable root with atomic upgrades\"; "
    "apk-atomic adopt gives it to this system, init makes a new one"
)


class Located(NamedTuple):
    """A volume that is not opened yet; `booted` is the ID that runs from it now, None where nothing does."""

    device: str
    fsid: str
    booted: str | None


def running() -> Located:
    """The volume that `/` is on; NotSuchRoot says what `/` is instead."""
    root = root_mount(_mount_table())
    if root.fstype != "btrfs":
        raise NotSuchRoot(f"/ is not on btrfs but on {root.fstype}; nothing was changed", hint=_HINT)
    generation = generation_of(root.root)
    if generation is None and root.root.startswith("/staging/"):
        text = "/ is the root of a change at work, which is no generation yet; nothing was changed"
        raise NotSuchRoot(text, hint="leave this shell first")
    if generation is None:
        raise NotSuchRoot(
            f"/ is {root.root} of its btrfs volume, not a generation (/snapshots/ID/@); nothing was changed", hint=_HINT
        )
    fd = os.open(root.point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return Located(_device(fd, root.source), btrfs.fs_info(fd).fsid, generation)
    finally:
        os.close(fd)


def _mount_table() -> tuple[mounts.Mount, ...]:
    try:
        return mounts.mount_table()
    except OSError as error:
        text = f"the mount table cannot be read: {error.strerror}; is /proc mounted? Nothing was changed"
        raise NotSuchRoot(text) from error


def booted_generation() -> str | None:
    """ID of the generation that `/` is, None when it is none; needs no privilege."""
    try:
        return generation_of(root_mount(_mount_table()).root)
    except NotSuchRoot:
        return None


def named(spec: str) -> Located:
    """The volume of --atomic-volume: a block device, or a directory on the mounted volume."""
    try:
        found = os.stat(spec)
    except OSError as error:
        raise UsageError(f"--atomic-volume {spec}: {error.strerror}; nothing was changed") from error
    if stat.S_ISBLK(found.st_mode):
        located = Located(os.path.realpath(spec), _fsid_on(spec), None)
    elif stat.S_ISDIR(found.st_mode):
        located = _of_directory(spec)
    else:
        raise UsageError(
            f"--atomic-volume {spec} is neither a block device nor a directory; nothing was changed",
            hint=f"an image file is attached with: losetup --find --show {spec}",
        )
    return _running_if_same(located)


def generation_of(subvolume: str) -> str | None:
    """The ID in a subvolume path `/snapshots/ID/@`, None for any other path."""
    parts = subvolume.split("/")
    if len(parts) == 4 and parts[:2] == ["", "snapshots"] and parts[3] == "@" and is_safe_name(parts[2]):
        return parts[2]
    return None


def root_mount(table: tuple[mounts.Mount, ...]) -> mounts.Mount:
    """The mount of `/`, or of the lower layer where `/` is an overlay (overlaytmpfs of mkinitfs)."""
    at_root = [entry for entry in table if entry.point == "/"]
    if not at_root:
        raise NotSuchRoot("the mount table has no /; is /proc mounted? Nothing was changed")
    root = at_root[-1]
    if root.fstype != "overlay":
        return root
    for option in root.super_options:
        name, _, value = option.partition("=")
        if name == "lowerdir":
            lower = value.split(":")[0]
            # the initramfs mounted it below /sysroot, which is / now
            places = {lower, lower.removeprefix("/sysroot")}
            below = [entry for entry in table if entry.point in places and entry.fstype == "btrfs"]
            if below:
                return below[-1]
    return root


def _device(fd: int, source: str) -> str:
    """A block device of the volume that can be opened: the mount's source, else what the kernel remembers.

    Raises CheckFailed where there is none.
    """
    if _is_block_device(source):
        return source
    try:
        return btrfs.device_path(fd)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        text = f"the device of the volume, {source}, is not there; nothing was changed"
        raise CheckFailed(text, hint="is /dev mounted? mdev -s makes what is missing in it") from error


def _is_block_device(path: str) -> bool:
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False


def _of_directory(path: str) -> Located:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not btrfs.is_btrfs(fd):
            raise NotSuchRoot(f"{path} is not on btrfs; nothing was changed", hint=_HINT)
        cover = mounts.covering(os.path.realpath(path), mounts.mount_table())
        return Located(_device(fd, cover.source if cover else ""), btrfs.fs_info(fd).fsid, None)
    finally:
        os.close(fd)


def _fsid_on(device: str) -> str:
    try:
        disk = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        try:
            block = os.pread(disk, 4096, _SUPERBLOCK)  # nothing on a device that is too small
        finally:
            os.close(disk)
    except OSError as error:
        raise NotSuchRoot(f"{device} cannot be read: {error.strerror}; nothing was changed") from error
    if block[0x40:0x48] != b"_BHRfS_M":
        raise NotSuchRoot(f"{device} holds no btrfs; nothing was changed", hint=_HINT)
    text = block[0x20:0x30].hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _running_if_same(located: Located) -> Located:
    try:
        ours = running()
    except NotSuchRoot:
        return located
    return ours if ours.fsid == located.fsid else located
