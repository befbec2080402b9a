"""The power-cut instruments on protocols of known outcome: a battery that passes everything proves nothing."""

from __future__ import annotations

import filecmp
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.crash import protocols
from tests.support import btrfsctl, powercut
from tests.support.isolation import copy_sparse
from tests.support.judge import GOOD, Judgement, Verdict, judge
from tests.support.oracle import Fingerprint, fingerprint
from tests.support.powercut import Fault, Plan, Recorder, attach, flush, mounted, recorded, states
from tests.support.replay import SECTOR, Epoch, Flush, Mark, State, Write, epochs, sectors, survivors

pytestmark = pytest.mark.skipif(bool(powercut.unavailable()), reason=str(powercut.unavailable()))
ROOT = "current/0/@"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = tmp_path_factory.mktemp("template") / "volume.img"
    btrfsctl.make_filesystem(image, 256 << 20)
    with attach(image) as top:
        protocols.lay_out(top)
    return image


@pytest.fixture
def image(template: Path, scratch: Path) -> Path:
    copy_sparse(template, scratch / "volume.img")
    return scratch / "volume.img"


@dataclass(frozen=True, slots=True)
class Recording:
    recorder: Recorder
    old: Fingerprint
    new: Fingerprint

    def judged(self, plan: Plan) -> Iterator[tuple[State, Judgement]]:
        workdir = self.recorder.base.parent
        for state in states(self.recorder.log, self.recorder.base, workdir, plan):
            yield state, judge(state, self.old, self.new, reported=state.passed("success"))


def record(image: Path, commit: Callable[[Path], None]) -> Recording:
    with recorded(image, image.parent) as recorder, mounted(recorder.device) as top:
        old = fingerprint(top / ROOT)
        flush(top)
        recorder.mark("begin")
        commit(top)
        recorder.mark("success")
        new = fingerprint(top / ROOT)
    assert old != new
    return Recording(recorder, old, new)


def test_the_right_protocol_has_no_bad_state(image: Path) -> None:
    found = list(record(image, protocols.right).judged(Plan(first="begin")))
    assert [f"{state.label}: {judgement}" for state, judgement in found if not judgement.good] == []
    count = Counter(judgement.verdict for _, judgement in found)
    assert count[Verdict.OLD] >= 20 and count[Verdict.NEW] >= 10


@pytest.mark.parametrize(
    ("commit", "verdict"),
    [
        (protocols.late_links, Verdict.DANGLING),
        (protocols.no_sync, Verdict.LOST),
        (protocols.fsync_top, Verdict.SPLIT),
        (protocols.read_only_flag, Verdict.CORRUPT),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_wrong_protocol_is_caught(image: Path, commit: Callable[[Path], None], verdict: Verdict) -> None:
    count = Counter(judgement.verdict for _, judgement in record(image, commit).judged(Plan(first="begin")))
    assert count[verdict] >= 5
    assert set(count) <= GOOD | {verdict}


def test_equal_seeds_give_equal_states() -> None:
    epoch = Epoch(3, tuple(Write(n * SECTOR, bytes(SECTOR)) for n in range(20)), frozenset())
    first, again, other = (list(survivors(epoch, Plan(seed=seed))) for seed in (1, 1, 2))
    assert first == again != other


def test_replaying_everything_gives_the_recorded_image(image: Path) -> None:
    recorder = record(image, protocols.right).recorder
    plan = Plan(first="success", prefixes=0, subsets=0)
    replayed = states(recorder.log, recorder.base, image.parent, plan)
    assert [filecmp.cmp(state.image, image, shallow=False) for state in replayed][-1]
    assert sorted(path.suffix for path in image.parent.iterdir()) == [".base", ".img", ".log"]


def test_a_dying_disk_leaves_the_old_generation(image: Path) -> None:
    with recorded(image, image.parent) as recorder, mounted(recorder.device) as top:
        old = fingerprint(top / ROOT)
        recorder.fault(Fault.EIO)
        with pytest.raises(OSError):
            protocols.right(top)
    with attach(image) as top:
        assert fingerprint(top / ROOT) == old


def test_a_disk_can_die_at_the_nth_write(image: Path) -> None:
    with recorded(image, image.parent) as recorder, mounted(recorder.device) as top:
        recorder.mark("begin")
        recorder.fault(Fault.EIO, after=7)
        with pytest.raises(OSError):
            protocols.right(top)
    log = recorder.log
    after = log[log.index(Mark("begin")) :]
    assert sum(isinstance(event, Write) for event in after) == 7


def test_a_lying_disk_forgets_what_it_confirmed(image: Path) -> None:
    with recorded(image, image.parent) as recorder, mounted(recorder.device) as top:
        old = fingerprint(top / ROOT)
        flush(top)
        recorder.fault(Fault.DROP)
        protocols.right(top)
        assert os.readlink(top / "current") == f"./links/{protocols.NEW}"
    with attach(image) as top:
        assert fingerprint(top / ROOT) == old


def test_what_cannot_be_mounted_or_read_is_named(image: Path) -> None:
    with attach(image) as top:
        tree = fingerprint(top / ROOT)
    state = State(image, "by hand", frozenset())
    with attach(image) as top:
        (top / "current").rename(top / "elsewhere")
    assert judge(state, tree, tree, reported=False).verdict is Verdict.DANGLING
    with attach(image) as top:
        (top / "current").symlink_to(f"./snapshots/{protocols.OLD}")
    assert judge(state, tree, tree, reported=False).verdict is Verdict.DANGLING
    with open(image, "r+b") as disk:
        disk.seek(64 << 10)
        disk.write(bytes(SECTOR))
    assert judge(state, tree, tree, reported=False).verdict is Verdict.UNMOUNTABLE


def test_the_log_is_cut_at_its_flushes() -> None:
    first, second, third = (Write(n * SECTOR, bytes(SECTOR)) for n in range(3))
    cut = epochs((first, Mark("a"), second, Flush(), Mark("b"), third))
    assert [epoch.writes for epoch in cut] == [(first, second), (third,), ()]
    assert [sorted(epoch.marks) for epoch in cut] == [["a"], ["a", "b"], ["a", "b"]]


def test_a_mark_that_was_never_made_is_refused(image: Path) -> None:
    with pytest.raises(ValueError, match="no mark 'begin'"):
        next(states((Mark("end"),), image, image.parent, Plan(first="begin")))


def test_survivors_are_distinct_and_never_tear_a_sector() -> None:
    writes = tuple(Write(n * 4 * SECTOR + 512 * (n % 2), bytes([n]) * 4 * SECTOR) for n in range(10))
    found = list(survivors(Epoch(0, writes, frozenset()), Plan(prefixes=100, subsets=50)))
    prefixes = [label for label, _ in found[:10]]
    assert prefixes == ["nothing", *(f"first {n} of 10" for n in range(1, 10))]
    whole = {(piece.offset, piece.data) for write in writes for piece in sectors(write)}
    kept = [tuple((part.offset, part.data) for write in some for part in sectors(write)) for _, some in found]
    assert len(set(kept)) == len(kept) > 50
    assert all(set(some) <= whole for some in kept)
    assert any(sum(piece in set(some) for piece in whole) % 4 > 0 for some in kept)
