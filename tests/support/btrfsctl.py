"""The few btrfs ioctls with which tests lay out and inspect volumes, independent of the code under test."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import uuid
from pathlib import Path

SUBVOL_CREATE, SNAP_CREATE_V2, SNAP_DESTROY = 0x5000940E, 0x50009417, 0x5000940F
GET_FLAGS, SET_FLAGS = 0x80089419, 0x4008941A
READ_ONLY = 2
SUPERBLOCK_FSID = 0x10020
FIRST_INODE = 256


def make_filesystem(image: Path, size: int) -> None:
    """A sparse image of `size` bytes with an empty btrfs labelled ROOT."""
    with open(image, "xb") as out:
        out.truncate(size)
    subprocess.run(["mkfs.btrfs", "-q", "-L", "ROOT", image], check=True, stdout=subprocess.DEVNULL)


def renew_fsid(image: Path) -> None:
    """Give a copied image a file system id of its own, or the kernel takes it for the original."""
    subprocess.run(["btrfstune", "-f", "-m", image], check=True, stdout=subprocess.DEVNULL)


def fsid_of(image: Path) -> str:
    """The file system id as `UUID=` in an fstab wants it."""
    with open(image, "rb") as stream:
        stream.seek(SUPERBLOCK_FSID)
        return str(uuid.UUID(bytes=stream.read(16)))


def create_subvolume(path: Path) -> None:
    """`btrfs subvolume create`."""
    _on_directory(path.parent, SUBVOL_CREATE, struct.pack("=q4088s", 0, os.fsencode(path.name)))


def snapshot(source: Path, target: Path, *, read_only: bool) -> None:
    """`btrfs subvolume snapshot [-r]`."""
    with _Directory(source) as origin:
        flags = READ_ONLY if read_only else 0
        argument = struct.pack("=qQQ32s4040s", origin, 0, flags, b"", os.fsencode(target.name))
        _on_directory(target.parent, SNAP_CREATE_V2, argument)


def destroy_subvolume(path: Path) -> None:
    """`btrfs subvolume delete`."""
    _on_directory(path.parent, SNAP_DESTROY, struct.pack("=q4088s", 0, os.fsencode(path.name)))


def set_read_only(path: Path, read_only: bool) -> None:
    """`btrfs property set PATH ro`."""
    _on_directory(path, SET_FLAGS, struct.pack("=Q", READ_ONLY if read_only else 0))


def is_read_only(path: Path) -> bool:
    """`btrfs property get PATH ro`."""
    argument = bytearray(8)
    with _Directory(path) as directory:
        fcntl.ioctl(directory, GET_FLAGS, argument)
    return bool(struct.unpack("=Q", argument)[0] & READ_ONLY)


def is_subvolume(path: Path) -> bool:
    """Is this path the root of a subvolume? (They all have inode 256.)"""
    return path.is_dir() and not path.is_symlink() and path.stat().st_ino == FIRST_INODE


class _Directory:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> int:
        self._fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _on_directory(path: Path, request: int, argument: bytes) -> None:
    with _Directory(path) as directory:
        fcntl.ioctl(directory, request, bytearray(argument))
