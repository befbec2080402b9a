"""What a power cut may have left on a disk, computed from a log of its writes and flushes.

Model of the disk: what was written before a completed flush is there; of what was written after the last
one, any subset of 4096-byte sectors may be. A superblock is one sector, so it is never torn: btrfs does not
survive that, and nobody above it can help. Must not know of loop devices, mounts or generations.
Nothing here is durable.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support import fusefile
from tests.support.isolation import copy_sparse

SECTOR = 4096
WHOLE_WRITES_SHARE, SECTOR_SHARE = 0.7, 0.5


@dataclass(frozen=True, slots=True)
class Write:
    """`data` went to byte `offset` of the disk."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Flush:
    """All writes before this one are on the disk for good."""


@dataclass(frozen=True, slots=True)
class Mark:
    """The test, or the program under test, was here."""

    name: str


Event = Write | Flush | Mark


@dataclass(frozen=True, slots=True)
class Epoch:
    """The writes between two flushes, and all marks passed before the later flush was complete."""

    number: int
    writes: tuple[Write, ...]
    marks: frozenset[str]


@dataclass(frozen=True, slots=True)
class Plan:
    """Which states to replay; the disk at each flush boundary is always among them.

    first: no state from before the epoch in which this mark was made. prefixes: at most so many prefixes of
    an epoch's writes, evenly spread. subsets: so many random subsets of its sectors; equal seed, equal ones.
    """

    first: str | None = None
    prefixes: int = 24
    subsets: int = 6
    seed: int = 1


@dataclass(frozen=True, slots=True)
class State:
    """A disk after a cut. `image` may be mounted and changed; it is gone when the next state is asked for."""

    image: Path
    label: str
    marks: frozenset[str]

    def passed(self, name: str) -> bool:
        """Whether the mark may have been made before the cut: a disk can sit on its cache for long."""
        return name in self.marks


def read_log(path: Path) -> tuple[Event, ...]:
    """Parse a log of `fusefile`; a last record that is only half there (it is being written) is left out."""
    data = path.read_bytes()
    events: list[Event] = []
    position = 0
    while position + fusefile.RECORD.size <= len(data):
        kind, offset, length = fusefile.RECORD.unpack_from(data, position)
        start = position + fusefile.RECORD.size
        position = start + length
        if position <= len(data):
            events.append(_event(kind, offset, data[start:position]))
    return tuple(events)


def _event(kind: bytes, offset: int, body: bytes) -> Event:
    if kind == fusefile.WRITE:
        return Write(offset, body)
    return Flush() if kind == fusefile.FLUSH else Mark(body.decode())


def epochs(log: Sequence[Event]) -> list[Epoch]:
    """The log cut at its flushes. A last epoch without writes stands for the disk with all of them."""
    result: list[Epoch] = []
    writes: list[Write] = []
    marks: set[str] = set()
    for event in (*log, Flush()):
        if isinstance(event, Write):
            writes.append(event)
        elif isinstance(event, Mark):
            marks.add(event.name)
        else:
            result.append(Epoch(len(result), tuple(writes), frozenset(marks)))
            writes = []
    result.append(Epoch(len(result), (), frozenset(marks)))
    return result


def survivors(epoch: Epoch, plan: Plan) -> Iterator[tuple[str, list[Write]]]:
    """What of an epoch's writes may be there after a cut before its flush: a label, and the writes in order.

    Nothing comes first. Everything is left out: it is the "nothing" of the next epoch, which has later marks.
    """
    count = len(epoch.writes)
    wanted = min(plan.prefixes, count - 1)
    lengths = sorted({1 + step * (count - 1) // wanted for step in range(wanted)})
    chance = random.Random(f"{plan.seed}/{epoch.number}")
    found = [("nothing", list[Write]())]
    found += [(f"first {length} of {count}", list(epoch.writes[:length])) for length in lengths]
    found += [(f"subset {nth} of {count}", _subset(epoch.writes, chance)) for nth in range(plan.subsets)]
    seen = {_extent(list(epoch.writes))}
    for label, writes in found:
        if _extent(writes) not in seen or label == "nothing":
            seen.add(_extent(writes))
            yield label, writes


def _extent(writes: Sequence[Write]) -> tuple[tuple[int, int], ...]:
    """Which sectors, in order: equal for equal choices, whether the write was cut up or not."""
    return tuple((piece.offset, len(piece.data)) for write in writes for piece in sectors(write))


def _subset(writes: Sequence[Write], chance: random.Random) -> list[Write]:
    """Some of the writes; most of those whole, the others without some of their sectors."""
    share = chance.random()
    kept: list[Write] = []
    for write in writes:
        if chance.random() < share:
            whole = chance.random() < WHOLE_WRITES_SHARE
            kept += [piece for piece in sectors(write) if whole or chance.random() < SECTOR_SHARE]
    return kept


def sectors(write: Write) -> list[Write]:
    """The write in the pieces that a disk writes whole, cut where sectors begin on the disk."""
    pieces: list[Write] = []
    position = 0
    while position < len(write.data):
        size = SECTOR - (write.offset + position) % SECTOR
        pieces.append(Write(write.offset + position, write.data[position : position + size]))
        position += size
    return pieces


def states(log: Sequence[Event], base: Path, workdir: Path, plan: Plan | None = None) -> Iterator[State]:
    """Every disk that the plan asks for, in order of time; one image at a time, a sparse copy in `workdir`.

    A state bears all marks of its epoch, since a cut just before the next flush is the hardest case.
    ValueError if the log lacks the mark `plan.first`.
    """
    plan = plan or Plan()
    cut = epochs(log)
    if plan.first is not None and plan.first not in cut[-1].marks:
        raise ValueError(f"the log has no mark {plan.first!r}")
    flushed, image = (workdir / f"{base.name}.{kind}" for kind in ("flushed", "state"))
    try:
        copy_sparse(base, flushed)
        for epoch in cut:
            wanted = plan.first is None or plan.first in epoch.marks
            for label, writes in survivors(epoch, plan) if wanted else ():
                _make_image(flushed, image, writes)
                yield State(image, f"epoch {epoch.number}: {label}", epoch.marks)
            apply_writes(flushed, epoch.writes)
    finally:
        flushed.unlink(missing_ok=True)
        image.unlink(missing_ok=True)


def _make_image(flushed: Path, image: Path, writes: Sequence[Write]) -> None:
    image.unlink(missing_ok=True)
    copy_sparse(flushed, image)
    apply_writes(image, writes)


def apply_writes(image: Path, writes: Sequence[Write]) -> None:
    """Do to the image what was done to the disk."""
    handle = os.open(image, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for write in writes:
            os.pwrite(handle, write.data, write.offset)
    finally:
        os.close(handle)
