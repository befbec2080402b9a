"""The adoption of the running system: `prepare` lays out and rehearses, `finish` makes the first generation.

The old root is read only; what is added lies beside it at the top level. A finish stages the root and copies the
commons aside, moves the copies into place, and switches `current` last; the boot menu comes after that, and the old
loader stays the default. Killed anywhere, the old system boots as before and `finish` may be run again: it starts from
the old root as it is then, as long as nobody has used the new system.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

from apk_atomic import (
    adoption,
    adoptmenu,
    adoptstate,
    adoptwork,
    files,
    firstrecord,
    firstroot,
    fstab,
    journal,
    mounts,
    newcommons,
    nvram,
    oldsystem,
    pointer,
    preflight,
    process,
    session,
    volume,
)
from apk_atomic.adoption import Choices, Plan
from apk_atomic.adoptstate import Adoption
from apk_atomic.adoptwork import Job
from apk_atomic.bootable import Bootable
from apk_atomic.errors import NotSuchRoot, Refused
from apk_atomic.faults import point
from apk_atomic.firstroot import First
from apk_atomic.model import Kind, Record
from apk_atomic.names import redact_argv
from apk_atomic.recording import Clock
from apk_atomic.session import Work
from apk_atomic.volume import Volume

_DIRECTORIES = (
    (journal.SNAPSHOTS, 0o755), (journal.LINKS, 0o755), (journal.NEXT, 0o755), ("commons", 0o755),
    (journal.STAGING, 0o700),
)  # fmt: skip
_IN_USE = "the new system is in use already"
_HINT = "what stands above says how to change that; then run it again"


class Done(NamedTuple):
    """`generation` is the first one, `entry` the number of the firmware's entry for the new loader, "" for none,
    `order` the boot order that begins with it."""

    plan: Plan
    generation: str
    entry: str
    order: str
    warnings: tuple[str, ...]
    top_names: tuple[str, ...]


def look(job: Job, choices: Choices | None) -> tuple[Plan, Choices]:
    """The plan as things are now, and nothing is changed; `choices` None: those of the earlier `adopt`."""
    mounts.make_private()
    with adoptwork.top_level(job.located, writable=False) as opened:
        known = adoptstate.read(opened)
        chosen = choices or _require(known).choices
        plan = _decide(job, opened, chosen, known)
        reason = known and next(_uses(opened, known, plan), "")
        used = (f"{_IN_USE}: {reason}",) if reason else ()
        return replace(plan, blockers=(*plan.blockers, *used, *adoptmenu.lacks_loader(chosen, job.signals))), chosen


def prepare(job: Job, choices: Choices) -> Plan:
    """Makes the layout's names at the top level, and rehearses the first generation. Raises what speaks against it, and
    Refused where the new system has been used already.

    Nothing that is in use is changed; may be repeated, with other choices too.
    """
    with adoptwork.at_work(job) as work:
        known = adoptstate.read(work.volume)
        plan = _without_blockers(_decide(job, work.volume, choices, known))
        if known:
            _require_unused(work.volume, known, plan)
        adoptmenu.check_loader(choices, plan, work.volume.fsid, job.signals)
        preflight.require_space(work, adoptwork.ROOM)
        adoptstate.write(work.volume, replace(known or Adoption(choices), choices=replace(choices, esp=plan.esp)))
        adoptwork.recover(work)
        for name, mode in _DIRECTORIES:
            with suppress(FileExistsError):
                os.mkdir(name, mode, dir_fd=work.volume.top)
        files.syncfs(work.volume.top)
        point("prepared")
        _rehearse(work, plan)
    return plan


def finish(job: Job) -> Done:
    """Makes the first generation, the commons and the boot menu, all durable when this returns.

    Raises Refused where the new system has been used already: what it has in its commons is not to be overwritten.
    """
    with adoptwork.at_work(job) as work:
        known = _require(adoptstate.read(work.volume))
        choices = known.choices
        plan = _without_blockers(_decide(job, work.volume, choices, known))
        loader = adoptmenu.check_loader(choices, plan, work.volume.fsid, job.signals)
        adoptwork.recover(work)
        _require_unused(work.volume, known, plan)
        preflight.require_space(work, adoptwork.ROOM)
        name, found = _make(work, plan, known, job.argv)
        entry, warnings = adoptmenu.install(work, plan, choices, loader, found.boot_paths[0])
        order = nvram.order_from(entry, job.signals) if entry else ""
        return Done(plan, name, entry, order, (*found.warnings, *warnings), tuple(files.list_names(work.volume.top)))


# ---- what is to be done ----------------------------------------------------------------------------------


def _require(known: Adoption | None) -> Adoption:
    if known is None:
        raise NotSuchRoot("nothing was prepared; nothing was changed", hint="apk-atomic adopt comes first")
    return known


def _decide(job: Job, opened: Volume, choices: Choices, known: Adoption | None) -> Plan:
    old = oldsystem.look(opened, job.subvolume, choices, job.signals, ours=known is not None)
    return adoption.decide(old, choices)


def _without_blockers(plan: Plan) -> Plan:
    if plan.blockers:
        reasons = "".join(f"\n- {reason}" for reason in plan.blockers)
        raise Refused(f"this system cannot be adopted; nothing was changed{reasons}", hint=_HINT)
    return plan


# ---- the rehearsal ---------------------------------------------------------------------------------------


def _rehearse(work: Work, plan: Plan) -> None:
    """The first generation with empty commons, thrown away: whether it would boot is known before it is needed."""
    if plan.swap_files and set(plan.swap_files) & set(oldsystem.swapping()):
        work.console.note("a swap file is in use, so that the first generation could not be rehearsed")
        return
    work.console.step("rehearsing the first generation")
    name = journal.begin(work.volume)
    with adoptwork.dropping(work, name):
        with firstroot.snapshotted(work, plan, name) as first:
            firstroot.shape(first)
            for common in plan.commons:
                firstroot.empty(first.root, fstab.mountpoint(common).strip("/"))
            for warning in firstroot.make_bootable(first).warnings:
                work.console.warn(warning)
        adoptwork.drop(work, name)


# ---- the first generation --------------------------------------------------------------------------------


def _require_unused(opened: Volume, known: Adoption, plan: Plan) -> None:
    """Raises Refused where a common holds what this adoption has not put there, or `current` leads to another
    generation than it has made: then the new system is in use."""
    reason = next(_uses(opened, known, plan), "")
    if reason:
        raise Refused(
            f"{_IN_USE}: {reason}; nothing was changed",
            hint="there is nothing to finish: boot it, or look at it with apk-atomic --atomic-volume DEVICE status",
        )


def _uses(opened: Volume, known: Adoption, plan: Plan) -> Iterator[str]:
    if adoptwork.has_pointer(opened):
        slots = volume.slot_links(opened, volume.current_links(opened))
        if not {*slots, *files.list_names(opened.top, journal.SNAPSHOTS)} <= {*known.generations}:
            yield "it has generations of its own"
    for name in newcommons.used(opened, known, plan):
        yield f"commons/{name} has changed"


def _make(work: Work, plan: Plan, known: Adoption, argv: tuple[str, ...]) -> tuple[str, Bootable]:
    """The generation, switched to; its ID, and what was found of it."""
    before = volume.current_links(work.volume) if adoptwork.has_pointer(work.volume) else ""
    clock = Clock()
    _swap_off(work, plan)
    name, aside = journal.begin(work.volume), journal.begin(work.volume)
    with adoptwork.dropping(work, name, aside):
        with firstroot.snapshotted(work, plan, name) as first:
            firstroot.shape(first)
            with clock.step("copy"):
                newcommons.copy(first, aside)
            with clock.step("prove"):
                found = firstroot.make_bootable(first)
            known = newcommons.remember(work, plan, known, name, aside)
            files.write_atomic(work.volume.top, "fstab", fstab.encode(plan.template), 0o644)
            _lay_out(first, found, argv, clock)
        with clock.step("seal"):
            journal.seal(work.volume, name)
        _require_unused(work.volume, known, plan)  # to copy took its time
        pointer.check(work.volume, name, before, found.boot_paths)
        work.signals.check()
        work.signals.settle()
        newcommons.move(work, plan, aside)
        pointer.switch(work.volume, name, before)
    session.after_switch(
        work,
        lambda: pointer.confirm(work.volume, name),
        lambda: journal.remove(work.volume, name),
        lambda: journal.remove(work.volume, aside),
        lambda: _collect(work, known, name),
    )
    point("adopted")
    return name, found


def _swap_off(work: Work, plan: Plan) -> None:
    """Swap files of the root hold up its snapshot; the plan says that they are given up."""
    for path in set(plan.swap_files) & set(oldsystem.swapping()):
        done = process.run(["swapoff", path], work.signals)
        if done.status:
            raise Refused(f"swapoff {path}: {done.output.strip()}; nothing was changed", hint="end what needs memory")
        work.console.note(f"{path} is not used for swapping until the reboot")


def _lay_out(first: First, found: Bootable, argv: tuple[str, ...], clock: Clock) -> None:
    record = Record(
        id=first.id,
        kind=Kind.IMPORT,
        argv=redact_argv(argv),
        message=f"adopted from subvolume {first.plan.subvolume}",
        durations=tuple(clock.durations.items()),
    )
    firstrecord.lay_out(first.work, first.root, record, found, first.plan.template)


def _collect(work: Work, known: Adoption, name: str) -> None:
    """What earlier finishes made, and nothing leads to any more; then it is forgotten, too."""
    there = files.list_names(work.volume.top, journal.SNAPSHOTS)
    with journal.opened(work.volume) as places:
        for other in known.generations:
            if other != name:
                journal.remove_directory(work.volume, journal.LINKS, other)
                if other in there:
                    journal.collect(work.volume, places, other)
    files.syncfs(work.volume.top)  # gone before it is forgotten
    adoptstate.write(work.volume, replace(known, generations=(name,)))
