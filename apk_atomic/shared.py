"""What a change did outside the generation: in the commons, which are live, and under mount points.

A discard does not take that back, and a commit does not contain it, so the user is told by name (design, section 1 and
section 5).
"""

from __future__ import annotations

import os

from apk_atomic import btrfs, btrfs_trees, files, fstab
from apk_atomic.chroot import Common
from apk_atomic.names import is_below
from apk_atomic.staged import Staged

# apk's own cache and log, and what every daemon writes all the time
_QUIET = ("/var/cache/apk", "/var/log")
_FRESH = ("/dev", "/proc", "/run", "/sys", "/tmp")
_NAMED = 5


def altered_commons(root: Staged) -> tuple[str, ...]:
    """Absolute paths of files in writable commons that were changed since the root was staged.

    A directory stands there, with a slash behind it, where something is gone from it.

    Flushes the volume first. Whoever changed them: other programs write there too.
    """
    writable = [common for common in root.commons if common.writable and common.point not in _QUIET]
    if not writable:
        return ()
    staged = btrfs.subvolume_info(root.root)
    files.syncfs(root.root)
    found: list[str] = []
    for common in writable:
        found += _altered(root.work.volume.top, common, staged)
    return tuple(sorted(found))


def _altered(top: int, common: Common, staged: btrfs.SubvolumeInfo) -> list[str]:
    """What is newer than the staged root: by transaction, and by ctime, since data of before is also written later."""
    fd = files.open_beneath(top, common.subvolume.strip("/"), os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not btrfs.is_subvolume(fd):
            return []
        directories: dict[int, str] = {}
        found = {
            os.path.normpath(f"{common.point}/{name}"): each.is_dir
            for each in btrfs_trees.changed_inodes(fd, staged.otransid)
            for name in btrfs_trees.inode_paths(fd, each.ino, directories)
            if _ctime(fd, name) >= staged.otime
        }
    finally:
        os.close(fd)
    # a directory changes with each entry that comes or goes: what came is named itself
    explained = {os.path.dirname(path) for path in found}
    named = [path + "/" * is_dir for path, is_dir in found.items() if not (is_dir and path in explained)]
    return [path for path in named if not is_below(path.rstrip("/"), *_QUIET)]


def _ctime(fd: int, name: str) -> float:
    try:
        return os.stat(name, dir_fd=fd, follow_symlinks=False).st_ctime
    except OSError:
        return 0  # gone meanwhile


def hidden_files(root: Staged) -> tuple[str, ...]:
    """Absolute paths of files that newly installed packages own under a mount point of the generation's fstab.

    They are not part of the generation, whether the file system is mounted during the change or not.
    """
    owned = root.databases.new_files()
    if not owned:
        return ()
    points = {entry.mountpoint.rstrip("/") for entry in fstab.parse(root.fstab.text)}
    points -= {common.point for common in set(root.plan.commons).difference(root.commons)}
    places = tuple(sorted({point for point in points if point.startswith("/")} | set(_FRESH)))
    return tuple(path for path in map("/{}".format, owned) if is_below(path, *places))


def named(paths: tuple[str, ...]) -> str:
    """`/a, /b and 7 more`."""
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return ", ".join(paths[:_NAMED]) + more
