"""zstd and lz4 by the base root's own program, for images that Python cannot unpack itself (design, section 7).

The program runs in the sealed base, in a mount namespace of its own, with limits on processor time and memory.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from apk_atomic import chroot, lookup, mounts, namespace
from apk_atomic.chroot import RootPlan
from apk_atomic.unpack import Damaged, MissingTool

if TYPE_CHECKING:
    from apk_atomic.unpack import External

_PLACES = ("usr/bin", "bin")
_SECONDS = 60  # of processor time; an image of 100 MiB takes less than one
_MEMORY = 1 << 29  # bytes of address space


def by_program(plan: RootPlan, root: int) -> External:
    """Unpacks with the programs of the root that `plan` describes and `root` is a descriptor of."""

    @contextmanager
    def unpacked(tool: str, source: int) -> Iterator[BinaryIO]:
        program = next((f"/{place}/{tool}" for place in _PLACES if lookup.is_file(root, f"{place}/{tool}")), None)
        if program is None:
            raise MissingTool(tool)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        child = os.fork()
        if child == 0:
            _become(program, plan, source, writer)
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


def _become(program: str, plan: RootPlan, source: int, writer: int) -> NoReturn:
    """In the child: enters the root and becomes the program; whatever fails shows as its exit status."""
    import resource

    try:
        os.dup2(source, 0)
        os.dup2(writer, 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        mounts.make_private()
        chroot.enter(plan)
        namespace.drop_capabilities()
        resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.execv(program, [program, "-dc"])
    finally:
        os._exit(127)
