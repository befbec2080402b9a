"""Processes that run in the root of a change: an intermediate, the namespace's init, and the command itself.

    wrapper ── intermediate ── init (PID 1 of a new mount and PID namespace) ── command, its scripts, …

The wrapper never enters a PID namespace: it could not fork a second one. The intermediate enters it, waits for
init, and ends only when every process in the namespace is gone; until then it keeps the descriptors it was given
(the lock). Init dies on EOF of a pipe that only the wrapper holds, so a killed wrapper takes the change with it.

The command stays in the wrapper's process group: Ctrl-C and Ctrl-Z reach it from the terminal like any
command of the caller's shell, pipelines keep working, and a shell inside may do job control of its own.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
from collections.abc import Callable, Sequence
from typing import NamedTuple

from apk_atomic import mounts
from apk_atomic.errors import AtomicError, CheckFailed, refusal
from apk_atomic.signals import Signals, die_with_parent, read_signal, signalfd
from apk_atomic.terminal import Terminal

GRACE = 10.0  # seconds between the first signal passed on and SIGKILL for everything
_PR_CAPBSET_DROP = 24  # <linux/prctl.h>
_DROPPED = (16, 17, 22, 25)  # CAP_SYS_MODULE, CAP_SYS_RAWIO, CAP_SYS_BOOT, CAP_SYS_TIME
_SYS_ADMIN = 21
_KILL = 9
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


class NotExecuted(CheckFailed):
    """The command was not there, or could not be executed; `status` is what a shell exits with then."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Command(NamedTuple):
    """What to execute in the root: `program` is a path inside it or a name for PATH; `argv` starts with argv[0]."""

    program: str
    argv: tuple[str, ...]
    environment: dict[str, str]
    directory: str = "/"
    keep_fds: tuple[int, ...] = ()
    interactive: bool = False  # a shell: a Ctrl-C at its prompt is not for us
    silent: bool = False  # a tool of ours: no stdin, and what it says goes to stderr, for stdout is the caller's
    output: int = 2  # … or, where it is silent, to this descriptor, its errors too
    sealed: bool = False  # the root is: nothing in it is for this command to mount; see `drop_capabilities`


class _Pipes(NamedTuple):
    alive: tuple[int, int]  # wrapper → init: signal numbers to pass on; EOF: die
    report: tuple[int, int]  # init → wrapper: lines, see `_Report`


class _Report:
    """What init tells the wrapper: `F message` setup failed, `E errno what` the system refused it, `N status message`
    the command could not be executed, `S` it stopped, `X status` it ended."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.failure: AtomicError | None = None
        self.status: int | None = None
        self.stopped = False
        self._rest = b""

    def read(self) -> bool:
        """Takes in what is there; False at its end."""
        data = os.read(self.fd, 65536)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            kind, _, value = line.decode("utf-8", "surrogateescape").partition(" ")
            if kind == "F":
                self.failure = CheckFailed(value)
            elif kind == "E":
                number, _, what = value.partition(" ")
                self.failure = refusal(OSError(int(number), os.strerror(int(number)), what))
            elif kind == "N":
                status, _, message = value.partition(" ")
                self.failure = NotExecuted(int(status), message)
            elif kind == "X":
                self.status = int(value)
            elif kind == "S":
                self.stopped = True
        return bool(data)


def run(
    command: Command, enter: Callable[[], None], signals: Signals, *, held: Sequence[int] = (),
    meanwhile: Callable[[], None] | None = None,
) -> int:  # fmt: skip
    """Runs a command in the root that `enter` makes; returns its exit status (128 + n for signal n).

    `enter` is called as PID 1 of fresh mount and PID namespaces and leaves them with the root in place; what it
    raises as AtomicError comes out here as CheckFailed, as OSError like `errors.refusal` has it, a command that is not
    there as NotExecuted. When this returns, every process that the command started is dead. `held` descriptors stay
    open until then, even if this process is killed.
    An ending signal is passed on once, then everything is killed; the caller finds it in `signals.first`.
    `meanwhile` is called here while the command runs already; signals wait until it returns.
    """
    pipes = _Pipes(os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC))
    terminal = Terminal()
    intermediate = os.fork()
    if intermediate == 0:
        _intermediate(command, enter, signals, pipes, held)
    os.close(pipes.alive[0])
    os.close(pipes.report[1])
    report = _Report(pipes.report[0])
    end = 0
    try:
        if meanwhile is not None:
            meanwhile()
        _supervise(report, pipes.alive[1], signals, terminal, patient=command.interactive)
    finally:
        os.close(pipes.alive[1])
        os.close(pipes.report[0])
        end = os.waitpid(intermediate, 0)[1]
        terminal.restore()
    if report.failure is not None:
        raise report.failure
    if report.status is None or end:  # killed, and init with it: what it started may have been at work
        return 128 + _KILL
    return report.status


def _supervise(report: _Report, control: int, signals: Signals, terminal: Terminal, *, patient: bool) -> None:
    """Until init has gone: passes signals on once, kills after a grace period or a second signal."""
    poll = select.poll()
    poll.register(report.fd, select.POLLIN)
    poll.register(signals.fd, select.POLLIN)
    timeout: float | None = None
    while True:
        ready = dict(poll.poll(timeout))
        if not ready:
            _tell(control, _KILL)
        if signals.fd in ready and _passes(signals, control, patient=patient, again=timeout is not None):
            timeout = GRACE * 1000
        if report.fd in ready and not report.read():
            return
        if report.stopped:
            report.stopped = False
            terminal.suspend()
            _tell(control, signal.SIGCONT)


def _passes(signals: Signals, control: int, *, patient: bool, again: bool) -> bool:
    """Takes in one signal and passes it on where the terminal did not send it to the command as well."""
    first = signals.first
    arrived = signals.poll()
    if arrived is None:
        return False
    if patient and arrived.from_terminal and arrived.number in (signal.SIGINT, signal.SIGQUIT):
        signals.first = first
        return False
    if again:
        _tell(control, _KILL)
    elif not arrived.from_terminal or arrived.number == signal.SIGHUP:
        # a lost terminal is told only to the session's leader, which we may be; a shell at its prompt ignores TERM
        _tell(control, signal.SIGHUP if patient and arrived.number == signal.SIGTERM else arrived.number)
    return True


def _tell(control: int, number: int) -> None:
    try:
        os.write(control, bytes([number]))
    except BrokenPipeError:
        return  # init has just ended


# ---- the intermediate and init: these never return -------------------------------------------------------


def _intermediate(
    command: Command, enter: Callable[[], None], signals: Signals, pipes: _Pipes, held: Sequence[int]
) -> None:
    status = 1
    try:
        os.close(pipes.alive[1])
        os.close(pipes.report[0])
        mounts.make_private()
        mounts.unshare(mounts.NEWPID)
        opened = _open_descriptors()  # init's pivot_root moves our root too, and its /proc does not know us
        init = os.fork()
        if init == 0:
            _init(command, enter, signals, pipes)
        _close(opened - {0, 1, 2, *held})
        os.waitpid(init, 0)
        status = 0
    except OSError as error:
        _say(pipes.report[1], f"E {error.errno or errno.EIO} cannot make a namespace")
    finally:
        os._exit(status)


def _init(command: Command, enter: Callable[[], None], signals: Signals, pipes: _Pipes) -> None:
    control, report = pipes.alive[0], pipes.report[1]
    try:
        die_with_parent()
        children = signalfd((signal.SIGCHLD,))
        enter()
        _close(_open_descriptors() - {0, 1, 2, control, report, children, command.output, *command.keep_fds})
        drop_capabilities(sealed=command.sealed)
        child = _start(command, signals)
        os.chdir("/")  # no mount of the root is kept busy by us
        _reap(child, control, report, children)
    except NotExecuted as error:
        _say(report, f"N {error.status} {error}")
    except AtomicError as error:
        _say(report, f"F {error}")
    except OSError as error:
        what = f": {error.filename}" if error.filename else ""
        _say(report, f"E {error.errno or errno.EIO} cannot make the root of the change{what}")
    finally:
        os._exit(0)


def _reap(child: int, control: int, report: int, children: int) -> None:
    """Init's loop: passes on what the wrapper sends, buries orphans, ends with the command or the wrapper."""
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(children, select.POLLIN)
    while True:
        ready = dict(poll.poll())
        if control in ready:
            orders = os.read(control, 64)
            if not orders or _KILL in orders:
                return
            for number in orders:
                _pass_on(child, number)
        if children in ready:
            while read_signal(children) is not None:
                pass
            status = _bury(child, report)
            if status is not None:
                _say(report, f"X {status}")
                return


def _pass_on(child: int, number: int) -> None:
    group = os.getpgid(child)
    if number == signal.SIGCONT and group != os.getpgrp():
        os.killpg(group, number)
    else:
        os.kill(child, number)


def _bury(child: int, report: int) -> int | None:
    """Reaps every child that ended; the command's exit status if it is among them."""
    ended = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        if pid != child:
            continue
        if os.WIFSTOPPED(status):
            # in the wrapper's own group the terminal has stopped the wrapper too: nothing to tell
            if os.getpgid(child) != os.getpgrp() or os.WSTOPSIG(status) == signal.SIGSTOP:
                _say(report, "S")
            continue
        code = os.waitstatus_to_exitcode(status)
        ended = code if code >= 0 else 128 - code


def _start(command: Command, signals: Signals) -> int:
    """The process id of the command. Raises NotExecuted.

    Spawned, not forked: to copy this process takes a sixth of the time that apk needs in all.
    """
    change_directory(command.directory)
    for fd in command.keep_fds:
        os.set_inheritable(fd, True)
    streams = _silent(command.output) if command.silent else ()
    failure: OSError = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    for program in _candidates(command):
        try:
            return os.posix_spawn(
                program, command.argv, command.environment, file_actions=streams,
                setsigmask=signals.mask, setsigdef=signals.CHANGED,
            )  # fmt: skip
        except ValueError as error:  # a NUL, or a variable without a name
            raise NotExecuted(126, f"cannot execute {command.program}: {error}; nothing was changed") from error
        except OSError as error:
            # as a shell has it: of a name in PATH, what is there and cannot be executed explains more
            failure = failure if error.errno in _ABSENT and failure.errno not in _ABSENT else error
    status = 127 if failure.errno in _ABSENT else 126
    what = f"cannot execute {command.program} in the new generation: {failure.strerror}"
    raise NotExecuted(status, f"{what}; nothing was changed")


def _silent(output: int) -> list[tuple[int, ...] | tuple[int, int, str, int, int]]:
    """File actions: no stdin, and all that is said goes to `output`."""
    return [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, output, 1),
        (os.POSIX_SPAWN_DUP2, output, 2),
    ]


def _candidates(command: Command) -> list[str]:
    """The paths that execvpe(3) tries."""
    if "/" in command.program:
        return [command.program]
    return [os.path.join(directory, command.program) for directory in os.get_exec_path(command.environment)]


def change_directory(path: str) -> None:
    """Where the caller was, if the root has such a place."""
    try:
        os.chdir(path)
    except OSError:
        os.chdir("/")


def _say(report: int, line: str) -> None:
    data = line.replace("\n", " ").encode("utf-8", "surrogateescape") + b"\n"
    try:
        os.write(report, data)
    except BrokenPipeError:
        return  # the wrapper is gone; so are we, in a moment


def _open_descriptors() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/fd")}


def _close(descriptors: set[int]) -> None:
    """Nothing that this process had open (the top level, the lock) may be found in /proc/1/fd."""
    for descriptor in descriptors:
        try:
            os.close(descriptor)
        except OSError:
            continue  # the descriptor of the listing itself


def drop_capabilities(*, sealed: bool = False) -> None:
    """Removes from the bounding set what a change of packages never needs; capabilities(7): exec obeys it.

    `sealed`: CAP_SYS_ADMIN too. apk makes the mount of a cache that it cannot write to writable, and read-only again
    afterwards, by a remount that means the superblock: it would turn the whole volume of the running system read-only.
    """
    libc = ctypes.CDLL(None)
    for capability in (*_DROPPED, _SYS_ADMIN) if sealed else _DROPPED:
        libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0)
