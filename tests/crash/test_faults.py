"""Each named fault point of a transaction, struck in every way: the old system or the new, and the status says which.

In each trial `a` is pending; a command is struck; then it is judged what boots, what is left, what `status` and the
next run make of it, and that recovering twice is recovering once.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import apk_atomic
from apk_atomic.faults import ADOPTION, AUTO_POINTS, BOOT_MENU, COLLECTION, POINTS, READING
from tests.crash.machine import LITTER, THOROUGH, Machine, Scene, each, pending, scenes
from tests.support.oracle import Fingerprint
from tests.support.world import Result

SOURCE = Path(apk_atomic.__file__).parent
REPOINT = ("locked", "mounted", "recovered", "journal", "links", "laid-out", "checked", "pending", "renamed", "synced",
           "unstaged")  # fmt: skip
NEXT_RUN = ("kill", "fail", "int")  # the others end in the same way as one of these
SIGNALS = {"int": 130, "term": 143, "hup": 129}


@dataclass(frozen=True, slots=True)
class Verb:
    """A command; which points it comes by; what is asked for in slot 0 when it is done; whether that is pending."""

    words: tuple[str, ...]
    points: tuple[str, ...]
    world: frozenset[str]
    pending: bool

    def __str__(self) -> str:
        return self.words[0]


A, AB, NONE = frozenset({"a"}), frozenset({"a", "b"}), frozenset[str]()
ADD = Verb(("add", "b"), POINTS, AB, pending=True)
ROLLBACK = Verb(("rollback",), (*REPOINT, "unlocked"), NONE, pending=False)
DISCARD = Verb(("discard",), (*REPOINT, "collected", "unlocked"), NONE, pending=False)
GC = Verb(("gc",), ("locked", "mounted", "recovered", "unstaged", "collected", "unlocked"), A, pending=True)
STRUCK = [(ADD, action) for action in ("fail", "full", *SIGNALS)]
STRUCK += [(ROLLBACK, "fail"), (ROLLBACK, "term"), (DISCARD, "full"), (DISCARD, "int")]
VERBS = (
    ADD,
    Verb(("upgrade",), POINTS, A, pending=True),
    Verb(("run", "--", "sh", "-c", "echo more >/etc/more; rm /etc/a.conf"), POINTS, A, pending=True),
    ROLLBACK,
    DISCARD,
    GC,
)


@dataclass(frozen=True, slots=True)
class Trees:
    """What slot 0 holds before and after a verb that nothing disturbs."""

    old: Fingerprint
    new: Fingerprint


@pytest.fixture(scope="module")
def places() -> Iterator[list[Scene]]:
    with scenes(pending) as made:
        yield made


@pytest.fixture(scope="module")
def trees(places: list[Scene]) -> dict[Verb, Trees]:
    return {verb: undisturbed(places[0], verb) for verb in VERBS}


def undisturbed(scene: Scene, verb: Verb) -> Trees:
    with scene.resume() as machine:
        old = machine.tree()
        machine.done(*verb.words)
        expect(machine, verb.world, is_pending=verb.pending)
        machine.expect_clean()
        return Trees(old, machine.tree())


def expect(machine: Machine, world: frozenset[str], *, is_pending: bool) -> None:
    """What `status` says agrees with the disk, and slot 0 holds these packages."""
    status, found = machine.status(), machine.layout()
    assert tuple(status["slots"]) == found.slots
    assert (status["pending"], status["next"], status["fallback_booted"]) == (is_pending, found.slots[0], False)
    assert machine.world() == world


def strike(scene: Scene, trees: Trees, verb: Verb, point: str, action: str) -> None:
    with scene.resume() as machine:
        start = machine.layout()
        result = machine.run(*verb.words, fault=f"{point}:{action}")
        machine.expect_nothing_left()
        side = machine.side(trees.old, trees.new)
        expect_status(result, point, action, side)
        world, waits = (verb.world, verb.pending) if side == "new" else (A, True)
        expect(machine, world, is_pending=waits)
        if result.status in (-9, 107):
            recover(machine, twice=verb is ADD or THOROUGH)
        clean = machine.expect_clean()
        assert (clean.current in machine.marks()) == waits
        if side == "old" and point not in ("unstaged", "collected", "unlocked"):
            assert clean == start
        if action in NEXT_RUN or THOROUGH:
            run_next(machine, world)


def recover(machine: Machine, *, twice: bool) -> None:
    """Any command that locks the volume recovers it first; this one then finds nothing to do."""
    machine.done("rollback", "0")
    once = machine.layout()
    assert machine.marks() in ([], [once.current])
    if twice:
        assert "recovered" not in machine.done("rollback", "0").stderr
        assert machine.layout() == once


def run_next(machine: Machine, world: frozenset[str]) -> None:
    """It works, on top of what is there, and leaves nothing of what was before it."""
    assert "recovered" not in machine.done("add", "c").stderr
    machine.expect_nothing_left()
    clean = machine.expect_clean()
    assert machine.world() == world | {"c"}
    assert machine.marks() == [clean.current]
    assert clean.of("snapshots") == set(clean.slots)


def expect_status(result: Result, point: str, action: str, side: str) -> None:
    """The exit status says which side of the commit it was."""
    said = f"{point}:{action}: {result.status}, {side}\n{result.stderr}"
    switched = POINTS.index(point) >= POINTS.index("renamed")
    assert "/apk_atomic/" not in result.stderr, said
    if action == "kill":
        assert result.status == -9, said
        return
    if action in SIGNALS:
        # the last look at the signals is just before the switch is begun
        switched = POINTS.index(point) >= POINTS.index("pending")
        expected = 0 if switched else SIGNALS[action]
    elif point == "renamed":
        switched, expected = False, 107
    else:
        expected = 0 if switched else {"fail": 104, "full": 103}[action]
    assert (result.status, side) == (expected, "new" if switched else "old"), said
    if expected not in (0, 107):
        assert "nothing was changed" in result.stderr, said


def test_the_points_are_those_in_the_source() -> None:
    calls = [
        node.args[0].value
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "point"
        if isinstance(node.args[0], ast.Constant)
    ]
    assert set(calls) == {*POINTS, *AUTO_POINTS, *ADOPTION, *BOOT_MENU, *COLLECTION, *READING}
    assert len(set(POINTS)) == len(POINTS)


@pytest.mark.parametrize("verb", VERBS, ids=str)
def test_killed_at_each_point(places: list[Scene], trees: dict[Verb, Trees], verb: Verb) -> None:
    each(places, verb.points, lambda scene, point: strike(scene, trees[verb], verb, point, "kill"))


@pytest.mark.parametrize(("verb", "action"), STRUCK, ids=str)
def test_struck_at_each_point(places: list[Scene], trees: dict[Verb, Trees], verb: Verb, action: str) -> None:
    each(places, verb.points, lambda scene, point: strike(scene, trees[verb], verb, point, action))


@pytest.mark.parametrize("action", ["fail", "full", *SIGNALS])
def test_a_collection_is_struck_at_each_point(places: list[Scene], trees: dict[Verb, Trees], action: str) -> None:
    """There is no switch that tells what it did: it says so itself, and only of what is gone."""

    def trial(scene: Scene, point: str) -> None:
        with scene.resume() as machine:
            start = machine.layout()
            result = machine.run("gc", fault=f"{point}:{action}")
            machine.expect_nothing_left()
            said = f"{point}:{action}: {result.status}\n{result.stdout}{result.stderr}"
            begun = GC.points.index(point) >= GC.points.index("unstaged")
            if not begun:
                expected = SIGNALS.get(action, 103 if action == "full" else 104)
                assert machine.layout() == start and "nothing was changed" in result.stderr, said
            else:
                expected = 104 if action not in SIGNALS and point != "unlocked" else 0
                assert machine.expect_clean().of("snapshots").isdisjoint(LITTER), said
                assert "nothing was changed" not in result.stderr, said
            assert result.status == expected, said
            assert all(name in result.stdout for name in LITTER) == (begun and expected == 0), said
            assert machine.side(trees[GC].old, trees[GC].new)
            run_next(machine, A)

    each(places, GC.points, trial)
