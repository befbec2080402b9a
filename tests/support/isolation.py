"""What keeps a test session to itself: a mount namespace of its own, scratch files, the key it signs with.

Mounts of the test process are seen by nobody else and vanish with it. Nothing here is durable.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import tempfile
from pathlib import Path

from tests.support.imagecache import cache_directory, locked
from tests.support.keys import KeyPair, make_key_pair

CLONE_NEWNS = 0x00020000
MS_REC, MS_PRIVATE = 16384, 1 << 18


@functools.cache
def private_mounts() -> None:
    """Move this process, once, into a mount namespace of its own: nothing it mounts is seen outside."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) or libc.mount(
        b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None
    ):
        raise OSError(ctypes.get_errno(), "the tests need root: no mount namespace of our own")


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file hole for hole: as quick as its data is small. `target` must not exist."""
    with open(source, "rb") as reader, open(target, "xb") as writer:
        size = os.fstat(reader.fileno()).st_size
        writer.truncate(size)
        offset = 0
        while offset < size:
            try:
                start = os.lseek(reader.fileno(), offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole is left
                    return
                raise
            offset = os.lseek(reader.fileno(), start, os.SEEK_HOLE)
            _copy_range(reader.fileno(), writer.fileno(), start, offset)


def _copy_range(reader: int, writer: int, start: int, end: int) -> None:
    os.lseek(writer, start, os.SEEK_SET)
    while start < end:
        copied = os.sendfile(writer, reader, start, end - start)
        if not copied:
            raise OSError(errno.EIO, "the file shrank while it was copied")
        start += copied


@functools.cache
def session_key() -> KeyPair:
    """The key with which test repositories are signed: made once per machine, as cached roots trust it."""
    directory = cache_directory() / "key"
    with locked(cache_directory() / "key.lock"):
        if not directory.exists():
            with tempfile.TemporaryDirectory(dir=cache_directory()) as part:
                make_key_pair(part)
                os.rename(part, directory)
                os.mkdir(part)
    return KeyPair(str(directory / "test.rsa"), str(directory / "test.rsa.pub"), "test.rsa.pub")
