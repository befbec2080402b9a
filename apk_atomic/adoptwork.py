"""A volume that is being adopted: locked, its top level mounted, and what an adoption that died has left removed.

What `session` is for a volume with the layout: here there may be no `current` yet, and then nothing is reached.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from apk_atomic import journal, mounts
from apk_atomic.config import Config
from apk_atomic.console import Console
from apk_atomic.errors import AtomicError, NotDurable, refusal
from apk_atomic.faults import point
from apk_atomic.locate import Located
from apk_atomic.lock import Lock, make_run_directory
from apk_atomic.names import redact_argv
from apk_atomic.session import Work
from apk_atomic.signals import Signals
from apk_atomic.volume import TOP_LEVEL, Volume

# There is nothing to collect in a system without generations
ROOM = "delete files or old snapshots: btrfs filesystem usage / shows what is full"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


class Job(NamedTuple):
    """The system that is adopted, and what to do it with."""

    located: Located
    subvolume: str
    config: Config
    console: Console
    signals: Signals
    argv: tuple[str, ...]
    wait: float


@contextmanager
def at_work(job: Job) -> Iterator[Work]:
    """Locked, with the top level mounted: `session.locked` for a volume that does not have the layout yet."""
    command = shlex.join(redact_argv(job.argv))
    try:
        with Lock(job.located.fsid, command, wait=job.wait, signals=job.signals) as lock:
            point("locked")
            mounts.make_private()
            with top_level(job.located, writable=True) as opened:
                point("mounted")
                yield Work(opened, job.config, job.console, job.signals, lock.fd)
            point("unlocked")
    except OSError as error:
        raise refusal(error, ROOM) from error


@contextmanager
def top_level(located: Located, *, writable: bool) -> Iterator[Volume]:
    """The volume, mounted in the mount namespace of this process, which has to be private already."""
    make_run_directory()
    os.makedirs(TOP_LEVEL, mode=0o700, exist_ok=True)
    flags = mounts.NOATIME | (0 if writable else mounts.RDONLY)
    mounts.mount(located.device, TOP_LEVEL, "btrfs", flags, "subvolid=5")
    top = os.open(TOP_LEVEL, _DIRECTORY | os.O_CLOEXEC)
    try:
        yield Volume(located.device, located.fsid, None, top, not writable)
    finally:
        os.close(top)
        with suppress(OSError):
            mounts.unmount(TOP_LEVEL, mounts.DETACH)


def has_pointer(opened: Volume) -> bool:
    """Whether there is a `current` already: an earlier finish came so far."""
    try:
        os.stat("current", dir_fd=opened.top, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def recover(work: Work) -> None:
    """What an adoption that was killed has left in staging/."""
    for name in journal.left_over(work.volume):
        drop(work, name)
        work.console.note(f"recovered: {name} had not finished")
    point("recovered")


def drop(work: Work, name: str) -> None:
    """Removes a transaction and its journal, but what `current` reaches."""
    if has_pointer(work.volume):
        journal.remove(work.volume, name)
    else:
        journal.abandon(work.volume, name)


@contextmanager
def dropping(work: Work, *names: str) -> Iterator[None]:
    """Removes the journals when what is done inside fails; what cannot be removed is left to the next recovery."""
    try:
        yield
    except NotDurable:
        raise
    except BaseException:
        work.signals.settle()
        for name in names:
            try:
                drop(work, name)
            except (OSError, AtomicError) as failure:
                work.console.warn(f"staging/{name} could not be removed ({failure}); the next run will do it")
        raise
