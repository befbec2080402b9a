"""Disk images that are costly to make and equal for equal inputs: made once, kept in a temporary place.

Several sessions may ask for the same image at the same time: one builds, the others wait. Nothing here is
durable, and whoever deletes the directory loses only time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

KEEP_SECONDS = 3600.0


def scratch_base() -> Path:
    """Where big short-lived files go: memory if there is some, else the temporary directory."""
    shm = Path("/dev/shm")
    return shm if os.access(shm, os.W_OK) else Path(tempfile.gettempdir())


def cache_directory() -> Path:
    """Our directory of images: ours alone, so that nobody can plant one."""
    path = scratch_base() / f"apk-atomic-images-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{path} is not a directory of ours alone")
    return path


def key_of(parts: Iterable[str | bytes]) -> str:
    """A short hash of what an image is made of; the parts are separated, so moving a byte over changes it."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:24]


def cached_image(name: str, key: str, build: Callable[[Path], None]) -> Path:
    """The image `name` for `key`; where it is missing, `build(path)` makes it under a lock.

    A build that fails or is killed leaves nothing that anybody takes for an image.
    """
    directory = cache_directory()
    final = directory / f"{name}-{key}.img"
    with locked(directory / f"{name}.lock"):
        if not final.exists():
            _forget_old(directory, name)
            part = directory / f"{name}-{key}.part"
            part.unlink(missing_ok=True)
            try:
                build(part)
                part.rename(final)
            finally:
                part.unlink(missing_ok=True)
        os.utime(final)
    return final


def _forget_old(directory: Path, name: str) -> None:
    """Sources change often while one works: drop the images that nobody asked for in the last hour."""
    for path in directory.glob(f"{name}-*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > KEEP_SECONDS:
                path.unlink()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    with open(path, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
