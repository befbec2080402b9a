"""Base, slots and garbage: the design's rules case by case, and its promises over any sequence of events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from apk_atomic.errors import AtomicError, Refused, UsageError
from apk_atomic.model import Generation, State
from apk_atomic.retention import (
    DAY,
    MIN_SLOTS,
    Base,
    Keep,
    choose_base,
    choose_target,
    garbage,
    newest_good,
    slots_after_commit,
    slots_after_discard,
    slots_after_rollback,
)
from tests.support.properties import cheap

NOTHING: frozenset[str] = frozenset()
NO_GRACE = Keep()


def generations(*names: str) -> tuple[Generation, ...]:
    """Oldest first; the mark behind a name is `+` good, `-` failed, `!` pinned, `?` unsealed."""
    return tuple(
        Generation(
            name.rstrip("+-!?"),
            order=order,
            created=order * DAY,
            sealed="?" not in name,
            good="+" in name,
            failed="-" in name,
            pinned="!" in name,
        )
        for order, name in enumerate(names, 1)
    )


def is_contradicted(state: State, generation: Generation) -> bool:
    """Whether an older generation says that it was made later."""
    return any(each.order < generation.order and each.created > generation.created for each in state.generations)


def collected(state: State, keep: Keep = NO_GRACE, now: float = 1000 * DAY) -> list[str]:
    return [each.id for each in garbage(state, keep, mounted=NOTHING, at_work=NOTHING, now=now)]


# Base


def test_base_is_slot_0_when_that_is_booted() -> None:
    assert choose_base(State(generations("a", "b"), ("b", "a"), "b"), None) == Base("b")


def test_base_is_the_pending_one_so_that_two_adds_give_both() -> None:
    state = State(generations("a", "b"), ("b", "a"), "a", pending=True)
    assert choose_base(state, None) == Base("b", on_pending=True)


def test_base_asked_for_instead_of_pending_says_what_it_leaves_out() -> None:
    state = State(generations("a", "b"), ("b", "a"), "a", pending=True)
    assert choose_base(state, "booted") == Base("a", leaves_out="b")
    assert choose_base(state, "a") == Base("a", leaves_out="b")
    assert choose_base(state, "next") == Base("b", on_pending=True)


def test_a_booted_fallback_is_asked_about() -> None:
    state = State(generations("a", "b"), ("b", "a"), "a")
    with pytest.raises(Refused) as refusal:
        choose_base(state, None)
    assert "booted|next|ID" in refusal.value.hint
    assert "nothing was changed" in refusal.value.message
    assert choose_base(state, "booted") == Base("a")
    assert choose_base(state, "next") == Base("b")


def test_a_failed_generation_is_base_only_by_name() -> None:
    state = State(generations("a", "b-"), ("b", "a"), "b")
    with pytest.raises(Refused, match="failed"):
        choose_base(state, None)
    for wanted in ("b", "next", "booted"):
        assert choose_base(state, wanted) == Base("b")


def test_on_another_volume_base_is_slot_0() -> None:
    state = State(generations("a", "b"), ("b", "a"), None)
    assert choose_base(state, None) == Base("b")
    with pytest.raises(UsageError, match="booted"):
        choose_base(state, "booted")


@pytest.mark.parametrize("wanted", ["c", "", "..", "B"])
def test_an_unknown_base_is_named(wanted: str) -> None:
    with pytest.raises(UsageError, match="atomic-base") as error:
        choose_base(State(generations("a"), ("a",), "a"), wanted)
    assert wanted in error.value.message
    assert error.value.hint


@pytest.mark.parametrize("slots", [(), ("",), ("gone",)])
def test_no_base_is_guessed_where_slot_0_leads_nowhere(slots: tuple[str, ...]) -> None:
    state = State(generations("a"), slots, "a")
    with pytest.raises(Refused, match="slot 0"):
        choose_base(state, None)
    with pytest.raises(UsageError):
        choose_base(state, "next")
    assert choose_base(state, "booted") == Base("a")


def test_somebodys_unfinished_work_is_no_base() -> None:
    with pytest.raises(Refused, match="not sealed"):
        choose_base(State(generations("a", "b?"), ("a",), "a"), "b")
    assert choose_base(State(generations("a?"), ("a",), "a"), None) == Base("a")


# Slots after a commit


def test_new_booted_and_the_rest_newest_first() -> None:
    state = State(generations("a", "b", "c"), ("c", "b", "a"), "c")
    assert slots_after_commit(state, "d", "c", 4) == ("d", "c", "b", "a")
    assert slots_after_commit(state, "d", "c", 3) == ("d", "c", "b")


def test_newer_is_the_order_on_disk_not_name_or_clock() -> None:
    state = State(
        (
            Generation("2038", order=1, created=9e9),
            Generation("1970", order=3, created=0),
            Generation("2000", order=2, created=5e8),
        ),
        ("2000", "2038", "1970"),
        None,
    )
    assert slots_after_commit(state, "new", "2000", 4) == ("new", "1970", "2000", "2038")


def test_empty_slots_repeat_the_last() -> None:
    assert slots_after_commit(State(generations("a"), ("a",), "a"), "b", "a", 4) == ("b", "a", "a", "a")
    assert slots_after_commit(State(), "b", "", 3) == ("b", "b", "b")


def test_a_pending_one_that_was_built_on_gives_up_its_slot() -> None:
    state = State(generations("a", "b", "p"), ("p", "b", "a"), "b", pending=True)
    assert slots_after_commit(state, "n", "p", 4) == ("n", "b", "a", "a")


def test_a_pending_one_that_was_not_built_on_becomes_a_fallback() -> None:
    state = State(generations("a", "b", "p"), ("p", "b", "a"), "b", pending=True)
    assert slots_after_commit(state, "n", "b", 4) == ("n", "b", "p", "a")


@pytest.mark.parametrize("mark", ["+", "!"])
def test_a_rolled_back_one_that_was_built_on_stays_when_good_or_pinned(mark: str) -> None:
    state = State(generations("a" + mark, "b", "c"), ("a", "c", "b"), "c", pending=True)
    assert slots_after_commit(state, "n", "a", 4) == ("n", "c", "a", "b")


def test_booted_then_newest_good_then_pinned() -> None:
    state = State(
        generations("booted", "pin!", "good+", "bad+-", "rest", "next"),
        ("next", "rest", "bad", "booted"),
        "booted",
    )
    expected = ("new", "booted", "good", "pin", "next", "rest", "rest")
    for count in range(1, 8):
        assert slots_after_commit(state, "new", "next", count) == expected[:count]


def test_failed_and_superseded_ones_get_no_slot_while_others_are_there() -> None:
    state = State(generations("old", "bad-", "superseded", "a"), ("a", "bad", "old"), "a")
    assert slots_after_commit(state, "n", "a", 5) == ("n", "a", "old", "old", "old")


def test_a_lost_menu_is_filled_with_whatever_there_is() -> None:
    state = State(generations("a", "b", "bad-", "open?"), ("", ""), None)
    assert slots_after_commit(state, "n", "a", 4) == ("n", "b", "a", "a")


def test_what_failed_is_left_for_a_week_unless_somebody_asks() -> None:
    state = State(generations("bad-", "a"), ("a", "a"), "a")
    now = state.generations[0].created + 3 * DAY
    how: dict[str, Any] = {"mounted": NOTHING, "at_work": NOTHING, "now": now}
    assert [each.id for each in garbage(state, Keep(), **how)] == ["bad"]
    assert garbage(state, Keep(), **how, asked=False) == ()
    how["now"] += 5 * DAY
    assert [each.id for each in garbage(state, Keep(), **how, asked=False)] == ["bad"]


def test_what_failed_is_no_way_back() -> None:
    state = State(generations("a", "bad-"), ("bad", "a"), "a", pending=True)
    assert slots_after_discard(state, 3) == ("a", "a", "a")


def test_unsealed_ones_get_no_slot_but_the_booted_one_keeps_its_own() -> None:
    state = State(generations("a?", "b?", "c!?", "d+?"), ("b", "a"), "b")
    assert slots_after_commit(state, "n", "b", 3) == ("n", "b", "b")


def test_a_menu_needs_a_slot() -> None:
    with pytest.raises(ValueError, match="0 slots"):
        slots_after_commit(State(), "n", "", 0)


# Rollback and discard


def test_rollback_swaps_and_keeps_the_way_forward() -> None:
    state = State(generations("a", "b", "c"), ("c", "b", "a"), "c")
    assert slots_after_rollback(state, "a", 3) == ("a", "c", "b")
    pending = State(generations("a", "b", "c"), ("c", "b", "a"), "b", pending=True)
    assert slots_after_rollback(pending, "b", 3) == ("b", "c", "a")


@pytest.mark.parametrize(
    ("state", "wanted", "target"),
    [
        (State(generations("a", "b"), ("b", "a"), "b"), None, "a"),
        (State(generations("a", "b", "c"), ("c", "b", "a"), "a", pending=True), None, "a"),
        (State(generations("a", "b", "c"), ("c", "b", "a"), "a"), None, "a"),
        (State(generations("a", "b-", "c"), ("c", "b", "a"), "c"), None, "a"),
        (State(generations("a", "b", "c"), ("c", "c", "a"), None), None, "a"),
        (State(generations("a", "b", "c"), ("c", "b", "a"), "c"), "2", "a"),
        (State(generations("a", "b-", "c"), ("c", "a", "b"), "b"), "b", "b"),
        (State(generations("2", "b", "c"), ("c", "b", "b"), "c"), "2", "b"),
        (State(generations("a", "b", "c"), ("c", "b", "a"), "a"), "booted", "a"),
    ],
)
def test_target_of_a_rollback(state: State, wanted: str | None, target: str) -> None:
    assert choose_target(state, wanted) == target


def test_a_failed_target_needs_force() -> None:
    state = State(generations("a", "b-", "c"), ("c", "b", "a"), "c")
    with pytest.raises(Refused, match="failed"):
        choose_target(state, "b")
    assert choose_target(state, "b", force=True) == "b"


@pytest.mark.parametrize("wanted", [None, "7", "x", "-1", "", "1", "open", "9" * 5000, "²"])
def test_no_target(wanted: str | None) -> None:
    state = State(generations("a", "open?"), ("a", ""), "a")
    with pytest.raises((Refused, UsageError)) as error:
        choose_target(state, wanted)
    assert "nothing was changed" in error.value.message
    assert error.value.hint


def test_discard_drops_the_pending_one() -> None:
    state = State(generations("a", "b", "p"), ("p", "b", "a"), "b", pending=True)
    assert slots_after_discard(state, 4) == ("b", "a", "a", "a")
    good = State(generations("p+", "a", "b"), ("p", "b", "a"), "b", pending=True)
    assert slots_after_discard(good, 4) == ("b", "p", "a", "a")


def test_what_a_rollback_made_pending_is_no_new_one() -> None:
    """It is a fallback again after a discard, and stays one under what is built on it."""
    state = State(generations("a", "b", "c"), ("a", "c", "b"), "c", pending=True, chosen=True)
    assert slots_after_discard(state, 4) == ("c", "b", "a", "a")
    assert slots_after_commit(state, "n", "a", 4) == ("n", "c", "b", "a")


def test_discard_without_a_pending_or_a_booted_one_is_refused() -> None:
    for state in (
        State(generations("a", "b"), ("b", "a"), "b"),
        State(generations("a", "b"), ("b", "a"), "gone", pending=True),
    ):
        with pytest.raises(Refused):
            slots_after_discard(state, 3)


# Garbage


def test_garbage_is_what_nothing_holds() -> None:
    state = State(
        generations("x", "good+", "pin!", "booted", "work", "mounted", "bad-", "fallback", "next"),
        ("next", "fallback"),
        "booted",
    )
    victims = garbage(
        state, Keep(), mounted=frozenset({"mounted"}), at_work=frozenset({"work"}), now=1000 * DAY
    )
    assert [(each.id, each.reason) for each in victims] == [("x", "in no slot"), ("bad", "marked as failed")]


def test_keep_by_age_and_by_count() -> None:
    state = State(generations("a", "b", "c", "d", "e"), ("e",), "e")
    assert collected(state, now=5 * DAY) == ["a", "b", "c", "d"]
    assert collected(state, Keep(days=2.5), now=5 * DAY) == ["a", "b"]
    assert collected(state, Keep(newest=2), now=5 * DAY) == ["a", "b", "c"]
    assert collected(state, Keep(newest=2, days=3.5), now=5 * DAY) == ["a"]
    assert collected(state, Keep(newest=9), now=5 * DAY) == []


def test_nothing_is_garbage_while_slot_0_leads_nowhere() -> None:
    for slots in ((), ("",), ("gone", "a"), ("", "a")):
        assert collected(State(generations("a", "b"), slots, None)) == []


def test_unfinished_work_stays_for_a_day_and_is_named_then() -> None:
    state = State(generations("a", "open?", "next"), ("next", "a"), "a")
    assert collected(state, now=3 * DAY) == []
    (victim,) = garbage(state, Keep(), mounted=NOTHING, at_work=NOTHING, now=3 * DAY + 1)
    assert victim.unsealed
    assert victim.id == "open"
    assert "never sealed" in victim.reason


@pytest.mark.parametrize(
    ("births", "now", "victims"),
    [
        ([1, 2, 50, 4], 5, ["a", "b"]),  # c is from the future, but came before d
        ([3, 0, 3.5, 4], 5, []),  # b was made in 1970, but after a
        ([1, 2, 3, 4], 0, []),  # the clock stands at 1970 now
        ([50, 1, 2, 3], 5, ["a", "b", "c"]),  # a is from the future, but came before b
    ],
)
def test_a_wrong_clock_never_shortens_a_life(births: list[float], now: float, victims: list[str]) -> None:
    made = tuple(
        Generation(name, order=order, created=birth * DAY)
        for order, (name, birth) in enumerate(zip("abcd", births, strict=True))
    )
    state = State((*made, Generation("e", order=9, created=4.5 * DAY)), ("e",), "e")
    assert collected(state, Keep(days=2.2), now=now * DAY) == victims


# Sequences


@pytest.mark.parametrize("count", [3, 4, 6])
def test_a_month_of_nightly_upgrades_without_a_reboot(count: int) -> None:
    state = State(generations("old+", "older", "running"), ("running", "old", "older"), "running")
    for night in range(30):
        base = choose_base(state, None)
        assert base.on_pending == (night > 0)
        new = Generation(f"n{night}", order=100 + night)
        slots = slots_after_commit(state, new.id, base.id, count)
        assert slots[:3] == (new.id, "running", "old")
        assert sum(name.startswith("n") for name in slots) == 1
        state = State((*state.generations, new), slots, "running", pending=True)
        gone = set(collected(state))
        state = state._replace(generations=tuple(each for each in state.generations if each.id not in gone))
        assert {"running", "old", new.id} <= {each.id for each in state.generations}
        assert len(state.generations) <= count


def test_a_thousand_generations_are_no_work() -> None:
    many = tuple(Generation(f"g{number}", order=number, good=number % 7 == 0) for number in range(1000))
    state = State(many, ("g999", "g998", "g997"), "g999")
    assert len(collected(state)) == 996
    assert slots_after_commit(state, "new", "g999", 4) == ("new", "g999", "g994", "g998")


class Volume(RuleBasedStateMachine):
    """A volume and a user, his wiki scripts, his clock and his bad luck."""

    def __init__(self) -> None:
        super().__init__()
        self.state = State()
        self.count = MIN_SLOTS
        self.now = 100 * DAY
        self.made = 0

    def make(self, *, sealed: bool = True, foreign: bool = False) -> Generation:
        """The newest generation; its name says the opposite, its birth what the clock said."""
        self.made += 1
        name = f"{9999 - self.made}"
        return Generation(name, order=self.made, created=self.now, sealed=sealed, foreign=foreign)

    def add(self, generation: Generation) -> None:
        self.state = self.state._replace(generations=(*self.state.generations, generation))

    def mark(self, name: str | None, change: Callable[[Generation], Generation]) -> None:
        marked = (change(each) if each.id == name else each for each in self.state.generations)
        self.state = self.state._replace(generations=tuple(marked))

    def pick(self, number: int) -> Generation:
        return self.state.generations[number % len(self.state.generations)]

    def switch(self, slots: tuple[str, ...], *, first: str) -> None:
        """What our own commands do to the pointer, and what must hold then."""
        pending = first != self.state.booted and self.state.booted is not None
        self.state = self.state._replace(slots=slots, pending=pending)
        assert slots[0] == first
        assert len(slots) == self.count
        assert self.state.booted is None or self.state.booted in slots
        assert newest_good(self.state) in (*slots, "")
        for name in slots:
            found = self.state.find(name)
            assert found is not None
            assert found.sealed

    @initialize(offline=st.booleans())
    def install(self, offline: bool) -> None:
        first = self.make()
        self.add(first)
        self.state = self.state._replace(slots=(first.id,) * self.count, booted=None if offline else first.id)

    @rule(wanted=st.sampled_from([None, None, None, "booted", "next", "some"]), number=st.integers(0, 50))
    def commit(self, wanted: str | None, number: int) -> None:
        before = self.state
        try:
            base = choose_base(before, self.pick(number).id if wanted == "some" else wanted)
        except AtomicError as error:
            assert "nothing was changed" in error.message
            assert error.hint
            return
        if wanted is None:
            assert base.id in (before.booted, before.next)
            assert not before.fallback_booted
            assert not self.pick_id(base.id).failed
        new = self.make()
        slots = slots_after_commit(before, new.id, base.id, self.count)
        self.add(new)
        self.switch(slots, first=new.id)
        replaced = before.find(before.next) if base.on_pending else None
        if replaced and not (replaced.good or replaced.pinned):
            assert replaced.id not in slots

    def pick_id(self, name: str) -> Generation:
        found = self.state.find(name)
        assert found is not None
        return found

    @rule(number=st.integers(0, 50), default=st.booleans())
    def rollback(self, number: int, default: bool) -> None:
        try:
            target = choose_target(self.state, None if default else self.pick(number).id)
        except AtomicError:
            asked = self.pick(number)
            assert default or not asked.sealed or (asked.failed and asked.id != self.state.booted)
            return
        self.switch(slots_after_rollback(self.state, target, self.count), first=target)

    @precondition(lambda self: self.state.pending)
    @rule()
    def discard(self) -> None:
        before = self.pick_id(self.state.next)
        self.switch(slots_after_discard(self.state, self.count), first=self.state.booted or "")
        assert before.good or before.pinned or before.id not in self.state.slots

    @precondition(lambda self: self.state.booted is not None)
    @rule(slot=st.sampled_from([0, 0, 0, 1, 2, 5]))
    def boot(self, slot: int) -> None:
        name = self.state.slots[slot % len(self.state.slots)]
        assume(self.state.find(name) is not None)
        self.state = self.state._replace(booted=name, pending=False)

    @rule(good=st.booleans())
    def judge(self, good: bool) -> None:
        self.mark(self.state.booted, lambda each: each._replace(good=good, failed=not good))

    @rule(number=st.integers(0, 50), pinned=st.booleans())
    def pin(self, number: int, pinned: bool) -> None:
        self.mark(self.pick(number).id, lambda each: each._replace(pinned=pinned))

    @rule()
    def sysmut_opens(self) -> None:
        self.add(self.make(sealed=False, foreign=True))

    @rule(switch=st.booleans())
    def sysmut_closes(self, switch: bool) -> None:
        work = next((each for each in self.state.generations if not each.sealed), None)
        assume(work is not None)
        assert work is not None
        self.mark(work.id, lambda each: each._replace(sealed=True))
        if switch:
            self.state = self.state._replace(slots=(work.id, *self.state.slots[:-1]), pending=False)

    @rule(slot=st.integers(0, 5))
    def a_slot_breaks(self, slot: int) -> None:
        slots = list(self.state.slots)
        slots[slot % len(slots)] = ""
        self.state = self.state._replace(slots=tuple(slots), pending=self.state.pending and slots[0] != "")

    @rule(count=st.integers(MIN_SLOTS, 6))
    def configure(self, count: int) -> None:
        self.count = count

    @rule(days=st.sampled_from([0.1, 1, 1, 10, -20]))
    def time_passes(self, days: float) -> None:
        self.now += days * DAY

    @rule(
        keep=st.builds(Keep, newest=st.integers(0, 3), days=st.sampled_from([0, 0, 0.5, 7])),
        mounted=st.frozensets(st.integers(0, 50), max_size=2),
        at_work=st.frozensets(st.integers(0, 50), max_size=1),
    )
    def collect(self, keep: Keep, mounted: frozenset[int], at_work: frozenset[int]) -> None:
        state, now = self.state, self.now
        held = frozenset(self.pick(number).id for number in mounted)
        busy = frozenset(self.pick(number).id for number in at_work)
        victims = {each.id: each for each in garbage(state, keep, mounted=held, at_work=busy, now=now)}
        reachable = {*state.slots, state.booted, newest_good(state), *held, *busy}
        assert not reachable & victims.keys()
        for each in state.generations:
            if each.id in victims:
                assert not each.pinned
                assert victims[each.id].unsealed != each.sealed
                grace = max(keep.days * DAY, DAY if each.foreign or not each.sealed else 0)
                assert not grace or each.created > now or now - each.created >= grace
            elif keep == Keep() and state.find(state.next) and each.sealed and not each.foreign:
                assert each.pinned or each.id in reachable
        left = tuple(each for each in state.generations if each.id not in victims)
        self.state = state._replace(generations=left)
        # Once more finds nothing, but for what a clock that went back had made look young as long as the older one was
        # there that proved the clock wrong.
        for victim in garbage(self.state, keep, mounted=held, at_work=busy, now=now):
            assert is_contradicted(state, next(each for each in left if each.id == victim.id))

    @invariant()
    def nothing_reachable_is_gone(self) -> None:
        names = {each.id for each in self.state.generations}
        assert self.state.booted is None or self.state.booted in names
        assert set(self.state.slots) <= names | {""}


Volume.TestCase.settings = cheap(50, steps=40)
TestVolume = Volume.TestCase
