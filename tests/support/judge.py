"""The verdict on a disk after a power cut: which generation boots, for boot loader and kernel alike.

A volume has `current -> ./links/ID`, `links/ID/N -> ../../snapshots/ID`, `snapshots/ID/@`. It is read as a
boot loader does (the log tree is not replayed), then as the kernel does: a boot takes its kernel image from
what the first view shows and its root from the second. Must not know how a commit is made.
Nothing here is durable.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tests.support.oracle import Fingerprint, fingerprint
from tests.support.powercut import BOOT_LOADER_VIEW, KERNEL_VIEW, attached, mounted
from tests.support.replay import State

_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL}


class Verdict(Enum):
    """The first two are right; the worst that applies is given."""

    OLD = "old"
    NEW = "new"
    LOST = "lost: success was reported, and the old generation boots"
    SPLIT = "split: the boot loader sees another generation than the kernel"
    DANGLING = "dangling: current, or a slot, leads to no root"
    CORRUPT = "corrupt: the root is neither the old nor the new one, or cannot be read"
    UNMOUNTABLE = "unmountable"


GOOD = frozenset({Verdict.OLD, Verdict.NEW})


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict and, where it is bad, the reason."""

    verdict: Verdict
    detail: str = ""

    @property
    def good(self) -> bool:
        return self.verdict in GOOD


@dataclass(frozen=True, slots=True)
class Reading:
    """What one view of the volume gives: the root in slot 0 (its path below the top level) and its tree."""

    place: str
    tree: Fingerprint


class UnreadableError(Exception):
    """A view of the volume that gives no root; `judgement` says why."""

    def __init__(self, verdict: Verdict, detail: str) -> None:
        super().__init__(detail)
        self.judgement = Judgement(verdict, detail)


def read_top(top: Path, exclude: Collection[str] = ()) -> Reading:
    """Follow `current` on a mounted top level; every slot must lead to a root. Raises UnreadableError."""
    try:
        place = _place(top, "0")
        for slot in os.listdir(top / "current"):
            _place(top, slot)
        return Reading(place, fingerprint(top / place, exclude))
    except OSError as error:
        verdict = Verdict.DANGLING if error.errno in _ABSENT else Verdict.CORRUPT
        raise UnreadableError(verdict, str(error)) from error


def _place(top: Path, slot: str) -> str:
    """The root in a slot, links resolved; it must lie in snapshots/ of this volume."""
    real = os.path.realpath(top / "current" / slot / "@", strict=True)
    place = os.path.relpath(real, os.path.realpath(top))
    if not place.startswith("snapshots/"):
        raise UnreadableError(Verdict.DANGLING, f"slot {slot} leads to {place}")
    return place


def read(image: Path, options: str, exclude: Collection[str] = ()) -> Reading:
    """`read_top` of an image, mounted with these options. Raises UnreadableError."""
    with attached(image) as device, ExitStack() as stack:
        try:
            top = stack.enter_context(mounted(device, options))
        except OSError as error:
            raise UnreadableError(Verdict.UNMOUNTABLE, str(error)) from error
        return read_top(top, exclude)


def judge(
    state: State, old: Fingerprint, new: Fingerprint, *, reported: bool, exclude: Collection[str] = ()
) -> Judgement:
    """The verdict on a state whose root must be `old` or `new`, and `new` once success was `reported`.

    Where old and new are equal (garbage collection, recovery) it is NEW. Reads the image twice; the second
    time the kernel may write to it. Call it again after a recovery on the same image.
    """
    try:
        loader = read(state.image, BOOT_LOADER_VIEW, exclude)
        kernel = read(state.image, KERNEL_VIEW, exclude)
    except UnreadableError as error:
        return error.judgement
    return decide(loader, kernel, old, new, reported=reported)


def decide(loader: Reading, kernel: Reading, old: Fingerprint, new: Fingerprint, *, reported: bool) -> Judgement:
    """The pure part of `judge`."""
    for reading in (loader, kernel):
        if reading.tree not in (old, new):
            return Judgement(Verdict.CORRUPT, "\n".join([reading.place, *new.differences(reading.tree)[:20]]))
    if loader != kernel:
        return Judgement(Verdict.SPLIT, f"boot loader: {loader.place}, kernel: {kernel.place}")
    if kernel.tree == new:
        return Judgement(Verdict.NEW)
    return Judgement(Verdict.LOST, kernel.place) if reported else Judgement(Verdict.OLD)
