"""Files by descriptor: opening beneath a root, reading with a limit, replacing atomically, syncing.

Paths are relative to a directory descriptor and resolved by the kernel (openat2(2), Linux 5.6), so that no
link in a snapshot leads to the host. This module knows nothing of btrfs, generations or configuration.
Durable after a successful return: what `write_durable`, `fsync_dir` and `syncfs` were given. Nothing else is.
Errors are OSError with the path in `filename`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct

RESOLVE_NO_XDEV = 0x01  # refuses to cross a mount point; a btrfs subvolume that is not mounted is none
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

STRICT = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
IN_ROOT = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
LOADER = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV  # links, but neither absolute ones nor out of it

TEMP_PREFIX = ".tmp-"  # of files that a power cut may leave beside the file they were to replace

_FLAGS = struct.Struct("@l")
_GETFLAGS, _SETFLAGS = 0x80006601 | _FLAGS.size << 16, 0x40006602 | _FLAGS.size << 16  # FS_IOC_*, <linux/fs.h>
_OPENAT2 = 437  # the same number on every architecture
_OPEN_HOW = struct.Struct("=QQQ")
_EAGAIN_RETRIES = 100  # openat2 answers EAGAIN when a rename elsewhere raced with a ".." in the path
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY

_libc = ctypes.CDLL(None, use_errno=True)
_openat2 = _libc["syscall"]  # syscall(2), as a function of its own: declared types make the call twice as fast
_openat2.restype = ctypes.c_long
_openat2.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)


class FileTooLarge(OSError):
    """A file holds more bytes than its reader allowed (errno EFBIG)."""


def error(code: int, path: str, text: str = "") -> OSError:
    """The OSError (of the fitting subclass) for errno `code` on `path`."""
    return OSError(code, text or os.strerror(code), path)


def fd_path(fd: int) -> str:
    """What /proc calls `fd` now; for messages only, never for opening."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return f"descriptor {fd}"


def open_beneath(dirfd: int, path: str, flags: int, mode: int = 0, *, resolve: int = STRICT) -> int:
    """Open `path` beneath `dirfd` and return a close-on-exec descriptor.

    By default no symbolic link is followed anywhere and the path cannot leave `dirfd` (ELOOP, EXDEV); an
    absolute path is EXDEV. `resolve` takes other RESOLVE_ bits; `mode` counts with O_CREAT and O_TMPFILE
    only. `dirfd` may be an O_PATH one.
    """
    if not flags & (os.O_CREAT | os.O_TMPFILE & ~os.O_DIRECTORY):
        mode = 0  # openat2 refuses what open ignores
    name, how = _encoded(path), _OPEN_HOW.pack(flags | os.O_CLOEXEC, mode, resolve)
    for _ in range(_EAGAIN_RETRIES):
        fd: int = _openat2(_OPENAT2, dirfd, name, how, _OPEN_HOW.size)
        if fd >= 0:
            return fd
        if ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):
            break
    raise error(ctypes.get_errno(), path)


def open_entry(dirfd: int, name: str, flags: int) -> int:
    """Open entry `name` of directory `dirfd` and return a close-on-exec descriptor; a link is not followed (ELOOP).

    `name` is one component, else EINVAL: then this is as strict as `open_beneath`, and a third of its price.
    """
    if "/" in name or "\0" in name or name in ("", ".", ".."):
        raise error(errno.EINVAL, name)
    return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dirfd)


def open_in_root(dirfd: int, path: str, flags: int, mode: int = 0, *, no_xdev: bool = False) -> int:
    """Open `path` as if `dirfd` were `/`: links, absolute ones too, and ".." resolve inside it, as in a
    chroot."""
    resolve = IN_ROOT | (RESOLVE_NO_XDEV if no_xdev else 0)
    return open_beneath(dirfd, path, flags, mode, resolve=resolve)


def open_parent(dirfd: int, path: str) -> tuple[int, str]:
    """A descriptor of the directory that holds `path`, opened beneath `dirfd`, and the last component."""
    directory, name = os.path.split(path)
    if name in ("", ".", ".."):
        raise error(errno.EINVAL, path)
    return open_beneath(dirfd, directory or ".", _DIRECTORY), name


def make_directories(dirfd: int, path: str, mode: int = 0o755) -> bool:
    """Make what is missing of the directories of `path` beneath `dirfd`, no link followed; whether anything was.

    OSError where something that is no directory stands in the way.
    """
    directory, made = open_made(dirfd, path, mode)
    os.close(directory)
    return made


def open_made(dirfd: int, path: str, mode: int = 0o755) -> tuple[int, bool]:
    """`make_directories`, and a descriptor of the last of them, which comes first."""
    made, current = False, os.dup(dirfd)
    try:
        for name in filter(None, path.split("/")):
            try:
                os.mkdir(name, mode, dir_fd=current)
                made = True
            except FileExistsError:
                pass
            below = open_entry(current, name, _DIRECTORY)
            os.close(current)
            current = below
    except BaseException:
        os.close(current)
        raise
    return current, made


def read_file(dirfd: int, path: str, limit: int, *, resolve: int = STRICT) -> bytes:
    """The content of the regular file `path`, at most `limit` bytes, else FileTooLarge.

    Anything but a regular file (FIFO, device, socket, directory) is refused without blocking.
    """
    fd = open_beneath(dirfd, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, resolve=resolve)
    try:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            raise error(errno.EISDIR, path)
        if not stat.S_ISREG(status.st_mode):
            raise error(errno.EINVAL, path, "Not a regular file")
        return _read_all(fd, path, limit, status.st_size)
    finally:
        os.close(fd)


def write_durable(dirfd: int, path: str, data: bytes, mode: int = 0o644) -> None:
    """Replace `path` by a file with `data` and permissions `mode` (whatever the umask); durable when this
    returns.

    Readers see the old file or the new one. On failure before the rename the old one stands and no temporary
    file is left. Syncs the file's directory: never to be used beside `current` (boot loaders do not replay
    the btrfs log tree).
    """
    _replace(dirfd, path, data, mode, durable=True)


def write_atomic(dirfd: int, path: str, data: bytes, mode: int = 0o644) -> None:
    """`write_durable` without the durability: for /run, and where something later syncs the whole volume."""
    _replace(dirfd, path, data, mode, durable=False)


def syncfs(fd: int) -> None:
    """Commit everything on the file system of `fd` (not an O_PATH one) to disk; raises what writing back
    failed with."""
    if _libc.syncfs(ctypes.c_int(fd)) != 0:
        raise error(ctypes.get_errno(), fd_path(fd))


def fsync_dir(dirfd: int, path: str = ".") -> None:
    """Make the names in directory `path` durable. Never for the directory of `current`: see
    `write_durable`."""
    fd = open_beneath(dirfd, path, _DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fs_magic(fd: int) -> int:
    """The f_type of fstatfs(2), as in linux/magic.h; `fd` may be an O_PATH one."""
    buffer = ctypes.create_string_buffer(512)  # struct statfs, 120 bytes, begins with f_type, a long
    if _libc.fstatfs(ctypes.c_int(fd), buffer) != 0:
        raise error(ctypes.get_errno(), fd_path(fd))
    magic: int = struct.unpack_from("@L", buffer)[0]
    return magic & 0xFFFFFFFF


def list_names(dirfd: int, path: str = ".") -> list[str]:
    """The sorted names in directory `path`, no link followed."""
    fd = open_beneath(dirfd, path, _DIRECTORY)
    try:
        return sorted(os.listdir(fd))
    finally:
        os.close(fd)


def file_flags(fd: int) -> int:
    """What chattr(1) calls the attributes of a file, as FS_*_FL of <linux/fs.h>; OSError where there are none."""
    buffer = bytearray(_FLAGS.size)
    fcntl.ioctl(fd, _GETFLAGS, buffer)
    flags: int = _FLAGS.unpack(buffer)[0]
    return flags


def set_file_flags(fd: int, flags: int) -> None:
    """All of them, not only those that are to change."""
    fcntl.ioctl(fd, _SETFLAGS, bytearray(_FLAGS.pack(flags)))


def _read_all(fd: int, path: str, limit: int, expected: int) -> bytes:
    """Read to the end, whatever st_size says: in /proc it says 0, and the file may grow."""
    parts: list[bytes] = []
    room = limit + 1
    while room > 0 and (part := os.read(fd, min(room, max(expected + 1, 65536)))):
        parts.append(part)
        room -= len(part)
    if room <= 0:
        raise FileTooLarge(errno.EFBIG, f"larger than {limit} bytes", path)
    return b"".join(parts)


def _replace(dirfd: int, path: str, data: bytes, mode: int, *, durable: bool) -> None:
    parent, name = open_parent(dirfd, path)
    try:
        temp = TEMP_PREFIX + os.urandom(8).hex()
        try:
            _write_new(parent, temp, data, mode, durable=durable)
            os.rename(temp, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException as failure:
            _unlink_if_there(parent, temp)
            if isinstance(failure, OSError):  # the temporary name would mean nothing to anybody
                raise error(failure.errno or errno.EIO, path, failure.strerror or "") from failure
            raise
        if durable:
            os.fsync(parent)
    finally:
        os.close(parent)


def _write_new(parent: int, name: str, data: bytes, mode: int, *, durable: bool) -> None:
    fd = open_beneath(parent, name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.fchmod(fd, mode)
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)


def _unlink_if_there(parent: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return


def _encoded(path: str) -> bytes:
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError as failure:  # half a surrogate pair, as JSON may hold: no file is called so
        raise error(errno.EINVAL, path) from failure
    if b"\0" in encoded:
        raise error(errno.EINVAL, path)
    return encoded
