"""Commands in namespaces of their own: exit statuses, what they inherit, and that nothing survives them."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apk_atomic import mounts, namespace
from apk_atomic.errors import AtomicError, CheckFailed, NoSpace
from apk_atomic.namespace import Command, NotExecuted
from apk_atomic.signals import Signals
from tests.support import engine
from tests.support.isolation import private_mounts
from tests.support.waiting import until

PATIENCE = 20.0


@pytest.fixture(autouse=True)
def signals() -> Iterator[Signals]:
    private_mounts()
    with engine.held_signals() as held:
        yield held


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Reader and writer; the writer may be closed by the test."""
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        if fd in map(int, os.listdir("/proc/self/fd")):
            os.close(fd)


def fresh_proc() -> None:
    """The root of the change, as far as these tests need one: the host's, with a /proc of the new namespace."""
    mounts.mount("proc", "/proc", "proc")


def shell(script: str, *keep: int) -> Command:
    return Command("/bin/sh", ("sh", "-c", script), {"PATH": os.environ["PATH"]}, keep_fds=keep)


def to(fd: int) -> str:
    """What a shell writes to, for a descriptor of more than one digit."""
    return f"/proc/self/fd/{fd}"


def run(script: str, signals: Signals, *keep: int) -> int:
    return namespace.run(shell(script, *keep), fresh_proc, signals)


def is_at_end(reader: int) -> bool:
    """Whether nobody holds the other end any more, without waiting for it."""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    return bool(poll.poll(0)) and os.read(reader, 4096) == b""


def read_line(reader: int) -> bytes:
    """A byte at a time, so that the rest stays there."""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    line = b""
    while not line.endswith(b"\n"):
        assert poll.poll(PATIENCE * 1000), f"nothing came after {line!r}"
        byte = os.read(reader, 1)
        assert byte, f"the end came after {line!r}"
        line += byte
    return line


# ---- statuses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -9 $$", 137), ("kill -TERM $$", 143),
        ("sh -c 'kill -9 $$'", 137), ("(exit 5) & wait $!", 5), ("sleep 1000 & exit 4", 4),
    ],
)  # fmt: skip
def test_exit_status(signals: Signals, script: str, status: int) -> None:
    assert run(script, signals) == status
    assert signals.first is None


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("nowhere-to-be-found", 127), ("/nowhere/to-be-found", 127), ("/etc/passwd/x", 127), ("x" * 300, 127),
        ("/etc/passwd", 126), ("/etc", 126),
    ],
)  # fmt: skip
def test_a_program_that_cannot_be_executed(signals: Signals, program: str, status: int) -> None:
    """What a shell would exit with."""
    said = f"cannot execute {program} in the new generation: .*; nothing was changed"
    with pytest.raises(NotExecuted, match=said) as caught:
        namespace.run(Command(program, ("x",), {"PATH": "/bin"}), fresh_proc, signals)
    assert caught.value.status == status


def test_what_is_at_work_is_not_mistaken_for_a_missing_program(signals: Signals) -> None:
    assert run("exit 127", signals) == 127


def test_a_program_by_name_and_its_argv0(signals: Signals, capfd: pytest.CaptureFixture[str]) -> None:
    argv = ("a name of its own", "-c", "echo $PPID $$; env")
    assert namespace.run(Command("sh", argv, {"PATH": "/bin:/usr/bin", "A": "b c"}), fresh_proc, signals) == 0
    first, *environment = capfd.readouterr().out.splitlines()
    assert first == "1 2"
    assert {"PATH=/bin:/usr/bin", "A=b c"} <= set(environment)
    assert not any(line.startswith("HOME=") for line in environment)


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (CheckFailed("/proc is no plain directory"), "/proc is no plain directory"),
        (AtomicError("two\nlines"), "two lines"),
        (
            OSError(errno.EACCES, "Permission denied", "/dev"),
            "cannot make the root of the change: /dev: Permission denied; nothing was changed",
        ),
        (OSError(errno.EIO, "Input/output error"), "cannot make the root of the change: Input/output error;"),
    ],
)
def test_a_root_that_cannot_be_made(signals: Signals, failure: Exception, message: str) -> None:
    with pytest.raises(CheckFailed, match=f"^{message}"):
        namespace.run(shell("exit 0"), raising(failure), signals)


def test_no_mount_is_kept_busy(signals: Signals, tmp_path: Path) -> None:
    """The command begins in the caller's directory, and may leave it and unmount it."""
    mounts.mount("tmpfs", str(tmp_path), "tmpfs")
    (tmp_path / "inner").mkdir()
    script = f"""
        [ $PWD = {tmp_path}/inner ] || exit 1; cd /
        for i in 1 2 3 4 5 6 7 8 9; do umount {tmp_path} && exit 0; sleep 0.1; done; exit 2
    """
    command = shell(script)._replace(directory=f"{tmp_path}/inner")
    assert namespace.run(command, fresh_proc, signals) == 0


def test_a_name_is_looked_for_as_a_shell_does(signals: Signals, tmp_path: Path) -> None:
    """An empty part of PATH is the directory; what cannot be executed there counts only where nothing can."""
    for directory, mode in (("here", 0o755), ("barred", 0o644)):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "tool").write_text("#!/bin/sh\nexit 7\n")
        (tmp_path / directory / "tool").chmod(mode)
    for path, expected in ((":/nowhere", 7), (f"/nowhere:{tmp_path}/barred:{tmp_path}/here", 7)):
        command = Command("tool", ("tool",), {"PATH": path}, directory=str(tmp_path / "here"))
        assert namespace.run(command, fresh_proc, signals) == expected
    for path, status in ((f"{tmp_path}/barred:/nowhere", 126), ("/nowhere:/etc/hostname", 127)):
        with pytest.raises(NotExecuted) as refusal:
            namespace.run(Command("tool", ("tool",), {"PATH": path}), fresh_proc, signals)
        assert refusal.value.status == status


def test_an_environment_that_is_none(signals: Signals) -> None:
    with pytest.raises(NotExecuted, match="nothing was changed"):
        namespace.run(Command("/bin/sh", ("sh",), {"": "x"}), fresh_proc, signals)


@pytest.mark.parametrize(("path", "where"), [("/run/apk-atomic/root", "df /run"), ("/dev/loop0", "apk-atomic gc")])
def test_no_space_for_a_root(signals: Signals, path: str, where: str) -> None:
    failure = OSError(errno.ENOSPC, "No space left on device", path)
    with pytest.raises(NoSpace, match=f"root of the change: {path}: No space left on device; nothing was") as refusal:
        namespace.run(shell("exit 0"), raising(failure), signals)
    assert where in refusal.value.hint


def raising(failure: Exception) -> Callable[[], None]:
    def enter() -> None:
        raise failure

    return enter


def test_what_stands_between_is_killed_at_the_end(signals: Signals, pipe: tuple[int, int]) -> None:
    """The command has ended well by then, and so has init; but nobody can say any more that all else is dead."""
    reader, writer = pipe

    def meanwhile() -> None:
        between = child_of(os.getpid())
        init = child_of(between)
        os.kill(between, signal.SIGSTOP)
        os.write(writer, b"\n")
        stat = Path(f"/proc/{init}/stat")
        until(lambda: stat.read_text().rpartition(") ")[2].startswith("Z"))
        os.kill(between, signal.SIGKILL)

    command = shell(f"read -r line <{to(reader)}", reader)
    assert namespace.run(command, fresh_proc, signals, meanwhile=meanwhile) == 137


def child_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    until(lambda: children.read_text() != "")
    return int(children.read_text().split()[-1])



def test_a_root_that_is_never_finished(signals: Signals) -> None:
    """Init dies while it makes the root: that is no success of the command."""
    assert namespace.run(shell("exit 0"), lambda: os._exit(0), signals) == 137


# ---- what the command gets ---------------------------------------------------------------------------------


def test_directory(signals: Signals, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for directory, expected in ((str(tmp_path), str(tmp_path)), ("/nowhere", "/")):
        namespace.run(shell("pwd -P")._replace(directory=directory), fresh_proc, signals)
        assert capfd.readouterr().out == expected + "\n"


def test_descriptors(signals: Signals, pipe: tuple[int, int], capfd: pytest.CaptureFixture[str]) -> None:
    """Those that are named, and no others, however inheritable they are."""
    with open("/etc/passwd") as secret:
        os.set_inheritable(secret.fileno(), True)
        assert run(f"echo kept >{to(pipe[1])}; ls -l /proc/self/fd /proc/1/fd", signals, pipe[1]) == 0
        assert run("ls /proc/self/fd", signals) == 0
    assert os.read(pipe[0], 100) == b"kept\n"
    listing, _, plain = capfd.readouterr().out.rpartition("\n0\n")
    assert plain.split() == ["1", "2", "3"]
    assert "passwd" not in listing
    assert listing.count(f" {pipe[1]} -> ") == 2


def test_processes_of_its_own(signals: Signals, capfd: pytest.CaptureFixture[str]) -> None:
    """It sees only itself and init, has the mounts of the root alone, and its mounts are seen by nobody."""
    before = mounts.mount_table()
    assert run("ls -d /proc/[0-9]*; mount -t tmpfs x /mnt", signals) == 0
    assert {"/proc/1", "/proc/2"} <= set(capfd.readouterr().out.split()) <= {f"/proc/{number}" for number in range(9)}
    assert mounts.mount_table() == before


def test_capabilities(signals: Signals, capfd: pytest.CaptureFixture[str]) -> None:
    run("grep -h -e CapBnd -e CapEff /proc/self/status /proc/1/status", signals)
    masks = [int(line.split()[1], 16) for line in capfd.readouterr().out.splitlines()]
    bounding, effective = masks[1], masks[0]
    dropped = (16, 17, 22, 25)
    assert not any(mask >> number & 1 for mask in (bounding, effective) for number in dropped)
    assert all(effective >> number & 1 for number in (0, 1, 3, 18, 21, 27))  # chown, dac, chroot, sys_admin, mknod


def test_signals_are_as_we_got_them(signals: Signals, capfd: pytest.CaptureFixture[str]) -> None:
    run("grep -e SigBlk -e SigIgn /proc/self/status", signals)
    values = dict(line.split() for line in capfd.readouterr().out.splitlines())
    assert int(values["SigBlk:"], 16) == 0
    assert not int(values["SigIgn:"], 16) >> (signal.SIGPIPE - 1) & 1


def test_silent(signals: Signals, capfd: pytest.CaptureFixture[str]) -> None:
    """A tool of ours never writes to the caller's stdout, nor reads what the caller typed."""
    script = "echo said; cat; readlink /proc/self/fd/0"
    assert namespace.run(shell(script)._replace(silent=True), fresh_proc, signals) == 0
    assert capfd.readouterr() == ("", "said\n/dev/null\n")


# ---- what is left ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [
        "sleep 1000 & exit 0",
        "setsid sleep 1000 & exit 0",
        "(trap '' TERM INT HUP; setsid sh -c '(sleep 1000 &) & sleep 1000') & exit 0",
        "unshare --mount --pid --fork sleep 1000 & exit 0",
        "(kill -STOP $(sh -c 'echo $PPID')) & exit 0",
    ],
)
def test_daemons_are_dead_on_return(signals: Signals, pipe: tuple[int, int], script: str) -> None:
    assert run(script, signals, pipe[1]) == 0
    os.close(pipe[1])
    assert is_at_end(pipe[0])


def test_no_descriptor_and_no_child_is_left_here(signals: Signals) -> None:
    before = len(os.listdir("/proc/self/fd")), engine.children()
    run("sleep 1000 & exit 0", signals)
    with pytest.raises(CheckFailed):
        namespace.run(Command("nowhere", ("x",), {}), fresh_proc, signals)
    assert (len(os.listdir("/proc/self/fd")), engine.children()) == before


def test_a_killed_wrapper_takes_everything_along_and_the_lock_stays_till_then(pipe: tuple[int, int]) -> None:
    """The held descriptor closes only when the last process is gone."""
    lock_reader, lock = os.pipe()
    said_reader, said = os.pipe()
    wrapper = os.fork()
    if wrapper == 0:
        try:
            os.close(lock_reader)
            with engine.held_signals() as held:
                script = f"trap '' TERM HUP; setsid sleep 1000 & echo up >{to(said)}; sleep 1000"
                namespace.run(shell(script, said, pipe[1]), fresh_proc, held, held=(lock,))
        finally:
            os._exit(0)
    for fd in (lock, said, pipe[1]):
        os.close(fd)
    assert read_line(said_reader) == b"up\n"
    assert not is_at_end(lock_reader)
    os.kill(wrapper, signal.SIGKILL)
    os.waitpid(wrapper, 0)
    assert os.read(lock_reader, 1) == b""
    assert is_at_end(pipe[0])
    os.close(lock_reader)
    os.close(said_reader)


# ---- signals -----------------------------------------------------------------------------------------------


def when_told(reader: int, act: Callable[[int], None]) -> int:
    """A process that acts on this one once a line has come; its id."""
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            read_line(reader)
            act(parent)
        finally:
            os._exit(0)
    return child


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_passed_on_once(signals: Signals, pipe: tuple[int, int], number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'exit 7' {name}; echo ready >{to(pipe[1])}; while :; do sleep 0.02; done"
    sender = when_told(pipe[0], lambda parent: os.kill(parent, number))
    assert run(script, signals, pipe[1]) == 7
    os.waitpid(sender, 0)
    assert signals.first is not None
    assert (signals.first.number, signals.first.from_terminal) == (number, False)


def test_a_second_signal_kills(signals: Signals, pipe: tuple[int, int]) -> None:
    """The command ignores the first, and says so when it has come."""

    def twice(parent: int) -> None:
        os.kill(parent, signal.SIGTERM)
        read_line(pipe[0])
        os.kill(parent, signal.SIGTERM)

    script = f"trap 'echo no >{to(pipe[1])}' TERM; echo ready >{to(pipe[1])}; while :; do sleep 0.02; done"
    sender = when_told(pipe[0], twice)
    assert run(script, signals, pipe[1]) == 137
    os.waitpid(sender, 0)


def test_patience_ends(signals: Signals, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace, "GRACE", 0.05)
    script = f"trap '' TERM; echo ready >{to(pipe[1])}; while :; do sleep 0.02; done"
    sender = when_told(pipe[0], lambda parent: os.kill(parent, signal.SIGTERM))
    assert run(script, signals, pipe[1]) == 137
    os.waitpid(sender, 0)


def test_a_signal_that_came_before(signals: Signals) -> None:
    """It was blocked then, and is found as soon as the command runs."""
    os.kill(os.getpid(), signal.SIGTERM)
    assert run("sleep 1000", signals) == 143
    assert signals.first is not None


def test_only_root_can(tmp_path: Path) -> None:
    program = """\
import os, sys
from apk_atomic import namespace
from apk_atomic.signals import Signals
os.setuid(1000)
try:
    namespace.run(namespace.Command("/bin/true", ("true",), {}), lambda: None, Signals())
except Exception as error:
    print(type(error).__name__, error)
"""
    project = Path(namespace.__file__).parents[1]
    argv = [sys.executable, "-c", program]
    done = subprocess.run(argv, cwd=project, capture_output=True, text=True)
    assert done.stdout.startswith("CheckFailed cannot make a namespace"), done.stderr
