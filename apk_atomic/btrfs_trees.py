"""What a btrfs volume answers by tree search: changed inodes, their names, subvolumes inside subvolumes, the
default one.

Nothing is walked. Searches need CAP_SYS_ADMIN and work on what was committed to the trees: for inodes the
caller must `files.syncfs` first, else recent changes are missed. Use through `btrfs`.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from typing import NamedTuple

from apk_atomic.btrfs_ioctl import (
    DIR_ITEM,
    FIRST_FREE_OBJECTID,
    INODE_EXTREF,
    INODE_ITEM,
    INODE_REF,
    MAX_U64,
    ROOT_REF,
    ROOT_TREE,
    ROOT_TREE_DIR,
    TOP_LEVEL_ID,
    lookup,
    search,
    text,
)

_INODE_ITEM = struct.Struct("<QQQQQIIII")  # its first fields, up to mode
_REF = struct.Struct("<QH")
_EXTREF = struct.Struct("<QQH")
_ROOT_REF = struct.Struct("<QQH")
_DIR_ITEM = struct.Struct("<QBQQHHB")
_LAST_OBJECTID = MAX_U64 - 255  # BTRFS_LAST_FREE_OBJECTID: above are the tree's own objects, such as orphans


class ChangedInode(NamedTuple):
    """One inode as it is now. `created` is the transaction that made it: newer than asked for means a new
    inode."""

    ino: int
    transid: int
    created: int
    mode: int
    size: int
    nlink: int
    uid: int
    gid: int

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)


class Child(NamedTuple):
    """A subvolume inside another: its name in directory inode `dirid` of that one."""

    id: int
    name: str
    dirid: int


def changed_inodes(fd: int, since_transid: int) -> list[ChangedInode]:
    """The inodes of the subvolume of `fd` that a transaction after `since_transid` touched, by inode number.

    For a fresh snapshot `since_transid` is its own `otransid`. Content, names, owners, modes and xattrs all
    count; a deleted or moved file shows as its directory. A deleted but still open file comes with nlink 0.
    Nested subvolumes are not entered. Call syncfs first.
    """
    low, high = (FIRST_FREE_OBJECTID, INODE_ITEM, 0), (_LAST_OBJECTID, INODE_ITEM, 0)
    found = []
    for (ino, item_type, _), item in search(fd, 0, low, high, min_transid=since_transid + 1):
        if item_type != INODE_ITEM:
            continue
        created, transid, size, _, _, nlink, uid, gid, mode = _INODE_ITEM.unpack_from(item)
        if transid > since_transid:  # a changed leaf also brings its unchanged items
            found.append(ChangedInode(ino, transid, created, mode, size, nlink, uid, gid))
    return found


def inode_paths(fd: int, ino: int, directories: dict[int, str] | None = None) -> list[str]:
    """Every name (hard link) of inode `ino` in the subvolume of `fd`, sorted, relative to its root; [] when
    it has none.

    The root itself is ".". `directories` caches the paths of parents; pass one dict to all calls on an
    unchanging subvolume.
    """
    if ino == FIRST_FREE_OBJECTID:
        return ["."]
    cache = {} if directories is None else directories
    paths = []
    for parent, name in _links(fd, ino):
        if parent not in cache:
            cache[parent] = lookup(fd, 0, parent)[1]
        paths.append(cache[parent] + name)
    return sorted(paths)


def default_subvolume(fd: int) -> int:
    """The id of the volume's default subvolume; 5, the top level, where none is recorded. `fd`: anything on
    the volume."""
    low, high = (ROOT_TREE_DIR, DIR_ITEM, 0), (ROOT_TREE_DIR, DIR_ITEM, MAX_U64)
    for _, item in search(fd, ROOT_TREE, low, high):
        at = 0
        while at < len(item):
            target, _, _, _, data_length, length, _ = _DIR_ITEM.unpack_from(item, at)
            at += _DIR_ITEM.size
            if bytes(item[at : at + length]) == b"default":
                return int(target)
            at += length + data_length
    return TOP_LEVEL_ID


def children(fd: int, subvolume: int) -> list[Child]:
    """The subvolumes directly inside subvolume id `subvolume`, by id; `fd`: anything on the volume.

    Deleted ones are not among them, even while the cleaner still works on them. Sees committed state and the
    running transaction alike.
    """
    low, high = (subvolume, ROOT_REF, 0), (subvolume, ROOT_REF, MAX_U64)
    found = []
    for (_, _, child), item in search(fd, ROOT_TREE, low, high):
        dirid, _, length = _ROOT_REF.unpack_from(item)
        name = bytes(item[_ROOT_REF.size : _ROOT_REF.size + length])
        found.append(Child(child, os.fsdecode(name), dirid))
    return found


def _links(fd: int, ino: int) -> Iterator[tuple[int, str]]:
    """Parent directory and name of each link; those that do not fit one item per directory are extended
    refs."""
    low, high = (ino, INODE_REF, 0), (ino, INODE_EXTREF, MAX_U64)
    for (_, item_type, offset), item in search(fd, 0, low, high):
        at = 0
        while at < len(item):
            if item_type == INODE_REF:
                parent, (_, length) = offset, _REF.unpack_from(item, at)
                at += _REF.size
            else:
                parent, _, length = _EXTREF.unpack_from(item, at)
                at += _EXTREF.size
            yield parent, text(bytes(item[at : at + length]))
            at += length
