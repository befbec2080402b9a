"""Looking things up in a root as the system that boots from it would: links resolve inside the root.

Paths are relative to the root, with or without a leading slash. What is missing, loops or is no file gives
None or nothing, since the contents of a snapshot are never an error here; only a disk that cannot be read is
(OSError). This module knows nothing of kernels or images, and writes nothing.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

from apk_atomic import files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ABSENT = frozenset({
    errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ENAMETOOLONG, errno.EINVAL, errno.ENXIO,
    errno.EISDIR, errno.ENODEV,
})  # fmt: skip
_MAX_LINKS = 40  # as in the kernel
_CHUNK = 1 << 18
_MERGED = frozenset({"bin", "sbin", "lib", "lib64"})


def open_file(root: int, path: str) -> int | None:
    """A descriptor, open for reading, of the regular file `path`; None when it does not resolve to one."""
    fd = _opened(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    if fd is not None and not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return None
    return fd


@contextmanager
def opened(root: int, path: str) -> Iterator[int | None]:
    """`open_file`, closed at the end."""
    fd = open_file(root, path)
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def status(root: int, path: str) -> os.stat_result | None:
    """stat(2) of what `path` resolves to."""
    fd = _opened(root, path, os.O_PATH)
    if fd is None:
        return None
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def is_file(root: int, path: str) -> bool:
    """Whether `path` resolves to a regular file."""
    found = status(root, path)
    return found is not None and stat.S_ISREG(found.st_mode)


def is_loadable(root: int, path: str) -> bool:
    """Whether a boot loader finds `path` too: by itself, or by relative links that stay in the root.

    It starts at the top level of the volume, and takes an absolute link from there (facts: alpine-boot, 6.1).
    """
    try:
        os.close(files.open_beneath(root, path.lstrip("/"), os.O_PATH, resolve=files.LOADER))
    except OSError as error:
        if error.errno in _ABSENT:
            return False
        raise
    return True


def is_directory(root: int, path: str) -> bool:
    """Whether `path` resolves to a directory."""
    found = status(root, path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def exists(root: int, path: str) -> bool:
    """Whether there is anything of the name `path`, a link that leads nowhere included."""
    fd = _opened(root, path, os.O_PATH | os.O_NOFOLLOW)
    if fd is not None:
        os.close(fd)
    return fd is not None


def link_target(root: int, path: str) -> str | None:
    """What the symbolic link `path` says; None for anything else. Links before its last part are followed."""
    fd = _opened(root, path, os.O_PATH | os.O_NOFOLLOW)
    if fd is None:
        return None
    try:
        return os.readlink("", dir_fd=fd) if stat.S_ISLNK(os.fstat(fd).st_mode) else None
    finally:
        os.close(fd)


def read(root: int, path: str, limit: int) -> bytes | None:
    """The content of the regular file `path`; None when there is none, or when it is larger than `limit`."""
    with opened(root, path) as fd:
        if fd is None:
            return None
        data = os.pread(fd, limit + 1, 0)
        return data if len(data) <= limit else None


def read_start(root: int, path: str, size: int) -> bytes:
    """The first `size` bytes of the regular file `path`; nothing when there is none."""
    with opened(root, path) as fd:
        return os.pread(fd, size, 0) if fd is not None else b""


def names(root: int, path: str) -> list[str]:
    """The sorted names in the directory `path`; none when it is no directory."""
    fd = _opened(root, path, os.O_RDONLY | os.O_DIRECTORY)
    if fd is None:
        return []
    try:
        return sorted(os.listdir(fd))
    finally:
        os.close(fd)


def real_path(root: int, path: str) -> str | None:
    """`path` with every link in it resolved, relative to the root; None when it does not resolve."""
    resolved = follow(path, lambda name: link_target(root, name))
    return resolved if resolved is not None and status(root, resolved) is not None else None


def links(root: int, path: str) -> tuple[str, ...]:
    """Every link that has to be there for `path` to resolve: itself, directories above it, and what they lead to."""
    passed: list[str] = []

    def target_of(name: str) -> str | None:
        target = link_target(root, name)
        passed.extend([name] if target is not None else [])
        return target

    follow(path, target_of)
    return tuple(passed)


def follow(path: str, target_of: Callable[[str], str | None]) -> str | None:
    """`path` without links, where `target_of` gives the target of the link that a path is, None when it is
    none; ".." stays inside. None for a loop."""
    rest, done, links = parts(path), list[str](), 0
    while rest:
        part = rest.pop(0)
        if part == "..":
            done = done[:-1]
            continue
        target = target_of("/".join([*done, part]))
        if target is None:
            done.append(part)
            continue
        links += 1
        if links > _MAX_LINKS:
            return None
        done = [] if target.startswith("/") else done
        rest = parts(target) + rest
    return "/".join(done)


def same_content(one: int, other: int, path: str) -> bool:
    """Whether `path`, itself no longer followed when it is a link, is the same in two roots: a link with the
    same target, a file with the same bytes, a directory in both (whatever is in it), or nothing in both."""
    targets = link_target(one, path), link_target(other, path)
    if targets != (None, None):
        return targets[0] == targets[1]
    with opened(one, path) as first, opened(other, path) as second:
        if first is None or second is None:
            return first == second and is_directory(one, path) == is_directory(other, path)
        return os.fstat(first).st_size == os.fstat(second).st_size and same_bytes(first, second)


def same_bytes(first: int, second: int) -> bool:
    """Whether two open files have the same content; reads no further than the first difference."""
    offset = 0
    while chunk := os.pread(first, _CHUNK, offset):
        if os.pread(second, len(chunk), offset) != chunk:
            return False
        offset += len(chunk)
    return not os.pread(second, 1, offset)


def merged(path: str) -> str:
    """`path` as it is called where /usr is merged (bin/sh → usr/bin/sh): one name for both layouts."""
    path = path.strip("/")
    return f"usr/{path}" if path.partition("/")[0] in _MERGED else path


def layouts(path: str) -> tuple[str, ...]:
    """The names that `path`, as `merged` gives it, can have in a root."""
    inside = path.removeprefix("usr/")
    return (path, inside) if inside != path and inside.partition("/")[0] in _MERGED else (path,)


def parts(path: str) -> list[str]:
    """The components of `path` that mean something."""
    return [part for part in path.split("/") if part not in ("", ".")]


def _opened(root: int, path: str, flags: int) -> int | None:
    try:
        return files.open_in_root(root, path or ".", flags)
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise
