"""The unattended upgrade, step by step: may it run, plan and download (`planning`), and only then one transaction.

A run that is killed anywhere is repeated by the next one, and makes no second generation.
"""

from __future__ import annotations

import os
import random
import select
import time

from apk_atomic import (
    apkchange,
    autoplan,
    btrfs,
    cmdline,
    machine,
    missed,
    planning,
    remembered,
    selfcheck,
    session,
    transaction,
    volume,
)
from apk_atomic.autoplan import Denied, Memory
from apk_atomic.context import steadily
from apk_atomic.errors import AtomicError, BuildFailed, ChangeFailed, CheckFailed, Interrupted, NoSpace, Refused
from apk_atomic.faults import point
from apk_atomic.model import Kind, iso_utc
from apk_atomic.notify import Event
from apk_atomic.planning import Plan, Run
from apk_atomic.report import short
from apk_atomic.schedule import HOUR, Moment, on_mains, why_not_run
from apk_atomic.session import Work
from apk_atomic.signals import Signals
from apk_atomic.staged import Staged
from apk_atomic.transaction import Request
from apk_atomic.volume import Volume

_LOOK_AGAIN = 2 * HOUR  # the latest look at whether a run is due then is so far away
_ATTEMPTS = 3  # to get from a plan to its transaction without somebody else's change in between
_CLEANER = 30.0  # seconds for btrfs to give back what was collected


def wait(run: Run) -> str:
    """Waits the random time, without any lock; why the upgrade must not run at all, '' where it may."""
    why = _why_not(run)
    if not (why or run.now or run.dry_run):
        delay = random.uniform(0, run.config.auto.delay_minutes * 60)
        run.context.console.aside(f"waiting for {int(delay)} seconds, as [auto] delay_minutes says; --now does not")
        pause(run.signals, delay)
    return why


def upgrade(run: Run) -> Event:
    """What became of it. Raises AtomicError for what failed; nothing was changed then."""
    why = _why_not(run)
    if why:
        return Event("skipped", why)
    point("started")
    _make_room(run)
    for _ in range(_ATTEMPTS):
        event = _attempt(run)
        if event is not None:
            return event
    raise Refused("other changes came in between again and again; nothing was changed", hint="apk-atomic auto --now")


def _why_not(run: Run) -> str:
    auto = run.config.auto
    if run.dry_run:
        return ""
    memory = _memory_from_afar(run)
    moment = Moment(time.time(), memory.finished, is_inhibited(run), on_mains(machine.supplies()))
    why = why_not_run(moment, every_hours=auto.every_hours, only_on_mains=auto.only_on_mains, now=run.now)
    if why:
        _look_again(moment)
    return why


def _look_again(moment: Moment) -> None:
    """The periodic job counts from the last run that did not fail, where it is no longer ago than a day, not from this
    one, which does nothing."""
    last = moment.finished if moment.finished is not None and moment.finished <= moment.now else 0.0
    missed.look_in(moment.now, max(last + missed.PATIENCE - moment.now, _LOOK_AGAIN))


def _memory_from_afar(run: Run) -> Memory:
    """Read by a child: this process may sleep for hours, and in a mount namespace of its own it would hold on to every
    mount of the system meanwhile. What the child cannot read, the next step will complain of."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            with run.context.opened() as opened:
                os.write(writer, autoplan.format_memory(remembered.memory(opened)._replace(downloaded=())))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    return autoplan.parse_memory(data)


def is_inhibited(run: Run) -> bool:
    return os.path.lexists(run.config.auto.inhibit)


def pause(signals: Signals, seconds: float) -> None:
    """Sleeps. Raises Interrupted when an ending signal arrives meanwhile."""
    deadline = time.monotonic() + seconds
    poll = select.poll()
    poll.register(signals.fd, select.POLLIN)
    while (left := deadline - time.monotonic()) > 0:
        signals.check()
        poll.poll(left * 1000)
    signals.check()


def _make_room(run: Run) -> None:
    """Raises NoSpace where the volume has too little even after old generations were collected."""
    needs = run.config.auto.min_free
    if _free(run) >= needs:
        return
    if not run.dry_run:
        with run.context.locked(wait=run.config.auto.lock_minutes * 60, signals=run.signals) as work:
            state = volume.read_state(work.volume)
            victims = session.plan_garbage(work.volume, work.config, state, time.time())
            session.collect(work, victims)
        deadline = time.monotonic() + (_CLEANER if victims else 0)
        while _free(run, hurry=True) < needs and time.monotonic() < deadline:
            pause(run.signals, 1)
    free = _free(run)
    if free < needs:
        raise NoSpace(
            f"only {free >> 20} MiB are free on the volume, an unattended upgrade needs {needs >> 20} MiB; "
            "nothing was changed",
            hint="apk-atomic status --all shows what is kept; [auto] min_free sets the limit",
        )


def _free(run: Run, *, hurry: bool = False) -> int:
    """`hurry`: a sync wakes btrfs's cleaner, which else takes half a minute to begin."""
    with run.context.opened() as opened:
        if hurry:
            btrfs.sync(opened.top)
        return btrfs.space(opened.top).data_free


def _attempt(run: Run) -> Event | None:
    """One way through all steps; None when the base is another one by the time of the transaction."""
    with run.context.opened() as opened:
        plan, event = steadily(opened, lambda: _planned(run, opened))
    if event is None:
        return _commit(run, plan) if not plan.remote or _download(run, plan) else None
    if not run.dry_run:
        with run.context.locked(wait=run.config.auto.lock_minutes * 60, signals=run.signals) as work:
            known = remembered.memory(work.volume)
            told = _key(plan, event.outcome) if event.outcome != "nothing" else ""
            remembered.remember(work.volume, known._replace(finished=time.time(), reported=told))
    return event


def _planned(run: Run, opened: Volume) -> tuple[Plan, Event | None]:
    """The plan, and what becomes of the run where it ends with that."""
    plan = planning.make(run, opened)
    if plan.changes.is_empty:
        return plan, Event("nothing", "nothing to upgrade", base=plan.base)
    if run.dry_run or run.config.auto.policy == "check":
        text = f"an upgrade is waiting: {short(plan.changes)}"
        return plan, _event(remembered.memory(opened), plan, "planned", text)
    bad = "" if run.now else _known_bad(opened, plan)
    return plan, _event(remembered.memory(opened), plan, "held", f"the upgrade is held back: {bad}") if bad else None


def _download(run: Run, plan: Plan) -> bool:
    """What is put into the cache for this upgrade alone is written down first, and removed after it.

    False where it failed and the plan's base is no longer what an upgrade starts from: then it may be gone.
    """
    if plan.options:
        with run.context.locked(wait=run.config.auto.lock_minutes * 60, signals=run.signals) as work:
            memory = remembered.memory(work.volume)
            ours = {*memory.downloaded, *set(plan.files).difference(planning.cached().values())}
            remembered.remember(work.volume, memory._replace(downloaded=tuple(sorted(ours))))
    with run.context.opened() as opened:
        point("chosen")
        try:
            planning.download(run, opened, plan)
        except Interrupted:
            raise
        except AtomicError:
            if planning.base_of(opened) == plan.base:
                raise
            return False
    return True


def _event(memory: Memory, plan: Plan, outcome: str, message: str) -> Event:
    """It is loud when the same was not the last thing that was reported."""
    loud = memory.reported != _key(plan, outcome)
    return Event(outcome, message, base=plan.base, changes=plan.changes, loud=loud)


def _key(plan: Plan, outcome: str) -> str:
    return f"{outcome} {plan.set}"


# ---- what failed before ----------------------------------------------------------------------------------


def _known_bad(opened: Volume, plan: Plan) -> str:
    """Why the plan must not be tried by itself, '' when it may.

    Its package set failed; or it brings all that somebody went back from, or that a generation has over the base which
    is marked as failed, or newer than the base: then somebody went back from that.
    """
    brings = autoplan.brought(plan.changes)
    state = volume.read_state(opened)
    base, present = state.find(plan.base), remembered.packages(opened, plan.base)
    for each in sorted(state.generations, key=lambda each: -each.order):
        newer = base is not None and each.order > base.order
        if each.id != plan.base and each.sealed and (each.failed or newer):
            theirs = remembered.packages(opened, each.id)
            over = autoplan.brought_over(present, theirs)
            if autoplan.fingerprint(theirs) == plan.set or (over and over <= brings):
                what = "failed" if each.failed else "was left for an older one"
                return f"generation {each.id} has these packages and {what}; apk-atomic rollback {each.id} goes to it"
    for denied in remembered.denied(opened):
        if denied.set == plan.set and not denied.changes:
            return f"these packages failed on {denied.when}: {denied.why}; --now tries them again"
        if denied.changes and brings.issuperset(denied.changes):
            return f"{denied.why} on {denied.when}; --now brings them back"
    return ""


def _deny(work: Work, plan: Plan, error: AtomicError) -> None:
    """Remembers that the set failed, where it was the set that failed and not the disk."""
    is_apk = isinstance(error, ChangeFailed) and not error.broken  # which says nothing about the packages
    if is_apk or isinstance(error.__cause__, OSError):
        return
    entry = Denied(plan.set, iso_utc(time.time()), error.message.partition("; nothing")[0])
    try:
        remembered.deny(work.volume, entry)
    except OSError as failure:
        work.console.warn(f"that these packages failed could not be written down: {failure.strerror}")


# ---- the transaction -------------------------------------------------------------------------------------


def _commit(run: Run, plan: Plan) -> Event | None:
    with run.context.locked(wait=run.config.auto.lock_minutes * 60, signals=run.signals) as work:
        if planning.base_of(work.volume) != plan.base:
            return None
        change = apkchange.change(cmdline.parse((*plan.options, *plan.words)), run.output)

        def checked(root: Staged) -> None:
            change(root)
            selfcheck.require(root)

        request = Request(kind=Kind.AUTO, argv=run.context.argv, change=checked)
        try:
            done = transaction.perform(work, request)
        except (ChangeFailed, BuildFailed, CheckFailed) as error:
            _deny(work, plan, error)
            raise
        for warning in done.warnings:
            run.context.console.warn(warning)
        session.after_switch(work, lambda: _finish(work))
    if not done.id:
        return Event("nothing", f"apk changed nothing, although it planned: {short(plan.changes)}", base=plan.base)
    what = short(done.changes)
    message = f"generation {done.id} is next{': ' + what if what else ''}; it runs after the reboot"
    return Event("committed", message, base=plan.base, generation=done.id, changes=done.changes, loud=True)


def _finish(work: Work) -> None:
    """The upgrade is done: what was put into the cache for it alone goes, and the next run is due in a day."""
    session.collect_left_over(work, session.stale_links(work.volume, time.time()))
    ours = remembered.memory(work.volume).downloaded
    for name, package in planning.cached().items():
        if package in ours:
            os.unlink(f"{planning.CACHE}/{name}")
    remembered.remember(work.volume, Memory(finished=time.time()))
