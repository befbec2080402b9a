"""The sweep over system calls, on small programs whose right and wrong behaviour is known."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import sweep as instrument
from tests.support.sweep import ERRORS, KILL, SIGNALS, Action, Blow, Call, Command, mutates, mutating_calls, run, sweep

pytestmark = pytest.mark.skipif(bool(instrument.unavailable()), reason=str(instrument.unavailable()))

BUILD = """\
import os, sys
os.chdir(sys.argv[1])
os.mkdir("new")
with open("new/a", "w") as file:
    file.write("a")
os.symlink("new", "scratch")
"""
ATOMIC = BUILD + 'os.rename("scratch", "current")\n'
NOT_ATOMIC = BUILD + 'os.unlink("current")\nos.rename("scratch", "current")\n'
CARELESS = BUILD + 'try:\n    os.rename("scratch", "current")\nexcept OSError:\n    pass\n'
PARENT = 'import subprocess\nsubprocess.run(["sleep", "30"])\n'
SAY_ERROR = """\
import errno, os, sys
try:
    os.mkdir(sys.argv[1])
except OSError as error:
    print(errno.errorcode[error.errno])
"""
SAY_SIGNAL = """\
import os, signal, sys
for number in signal.SIGHUP, signal.SIGINT, signal.SIGTERM:
    signal.signal(number, lambda number, _: print(signal.Signals(number).name))
os.mkdir(sys.argv[1])
"""


def python(script: str, *arguments: str, follow: bool = False, patience: float = 0.2) -> Command:
    argv = (sys.executable, "-I", "-S", "-B", "-c", script, *arguments)
    return Command(argv, follow=follow, patience=patience, timeout=20)


class Worlds:
    """Directories with `current -> old`, one after the other."""

    def __init__(self, workdir: Path) -> None:
        self.workdir = workdir
        self.made = 0

    @contextmanager
    def make(self) -> Iterator[Path]:
        self.made += 1
        world = self.workdir / f"world{self.made}"
        (world / "old").mkdir(parents=True)
        (world / "old/a").write_text("old")
        (world / "current").symlink_to("old")
        yield world


def blows(script: str, workdir: Path, *actions: Action) -> Iterator[Blow[Path]]:
    def command(world: Path) -> Command:
        return python(script, str(world))

    return sweep(Worlds(workdir).make, command, actions, workdir)


def content(world: Path) -> str | None:
    """What is read through the pointer: "old", "a" (new) or None (nothing)."""
    current = world / "current/a"
    return current.read_text() if current.exists() else None


def test_every_changing_call_is_found_and_killed_before_it_happens(tmp_path: Path) -> None:
    struck = list(blows(ATOMIC, tmp_path, KILL))
    assert [blow.point.call.syscall for blow in struck] == ["mkdir", "openat", "write", "symlink", "rename"]
    assert {blow.outcome.status for blow in struck} == {-9}
    assert all(blow.outcome.hit is not None for blow in struck)
    assert [(blow.world / "new").exists() for blow in struck] == [False, True, True, True, True]
    assert [content(blow.world) for blow in struck] == ["old"] * 5


def test_a_pointer_that_is_removed_first_is_caught(tmp_path: Path) -> None:
    assert None in [content(blow.world) for blow in blows(NOT_ATOMIC, tmp_path, KILL)]


def test_a_failed_call_that_is_not_reported_is_caught(tmp_path: Path) -> None:
    full = ERRORS[0]
    right = {(blow.outcome.status, content(blow.world)) for blow in blows(ATOMIC, tmp_path, full)}
    assert right == {(1, "old")}
    struck = blows(CARELESS, tmp_path / "careless", full)
    wrong = [(blow.outcome.status, content(blow.world)) for blow in struck]
    assert wrong[-1] == (0, "old")


@pytest.mark.parametrize("action", ERRORS, ids=lambda action: action.injection)
def test_each_error_reaches_the_program(tmp_path: Path, action: Action) -> None:
    command = python(SAY_ERROR, str(tmp_path / "d"))
    point = instrument.Point(Call("mkdir", 1, ""), action)
    outcome = run(command, tmp_path, point)
    assert f"error={outcome.stdout.strip()}" == action.injection
    assert outcome.hit is not None and not (tmp_path / "d").exists()


@pytest.mark.parametrize("action", SIGNALS, ids=lambda action: action.injection)
def test_each_signal_reaches_the_program_and_the_call_happens(tmp_path: Path, action: Action) -> None:
    command = python(SAY_SIGNAL, str(tmp_path / "d"))
    outcome = run(command, tmp_path, instrument.Point(Call("mkdir", 1, ""), action))
    assert (outcome.status, f"signal={outcome.stdout.strip()[3:]}") == (0, action.injection)
    assert (tmp_path / "d").exists()


def test_a_point_that_is_not_reached_is_no_hit(tmp_path: Path) -> None:
    outcome = run(python("pass"), tmp_path, instrument.Point(Call("mkdir", 1, ""), KILL))
    assert (outcome.status, outcome.hit) == (0, None)


def test_a_child_that_outlives_its_parent_is_named_and_killed(tmp_path: Path) -> None:
    outcome = run(python(PARENT), tmp_path, instrument.Point(Call("wait4", 1, ""), KILL))
    assert (outcome.status, outcome.hung) == (-9, False)
    assert len(outcome.survivors) == 1 and outcome.survivors[0].endswith("sleep 30")


def test_a_program_that_hangs_is_killed_and_named(tmp_path: Path) -> None:
    command = Command(("sleep", "30"), timeout=0.3)
    assert run(command, tmp_path).hung


def test_children_are_hit_only_on_request(tmp_path: Path) -> None:
    script = "import subprocess, sys\nsys.exit(subprocess.run(['mkdir', sys.argv[1]]).returncode)\n"
    point = instrument.Point(Call("mkdir", 1, ""), ERRORS[0])
    spared = run(python(script, str(tmp_path / "a")), tmp_path, point)
    assert (spared.status, spared.hit) == (0, None)
    struck = run(python(script, str(tmp_path / "b"), follow=True), tmp_path, point)
    assert struck.status == 1 and struck.hit is not None and "No space left" in struck.stderr
    calls = mutating_calls(run(python(script, str(tmp_path / "c"), follow=True), tmp_path).trace)
    assert "mkdir" in {call.syscall for call in calls}


def test_a_program_that_fails_by_itself_cannot_be_swept(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="without a blow"):
        next(blows("raise SystemExit(3)", tmp_path, KILL))


@pytest.mark.parametrize(
    ("syscall", "text", "expected"),
    [
        ("openat", 'AT_FDCWD</>, "/etc/passwd", O_RDONLY|O_CLOEXEC) = 3</etc/passwd>', False),
        ("openat", 'AT_FDCWD</>, "x", O_WRONLY|O_CREAT|O_TRUNC|O_CLOEXEC, 0666) = 3</x>', True),
        ("openat2", '4</mnt>, "x", {flags=O_RDWR|O_CREAT, mode=0600, resolve=RESOLVE_BENEATH}, 24) = 3', True),
        ("openat", 'AT_FDCWD</>, "/dev/null", O_RDWR|O_CLOEXEC) = 3</dev/null<char 1:3>>', False),
        ("write", '1</tmp/log>, "hello", 5) = 5', False),
        ("write", '3</mnt/x>, "hello", 5) = 5', True),
        ("write", '12</mnt/x>, "</dev/null", 5) = 5', True),
        ("write", '4<pipe:[123]>, "hello", 5) = 5', False),
        ("write", '5</dev/tty<char 5:0>>, "hello", 5) = 5', False),
        ("ioctl", "3</x>, TCGETS, 0x7ffe) = -1 ENOTTY (Inappropriate ioctl for device)", False),
        ("ioctl", "0</dev/pts/1<char 136:1>>, TIOCGWINSZ, {ws_row=24, ws_col=80}) = 0", False),
        ("ioctl", "3</mnt>, BTRFS_IOC_SNAP_CREATE_V2, {fd=4}) = 0", True),
        ("mkdirat", '3</mnt>, "x", 0755) = 0', True),
    ],
)
def test_what_counts_as_changing(syscall: str, text: str, expected: bool) -> None:
    assert mutates(Call(syscall, 1, text)) is expected
