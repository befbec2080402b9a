"""One transaction at a time on a volume: the only module that imports filelock.

The lock is an flock(2) on `/run/apk-atomic/FSID.lock`, so the kernel takes it back whatever happens. A second
descriptor of the same open file is handed to the processes of the change (`fd`): the lock outlives a killed wrapper
until the last of them is gone. Who holds it is written beside it, for people.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from types import TracebackType

from apk_atomic.errors import AtomicError, Locked
from apk_atomic.signals import Signals

RUN = "/run/apk-atomic"
_PLAIN = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # never leads elsewhere, never waits for anybody
_POLL = 0.05  # seconds between two attempts


def make_run_directory() -> None:
    """`/run/apk-atomic`, 0755, ours: a link or somebody else's directory there is refused."""
    try:
        os.mkdir(RUN, 0o755)
        os.chmod(RUN, 0o755)  # whatever the caller's umask: ordinary users are to see what is pending
    except FileExistsError:
        found = os.lstat(RUN)
        if found.st_uid != 0 or found.st_mode & 0o170022 != 0o040000:
            raise AtomicError(
                f"{RUN} is not a directory that only root can write; nothing was changed",
                hint=f"look into it, then: rm -r {RUN}",
            ) from None
    except OSError as error:
        text = f"cannot make {RUN}: {error.strerror}; nothing was changed"
        raise AtomicError(text, hint="/run has to be a tmpfs that can be written to: df /run") from error


def held_by(fsid: str) -> str:
    """Who holds the lock of a volume now, for people; "" for nobody. Found in /proc/locks, so nothing is locked."""
    path = f"{RUN}/{fsid}.lock"
    try:
        found = os.stat(path)
        with open("/proc/locks", encoding="ascii", errors="replace") as file:
            rows = [line.split() for line in file]
    except OSError:
        return ""
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    held = any(len(row) > 5 and row[1] == "FLOCK" and row[5] == place for row in rows)
    return _holder_of(path) if held else ""


def _holder_of(path: str) -> str:
    with suppress(OSError):
        fd = os.open(f"{path}.holder", os.O_RDONLY | _PLAIN)
        with open(fd, errors="surrogateescape") as file:
            return file.readline(500).strip() or "unknown"
    return "unknown"


class Lock:
    """Holds the volume from `__enter__` to `__exit__`, or to the death of this process and of what it started."""

    def __init__(self, fsid: str, command: str, *, wait: float, signals: Signals) -> None:
        self._path = f"{RUN}/{fsid}.lock"
        self._command = command
        self._wait = wait
        self._signals = signals
        self.fd = -1

    def __enter__(self) -> Lock:
        """Raises Locked, with the holder's pid and command, when the lock stays held for `wait` seconds."""
        from filelock import FileLock

        make_run_directory()
        self._lock = FileLock(self._path, mode=0o600, thread_local=False)
        deadline = time.monotonic() + self._wait
        while not self._try():
            if time.monotonic() >= deadline:
                raise Locked(
                    f"another transaction is at work on this volume: {_holder_of(self._path)}; nothing was changed",
                    hint="wait for it, or let this one wait: --atomic-wait SECONDS",
                )
            self._signals.check()
            time.sleep(_POLL)
        self.fd = self._own_descriptor()
        self._write_holder()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.fd)
        self._lock.release()

    def _try(self) -> bool:
        from filelock import Timeout

        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        except OSError as error:
            raise AtomicError(f"cannot lock {self._path}: {error.strerror}; nothing was changed") from error
        return True

    def _own_descriptor(self) -> int:
        """A duplicate of the lock's descriptor, found by what it is open on; filelock closes its own after fork."""
        wanted = os.stat(self._path)
        for name in os.listdir("/proc/self/fd"):
            try:
                found = os.fstat(int(name))
            except OSError:
                continue  # the descriptor of the listing itself
            if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                return os.dup(int(name))
        raise AtomicError(f"{self._path} was replaced while it was being locked; nothing was changed")

    def _write_holder(self) -> None:
        with suppress(OSError):  # it is only a help for people
            fd = os.open(f"{self._path}.holder", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _PLAIN, 0o600)
            os.fchmod(fd, 0o600)  # a command line may hold a secret
            with open(fd, "w", errors="surrogateescape") as file:
                file.write(f"pid {os.getpid()}, {self._command}\n")
