"""`apk-atomic rollback [SLOT|ID]` and `apk-atomic discard`: another generation becomes next; none is made."""

from __future__ import annotations

from apk_atomic import bootable, preflight, remembered, repoint, session, volume
from apk_atomic.context import Context
from apk_atomic.errors import CheckFailed
from apk_atomic.model import State
from apk_atomic.retention import MIN_SLOTS, Victim, choose_target, slots_after_discard, slots_after_rollback
from apk_atomic.session import Work

_SHOWN = 5  # findings that a refusal spells out

def rollback(context: Context, target: str | None, *, force: bool = False, wait: float = 0) -> int:
    """Slot 0 names the target when this returns, durably; the other slots keep the fallbacks.

    The target is proved first. Raises CheckFailed where it would not boot, Refused where it is marked as failed, unless
    `force`, or unless it is the one that runs: then that is a warning.
    """
    with context.locked(wait=wait, lenient=True) as work:
        preflight.require_default_subvolume(work)
        state = volume.read_state(work.volume)
        chosen = choose_target(state, target, force=force)
        if text := preflight.sleeping(work):
            work.console.warn(text)
        if chosen == state.next:
            context.console.note(f"generation {chosen} is next already; nothing was changed")
            return 0
        slots = slots_after_rollback(state, chosen, slot_count(work, state))
        boot_paths = _prove(work, state, chosen, force=force)
        repoint.point_at(work, state, slots, boot_paths=boot_paths)
        session.after_switch(work, lambda: remembered.went_back(work.volume, state, state.next, chosen))
        after = "it runs already" if chosen == state.booted else "it runs after the reboot"
        context.console.note(f"generation {chosen} is next; {after if work.volume.running else 'it boots next'}")
    return 0


def slot_count(work: Work, state: State) -> int:
    """As many slots as the configuration says; where that cannot be read, as many as there are."""
    return work.config.generations.slots if work.configured else max(len(state.slots), MIN_SLOTS)


def _prove(work: Work, state: State, target: str, *, force: bool) -> tuple[str, ...]:
    """What the boot menu will look for in the target, which has passed the proof; nothing where it did not."""
    against = _objections(work, state, target)
    if not against:
        return bootable.menu_paths(work.volume) or ()
    if not force and target != state.booted:
        raise CheckFailed(
            f"{target} would not boot: {'; '.join(against[:_SHOWN])}; nothing was changed",
            hint=f"apk-atomic prove {target} says more; with --force it is next all the same",
        )
    for each in against:
        work.console.warn(f"{target} would not boot: {each}")
    return ()


def _objections(work: Work, state: State, target: str) -> list[str]:
    """What speaks against a boot of the target. A menu that nobody knows names what the next generation has in boot/:
    a root without any kernel is none beside one that has one.
    """
    verdict = bootable.prove_sealed(work.volume, work.config, target, signals=work.signals)
    found = [finding.message for finding in verdict.failures]
    if not found and not verdict.kernels and state.find(state.next) and volume.kernel_releases(work.volume, state.next):
        found.append("it holds no kernel")
    return found


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
        session.after_switch(work, lambda: remembered.went_back(work.volume, state, state.next, slots[0]))
        session.after_switch(work, lambda: _drop(work, state, slots), lambda: session.announce(work))
    return 0


def _drop(work: Work, state: State, slots: tuple[str, ...]) -> None:
    """Deletes the generation that was pending, where nothing else keeps it."""
    dropped = state.find(state.next)
    if dropped is None or state.chosen or dropped.good or dropped.pinned or dropped.id in slots:
        return
    if dropped.id not in session.mounted_generations(work.volume):
        session.collect(work, (Victim(dropped.id, "discarded"),))
