"""Power cuts in the middle of apk-atomic's own commands: what boots is the old system or the new one, and is whole.

Each story is recorded below the file system, then the disk is put together as a cut may have left it: at every flush,
after prefixes and seeded subsets of the writes between two flushes. It is read as a boot loader does, without replaying
the log tree, and as the kernel does. On some of the disks apk-atomic then goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.crash.machine import THOROUGH, Machine, Scene, Story, layout, pending, stopped, tree
from tests.support import btrfsctl, powercut
from tests.support.judge import Judgement, judge
from tests.support.oracle import Fingerprint, fingerprint
from tests.support.powercut import Fault, Plan, Recorder, State, attached, flush, mounted, recorded, states
from tests.support.world import Guest

pytestmark = pytest.mark.skipif(bool(powercut.unavailable()), reason=str(powercut.unavailable()))

NOT_DURABLE = 107
ROOT = "current/0/@"
VIEW = "noatime,subvolid=5"
# The interpreter and its library are in every generation, and no change of these stories is near them.
EXCLUDE = () if THOROUGH else ("usr/lib",)
PLAN = Plan("begin") if THOROUGH else Plan("begin", prefixes=2, subsets=2)
GOES_ON = 1 if THOROUGH else 9  # every so many states apk-atomic runs on what the cut has left
# After how many writes the disk dies under a command.
LAST_WRITES = {"add": (0, 40, 80, 100), "rollback": (0, 6, 12)}
STATES = 5  # at least, for a story to say anything; gc commits once, so a cut has few moments


@dataclass(frozen=True, slots=True)
class Recorded:
    """A story: where it begins, the commands, and at which fault point the first one is killed."""

    name: str
    begin: Story
    commands: tuple[tuple[str, ...], ...]
    fault: str = ""

    def __str__(self) -> str:
        return self.name


EDIT = "rm -r /usr/share/a; echo more >>/etc/a.conf; head -c 600000 /dev/urandom >/etc/random"
AGAIN = ("rollback", "0")  # does nothing but to lock and recover
STORIES = (
    Recorded("add", pending, (("add", "b"),)),
    Recorded("upgrade", pending, (("upgrade",),)),
    Recorded("run", pending, (("run", "--", "sh", "-c", EDIT),)),
    Recorded("rollback", pending, (("rollback",),)),
    Recorded("auto", pending, (("auto", "--now"),)),
    Recorded("discard", pending, (("discard",),)),
    Recorded("gc", pending, (("gc",),)),
    Recorded("two", pending, (("add", "b"), ("upgrade",))),
    Recorded("recovery", pending, (("add", "b"), AGAIN), "checked:kill"),
    Recorded("recovery of the new", pending, (("add", "b"), AGAIN, ("add", "c")), "renamed:kill"),
)


@dataclass(frozen=True, slots=True)
class Recording:
    """`trees`: what slot 0 held before the first command and after each of them."""

    recorder: Recorder
    trees: list[Fingerprint]

    def judge(self, state: State) -> Judgement:
        """What may boot depends on how many of the commands may have reported success before the cut."""
        done = max((number for number in range(1, len(self.trees)) if state.passed(f"done {number}")), default=0)
        if done + 1 == len(self.trees):
            return judge(state, self.trees[-2], self.trees[-1], reported=True, exclude=EXCLUDE)
        return judge(state, self.trees[done], self.trees[done + 1], reported=False, exclude=EXCLUDE)


@contextmanager
def machine_on(device: str, place: Path, slot: int = 0) -> Iterator[Machine]:
    """A guest on a device of the test's."""
    with mounted(device, VIEW) as top:
        (place / "guest").mkdir(exist_ok=True)
        guest = Guest(device, str(place / "guest"), slot, "ro,noatime")
        try:
            yield Machine(place, top, btrfsctl.fsid_of(Path(device)), guest)
        finally:
            guest.shutdown()


def record(scene: Scene, image: Path, story: Recorded) -> Recording:
    with recorded(image, image.parent) as recorder, machine_on(recorder.device, image.parent, scene.slot) as machine:
        scene.restore(machine.guest)
        trees = [fingerprint(machine.top / ROOT, EXCLUDE)]
        flush(machine.top)
        recorder.mark("begin")
        for number, words in enumerate(story.commands, 1):
            if story.fault and number == 1:
                assert machine.run(*words, fault=story.fault).status == -9
            else:
                machine.done(*words)
                recorder.mark(f"done {number}")
            trees.append(fingerprint(machine.top / ROOT, EXCLUDE))
    return Recording(recorder, trees)


def goes_on(image: Path) -> None:
    """The machine boots what the cut has left, and the next run recovers it and works."""
    with attached(image) as device, machine_on(device, image.parent) as machine:
        world = machine.world()
        machine.done(*AGAIN)
        once = machine.expect_clean()
        assert machine.world() == world
        machine.done(*AGAIN)
        assert layout(machine.top) == once
        machine.done("run", "--", "touch", "/etc/goes-on")
        machine.expect_nothing_left()
        machine.expect_clean()
        assert (machine.top / ROOT / "etc/goes-on").exists() and machine.world() == world


@pytest.mark.parametrize("story", STORIES, ids=str)
def test_every_cut_leaves_the_old_or_the_new(story: Recorded, say: Callable[[str], None]) -> None:
    count: Counter[str] = Counter()
    bad: list[str] = []
    with stopped(story.begin) as scene, scene.disk() as image:
        recording = record(scene, image, story)
        log, base = recording.recorder.log, recording.recorder.base
        for number, state in enumerate(states(log, base, image.parent, PLAN)):
            judgement = recording.judge(state)
            count[judgement.verdict.name] += 1
            if not judgement.good:
                bad.append(f"{state.label}: {judgement}")
            elif number % GOES_ON == 0:
                goes_on(state.image)
                count["went on"] += 1
    say(f"{story}: {', '.join(f'{number} {name}' for name, number in sorted(count.items()))}")
    assert bad == []
    assert count.total() - count["went on"] >= STATES


@pytest.mark.parametrize("words", [("add", "b"), ("rollback",)], ids=lambda words: str(words[0]))
def test_a_disk_that_dies_leaves_the_old(words: tuple[str, ...], say: Callable[[str], None]) -> None:
    """Every write fails from some moment on: the command says so, and what boots afterwards agrees with its status."""
    count: Counter[int] = Counter()
    with stopped(pending) as scene:
        with scene.resume() as machine:
            old = machine.tree()
            machine.done(*words)
            new = machine.tree()
        for writes in range(0, 130, 3) if THOROUGH else LAST_WRITES[words[0]]:
            with scene.disk() as image:
                status, found = die(scene, image, words, writes)
                count[status] += 1
                said = f"after {writes} writes: exit status {status}"
                assert found in (old, new), said
                assert status == NOT_DURABLE or found == (old if status else new), said
                goes_on(image)
    say(f"{words[0]}: exit status {', '.join(f'{status} {number} times' for status, number in sorted(count.items()))}")
    assert count.total() > count[0]


def die(scene: Scene, image: Path, words: tuple[str, ...], writes: int) -> tuple[int, Fingerprint]:
    """The exit status of a command under which the disk dies, and what slot 0 holds when it is mounted again."""
    with recorded(image, image.parent) as recorder, machine_on(recorder.device, image.parent, scene.slot) as machine:
        scene.restore(machine.guest)
        flush(machine.top)
        recorder.fault(Fault.EIO, after=writes)
        result = machine.run(*words)
        machine.expect_nothing_left()
    said = f"after {writes} writes: {result.status}\n{result.stderr}"
    assert "Traceback" not in result.stderr, said
    if result.status not in (0, NOT_DURABLE):
        assert "nothing was changed" in result.stderr, said
    with attached(image) as device, mounted(device, VIEW) as top:
        return result.status, tree(top, btrfsctl.fsid_of(image))
