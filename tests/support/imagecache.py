"""Disk images that are costly to make and equal for equal inputs: made once, kept in a temporary place.

Several sessions may ask for the same image at the same time: one builds, the others wait. Nothing here is
durable, and whoever deletes the directory loses only time.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

KEEP_SECONDS = 900.0


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


def cached_image(name: str, inputs: Callable[[], Iterable[str]], build: Callable[[Path], None]) -> Path:
    """The image `name` for what `inputs` says it is made of; where it is missing, `build(path)` makes it.

    One builds at a time, and a build that fails or is killed leaves nothing that anybody takes for an image;
    neither does one whose inputs were edited meanwhile: it is built again.
    """
    directory = cache_directory()
    with locked(directory / f"{name}.lock"):
        while not (final := directory / f"{name}-{_key_of(inputs())}.img").exists():
            _forget_old(directory, name)
            part = final.with_suffix(".part")
            part.unlink(missing_ok=True)
            try:
                build(part)
                if final.name == f"{name}-{_key_of(inputs())}.img":
                    part.rename(final)
            finally:
                part.unlink(missing_ok=True)
        os.utime(final)
    return final


@contextlib.contextmanager
def scratch_directory(prefix: str) -> Iterator[Path]:
    """A directory for big files, removed at the end; where we are killed, by the next session."""
    _sweep(prefix)
    with contextlib.ExitStack() as stack:
        with locked(cache_directory() / "scratch.lock"):
            path = Path(tempfile.mkdtemp(prefix=prefix, dir=scratch_base()))
            handle = stack.enter_context(_open_directory(path))
            fcntl.flock(handle, fcntl.LOCK_EX)
            stack.callback(shutil.rmtree, path)  # before the lock goes: another session would remove it too
        yield path


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`."""
    with open(path, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@functools.cache
def _sweep(prefix: str) -> None:
    """Once per session: remove the scratch directories that no living process holds."""
    with locked(cache_directory() / "scratch.lock"):
        for path in scratch_base().glob(f"{prefix}*"):
            with contextlib.suppress(FileNotFoundError, BlockingIOError), _open_directory(path) as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)


@contextlib.contextmanager
def _open_directory(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        yield handle
    finally:
        os.close(handle)


def _key_of(parts: Iterable[str]) -> str:
    """A short hash; lengths stand between the parts, so that moving a character over changes it."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:24]


def _forget_old(directory: Path, name: str) -> None:
    """Sources change often while one works: drop the images that nobody asked for lately."""
    for path in directory.glob(f"{name}-*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > KEEP_SECONDS:
                path.unlink()
