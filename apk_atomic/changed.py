"""What a change left different in the staged root: by the inodes that are newer, never by a walk.

The same list serves the question whether anything changed at all, the initramfs, the proof and the warnings. It knows
nothing of mounts: who asks says where each subvolume of the generation belongs. Nothing is written.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from typing import NamedTuple

from apk_atomic import btrfs, btrfs_trees, files, lookup
from apk_atomic.btrfs_trees import ChangedInode
from apk_atomic.names import is_below

_PREFIXES_IGNORED = ("var/cache/apk", "var/log/apk.log")
_PREFIXES_COMPARED = ("lib/apk/db", "usr/lib/apk/db", "etc/apk", "etc/resolv.conf")
_FSTAB = "etc/fstab"
_LOCK = "lib/apk/db/lock"
_COMPARE_LIMIT = 1 << 28  # bytes; what is larger counts as changed


class Part(NamedTuple):
    """A subvolume of a generation, in base and as it is staged: directory descriptors of both.

    `place` is where the generation has it, relative to its root: "" for `@`, "usr" for one that is mounted at /usr.
    """

    place: str
    base: int
    staged: int

    def full(self, name: str) -> str:
        """The path relative to the generation's root of `name`, which is relative to this part."""
        return os.path.normpath(f"{self.place}/{name}" if self.place else name)


class Changed(NamedTuple):
    """Paths relative to the root, without a leading slash; each hard link of a changed inode is one.

    `removed` are names that a directory had in base and lost (a file or a whole tree). `relevant`: whether anything
    differs but apk's own rewriting of the same bytes.
    """

    paths: tuple[str, ...]
    removed: tuple[str, ...]
    relevant: bool


def compare(parts: Iterable[Part], rendered_fstab: bytes) -> Changed:
    """Compares what is staged with base, of which it is a snapshot; `rendered_fstab` is what we wrote as etc/fstab.

    Flushes the volume first: the search reads what was committed.
    """
    found = [_compare(part, rendered_fstab) for part in parts]
    return Changed(
        tuple(sorted(path for each in found for path in each.paths)),
        tuple(sorted(path for each in found for path in each.removed)),
        any(each.relevant for each in found),
    )


def _compare(part: Part, rendered_fstab: bytes) -> Changed:
    files.syncfs(part.staged)
    since = btrfs.subvolume_info(part.staged).otransid
    directories: dict[int, str] = {}
    paths: list[str] = []
    removed: list[str] = []
    relevant = False
    for inode in btrfs_trees.changed_inodes(part.staged, since):
        names = btrfs_trees.inode_paths(part.staged, inode.ino, directories)
        paths += map(part.full, names)
        if inode.is_dir:
            removed += _lost_names(part, names)
        relevant = relevant or any(_matters(part, inode, name, rendered_fstab) for name in names)
    relevant = relevant or any(not is_below(name, *_PREFIXES_IGNORED) for name in removed)
    return Changed(tuple(paths), tuple(removed), relevant)


def _lost_names(part: Part, names: list[str]) -> list[str]:
    """Entries that a directory has in base and no longer in what is staged; also of one that was made anew there."""
    lost = []
    for name in names:
        try:
            gone = set(files.list_names(part.base, name)) - set(files.list_names(part.staged, name))
        except OSError:
            continue  # base has no directory at this place
        lost += [part.full(f"{name}/{entry}") for entry in gone]
    return lost


def _matters(part: Part, inode: ChangedInode, name: str, rendered_fstab: bytes) -> bool:
    place = part.full(name)
    if is_below(place, *_PREFIXES_IGNORED):
        return False
    if inode.is_dir:
        return not _same_directory(part, name)
    if place == _FSTAB:
        return not _is_fstab_of_ours(part, inode, name, rendered_fstab)
    if is_below(place, *_PREFIXES_COMPARED) and stat.S_ISREG(inode.mode):
        return not _same_file(part, name)
    return True



def _is_fstab_of_ours(part: Part, inode: ChangedInode, name: str, rendered: bytes) -> bool:
    """Still the file that was written when the root was staged, whatever base has in its place."""
    as_written = (inode.mode, inode.uid, inode.nlink) == (stat.S_IFREG | 0o644, 0, 1)
    return as_written and _content(part.staged, name) == rendered


def _same_directory(part: Part, name: str) -> bool:
    """Equal mode, owner, attributes and names: what apk leaves behind where it made and removed a temporary file."""
    try:
        if _attributes(part.base, name) != _attributes(part.staged, name):
            return False
        return _judged_names(part, part.base, name) == _judged_names(part, part.staged, name)
    except OSError:
        return False


def _judged_names(part: Part, root: int, name: str) -> set[str]:
    """The entries of a directory but those whose coming is no change: our fstab, the cache, the log, the lock."""
    paths = {part.full(f"{name}/{entry}") for entry in files.list_names(root, name)}
    ignored = (*_PREFIXES_IGNORED, _FSTAB)
    return {path for path in paths if not is_below(path, *ignored) and not path.endswith(_LOCK)}


def _same_file(part: Part, name: str) -> bool:
    try:
        if _attributes(part.base, name) != _attributes(part.staged, name):
            return False
    except OSError:
        return part.full(name).endswith(_LOCK)  # made on the first use of a root, always empty
    with lookup.opened(part.base, name) as before, lookup.opened(part.staged, name) as after:
        if before is None or after is None or os.fstat(after).st_size > _COMPARE_LIMIT:
            return False
        return lookup.same_bytes(before, after)


def _content(root: int, name: str) -> bytes | None:
    try:
        return files.read_file(root, name, _COMPARE_LIMIT)
    except OSError:
        return None


def _attributes(root: int, name: str) -> tuple[int, int, int, int, tuple[tuple[str, bytes], ...]]:
    """Everything but names and content; the size of a file is here since most that differ need not be read then."""
    fd = files.open_beneath(root, name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        found = os.fstat(fd)
        extended = tuple((key, os.getxattr(fd, key)) for key in sorted(os.listxattr(fd)))
        size = 0 if stat.S_ISDIR(found.st_mode) else found.st_size
        return found.st_mode, found.st_uid, found.st_gid, size, extended
    finally:
        os.close(fd)
