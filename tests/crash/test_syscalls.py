"""Every system call by which a command changes something: killed there, and failed there, once each.

A call that fails ends in the old system and a status other than 0, or does not matter and ends in the new one and 0;
107 stands for either. APK_ATOMIC_THOROUGH=1 fails every call with every error; else each kind of call on each kind of
file fails with one of them, in turn.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.crash.machine import THOROUGH, Machine, Scene, Story, each, package, pending, scenes
from tests.support import sweep
from tests.support.oracle import Fingerprint
from tests.support.sweep import ERRORS, KILL, Call, Command, Outcome, Point
from tests.support.world import Guest, Volume

pytestmark = pytest.mark.skipif(bool(sweep.unavailable()), reason=str(sweep.unavailable()))

NOT_DURABLE = 107
ID = re.compile(r"2\d{13}[a-z]{8}")
VARIABLE = re.compile(r"\.tmp-[0-9a-f]+|[0-9a-f]{8}-[0-9a-f-]{27}|0x[0-9a-f]+|\d+")
CHANGING_REQUEST = re.compile(r"BTRFS_IOC_(SNAP_CREATE|SNAP_DESTROY|SUBVOL|SYNC)")


def fresh(volume: Volume, guest: Guest) -> None:
    """FIRST is booted and next; `a`, `b` and `c` can be had."""
    volume.repo.publish(package("a"), package("b"), package("c"))
    guest.run(["apk-atomic", "gc"], check=True)


def unfinished(volume: Volume, guest: Guest) -> None:
    """As fresh, but `add b` was killed when everything but the switch was done."""
    fresh(volume, guest)
    guest.run(["apk-atomic", "add", "b"], env={"APK_ATOMIC_FAULT": "checked:kill"})


@dataclass(frozen=True, slots=True)
class Sweep:
    """A command in a scene; what is asked for in slot 0 before and after it."""

    name: str
    story: Story
    words: tuple[str, ...]
    old: frozenset[str]
    new: frozenset[str]

    def __str__(self) -> str:
        return self.name


NONE, A, B = frozenset[str](), frozenset({"a"}), frozenset({"b"})
SWEEPS = (
    Sweep("add", fresh, ("add", "b"), NONE, B),
    Sweep("rollback", pending, ("rollback",), A, NONE),
    Sweep("discard", pending, ("discard",), A, NONE),
    Sweep("recovery", unfinished, ("rollback", "0"), NONE, NONE),
    Sweep("gc", pending, ("gc",), A, A),
)


@dataclass(frozen=True, slots=True)
class Ground:
    """Where a sweep takes place, and what its command does there undisturbed."""

    places: list[Scene]
    old: Fingerprint
    new: Fingerprint
    calls: tuple[Call, ...]


@pytest.fixture(scope="module")
def grounds() -> Iterator[Callable[[Sweep], Ground]]:
    with ExitStack() as stack:
        made: dict[str, Ground] = {}

        def ground(which: Sweep) -> Ground:
            if which.name not in made:
                made[which.name] = survey(stack.enter_context(scenes(which.story)), which)
            return made[which.name]

        yield ground


def survey(places: list[Scene], which: Sweep) -> Ground:
    with places[0].resume() as machine:
        old = machine.tree()
        outcome = strike(machine, which)
        assert outcome.status == 0 and not outcome.survivors, outcome
        return Ground(places, old, machine.tree(), tuple(own(which, sweep.mutating_calls(outcome.trace))))


def own(which: Sweep, calls: list[Call]) -> list[Call]:
    """Without those of the program that enters the guest; what comes before the volume is mounted only for one verb."""
    if which.name == "add" or THOROUGH:
        return [call for call in calls if call.syscall != "setns"]
    start = next(number for number, call in enumerate(calls) if call.syscall == "mount" and "subvolid=5" in call.text)
    return calls[start:]


def strike(machine: Machine, which: Sweep, point: Point | None = None) -> Outcome:
    argv, environment = machine.guest.command(["apk-atomic", *which.words])
    return sweep.run(Command(tuple(argv), environment, patience=10), machine.place, point)


def changes(call: Call) -> bool:
    """Whether anything is different after the call: to be killed before another one is to be killed before the next."""
    asks = call.syscall == "ioctl" and not CHANGING_REQUEST.search(call.text)
    return not asks and ") = -1 E" not in call.text


def kind(call: Call) -> str:
    """Equal for calls of one kind on one kind of file."""
    return call.syscall + " " + VARIABLE.sub("N", ID.sub("ID", call.text.partition(") = ")[0][:80]))


def failing(calls: tuple[Call, ...]) -> list[Point]:
    """All errors at all calls, or one at each kind of call: the errors in turn."""
    if THOROUGH:
        return sweep.points(calls, ERRORS)
    kinds = {kind(call): call for call in reversed(calls)}
    return [Point(call, error) for call, error in zip(reversed(kinds.values()), itertools.cycle(ERRORS), strict=False)]


def trial(ground: Ground, which: Sweep, scene: Scene, point: Point) -> None:
    with scene.resume() as machine:
        outcome = strike(machine, which, point)
        said = f"exit status {outcome.status}, hit {outcome.hit}\n{outcome.stderr}"
        assert outcome.hit is not None and not outcome.hung and not outcome.survivors, said
        assert "Traceback" not in outcome.stderr, said
        side = machine.side(ground.old, ground.new)
        if point.action == KILL:
            assert outcome.status == -9, said
        elif ground.old != ground.new:
            assert outcome.status == NOT_DURABLE or (outcome.status == 0) == (side == "new"), f"{side}: {said}"
        machine.expect_nothing_left()
        world = which.new if side == "new" else which.old
        if point.action == KILL or THOROUGH:
            expect_next_run(machine, world)
        else:
            machine.done("rollback", "0")
            machine.expect_clean()
            assert machine.world() == world


def expect_next_run(machine: Machine, world: frozenset[str]) -> None:
    machine.done("add", "c")
    machine.expect_nothing_left()
    clean = machine.expect_clean()
    assert machine.world() == world | {"c"}
    assert machine.marks() == [clean.current]
    assert clean.of("snapshots") == set(clean.slots)


@pytest.mark.parametrize("which", SWEEPS, ids=str)
def test_killed_at_every_changing_call(
    grounds: Callable[[Sweep], Ground], which: Sweep, say: Callable[[str], None]
) -> None:
    ground = grounds(which)
    points = sweep.points(filter(changes, ground.calls), [KILL])
    say(f"{which}: {len(points)} points of {len(ground.calls)} calls")
    each(ground.places, points, lambda scene, point: trial(ground, which, scene, point))


@pytest.mark.parametrize("which", SWEEPS, ids=str)
def test_every_call_fails_once(
    grounds: Callable[[Sweep], Ground], which: Sweep, say: Callable[[str], None]
) -> None:
    ground = grounds(which)
    points = failing(ground.calls)
    say(f"{which}: {len(points)} points of {len(ground.calls)} calls")
    each(ground.places, points, lambda scene, point: trial(ground, which, scene, point))


def test_the_switch_is_among_what_is_swept(grounds: Callable[[Sweep], Ground]) -> None:
    """If these are not seen, nothing that the others say counts."""
    texts = [f"{call.syscall} {call.text}" for call in grounds(SWEEPS[0]).calls]
    for wanted in (r'rename.*"current"', r"syncfs", r"SNAP_CREATE", r"SNAP_DESTROY", r"clone", r"mount"):
        assert any(re.search(wanted, text) for text in texts), wanted
