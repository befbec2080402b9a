"""Which generation a transaction starts from, which ones keep a slot, which ones may go (design, section 4).

Pure decisions: a `State` in, names out. It must not know how a link, a mark or a subvolume is made or
removed; who asks has read the state under the lock. "Newer" is `Generation.order`, never a name or a clock.
A generation that is not sealed stands in no slot, unless it is the booted one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from apk_atomic.errors import Refused, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from apk_atomic.model import Generation, State

MIN_SLOTS = 3
"""New, booted and newest good: with fewer slots one of them has none (garbage spares it all the same)."""

DAY = 86400.0
LOOKED_AT_DAYS = 7.0


class Base(NamedTuple):
    """Where a transaction starts.

    `on_pending`: it is the pending generation, which the new one replaces. `leaves_out`: the pending
    generation whose changes the new one will not contain, '' when there is none; the user is told.
    """

    id: str
    on_pending: bool = False
    leaves_out: str = ""


class Keep(NamedTuple):
    """Garbage younger than `days`, and so many of the `newest` generations whatever their age, stay."""

    newest: int = 0
    days: float = 0.0


class Victim(NamedTuple):
    """A generation to collect, and why; `unsealed`: somebody's unfinished work, to be named. `good`: as it was then."""

    id: str
    reason: str
    unsealed: bool = False
    good: bool = False


# Base


def choose_base(state: State, wanted: str | None) -> Base:
    """The generation to start from; `wanted` is the operand of --atomic-base, or None.

    Raises Refused where the design says not to guess, UsageError for a name that is none. Nothing is
    changed then.
    """
    chosen = _default_base(state) if wanted is None else _wanted_base(state, wanted)
    if not chosen.sealed and chosen.id not in (state.booted, state.next):
        raise Refused(
            f"generation {chosen.id} is not sealed, somebody may be changing it; nothing was changed",
            hint="wait until it is finished, or choose another with --atomic-base booted|next|ID",
        )
    on_pending = state.pending and chosen.id == state.next
    return Base(chosen.id, on_pending, state.next if state.pending and not on_pending else "")


def _default_base(state: State) -> Generation:
    ask = "say which one to start from: --atomic-base booted|next|ID"
    chosen = state.find(state.next)
    if chosen is None:
        raise Refused(
            "slot 0 does not lead to a generation; nothing was changed",
            hint=f"apk-atomic rollback ID puts one there, or {ask}",
        )
    if state.fallback_booted:
        raise Refused(
            f"the fallback {state.booted} is booted, not {chosen.id} which slot 0 names: "
            "it is not clear which one to change; nothing was changed",
            hint=ask,
        )
    if chosen.failed:
        raise Refused(
            f"generation {chosen.id} in slot 0 is marked as failed, so it is no base; nothing was changed",
            hint=f"apk-atomic rollback leaves it, or {ask}",
        )
    return chosen


def _wanted_base(state: State, wanted: str) -> Generation:
    if wanted == "booted" and state.booted is None:
        raise UsageError(
            "--atomic-base booted: no generation of this volume is booted; nothing was changed",
            hint="use --atomic-base next or --atomic-base ID",
        )
    name = {"booted": state.booted or "", "next": state.next}.get(wanted, wanted)
    return _existing(state, name, f"--atomic-base {wanted}")


def _existing(state: State, name: str, asked: str) -> Generation:
    found = state.find(name)
    if found is None:
        what = f"there is no generation {name!r}" if name else "this leads to no generation"
        raise UsageError(
            f"{asked}: {what}; nothing was changed",
            hint="apk-atomic status lists the generations",
        )
    return found


def named(state: State, word: str) -> str:
    """The ID of a generation by ID, slot number, `booted` or `next`. Raises UsageError when there is none."""
    name = _meant(state, word)
    if state.find(name) is None:
        raise UsageError(f"{word}: there is no such generation", hint="apk-atomic status --all lists them")
    return name


def _meant(state: State, word: str) -> str:
    """The ID that a word stands for, '' for an empty slot. A number is a slot, whatever somebody names generations."""
    if word.isascii() and word.isdigit() and len(word) < 4:
        return state.slots[int(word)] if int(word) < len(state.slots) else ""
    return {"booted": state.booted or "", "next": state.next}.get(word, word)


# Slots


def choose_target(state: State, wanted: str | None, *, force: bool = False) -> str:
    """The generation that `rollback [SLOT|ID]` makes the next one.

    Without an argument it is the booted one where that is not next already (a pending one is left, a booted
    fallback becomes permanent), else the first fallback that differs and did not fail. One that failed is the target
    only by `force`, or if it runs. Raises UsageError, Refused.
    """
    if wanted is None:
        return _default_target(state)
    chosen = _existing(state, _meant(state, wanted), f"rollback {wanted}")
    if not _may_have_slot(state, chosen):
        raise Refused(
            f"generation {chosen.id} is not sealed, it may be half changed; nothing was changed",
            hint="choose a sealed one; apk-atomic status lists them",
        )
    if chosen.failed and not force and chosen.id != state.booted:
        raise Refused(
            f"generation {chosen.id} is marked as failed; nothing was changed",
            hint="apk-atomic status lists the others; with --force it is next all the same",
        )
    return chosen.id


def _default_target(state: State) -> str:
    names = [state.booted or "", *state.slots]
    found = (state.find(name) for name in names if name and name != state.next)
    fits = (each for each in found if each and _may_have_slot(state, each) and not each.failed)
    chosen = next(fits, None)
    if chosen is None:
        raise Refused(
            "there is no other generation to go back to in the slots; nothing was changed",
            hint="apk-atomic status lists all generations, apk-atomic rollback ID takes any of them",
        )
    return chosen.id


def slots_after_commit(state: State, new: str, base: str, count: int) -> tuple[str, ...]:
    """What current/0…count-1 name once `new`, made from `base`, is committed; `state` need not hold it yet.

    A pending generation that `new` was built on has done its duty and goes, unless it is good or pinned, or
    was there before and is pending by a rollback only.
    """
    return _slots(state, new, _unproven(state, base) if state.pending and base == state.next else "", count)


def slots_after_rollback(state: State, target: str, count: int) -> tuple[str, ...]:
    """What the slots name once `target` (from `choose_target`) is next; what was next becomes a fallback."""
    return _slots(state, target, "", count)


def slots_after_discard(state: State, count: int) -> tuple[str, ...]:
    """What the slots name once the pending generation is dropped: booted is next again. Raises Refused."""
    if not state.pending:
        raise Refused("nothing is pending, nothing was changed", hint="apk-atomic status shows the slots")
    if state.booted is None or state.find(state.booted) is None:
        raise Refused(
            "the booted generation is gone, slot 0 cannot go back to it; nothing was changed",
            hint="apk-atomic rollback ID chooses another",
        )
    return _slots(state, state.booted, _unproven(state, state.next), count)


def _unproven(state: State, name: str) -> str:
    """`name` of the pending generation, or '' when that has a title of its own to a slot."""
    found = state.find(name)
    return "" if state.chosen or (found and (found.good or found.pinned)) else name


def _slots(state: State, first: str, leaving: str, count: int) -> tuple[str, ...]:
    if count < 1:
        raise ValueError(f"a boot menu of {count} slots")
    fallbacks = [
        each
        for each in newest_first(state.generations)
        if each.id not in (first, leaving) and _may_have_slot(state, each)
    ]
    names = list(dict.fromkeys([first, *(each.id for each in _entitled(state, fallbacks))]))
    if len(names) == 1:
        # Whatever there is beats a menu without a way back; but what has failed is no way back.
        names += [each.id for each in fallbacks if not each.failed]
    return tuple(names[:count] + names[-1:] * (count - len(names)))


def _entitled(state: State, fallbacks: list[Generation]) -> Iterable[Generation]:
    """The fallbacks (newest first) by their title to a slot; one may appear more than once.

    "The rest" are those that hold a slot now, then good ones: a generation that was superseded before it
    ever booted does not come back. A failed one has no title but a user's pin, or that it runs.
    """
    sound = [each for each in fallbacks if not each.failed]
    best = newest_good(state)
    titles: tuple[tuple[list[Generation], Callable[[Generation], bool]], ...] = (
        (fallbacks, lambda each: each.id == state.booted),
        (sound, lambda each: each.id == best),
        (fallbacks, lambda each: each.pinned),
        (sound, lambda each: each.id in state.slots),
        (sound, lambda each: each.good),
    )
    for candidates, title in titles:
        yield from filter(title, candidates)


def _may_have_slot(state: State, generation: Generation) -> bool:
    return generation.sealed or generation.id == state.booted


def newest_first(generations: Iterable[Generation]) -> list[Generation]:
    return sorted(generations, key=lambda each: each.order, reverse=True)


def newest_good(state: State) -> str:
    """ID of the newest generation that is good, not failed, and may be booted; '' when there is none."""
    ranked = newest_first(state.generations)
    fits = (each.id for each in ranked if each.good and not each.failed and _may_have_slot(state, each))
    return next(fits, "")


# Garbage


def garbage(
    state: State, keep: Keep, *, mounted: frozenset[str], at_work: frozenset[str], now: float, asked: bool = True
) -> tuple[Victim, ...]:
    """The generations to collect, oldest first.

    `mounted`: IDs that are mounted in any mount namespace; `at_work`: IDs of transactions with a staging;
    `now` in Unix seconds. Unless the user has `asked`, what failed within a week is left to be looked at. As long
    as slot 0 leads nowhere nothing is garbage: what the user will need is not known then.
    """
    if state.find(state.next) is None:
        return ()
    spared = {*state.slots, state.booted, newest_good(state), *mounted, *at_work}
    oldest_first = newest_first(state.generations)[::-1]
    births = _births(oldest_first, now)
    fresh = {each.id for each in oldest_first[-keep.newest :]} if keep.newest > 0 else set()
    victims = []
    for each in oldest_first:
        young = each.id in fresh or now - births[each.id] < keep.days * DAY
        # somebody's script seals before it moves the pointer: until then its generation looks like garbage
        unfinished = (each.foreign or not each.sealed) and now - births[each.id] <= DAY
        kept_failed = each.failed and not asked and now - births[each.id] <= LOOKED_AT_DAYS * DAY
        if not (each.id in spared or each.pinned or young or unfinished or kept_failed):
            victims.append(_victim(each))
    return tuple(victims)


def _victim(generation: Generation) -> Victim:
    if not generation.sealed:
        return Victim(generation.id, "never sealed, and older than a day", unsealed=True, good=generation.good)
    return Victim(generation.id, "marked as failed" if generation.failed else "in no slot", good=generation.good)


def _births(oldest_first: list[Generation], now: float) -> dict[str, float]:
    """When each was made at the latest, as far as a clock can be believed that may have been wrong.

    A birth in the future, or before that of an older generation, is none: what is known then is only that
    the next newer one came later. So a wrong clock makes garbage stay too long rather than too short.
    """
    believed, latest = set(), float("-inf")
    for each in oldest_first:
        if latest <= each.created <= now:
            latest = each.created
            believed.add(each.id)
    births, bound = {}, now
    for each in reversed(oldest_first):
        bound = each.created if each.id in believed else bound
        births[each.id] = bound
    return births
