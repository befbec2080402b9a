"""The reboot into a pending generation, where the policy allows it and nobody is surprised.

`schedule.may_reboot` decides. The restart is asked for while the volume is locked: a transaction is not cut off.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from apk_atomic import machine, process, volume
from apk_atomic.context import steadily
from apk_atomic.errors import CannotRun, Locked, Refused
from apk_atomic.faults import point
from apk_atomic.model import State
from apk_atomic.notify import Event
from apk_atomic.planning import Run
from apk_atomic.schedule import may_reboot
from apk_atomic.unattended import is_inhibited, pause
from apk_atomic.volume import Volume

COMMAND = "/sbin/reboot"
_ROUNDS = 3  # of warning those who logged in meanwhile


def consider(run: Run, tell: Callable[[Event], None]) -> Event:
    """Reboots, or says why not; `tell` is called before the reboot. Raises Interrupted while somebody is warned."""
    auto = run.config.auto
    if auto.policy != "apply":
        return Event("skipped", f"the policy is {auto.policy}, which does not reboot")
    if not volume.pending_ids():
        return Event("skipped", "nothing waits for a reboot")
    with run.context.opened() as opened:
        if not steadily(opened, lambda: _looks_due(opened)):
            return Event("skipped", "nothing waits for a reboot")
    warned: frozenset[str] = frozenset()
    for _ in range(_ROUNDS):
        found = machine.sessions()
        verdict = may_reboot(auto.reboot, time.localtime(), found, warned, inhibited=is_inhibited(run))
        if verdict.why:
            return Event("skipped", verdict.why)
        if not verdict.warn:
            return _restart(run, tell)
        seconds = auto.reboot_warning_seconds
        span = f"{seconds // 60} minutes" if seconds >= 120 else f"{seconds} seconds"
        text = f"apk-atomic: this machine reboots in {span}; to prevent it, as root: touch {auto.inhibit}"
        told = machine.warn(verdict.warn, text)
        if not told.issuperset(session.terminal for session in verdict.warn):
            return Event("skipped", "somebody is logged in and could not be warned")
        pause(run.signals, seconds)
        warned |= told
    return Event("skipped", "somebody logged in again and again")


def _looks_due(opened: Volume) -> bool:
    state = volume.read_slots(opened)
    point("chosen")
    return _is_due(state)


def _is_due(state: State) -> bool:
    """Whether the generation in slot 0 waits for the reboot, and is none that failed."""
    found = state.find(state.next)
    return state.pending and found is not None and not found.failed


def _restart(run: Run, tell: Callable[[Event], None]) -> Event:
    """Whoever is told may take his time: nobody waits for him at the volume's lock."""
    nothing = Event("skipped", "nothing waits for a reboot any more")
    try:
        with run.context.locked(signals=run.signals) as work:
            state = volume.read_slots(work.volume)
        if not _is_due(state):
            return nothing
        event = Event("reboot", f"rebooting into generation {state.next}", generation=state.next, loud=True)
        tell(event)
        with run.context.locked(signals=run.signals) as work:
            if volume.read_slots(work.volume) != state:
                return nothing
            run.signals.check()
            run.signals.settle()
            _ask(run)
    except Locked:
        return Event("skipped", "a transaction is at work")
    return event


def _ask(run: Run) -> None:
    try:
        done = process.run([COMMAND], run.signals)
    except CannotRun as error:
        raise Refused(f"no reboot: {error.message}") from error
    if done.status:
        raise Refused(f"no reboot: {COMMAND} ended with exit status {done.status}: {done.output.strip()}")
