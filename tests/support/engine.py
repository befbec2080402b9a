"""The engine's functions called in the test process: a real volume, /run and signals to themselves.

`Place` is a directory of a mounted btrfs volume that stands in for its top level: the engine reaches the volume only
through a descriptor of that, so one file system serves many tests. Nothing here is durable.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from apk_atomic.config import Config
from apk_atomic.console import Console
from apk_atomic.session import Work
from apk_atomic.signals import ENDING, Signals
from apk_atomic.volume import Volume
from tests.support import btrfsctl
from tests.support.isolation import private_mounts
from tests.support.loopbtrfs import btrfs_volume

MNT_DETACH = 2
_numbers = itertools.count(1)
_libc = ctypes.CDLL(None, use_errno=True)


class Place:
    """The layout of the design below `top`; `volume` is the engine's view of it, with `booted` running."""

    def __init__(self, top: Path, device: str, fsid: str, booted: str | None) -> None:
        self.top = top
        for name in ("snapshots", "links", "commons"):
            (top / name).mkdir()
        self._fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.volume = Volume(device, fsid, booted, self._fd, False)

    def generation(
        self, name: str, prepare: Callable[[Path], None] | None = None, *, beside: tuple[str, ...] = (),
        sealed: bool = True,
    ) -> Path:  # fmt: skip
        """`snapshots/NAME` with the subvolume `@`, and others `beside` it; returns the path of `@`."""
        home = self.top / "snapshots" / name
        home.mkdir()
        for subvolume in ("@", *beside):
            btrfsctl.create_subvolume(home / subvolume)
        if prepare is not None:
            prepare(home / "@")
        for subvolume in ("@", *beside) if sealed else ():
            btrfsctl.set_read_only(home / subvolume, True)
        return home / "@"

    def point(self, *generations: str, name: str) -> None:
        """`links/NAME` with these slots, and `current` pointing to it."""
        (self.top / "links" / name).mkdir()
        for number, generation in enumerate(generations):
            (self.top / "links" / name / str(number)).symlink_to(f"../../snapshots/{generation}")
        self.set_current(f"./links/{name}")

    def set_current(self, text: str) -> None:
        """`current` with any text at all."""
        (self.top / "current").unlink(missing_ok=True)
        (self.top / "current").symlink_to(text)

    def names(self, directory: str) -> list[str]:
        """What lies in a directory of the top level; nothing where there is none."""
        path = self.top / directory
        return sorted(os.listdir(path)) if path.is_dir() else []

    def close(self) -> None:
        os.close(self._fd)


@contextlib.contextmanager
def file_system() -> Iterator[Path]:
    """An empty btrfs volume, mounted, that `place` takes directories of."""
    private_mounts()
    with btrfs_volume() as top:
        yield top


@contextlib.contextmanager
def place(top: Path, booted: str | None = None) -> Iterator[Place]:
    """A layout of its own on the volume that is mounted at `top`."""
    directory = top / f"place{next(_numbers)}"
    directory.mkdir()
    device, fsid = device_of(top)
    found = Place(directory, device, fsid, booted)
    try:
        yield found
    finally:
        found.close()


@contextlib.contextmanager
def volume_at_top_level() -> Iterator[Place]:
    """A layout at the top level of a volume of its own, so that its generations can be mounted by `subvol=`."""
    with file_system() as top:
        found = Place(top, *device_of(top), None)
        try:
            yield found
        finally:
            found.close()


def device_of(path: Path) -> tuple[str, str]:
    """Device and file system id of the btrfs volume mounted at `path`."""
    with open("/proc/self/mountinfo") as lines:
        found = [line.split(" - ")[1].split()[1] for line in lines if line.split()[4] == str(path)]
    return found[-1], btrfsctl.fsid_of(Path(found[-1]))


@contextlib.contextmanager
def own_run() -> Iterator[Path]:
    """An empty /run for this process alone, with /run/apk-atomic in it; the other one is back afterwards."""
    private_mounts()
    _mount("tmpfs", "/run", "mode=0755")
    try:
        os.mkdir("/run/apk-atomic", 0o755)
        yield Path("/run/apk-atomic")
    finally:
        _libc.umount2(b"/run", MNT_DETACH)


@contextlib.contextmanager
def held_signals() -> Iterator[Signals]:
    """Signals as a transaction holds them. It holds them for good: afterwards they are as they were, none pending."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    signals = Signals()
    try:
        yield signals
    finally:
        signals.release()
        while signal.sigtimedwait({*ENDING, signal.SIGCHLD} - before, 0) is not None:
            continue
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def working(volume: Volume, *, config: Config | None = None, err: int = 2) -> Iterator[Work]:
    """What a changing verb has at hand, without a lock; the console talks to descriptor `err`."""
    with held_signals() as signals:
        yield Work(volume, config or Config(), Console(err=err), signals, -1)


@contextlib.contextmanager
def two_generations(top: Path) -> Iterator[Place]:
    """A place with "one", which is booted, and "two", which is next."""
    with place(top, booted="one") as made:
        made.generation("one")
        made.generation("two")
        made.point("two", "one", name="first")
        yield made


def children() -> str:
    """The ids of this process's children, the dead that nobody has waited for included."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


def _mount(source: str, target: str, options: str) -> None:
    done = _libc.mount(source.encode(), target.encode(), source.encode(), ctypes.c_ulong(0), options.encode())
    if done != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), target)
