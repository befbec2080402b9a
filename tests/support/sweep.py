"""Hit a program at every system call with which it changes something: kill it there, fail the call, signal it.

    def command(world): return Command(tuple(world.argv()), env=...)
    for blow in sweep(make_world, command, [KILL, *ERRORS, *SIGNALS], workdir):
        blow.world, blow.point, blow.outcome.status, blow.outcome.survivors      # judged while the world stands

`make_world` is called once per blow and must give equal worlds: a first run without a blow is traced, and what it
did is what is hit. A point is the n-th call of one kind by one process, as strace counts. By default only the
program itself is hit; with `follow` also all that it starts, and then the n-th call of *each* process is.

Every process gets the tag of `oracle` in its environment, and none survives a blow. Needs strace; must not know
what the program is. Nothing here is durable.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from tests.support.oracle import TAG, kill_tagged, survivors

W = TypeVar("W")

# With "?" strace accepts names that this machine's architecture lacks.
SWEPT = (
    "mkdir", "mkdirat", "mknod", "mknodat", "symlink", "symlinkat", "link", "linkat", "rename", "renameat",
    "renameat2", "unlink", "unlinkat", "rmdir", "open", "openat", "openat2", "creat", "write", "writev",
    "pwrite64", "sendfile", "copy_file_range", "truncate", "ftruncate", "fallocate", "chmod", "fchmod",
    "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat", "utimensat", "setxattr", "lsetxattr",
    "fsetxattr", "fsync", "fdatasync", "sync", "syncfs", "flock", "ioctl", "mount", "umount2", "fsopen",
    "fsconfig", "fsmount", "open_tree", "move_mount", "mount_setattr", "pivot_root", "chroot", "unshare",
    "setns", "clone", "clone3", "fork", "vfork", "wait4", "waitid",
)  # fmt: skip
_OPENS = {"open", "openat", "openat2", "creat"}
_WRITES = {"write", "writev", "pwrite64"}
_CALL = re.compile(r"(?:(\d+) +)?([a-z_0-9]+)\((.*)")
_OPENED_TO_WRITE = re.compile(r"\bO_(WRONLY|RDWR|CREAT|TRUNC|TMPFILE)\b")
_WRITTEN_FILE = re.compile(r"([3-9]|\d\d+)<(/.*)")
_DEVICE = re.compile(r"[\"<]/dev/(null|tty|pts/|ptmx)")
_TERMINAL_REQUEST = re.compile(r"\b(TC|TIOC|FIO)[A-Z]+")


@dataclass(frozen=True, slots=True)
class Action:
    """What happens at a point, in strace's words: `signal=KILL`, `error=ENOSPC`."""

    injection: str


KILL = Action("signal=KILL")  # the call itself does not happen any more
ERRORS = tuple(Action(f"error={name}") for name in ("ENOSPC", "EIO", "EROFS", "ENOMEM", "EINTR", "EPERM"))
SIGNALS = tuple(Action(f"signal={name}") for name in ("INT", "TERM", "HUP"))  # the call happens too


@dataclass(frozen=True, slots=True)
class Call:
    """The n-th call of this kind (from 1) by one process, with its arguments in one healthy run."""

    syscall: str
    n: int
    text: str


@dataclass(frozen=True, slots=True)
class Point:
    """Where and how to hit."""

    call: Call
    action: Action

    def __str__(self) -> str:
        return f"{self.action.injection} at {self.call.syscall} #{self.call.n} ({self.call.text})"


@dataclass(frozen=True, slots=True)
class Command:
    """What to run. env is the whole environment (None: the test's own); patience: for stragglers, in seconds."""

    argv: tuple[str, ...]
    env: Mapping[str, str] | None = None
    cwd: str | None = None
    follow: bool = False
    timeout: float = 60.0
    patience: float = 2.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run. status is negative for a signal. trace: every swept call, as strace wrote it.

    hit: the call that was struck; None if this run never came so far. survivors: processes that outlived the
    program by more than the patience (they are dead now). hung: it was killed at the timeout; with `follow` that
    is also what stragglers look like, since strace waits for them.
    """

    status: int
    stdout: str
    stderr: str
    trace: tuple[str, ...]
    survivors: tuple[str, ...]
    hit: str | None
    hung: bool


@dataclass(frozen=True, slots=True)
class Blow(Generic[W]):
    """One point, what came of it, and the world in which it happened, as it is now."""

    point: Point
    outcome: Outcome
    world: W


def unavailable() -> str | None:
    """Why nothing can be swept here, or None if it can."""
    return None if shutil.which("strace") else "needs strace"


def sweep(
    make_world: Callable[[], AbstractContextManager[W]],
    command: Callable[[W], Command],
    actions: Collection[Action],
    workdir: Path,
    wanted: Callable[[Call], bool] = lambda call: True,
) -> Iterator[Blow[W]]:
    """Every wanted point, each in a world of its own that stands until the next one is asked for.

    RuntimeError if the run without a blow fails.
    """
    with make_world() as world:
        healthy = run(command(world), workdir)
    if healthy.status != 0 or healthy.survivors:
        raise RuntimeError(f"the run without a blow failed: {healthy}")
    for point in points(filter(wanted, mutating_calls(healthy.trace)), actions):
        with make_world() as world:
            yield Blow(point, run(command(world), workdir, point), world)


def points(calls: Iterable[Call], actions: Collection[Action]) -> list[Point]:
    """Each action at each call, in the order of the calls."""
    return [Point(call, action) for call in calls for action in actions]


def run(command: Command, workdir: Path, point: Point | None = None) -> Outcome:
    """Run a command to its end, or its timeout, under strace; struck at the point if there is one."""
    trace, out, err = (workdir / f"sweep.{name}" for name in ("trace", "stdout", "stderr"))
    tag = f"{os.getpid()}-{os.urandom(6).hex()}"
    environment = {**(os.environ if command.env is None else command.env), TAG: tag}
    argv = [*_strace(trace, follow=command.follow, point=point), *command.argv]
    with open(out, "wb") as stdout, open(err, "wb") as stderr:
        # A session of its own: signals of the test's terminal are not part of the experiment.
        process = subprocess.Popen(
            argv, env=environment, cwd=command.cwd, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
            start_new_session=True,
        )  # fmt: skip
        hung, left = False, list[str]()
        try:
            process.wait(command.timeout)
            left = survivors(tag, command.patience)
        except subprocess.TimeoutExpired:
            hung = True
        finally:
            kill_tagged(tag)
            status = process.wait()
    lines = tuple(trace.read_text(errors="replace").splitlines())
    said_out, said_err = (path.read_text(errors="surrogateescape") for path in (out, err))
    return Outcome(status, said_out, said_err, lines, tuple(left), _hit(lines, point), hung)


def _strace(trace: Path, *, follow: bool, point: Point | None) -> list[str]:
    names = ",".join(f"?{name}" for name in SWEPT)
    argv = ["strace", "-qq", "-y", "-s", "96", "-o", os.fspath(trace), f"--trace={names}"]
    if point is not None:
        argv.append(f"--inject={point.call.syscall}:{point.action.injection}:when={point.call.n}")
    return [*argv, *(["-f"] if follow else []), "--"]


def _calls(trace: Iterable[str]) -> Iterator[Call]:
    """Every call of the trace, counted per process as strace does for `when=`."""
    count: Counter[tuple[str | None, str]] = Counter()
    for line in trace:
        if match := _CALL.match(line):
            pid, syscall, text = match.groups()
            count[pid, syscall] += 1
            yield Call(syscall, count[pid, syscall], text)


def mutating_calls(trace: Iterable[str]) -> list[Call]:
    """The calls that change something; of several processes that reach the same n, the first one's."""
    found: dict[tuple[str, int], Call] = {}
    for call in _calls(trace):
        if mutates(call):
            found.setdefault((call.syscall, call.n), call)
    return list(found.values())


def mutates(call: Call) -> bool:
    """Whether the call changes more than the process itself and its terminal."""
    if call.syscall in _OPENS:
        return bool(_OPENED_TO_WRITE.search(call.text)) and not _DEVICE.search(call.text)
    if call.syscall in _WRITES:
        return bool(_WRITTEN_FILE.match(call.text)) and not _DEVICE.search(call.text.partition(",")[0])
    return not (call.syscall == "ioctl" and _TERMINAL_REQUEST.search(call.text))


def _hit(trace: Iterable[str], point: Point | None) -> str | None:
    if point is None:
        return None
    wanted = (point.call.syscall, point.call.n)
    return next((call.text for call in _calls(trace) if (call.syscall, call.n) == wanted), None)
