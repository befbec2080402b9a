"""The controlling terminal of a job: lent to a command that takes it, taken back when that stops or ends.

What a shell does for its jobs, for the one command that runs in another PID namespace: process groups from there
have no number that the command's init could name here, so they are recognised by their namespace, or by being dead.
Nothing here is durable. A terminal that is lost is no error anywhere.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_Attributes = list[int | list[bytes | int]]  # what termios.tcgetattr returns


class Terminal:
    """The terminal on descriptor 0, 1 or 2 that controls us, as it was before the command ran; fd -1: none.

    Its attributes are put back only where nothing else in our job can have set them: we are its foreground, and
    our stdout is no pipe to a pager that did.
    """

    def __init__(self) -> None:
        self.fd = next((fd for fd in (0, 1, 2) if foreground(fd)), -1)
        self.group = os.getpgrp()
        # in a PID namespace that our group's leader is outside of, the group is 0 as well
        ours = self.fd >= 0 and foreground(self.fd) == self.group
        self._attributes = _attributes(self.fd) if ours and not _feeds_a_pipe() else None
        self._lent: tuple[int, _Attributes | None] | None = None

    def restore(self) -> None:
        """The command has ended: our group is the foreground again, with the attributes from before.

        If a living group other than ours has the terminal, our job is in the background, and nothing is touched.
        """
        if self._take() and self._attributes is not None:
            _set_attributes(self.fd, self._attributes)

    def suspend(self) -> None:
        """The command stopped: stops our job too, so that the caller's shell gets its prompt. Returns once it is
        continued; the command, which is to be continued now, has the terminal again if our job is the foreground.
        """
        inside = foreground(self.fd)
        if inside == self.group and self._lent is not None:
            self._lend()  # `bg`, then `fg`: it only waited for the terminal
            return
        if inside != self.group and _is_inside(inside):
            self._lent = inside, _attributes(self.fd)
            self.restore()
        os.killpg(self.group, signal.SIGTSTP)
        self._lend()

    def _lend(self) -> None:
        """Gives the terminal back to the group that had it, if it is ours to give."""
        if self._lent is None or foreground(self.fd) != self.group:
            return
        group, attributes = self._lent
        if self._attributes is not None:
            self._attributes = _attributes(self.fd)  # as the shell has it for us now
        if attributes is not None:
            _set_attributes(self.fd, attributes)
        _set_foreground(self.fd, group)

    def _take(self) -> bool:
        """Whether our group is the foreground now."""
        holder = foreground(self.fd)
        if not holder or holder == self.group:
            return holder == self.group
        if _is_alive(holder) and not _is_inside(holder):
            return False
        return _set_foreground(self.fd, self.group)


def foreground(fd: int) -> int:
    """The foreground process group of the terminal at `fd`; 0 where that is not our controlling terminal."""
    try:
        return os.tcgetpgrp(fd)
    except OSError:
        return 0


def await_foreground() -> None:
    """Stops in the background until `fg`, as an interactive shell does at its start."""
    holder = foreground(0)
    if holder and holder != os.getpgrp():
        os.killpg(os.getpgrp(), signal.SIGTTIN)


def _feeds_a_pipe() -> bool:
    import stat

    try:
        return stat.S_ISFIFO(os.fstat(1).st_mode)
    except OSError:
        return False


def _is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except OSError as error:
        return error.errno == errno.EPERM
    return True


def _is_inside(group: int) -> bool:
    """Whether the leader of a group lives in a PID namespace that is not ours."""
    try:
        return os.readlink(f"/proc/{group}/ns/pid") != os.readlink("/proc/self/ns/pid")
    except OSError:
        return False  # it is dead


def _attributes(fd: int) -> _Attributes | None:
    import termios

    try:
        return termios.tcgetattr(fd)
    except termios.error:
        return None


def _set_attributes(fd: int, wanted: _Attributes) -> None:
    import termios

    with _unstopped(), suppress(termios.error):
        if termios.tcgetattr(fd) != wanted:
            termios.tcsetattr(fd, termios.TCSANOW, wanted)


def _set_foreground(fd: int, group: int) -> bool:
    with _unstopped():
        try:
            os.tcsetpgrp(fd, group)
        except OSError:
            return False
    return True


@contextmanager
def _unstopped() -> Iterator[None]:
    """Without SIGTTOU, which stops a background job that sets anything of its terminal."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTTOU,))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
