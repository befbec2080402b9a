"""A directory's content copied into another subvolume of the same volume, sharing the data of files (reflink).

Everything that root can see of a file goes along: owner, mode, times, extended attributes and ACLs, flags (chattr),
hard links within the tree, holes. The source is a snapshot, so it stands still; the subvolumes of which that has only
empty directories are read where they are, but for those that are snapshots themselves. No link is followed. Not durable
by itself.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field

from apk_atomic import btrfs, files
from apk_atomic.errors import CheckFailed

# <linux/fs.h>
_CLONE = 0x40049409  # FICLONE
_NOCOW, _INHERITED = 0x00800000, 0x00000004 | 0x00000400 | 0x00800000  # C; c, m, C: only while a file is empty
_LAST = 0x00000008 | 0x00000010 | 0x00000020 | 0x00000040 | 0x00000080 | 0x00010000  # S, i, a, d, A, D: in the end
_NO_MATTER = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENODATA)  # btrfs.compression where a file is not to be compressed
_LONG_PATH = 1000  # characters, of up to four bytes: PATH_MAX is 4096 bytes
_PLACEHOLDER = 2  # inode of the empty directory that stands for a subvolume in a snapshot
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY


@dataclass(slots=True)
class _Copy:
    """`source` and `target` are the two tops; `live` is the directory that `source` is a snapshot of. `check` raises
    to stop. `links` has the places of files with several names; `flags` are what files
    get when all have their names."""

    source: int
    target: int
    live: int
    check: Callable[[], None]
    links: dict[tuple[int, int], str] = field(default_factory=dict)
    directories: list[tuple[str, bool]] = field(default_factory=list)
    flags: dict[str, int] = field(default_factory=dict)
    count: int = 0


def copy_content(source: int, target: int, live: int, check: Callable[[], None]) -> int:
    """Copies what is in directory `source` into the empty directory `target`, and its own attributes; how many names.

    Raises CheckFailed for a file that cannot be shared, OSError for a disk that is full or broken.
    """
    job = _Copy(source, target, live, check)
    job.directories.append((".", False))
    for path, is_live in job.directories:  # which grows meanwhile
        check()
        _copy_entries(job, path, is_live)
    for path, flags in job.flags.items():
        with ExitStack() as stack:
            _add_flags(_open(stack, target, path, _FILE), flags)
    for path, is_live in reversed(job.directories):  # times of a directory change with what comes into it
        with ExitStack() as stack, suppress(FileNotFoundError):
            old = _open(stack, live if is_live else source, path, _DIRECTORY)
            new = _open(stack, target, path, _DIRECTORY)
            _copy_attributes(old, new)
            _set_flags(old, new, _LAST)
    return job.count


def _open(stack: ExitStack, top: int, path: str, flags: int) -> int:
    """By steps, where the path is longer than the kernel takes at once."""
    while len(path) > _LONG_PATH:
        head, path = path[: path.rindex("/", 0, _LONG_PATH)], path[path.rindex("/", 0, _LONG_PATH) + 1 :]
        top = files.open_beneath(top, head, os.O_PATH | os.O_DIRECTORY)
        stack.callback(os.close, top)
    fd = files.open_beneath(top, path, flags)
    stack.callback(os.close, fd)
    return fd


def _copy_entries(job: _Copy, path: str, is_live: bool) -> None:
    with ExitStack() as stack:
        try:
            old = _open(stack, job.live if is_live else job.source, path, _DIRECTORY)
        except FileNotFoundError:
            return  # a subvolume that was removed meanwhile
        if is_live and btrfs.is_subvolume(old) and btrfs.get_readonly(old):
            return  # a snapshot
        new = _open(stack, job.target, path, _DIRECTORY)
        _set_flags(old, new, _INHERITED)
        for name in sorted(os.listdir(old)):
            with suppress(FileNotFoundError) if is_live else nullcontext():  # what lives may go meanwhile
                _copy_entry(job, old, new, name, name if path == "." else f"{path}/{name}", is_live)


def _copy_entry(job: _Copy, old: int, new: int, name: str, place: str, is_live: bool) -> None:
    status = os.stat(name, dir_fd=old, follow_symlinks=False)
    job.count += 1
    if stat.S_ISDIR(status.st_mode):
        os.mkdir(name, 0o700, dir_fd=new)
        job.directories.append((place, is_live or status.st_ino == _PLACEHOLDER))
    elif not _linked(job, status, place, name, new):
        _copy_one(job, old, new, name, place, status)


def _linked(job: _Copy, status: os.stat_result, place: str, name: str, new: int) -> bool:
    """Whether it is one more name of a file that is copied already, and has been made."""
    if status.st_nlink < 2:
        return False
    key = status.st_dev, status.st_ino
    first = job.links.setdefault(key, place)
    if first == place:
        return False
    above, _, last = first.rpartition("/")
    with ExitStack() as stack:
        os.link(last, name, src_dir_fd=_open(stack, job.target, above or ".", _DIRECTORY), dst_dir_fd=new,
                follow_symlinks=False)  # fmt: skip
    return True


def _copy_one(job: _Copy, old: int, new: int, name: str, place: str, status: os.stat_result) -> None:
    if stat.S_ISREG(status.st_mode):
        if flags := _copy_file(old, new, name):
            job.flags[place] = flags
        return
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(name, dir_fd=old), name, dir_fd=new)
    else:
        os.mknod(name, status.st_mode, status.st_rdev, dir_fd=new)
        os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=new)
    os.chown(name, status.st_uid, status.st_gid, dir_fd=new, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=new)  # chown took setuid away
    _copy_xattrs(f"{files.fd_path(old)}/{name}", f"{files.fd_path(new)}/{name}")
    os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=new, follow_symlinks=False)


def _copy_file(old: int, new: int, name: str) -> int:
    """The flags that it is to get in the end: nothing can be done any more with what is immutable."""
    with ExitStack() as stack:
        source = _open(stack, old, name, _FILE)
        target = _open_new(stack, new, name)
        _set_flags(source, target, _INHERITED)
        try:
            fcntl.ioctl(target, _CLONE, source)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                raise
            text = f"{files.fd_path(source)} cannot be copied ({error.strerror}); nothing was changed"
            raise CheckFailed(text, hint="a file that is a swap area, or encrypted, cannot lie in a common") from error
        _copy_attributes(source, target)
        return files.file_flags(source) & _LAST


def _open_new(stack: ExitStack, new: int, name: str) -> int:
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=new)
    stack.callback(os.close, fd)
    return fd


def _copy_attributes(old: int, new: int) -> None:
    """Owner before mode, since chown(2) takes setuid away, and security.capability after both; times last."""
    status = os.fstat(old)
    os.fchown(new, status.st_uid, status.st_gid)
    os.fchmod(new, stat.S_IMODE(status.st_mode))
    _copy_xattrs(old, new)
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))


def _copy_xattrs(old: int | str, new: int | str) -> None:
    """Of a descriptor, or of a path that may be a link."""
    links = {"follow_symlinks": False} if isinstance(old, str) else {}
    for name in os.listxattr(old, **links):
        try:
            os.setxattr(new, name, os.getxattr(old, name, **links), **links)
        except OSError as error:
            if error.errno not in _NO_MATTER:
                raise


def _set_flags(old: int, new: int, mask: int) -> None:
    """Those flags of `mask` that the old one has, the new one gets."""
    wanted, there = files.file_flags(old) & mask, files.file_flags(new)
    if wanted != there & mask:
        files.set_file_flags(new, there & ~mask | wanted)


def _add_flags(fd: int, flags: int) -> None:
    files.set_file_flags(fd, files.file_flags(fd) | flags)


def set_nocow(fd: int) -> None:
    """For an empty file: its data is written in place, as a swap file's has to be."""
    _add_flags(fd, _NOCOW)


