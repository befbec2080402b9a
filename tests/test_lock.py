"""One transaction at a time, whatever becomes of those that hold the lock or wait for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apk_atomic.errors import AtomicError, Interrupted, Locked
from apk_atomic.lock import RUN, Lock, make_run_directory
from apk_atomic.signals import Signals
from tests.support import engine

FSID = "12345678-1234-1234-1234-123456789012"
PATH = f"{RUN}/{FSID}.lock"
HOLDER = f"{PATH}.holder"


@pytest.fixture(autouse=True)
def run() -> Iterator[Path]:
    with engine.own_run() as directory:
        yield directory


def lock(signals: Signals, command: str = "apk-atomic add x", *, wait: float = 0, fsid: str = FSID) -> Lock:
    return Lock(fsid, command, wait=wait, signals=signals)


def in_child(act: Callable[[], None]) -> int:
    """A process that does it and is told to end by a signal; its id. What it raises is exit status 1."""
    child = os.fork()
    if child == 0:
        try:
            act()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def status_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def holding(signals: Signals, ready: int, *, fork: bool = False) -> Callable[[], None]:
    """Takes the lock, says so, and keeps it until it is killed; with `fork`, so does a child of it, which inherits."""

    def act() -> None:
        with lock(signals):
            inheritor = os.fork() if fork else 0
            if inheritor or not fork:
                os.write(ready, b"%d\n" % inheritor)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            signal.pause()

    return act


def held_by(signals: Signals, *, fork: bool = False) -> tuple[int, int]:
    """A process that holds the lock now, and the child of it that inherited the lock."""
    reader, writer = os.pipe()
    child = in_child(holding(signals, writer, fork=fork))
    os.close(writer)
    with open(reader) as pipe:
        return child, int(pipe.readline())


def test_one_at_a_time(signals: Signals) -> None:
    with lock(signals):
        with pytest.raises(Locked, match=f"pid {os.getpid()}, apk-atomic add x; nothing was changed") as refusal:
            lock(signals, "apk-atomic del y").__enter__()
        assert "--atomic-wait" in refusal.value.hint
        with lock(signals, fsid="other"):
            pass
    with lock(signals, "apk-atomic del y"):
        assert Path(HOLDER).read_text() == f"pid {os.getpid()}, apk-atomic del y\n"


def test_everybody_may_look_into_the_directory() -> None:
    os.rmdir(RUN)
    previous = os.umask(0o077)
    try:
        make_run_directory()
    finally:
        os.umask(previous)
    assert os.stat(RUN).st_mode & 0o7777 == 0o755


def test_files_are_for_root_to_write(signals: Signals) -> None:
    previous = os.umask(0)
    try:
        with lock(signals):
            assert os.stat(PATH).st_mode & 0o777 == 0o600
            assert os.stat(HOLDER).st_mode & 0o777 == 0o600
    finally:
        os.umask(previous)


def test_it_waits_for_another_to_end(signals: Signals) -> None:
    """Nobody waits for longer than it takes: the holder ends while the waiter is at it."""
    holder, _ = held_by(signals)
    reader, writer = os.pipe()

    def wait() -> None:
        os.write(writer, b"waiting\n")
        with lock(signals, wait=60):
            pass

    waiter = in_child(wait)
    os.close(writer)
    with open(reader) as pipe:
        assert pipe.readline() == "waiting\n"
    os.kill(holder, signal.SIGKILL)
    assert status_of(holder) == -signal.SIGKILL
    assert status_of(waiter) == 0


def test_waiting_ends_with_its_time_or_a_signal(signals: Signals) -> None:
    with lock(signals):
        with pytest.raises(Locked):
            lock(signals, wait=0.01).__enter__()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            lock(signals, wait=60).__enter__()


def test_it_outlives_its_holder_until_the_last_inheritor_is_gone(signals: Signals) -> None:
    holder, inheritor = held_by(signals, fork=True)
    os.kill(holder, signal.SIGKILL)
    status_of(holder)
    with pytest.raises(Locked, match=f"pid {holder}"):
        lock(signals).__enter__()
    os.kill(inheritor, signal.SIGKILL)
    with lock(signals, wait=60):  # it is init's to reap, and ours only to outlive
        pass


def test_what_is_not_inherited_does_not_hold(signals: Signals) -> None:
    """A hook, or a daemon that it starts, must not keep the volume locked: only who is handed the descriptor does."""
    with lock(signals) as held:
        assert not os.get_inheritable(held.fd)
        assert os.readlink(f"/proc/self/fd/{held.fd}") == PATH
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(held.fd)


@pytest.mark.parametrize(
    "plant",
    [
        lambda path: os.symlink("/etc/passwd", path),
        lambda path: os.symlink("/nowhere", path),
        os.mkdir,
    ],
    ids=["link", "dangling", "directory"],
)
def test_something_else_in_place_of_the_lock(signals: Signals, plant: Callable[[str], None]) -> None:
    before = Path("/etc/passwd").read_bytes()
    plant(PATH)
    with pytest.raises(AtomicError, match="cannot lock"):
        lock(signals).__enter__()
    assert Path("/etc/passwd").read_bytes() == before
    assert not Path("/nowhere").exists()


def test_the_command_of_the_holder_is_for_root_only(signals: Signals) -> None:
    """A command line may hold a secret."""
    Path(HOLDER).touch(0o644)
    with lock(signals):
        assert (Path(HOLDER).stat().st_mode & 0o777, bool(Path(HOLDER).read_bytes())) == (0o600, True)


@pytest.mark.parametrize("plant", [lambda path: os.symlink("/etc/passwd", path), os.mkdir, os.mkfifo])
def test_something_else_in_place_of_the_holder(signals: Signals, plant: Callable[[str], None]) -> None:
    """It is only a help for people, so the lock works without it."""
    before = Path("/etc/passwd").read_bytes()
    plant(HOLDER)
    with lock(signals), pytest.raises(Locked):
        lock(signals).__enter__()
    assert Path("/etc/passwd").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "shown"), [(b"", "unknown"), (b"\xff\xfe", "\udcff\udcfe"), (b"x" * 10_000, "x" * 500)]
)
def test_any_holder_text_is_shown(signals: Signals, content: bytes, shown: str) -> None:
    with lock(signals):
        Path(HOLDER).write_bytes(content)
        with pytest.raises(Locked) as refusal:
            lock(signals).__enter__()
    assert f": {shown};" in refusal.value.message


def test_no_directory_for_it(signals: Signals, run: Path) -> None:
    run.rmdir()
    with lock(signals):
        assert run.stat().st_mode & 0o777 == 0o755
    os.chmod(run, 0o777)
    with pytest.raises(AtomicError, match="only root can write"):
        lock(signals).__enter__()
