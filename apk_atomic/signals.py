"""The signals that end a transaction, read when we choose and never in the middle of a step.

INT, TERM, HUP and QUIT are blocked for the whole transaction and read from a signalfd(2), which, unlike a
handler, tells whether the terminal sent them: a Ctrl-C has then already reached every process of the
foreground group, and must not be passed on to apk a second time.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from typing import NamedTuple

from apk_atomic.errors import Interrupted

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_SI_KERNEL = 0x80  # sigaction(2): sent by the kernel, here by the line discipline of the terminal
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_SIGINFO_BYTES = 128  # struct signalfd_siginfo, signalfd(2)
_SFD_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK  # SFD_CLOEXEC | SFD_NONBLOCK have these values on every architecture


class Signal(NamedTuple):
    """One signal that arrived; `from_terminal`: the kernel sent it to the whole foreground group."""

    number: int
    from_terminal: bool


def signalfd(numbers: tuple[int, ...]) -> int:
    """A non-blocking descriptor that becomes readable when one of the (blocked) signals is pending."""
    mask = bytearray(_SIGINFO_BYTES)  # sigset_t is 1024 bits in glibc and in musl
    for number in numbers:
        mask[(number - 1) // 8] |= 1 << ((number - 1) % 8)
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.signalfd(-1, (ctypes.c_char * len(mask)).from_buffer(mask), _SFD_FLAGS)
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "signalfd")
    return fd


def read_signal(fd: int) -> Signal | None:
    """The next signal waiting in a descriptor of `signalfd`, or None."""
    try:
        info = os.read(fd, _SIGINFO_BYTES)
    except BlockingIOError:
        return None
    number, _, code = struct.unpack_from("IiI", info)
    return Signal(number, from_terminal=code == _SI_KERNEL)


def die_with_parent() -> None:
    """prctl(2): SIGKILL for this process, a child just forked, when its parent dies; an exec does not change that."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))


class Signals:
    """Blocks the ending signals for good: the process ends with what it does meanwhile.

    Signals that the caller ignored stay ignored, but for SIGCHLD: who starts us so would have the kernel bury our
    children, of whose end nobody is told then, and nor is apk of that of its scripts.
    """

    CHANGED = (signal.SIGPIPE, signal.SIGXFSZ)  # dispositions that Python changes, and exec hands down

    def __init__(self) -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._old = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        ending = tuple(s for s in ENDING if signal.getsignal(s) is not signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, (*ending, signal.SIGCHLD))
        self.fd = signalfd((*ending, signal.SIGCHLD))
        self.first: Signal | None = None
        self._settled = False

    def poll(self) -> Signal | None:
        """The next ending signal, if one arrived; the first is remembered. SIGCHLD only wakes a poll(2)."""
        while (arrived := read_signal(self.fd)) is not None:
            if arrived.number != signal.SIGCHLD:
                self.first = self.first or arrived
                return arrived
        return None

    def check(self) -> None:
        """Raises Interrupted if an ending signal has arrived so far, and nothing is settled yet."""
        self.poll()
        if self.first is not None and not self._settled:
            name = signal.Signals(self.first.number).name
            raise Interrupted(self.first.number, f"interrupted by {name}; nothing was changed")

    def settle(self) -> None:
        """It is decided how this ends: signals wait, and what still has to run (hooks) runs to its end."""
        self._settled = True

    def unsettle(self) -> None:
        """That has ended, and what begins now may be given up again: also for a signal that has waited."""
        self._settled = False

    @property
    def mask(self) -> set[int | signal.Signals]:
        """The mask we were started with, for a child."""
        return self._old

    def restore_for_exec(self) -> None:
        """In a child about to exec: the mask we were started with, and the dispositions Python changed."""
        for number in self.CHANGED:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._old)

    def release(self) -> None:
        """No more looks at them. They stay blocked: a signal must not belie the exit status that is decided now."""
        os.close(self.fd)
