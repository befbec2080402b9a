"""The raw btrfs interface: request numbers, argument layouts, one call, one search (linux/btrfs.h,
btrfs_tree.h).

It knows no policy and no meaning: `btrfs` and `btrfs_trees` give these calls their words. Layouts are
native, so they hold where 64-bit integers are aligned to 4 bytes (32-bit x86); items found in a tree are
little-endian as on disk.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator

Key = tuple[int, int, int]  # object id, item type, offset

FIRST_FREE_OBJECTID = 256  # inode number of every subvolume's root directory
ROOT_TREE = 1
ROOT_TREE_DIR = 6
TOP_LEVEL_ID = 5
INODE_ITEM, INODE_REF, INODE_EXTREF, DIR_ITEM, ROOT_REF = 1, 12, 13, 84, 156
MAX_U64 = 2**64 - 1

_NONE, _WRITE, _READ = 0, 1, 2


def _request(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | 0x94 << 8 | number


VOL_ARGS_V2 = struct.Struct("@qQQ4Q4040s")
INO_LOOKUP_ARGS = struct.Struct("@QQ4080s")
SEARCH_KEY = struct.Struct("@7Q4I4Q")
SEARCH_ARGS_V2 = struct.Struct("@7Q4I4QQ")
SEARCH_HEADER = struct.Struct("@QQQII")
SPACE_ARGS = struct.Struct("@QQ")
SPACE_INFO = struct.Struct("@QQQ")
FLAGS = struct.Struct("@Q")
DEV_INFO_ARGS = struct.Struct("@Q16sQQ3032s1024s")
FS_INFO_ARGS = struct.Struct("@QQ16sIIIHHQQ16s944s")
SUBVOL_INFO_ARGS = struct.Struct("@Q256sQQQQ16s16s16sQQQQQIQIQIQI8Q")

IOC_SYNC = _request(_NONE, 8, 0)
IOC_TREE_SEARCH_V2 = _request(_READ | _WRITE, 17, SEARCH_ARGS_V2.size)
IOC_INO_LOOKUP = _request(_READ | _WRITE, 18, INO_LOOKUP_ARGS.size)
IOC_SPACE_INFO = _request(_READ | _WRITE, 20, SPACE_ARGS.size)
IOC_SNAP_CREATE_V2 = _request(_WRITE, 23, VOL_ARGS_V2.size)
IOC_SUBVOL_CREATE_V2 = _request(_WRITE, 24, VOL_ARGS_V2.size)
IOC_SUBVOL_GETFLAGS = _request(_READ, 25, FLAGS.size)
IOC_SUBVOL_SETFLAGS = _request(_WRITE, 26, FLAGS.size)
IOC_DEV_INFO = _request(_READ | _WRITE, 30, DEV_INFO_ARGS.size)
IOC_FS_INFO = _request(_READ, 31, FS_INFO_ARGS.size)
IOC_GET_SUBVOL_INFO = _request(_READ, 60, SUBVOL_INFO_ARGS.size)
IOC_SNAP_DESTROY_V2 = _request(_WRITE, 63, VOL_ARGS_V2.size)

_SEARCH_BUFFER = 65536  # any item with its header: it is smaller than a node, at most 64 KiB


def call(fd: int, request: int, buffer: bytearray | None, label: str = "") -> None:
    """ioctl(2) on `fd`, in place in `buffer`; OSError names `label`, or else what `fd` is open on.

    Always a bytearray: fcntl refuses immutable bytes above 1024. EINTR is retried, which fcntl.ioctl leaves
    to us.
    """
    while True:
        try:
            fcntl.ioctl(fd, request, 0 if buffer is None else buffer)
            return
        except OSError as failure:
            if failure.errno != errno.EINTR:
                raise OSError(failure.errno, failure.strerror, label or _name_of(fd)) from failure


def _name_of(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return f"descriptor {fd}"


Found = tuple[Key, memoryview]


def search(fd: int, tree: int, low: Key, high: Key, *, min_transid: int = 0) -> Iterator[Found]:
    """Every item of `tree` (0: the subvolume of `fd`) with low <= key <= high, in key order; needs
    CAP_SYS_ADMIN.

    The range is linear: between two object ids it has items of every type. `min_transid` skips *leaves* that
    are older; the items of a newer leaf come all, changed or not.
    """
    while True:
        buffer = bytearray(SEARCH_ARGS_V2.size + _SEARCH_BUFFER)
        objects, types, offsets = zip(low, high, strict=True)
        wanted = (tree, *objects, *offsets, min_transid, MAX_U64, *types, 2**32 - 1, 0, 0, 0, 0, 0)
        SEARCH_ARGS_V2.pack_into(buffer, 0, *wanted, _SEARCH_BUFFER)
        call(fd, IOC_TREE_SEARCH_V2, buffer, f"btrfs tree {tree}")
        count = SEARCH_KEY.unpack_from(buffer)[9]
        if count == 0:
            return
        at, view = SEARCH_ARGS_V2.size, memoryview(buffer)
        for _ in range(count):
            _, object_id, offset, item_type, length = SEARCH_HEADER.unpack_from(buffer, at)
            at += SEARCH_HEADER.size
            low = (object_id, item_type, offset)
            yield low, view[at : at + length]
            at += length
        if low >= high:
            return
        low = following(low)


def following(key: Key) -> Key:
    """The next key: the three fields are one number of 136 bits."""
    object_id, item_type, offset = key
    if offset < MAX_U64:
        return object_id, item_type, offset + 1
    if item_type < 255:
        return object_id, item_type + 1, 0
    return object_id + 1, 0, 0


def lookup(fd: int, tree: int, inode: int) -> tuple[int, str]:
    """INO_LOOKUP: the id of `tree` (0: the subvolume of `fd`) and the path of directory `inode` in it, "" or
    ending in "/"."""
    buffer = bytearray(INO_LOOKUP_ARGS.pack(tree, inode, b""))
    call(fd, IOC_INO_LOOKUP, buffer, f"inode {inode} of btrfs tree {tree}")
    found, _, path = INO_LOOKUP_ARGS.unpack(buffer)
    return found, text(path)


def text(field: bytes) -> str:
    """The string in a fixed field, up to its NUL."""
    return os.fsdecode(field.split(b"\0", 1)[0])
