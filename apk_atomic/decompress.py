"""zstd and lz4 by the base root's own program, for images that Python cannot unpack itself (design, section 7).

The program runs in the sealed base, in a mount namespace of its own, with limits on processor time and memory.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, NoReturn

from apk_atomic import chroot, lookup, mounts, namespace
from apk_atomic.chroot import RootPlan
from apk_atomic.unpack import Damaged, MissingTool

if TYPE_CHECKING:
    from apk_atomic.unpack import External

_PLACES = ("usr/bin", "bin")


class Limits(NamedTuple):
    """For one run: `seconds` of processor time (an image of 100 MiB takes less than one), and `patience` in all, for
    a program that waits uses none; `memory` is bytes of address space. What it puts out is the reader's to limit."""

    seconds: int = 60
    patience: int = 300
    memory: int = 1 << 29


DEFAULTS = Limits()

def by_program(plan: RootPlan, root: int, limits: Limits = DEFAULTS) -> External:
    """Unpacks with the programs of the root that `plan` describes and `root` is a descriptor of."""

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
            with os.fdopen(reader, "rb") as output:
                yield output
                ended = not output.read(1)
        finally:
            if not ended:
                os.kill(child, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            raise Damaged(f"is corrupt, or {tool} went over its limits (exit status {status})")

    return unpacked


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
