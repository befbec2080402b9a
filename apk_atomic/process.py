"""Processes outside the root of a change (hooks, tools): the only module that imports sh, and only when needed.

A plain transaction runs none: importing sh costs several times what the transaction does.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from apk_atomic.errors import CannotRun, Interrupted
from apk_atomic.signals import Signals, die_with_parent

if TYPE_CHECKING:
    from sh import RunningCommand

_POLL = 0.001, 0.02  # seconds between two looks at a running process: at first, and after a while
TIMEOUT = 600.0  # seconds that a hook may take
_PASSED = ("PATH", "TERM", "HOME", "TZ", "http_proxy", "https_proxy", "no_proxy")
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Finished(NamedTuple):
    """A process that ended: exit status (128 + n for signal n), and what it said on stdout and stderr."""

    status: int
    output: str


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """What a process of ours sees: a few of our variables, a fixed locale, and `extra`."""
    kept = {name: os.environ[name] for name in _PASSED if name in os.environ}
    return {"PATH": _DEFAULT_PATH, "LC_ALL": "C", **kept, **extra}


def run(
    argv: Sequence[str], signals: Signals, extra: Mapping[str, str] | None = None, timeout: float = TIMEOUT,
    *, feed: bytes = b"", apart: bool = False,
) -> Finished:  # fmt: skip
    """Runs `argv` to its end; stdin is /dev/null, or `feed`. A status is an answer, not an error.

    `apart`: in a session of its own, without a terminal; killed, it takes what it started with it.

    Raises CannotRun when it cannot be started or takes longer than `timeout` seconds, Interrupted when an ending
    signal arrives meanwhile; it is killed in both cases.
    """
    import sh

    try:
        command = sh.Command(argv[0])
        # _return_cmd: the RunningCommand, not its text; sh's terminal would change what tools print
        with open(os.devnull, "rb") as nothing:
            done = command(
                *argv[1:], _env=environment(extra or {}), _in=feed or nothing, _err_to_out=True, _tty_out=False,
                _ok_code=list(range(256)), _return_cmd=True, _truncate_exc=False,
                _preexec_fn=_as_we_were(signals), _bg=True, _bg_exc=False, _new_session=apart,
            )  # fmt: skip
            _wait(done, signals, timeout, done.kill_group if apart else done.kill)
            done.wait()
    except sh.CommandNotFound as error:
        raise CannotRun(f"cannot run {argv[0]}: not found or not executable") from error
    except TimeoutError as error:
        raise CannotRun(f"{argv[0]} did not end within {timeout:g} s and was killed") from error
    except sh.SignalException as error:
        return Finished(128 - error.exit_code, os.fsdecode(error.stdout))
    except sh.ForkException as error:  # it holds the traceback of the child that could not execute it
        raise CannotRun(f"cannot run {argv[0]}: {str(error).strip().splitlines()[-1].strip()}") from error
    except OSError as error:
        raise CannotRun(f"cannot run {argv[0]}: {error.strerror}") from error
    return Finished(done.exit_code, os.fsdecode(done.stdout))


def _wait(running: RunningCommand, signals: Signals, timeout: float, kill: Callable[[], None]) -> None:
    """Until it has ended, or an ending signal or the time has: the terminal's own signals have reached it already.

    sh's own timeout would cost each process a tenth of a second, however short it is.
    """
    deadline = time.monotonic() + timeout
    pause, longest = _POLL
    while running.is_alive():
        try:
            signals.check()
        except Interrupted:
            _kill(running, kill)
            raise
        if time.monotonic() > deadline:
            _kill(running, kill)
            raise TimeoutError
        time.sleep(pause)
        pause = min(2 * pause, longest)


def _kill(running: RunningCommand, kill: Callable[[], None]) -> None:
    import sh

    kill()
    with suppress(sh.ErrorReturnCode):
        running.wait()


def _as_we_were(signals: Signals) -> Callable[[], None]:
    """For the child before it executes: a transaction holds the ending signals back, and sh, where it does not wait,
    ignores the hangup. Whom nobody waits for any more has nothing to do on a volume that may be another's soon."""
    hangup = signal.getsignal(signal.SIGHUP)

    def restore() -> None:
        die_with_parent()
        signal.signal(signal.SIGHUP, hangup)
        signals.restore_for_exec()

    return restore
