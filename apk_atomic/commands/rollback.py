"""`apk-atomic rollback [SLOT|ID]` and `apk-atomic discard`: another generation becomes next; none is made."""

from __future__ import annotations

from apk_atomic import bootable, preflight, repoint, session, volume
from apk_atomic.context import Context
from apk_atomic.model import State
from apk_atomic.retention import MIN_SLOTS, Victim, choose_target, slots_after_discard, slots_after_rollback
from apk_atomic.session import Work


def rollback(context: Context, target: str | None, *, wait: float = 0) -> int:
    """Slot 0 names the target when this returns, durably; the other slots keep the fallbacks."""
    with context.locked(wait=wait, lenient=True) as work:
        preflight.require_default_subvolume(work)
        state = volume.read_state(work.volume)
        chosen = choose_target(state, target)
        if chosen == state.next:
            context.console.note(f"generation {chosen} is next already; nothing was changed")
            return 0
        slots = slots_after_rollback(state, chosen, slot_count(work, state))
        repoint.point_at(work, state, slots, boot_paths=_boot_paths(work, chosen))
        after = "it runs already" if chosen == state.booted else "it runs after the reboot"
        context.console.note(f"generation {chosen} is next; {after if work.volume.running else 'it boots next'}")
    return 0


def slot_count(work: Work, state: State) -> int:
    """As many slots as the configuration says; where that cannot be read, as many as there are."""
    return work.config.generations.slots if work.configured else max(len(state.slots), MIN_SLOTS)


def _boot_paths(work: Work, target: str) -> tuple[str, ...]:
    """What the boot menu will look for in the target. Without a state/boot.json nobody knows, so a target that would
    not boot is only warned of: it may be what somebody makes for an emergency.
    """
    paths = bootable.menu_paths(work.volume)
    if paths is not None:
        return paths
    verdict = bootable.prove_sealed(work.volume, work.config, target)
    for finding in verdict.failures:
        work.console.warn(f"{target} would not boot: {finding.message}")
    if not verdict.kernels:
        work.console.warn(f"{target} holds no kernel")
    return ()


def discard(context: Context, *, wait: float = 0) -> int:
    """The booted generation is next again; the pending one is deleted, unless it is good, pinned, in use or older than
    its being next: a rollback is taken back, and what it led to stays.
    """
    with context.locked(wait=wait, lenient=True) as work:
        state = volume.read_state(work.volume)
        slots = slots_after_discard(state, slot_count(work, state))
        repoint.point_at(work, state, slots)
        what = "no longer next" if state.chosen else "discarded"
        context.console.note(f"generation {state.next} is {what}; {state.booted} is next")
        session.after_switch(work, lambda: _drop(work, state, slots), lambda: session.announce(work))
    return 0


def _drop(work: Work, state: State, slots: tuple[str, ...]) -> None:
    """Deletes the generation that was pending, where nothing else keeps it."""
    dropped = state.find(state.next)
    if dropped is None or state.chosen or dropped.good or dropped.pinned or dropped.id in slots:
        return
    if dropped.id not in session.mounted_generations(work.volume):
        session.collect(work, (Victim(dropped.id, "discarded"),))
