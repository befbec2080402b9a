"""What a change left different in the staged root: by the inodes that are newer, never by a walk.

The same list serves the question whether anything changed at all, the initramfs, the proof and the warnings.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from apk_atomic import btrfs, btrfs_trees, files
from apk_atomic.btrfs_trees import ChangedInode

_PREFIXES_IGNORED = ("var/cache/apk", "var/log/apk.log", "etc/resolv.conf")
_PREFIXES_COMPARED = ("lib/apk/db", "usr/lib/apk/db", "etc/apk", "etc/fstab")
_LOCK = "lib/apk/db/lock"
_COMPARE_LIMIT = 1 << 28  # bytes; what is larger counts as changed


@dataclass(frozen=True, slots=True)
class Changed:
    """Paths relative to the root, without a leading slash; each hard link of a changed inode is one.

    `removed` are names that a directory had in base and lost (a file or a whole tree). `relevant`: whether anything
    differs but apk's own rewriting of the same bytes.
    """

    paths: tuple[str, ...]
    removed: tuple[str, ...]
    relevant: bool


def compare(base: int, staged: int, rendered_fstab: bytes | None) -> Changed:
    """Compares the staged root with base, of which it is a snapshot; `rendered_fstab` is what we wrote as etc/fstab.

    Both are directory descriptors. Flushes the volume first: the search reads what was committed.
    """
    files.syncfs(staged)
    inodes = btrfs_trees.changed_inodes(staged, btrfs.subvolume_info(staged).otransid)
    directories: dict[int, str] = {}
    paths: list[str] = []
    removed: list[str] = []
    relevant = False
    for inode in inodes:
        names = btrfs_trees.inode_paths(staged, inode.ino, directories)
        paths += names
        if inode.is_dir and inode.created <= btrfs.subvolume_info(staged).otransid:
            removed += _lost_names(base, staged, names)
        relevant = relevant or any(_matters(base, staged, inode, name, rendered_fstab) for name in names)
    return Changed(tuple(sorted(paths)), tuple(sorted(removed)), relevant or bool(_mattering(removed)))


def _mattering(removed: list[str]) -> list[str]:
    return [name for name in removed if not _is_below(name, _PREFIXES_IGNORED)]


def _lost_names(base: int, staged: int, names: list[str]) -> list[str]:
    """Entries that a directory has in base and no longer in the staged root."""
    lost = []
    for name in names:
        try:
            gone = set(files.list_names(base, name)) - set(files.list_names(staged, name))
        except OSError:
            continue  # the directory is new at this place
        lost += [os.path.normpath(f"{name}/{entry}") for entry in gone]
    return lost


def _matters(base: int, staged: int, inode: ChangedInode, name: str, rendered_fstab: bytes | None) -> bool:
    if _is_below(name, _PREFIXES_IGNORED):
        return False
    if inode.is_dir:
        return not _same_directory(base, staged, name)
    if name == "etc/fstab" and rendered_fstab is not None:
        return _content(staged, name) != rendered_fstab
    if _is_below(name, _PREFIXES_COMPARED) and stat.S_ISREG(inode.mode):
        return not _same_file(base, staged, name)
    return True


def _is_below(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + "/") for prefix in prefixes)


def _same_directory(base: int, staged: int, name: str) -> bool:
    """Equal mode, owner, attributes and names: what apk leaves behind where it made and removed a temporary file."""
    try:
        if _attributes(base, name) != _attributes(staged, name):
            return False
        return _judged_names(base, name) == _judged_names(staged, name)
    except OSError:
        return False


def _judged_names(root: int, name: str) -> set[str]:
    """The entries of a directory but those whose coming and going is no change: the cache, the log, the lock."""
    paths = {os.path.normpath(f"{name}/{entry}") for entry in files.list_names(root, name)}
    return {path for path in paths if not _is_below(path, _PREFIXES_IGNORED) and not path.endswith(_LOCK)}


def _same_file(base: int, staged: int, name: str) -> bool:
    try:
        if _attributes(base, name) != _attributes(staged, name):
            return False
    except OSError:
        return name.endswith(_LOCK)  # made on the first use of a root, always empty
    return _content(base, name) == _content(staged, name)


def _content(root: int, name: str) -> bytes | None:
    try:
        return files.read_file(root, name, _COMPARE_LIMIT)
    except OSError:
        return None


def _attributes(root: int, name: str) -> tuple[int, int, int, tuple[tuple[str, bytes], ...]]:
    fd = files.open_beneath(root, name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        found = os.fstat(fd)
        extended = tuple((key, os.getxattr(fd, key)) for key in sorted(os.listxattr(fd)))
        return found.st_mode, found.st_uid, found.st_gid, extended
    finally:
        os.close(fd)
