"""Deleting trees: through no link, deeper than descriptors reach, and with what not even root can delete in them.

Immutable and append-only files (chattr +i, +a) are made ordinary first. It must not know whose files they are. Nothing
here is durable.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from apk_atomic.files import TEMP_PREFIX, error, fd_path, file_flags, open_beneath, open_parent, set_file_flags

if TYPE_CHECKING:
    from collections.abc import Callable

_PROTECTING = 0x10 | 0x20  # FS_IMMUTABLE_FL | FS_APPEND_FL
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_MAX_DEPTH = 100  # descriptors held at once; well below the usual limit of 1024


def _refuse(dirfd: int, name: str) -> None:
    raise error(errno.EXDEV, f"{fd_path(dirfd)}/{name}")


def remove_tree(dirfd: int, path: str, *, foreign: Callable[[int, str], None] = _refuse) -> None:
    """Delete `path` and all below it, following no link; FileNotFoundError when it is not there.

    A directory on another device than `path` itself, and so every subvolume and most mounts, is left to `foreign`,
    which is given the directory that it is in and its name. Without that it is refused with EXDEV; what was deleted
    before stays deleted.
    """
    parent, name = open_parent(dirfd, path)
    try:
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=parent)
            return
        while not _has_removed(parent, name, foreign):
            pass
    finally:
        os.close(parent)


def _has_removed(parent: int, name: str, foreign: Callable[[int, str], None]) -> bool:
    """One round; False when something is in it still. btrfs does not show what came after the opening: open anew."""
    top = open_beneath(parent, name, _DIRECTORY)
    try:
        _empty(top, top, _MAX_DEPTH, foreign)
    finally:
        os.close(top)
    try:
        _insist(os.rmdir, name, parent)
    except OSError as failure:
        if failure.errno != errno.ENOTEMPTY:
            raise
        return False
    return True


def _empty(top: int, fd: int, depth: int, foreign: Callable[[int, str], None]) -> None:
    """Delete what is in directory `fd`; what lies `depth` levels deeper is moved up into `top` for another round."""
    with os.scandir(fd) as entries:
        found = list(entries)
    for entry in found:
        if not entry.is_dir(follow_symlinks=False):
            _insist(os.unlink, entry.name, fd)
        elif depth == 0:
            _insist(lambda name, dir_fd: _move_up(top, name, dir_fd), entry.name, fd)
        else:
            child = open_beneath(fd, entry.name, _DIRECTORY)
            try:
                if os.fstat(child).st_dev != os.fstat(top).st_dev:
                    foreign(fd, entry.name)
                    continue
                _empty(top, child, depth - 1, foreign)
            finally:
                os.close(child)
            _insist(os.rmdir, entry.name, fd)


def _move_up(top: int, name: str, dir_fd: int) -> None:
    os.rename(name, TEMP_PREFIX + os.urandom(8).hex(), src_dir_fd=dir_fd, dst_dir_fd=top)


def _insist(call: Callable[..., None], name: str, fd: int) -> None:
    """`call(name, dir_fd=fd)`, a deletion or move, even where the entry or its directory `fd` was made immutable."""
    try:
        call(name, dir_fd=fd)
    except PermissionError:
        _loosen(fd, ".")
        _loosen(fd, name)
        call(name, dir_fd=fd)


def _loosen(dirfd: int, name: str) -> None:
    """Takes both attributes from entry `name` of `dirfd`; what cannot be opened or asked has none."""
    try:
        fd = os.open(name, _FLAGS, dir_fd=dirfd)
    except OSError:
        return
    try:
        flags = file_flags(fd)
        if flags & _PROTECTING:
            set_file_flags(fd, flags & ~_PROTECTING)
    except OSError:
        return
    finally:
        os.close(fd)
