"""zstd and lz4 by the base root's own program, for images that Python cannot unpack itself (design, section 7).

The program runs in the sealed base, in a mount namespace of its own, with limits on processor time and memory.
"""

from __future__ import annotations

import io
import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, NoReturn

from apk_atomic import chroot, lookup, mounts, namespace
from apk_atomic.chroot import RootPlan
from apk_atomic.unpack import Damaged, MissingTool

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from apk_atomic.signals import Signals
    from apk_atomic.unpack import External

_PLACES = ("usr/bin", "bin")


class Limits(NamedTuple):
    """For one run: `seconds` of processor time (an image of 100 MiB takes less than one), and `patience` in all, for
    a program that waits uses none; `memory` is bytes of address space. What it puts out is the reader's to limit."""

    seconds: int = 60
    patience: int = 60
    memory: int = 1 << 29


DEFAULTS = Limits()


def by_program(plan: RootPlan, root: int, signals: Signals | None = None, limits: Limits = DEFAULTS) -> External:
    """Unpacks with the programs of the root that `plan` describes and `root` is a descriptor of.

    `signals`: where they are blocked, they are waited for beside the program, and reading raises Interrupted.
    """

    @contextmanager
    def unpacked(tool: str, source: int) -> Iterator[BinaryIO]:
        program = next((f"/{place}/{tool}" for place in _PLACES if lookup.is_file(root, f"{place}/{tool}")), None)
        if program is None:
            raise MissingTool(tool)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        child = os.fork()
        if child == 0:
            _become(program, plan, limits, (source, writer))
        os.close(writer)
        ended = False
        try:
            with io.BufferedReader(_Output(reader, signals)) as output:
                yield output
                ended = not output.read(1)
        finally:
            if not ended:
                os.kill(child, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if signals is not None:
            signals.check()  # a Ctrl-C ends the program, too
        if status:
            raise Damaged(f"is corrupt, or {tool} went over its limits (exit status {status})")

    return unpacked


class _Output(io.RawIOBase):
    """The reading end of the program's pipe; reads raise Interrupted when an ending signal comes first."""

    def __init__(self, fd: int, signals: Signals | None) -> None:
        self._fd, self._signals = fd, signals
        self._waiting = select.poll()
        self._waiting.register(fd, select.POLLIN)
        if signals is not None:
            self._waiting.register(signals.fd, select.POLLIN)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        while self._signals is not None:
            ready = {fd for fd, _ in self._waiting.poll()}
            self._signals.check()
            if self._fd in ready:
                break
        return os.readv(self._fd, [buffer])

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()


def _become(program: str, plan: RootPlan, limits: Limits, ends: tuple[int, int]) -> NoReturn:
    """In the child: enters the root and becomes the program; whatever fails shows as its exit status."""
    import resource

    try:
        for number, end in enumerate(ends):
            os.dup2(end, number)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        mounts.make_private()
        chroot.enter(plan)
        namespace.drop_capabilities()
        resource.setrlimit(resource.RLIMIT_CPU, (limits.seconds, limits.seconds))
        resource.setrlimit(resource.RLIMIT_AS, (limits.memory, limits.memory))
        for number in (signal.SIGPIPE, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        signal.alarm(limits.patience)  # goes with the process through the exec
        os.execv(program, [program, "-dc"])
    finally:
        os._exit(127)
