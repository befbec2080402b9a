"""The adoption of the running system: `prepare` lays out and rehearses, `finish` makes the first generation.

The old root is read only; what is added lies beside it at the top level. A finish stages the root and copies the
commons aside, moves the copies into place, and switches `current` last; the boot menu comes after that, and the old
loader stays the default. Killed anywhere, the old system boots as before and `finish` may be run again: it starts from
the old root as it is then, as long as nobody has used the new system.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import NamedTuple

from apk_atomic import (
    adoption,
    adoptstate,
    bootinstall,
    btrfs,
    disks,
    esp,
    files,
    firstroot,
    fstab,
    installed,
    journal,
    kernel,
    loaders,
    lookup,
    mounts,
    nvram,
    oldsystem,
    pointer,
    preflight,
    process,
    recording,
    session,
    treecopy,
    volume,
)
from apk_atomic.adoption import Choices, Plan
from apk_atomic.adoptstate import Adoption, Copied
from apk_atomic.bootable import Bootable
from apk_atomic.bootinstall import Wishes
from apk_atomic.config import Config
from apk_atomic.console import Console
from apk_atomic.errors import AtomicError, CheckFailed, Interrupted, NotDurable, NotSuchRoot, Refused, refusal
from apk_atomic.faults import point
from apk_atomic.firstroot import First
from apk_atomic.loaders import LoaderFiles
from apk_atomic.locate import Located
from apk_atomic.lock import Lock, make_run_directory
from apk_atomic.model import Kind, Record
from apk_atomic.names import iso_utc, redact_argv
from apk_atomic.oldfstab import SWAP_COMMON
from apk_atomic.recording import Clock
from apk_atomic.session import Work
from apk_atomic.signals import Signals
from apk_atomic.volume import TOP_LEVEL, Volume

_DIRECTORIES = (
    (journal.SNAPSHOTS, 0o755), (journal.LINKS, 0o755), (journal.NEXT, 0o755), ("commons", 0o755),
    (journal.STAGING, 0o700),
)  # fmt: skip
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
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


class Job(NamedTuple):
    """The system that is adopted, and what to do it with."""

    located: Located
    subvolume: str
    config: Config
    console: Console
    signals: Signals
    argv: tuple[str, ...]
    wait: float


def look(job: Job, choices: Choices | None) -> tuple[Plan, Choices]:
    """The plan as things are now, and nothing is changed; `choices` None: those of the earlier `adopt`."""
    mounts.make_private()
    with _top_level(job.located, writable=False) as opened:
        known = adoptstate.read(opened)
        chosen = choices or _require(known).choices
        return _decide(job, opened, chosen, known), chosen


def prepare(job: Job, choices: Choices) -> Plan:
    """Makes the layout's names at the top level, and rehearses the first generation. Raises what speaks against it.

    Nothing that is in use is changed; may be repeated, with other choices too.
    """
    with _at_work(job) as work:
        known = adoptstate.read(work.volume)
        plan = _without_blockers(_decide(job, work.volume, choices, known))
        _check_loader(choices, plan, job.signals)
        preflight.require_space(work)
        adoptstate.write(work.volume, replace(known or Adoption(choices), choices=replace(choices, esp=plan.esp)))
        _recover(work)
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
    with _at_work(job) as work:
        known = _require(adoptstate.read(work.volume))
        choices = known.choices
        plan = _without_blockers(_decide(job, work.volume, choices, known))
        loader = _check_loader(choices, plan, job.signals)
        _recover(work)
        _require_unused(work, known, plan)
        preflight.require_space(work)
        name, found = _make(work, plan, known, job.argv)
        entry, warnings = _install_menu(work, plan, choices, loader, found.boot_paths[0])
        order = nvram.order_from(entry, job.signals) if entry else ""
        return Done(plan, name, entry, order, (*found.warnings, *warnings), tuple(files.list_names(work.volume.top)))


# ---- the volume ------------------------------------------------------------------------------------------


@contextmanager
def _at_work(job: Job) -> Iterator[Work]:
    """Locked, with the top level mounted: `session.locked` for a volume that does not have the layout yet."""
    command = shlex.join(redact_argv(job.argv))
    try:
        with Lock(job.located.fsid, command, wait=job.wait, signals=job.signals) as lock:
            point("locked")
            mounts.make_private()
            with _top_level(job.located, writable=True) as opened:
                point("mounted")
                yield Work(opened, job.config, job.console, job.signals, lock.fd)
            point("unlocked")
    except OSError as error:
        raise refusal(error) from error


@contextmanager
def _top_level(located: Located, *, writable: bool) -> Iterator[Volume]:
    make_run_directory()
    os.makedirs(TOP_LEVEL, mode=0o700, exist_ok=True)
    flags = mounts.NOATIME | (0 if writable else mounts.RDONLY)
    mounts.mount(located.device, TOP_LEVEL, "btrfs", flags, "subvolid=5")
    top = os.open(TOP_LEVEL, _DIRECTORY | os.O_CLOEXEC)
    try:
        yield Volume(located.device, located.fsid, None, top, not writable)
    finally:
        os.close(top)
        with suppress(OSError):
            mounts.unmount(TOP_LEVEL, mounts.DETACH)


def _require(known: Adoption | None) -> Adoption:
    if known is None:
        raise NotSuchRoot("nothing was prepared; nothing was changed", hint="apk-atomic adopt comes first")
    return known


def _decide(job: Job, opened: Volume, choices: Choices, known: Adoption | None) -> Plan:
    old = oldsystem.look(opened, job.subvolume, choices.esp, job.signals, ours=known is not None)
    return adoption.decide(old, choices)


def _without_blockers(plan: Plan) -> Plan:
    if plan.blockers:
        reasons = "".join(f"\n- {reason}" for reason in plan.blockers)
        raise Refused(f"this system cannot be adopted; nothing was changed{reasons}", hint=_HINT)
    return plan


def _check_loader(choices: Choices, plan: Plan, signals: Signals) -> LoaderFiles:
    """That the loader's files and the ESP can be read. Raises UsageError, CheckFailed."""
    found = loaders.find(choices.loader, [choices.refind or f"/{loaders.REFIND}"], signals)
    with esp.opened(_esp_place(plan), signals):
        return found


def _esp_place(plan: Plan) -> str:
    place = plan.esp if os.path.isdir(plan.esp) else disks.find(plan.esp)
    if not place:
        raise CheckFailed(f"the ESP {plan.esp} is not here; nothing was changed", hint="--esp DEVICE")
    return place


def _has_pointer(opened: Volume) -> bool:
    try:
        os.stat("current", dir_fd=opened.top, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _recover(work: Work) -> None:
    """What an adoption that was killed has left in staging/."""
    for name in journal.left_over(work.volume):
        _drop(work, name)
        work.console.note(f"recovered: {name} had not finished")
    point("recovered")


def _drop(work: Work, name: str) -> None:
    if _has_pointer(work.volume):
        journal.remove(work.volume, name)
    else:
        journal.abandon(work.volume, name)


@contextmanager
def _dropping(work: Work, *names: str) -> Iterator[None]:
    """Removes the journals when what is done inside fails; what cannot be removed is left to the next recovery."""
    try:
        yield
    except NotDurable:
        raise
    except BaseException:
        work.signals.settle()
        for name in names:
            try:
                _drop(work, name)
            except (OSError, AtomicError) as failure:
                work.console.warn(f"staging/{name} could not be removed ({failure}); the next run will do it")
        raise


# ---- the rehearsal ---------------------------------------------------------------------------------------


def _rehearse(work: Work, plan: Plan) -> None:
    """The first generation without its commons, thrown away: whether it would boot is known before it is needed."""
    if plan.swap_files and set(plan.swap_files) & set(oldsystem.swapping()):
        work.console.note("a swap file is in use, so that the first generation could not be rehearsed")
        return
    work.console.step("rehearsing the first generation")
    name = journal.begin(work.volume)
    with _dropping(work, name):
        with firstroot.snapshotted(work, plan, name) as first:
            firstroot.shape(first)
            for warning in firstroot.make_bootable(first).warnings:
                work.console.warn(warning)
        _drop(work, name)


# ---- the first generation --------------------------------------------------------------------------------


def _require_unused(work: Work, known: Adoption, plan: Plan) -> None:
    """Raises Refused where a common holds what this adoption has not put there, or `current` leads to another
    generation than it has made: then the new system is in use."""
    reason = next(_uses(work, known, plan), "")
    if reason:
        raise Refused(
            f"the new system is in use already: {reason}; nothing was changed",
            hint="there is nothing to finish: boot it, or look at it with apk-atomic --atomic-volume DEVICE status",
        )


def _uses(work: Work, known: Adoption, plan: Plan) -> Iterator[str]:
    if _has_pointer(work.volume):
        slots = volume.slot_links(work.volume, volume.current_links(work.volume))
        if not {*slots, *files.list_names(work.volume.top, journal.SNAPSHOTS)} <= {*known.generations}:
            yield "it has generations of its own"
    files.syncfs(work.volume.top)  # tree searches see what is committed
    commons = files.open_beneath(work.volume.top, "commons", _DIRECTORY)
    try:
        for name in sorted(os.listdir(commons)):
            if _is_used(commons, name, known, needed=name in (*plan.commons, SWAP_COMMON)):
                yield f"commons/{name} has changed"
    finally:
        os.close(commons)


def _is_used(commons: int, name: str, known: Adoption, *, needed: bool) -> bool:
    """Whether a common is not as it was when it was filled; one that was not filled at all, if it is in the way."""
    if not btrfs.is_subvolume(commons, name):
        return needed
    common = files.open_beneath(commons, name, _DIRECTORY)
    try:
        copied = known.copied.get(btrfs.subvolume_info(common).uuid)
        if copied is None:
            return needed
        return any(_is_newer(common, inode, copied) for inode in _since(common, copied))
    finally:
        os.close(common)


def _since(common: int, copied: Copied) -> list[btrfs.ChangedInode]:
    """Not the common's own directory, which was moved."""
    found = btrfs.changed_inodes(common, copied.transid)
    return [inode for inode in found if inode.ino != btrfs.SUBVOLUME_INODE]


def _is_newer(common: int, inode: btrfs.ChangedInode, copied: Copied) -> bool:
    """Whether it is a new file or was written to; that it was read, which sets its access time, does not count."""
    if inode.created > copied.transid:
        return True
    for path in btrfs.inode_paths(common, inode.ino):
        with suppress(OSError):
            return os.stat(path, dir_fd=common, follow_symlinks=False).st_ctime > copied.moment
    return False


def _make(work: Work, plan: Plan, known: Adoption, argv: tuple[str, ...]) -> tuple[str, Bootable]:
    """The generation, switched to; its ID, and what was found of it."""
    before = volume.current_links(work.volume) if _has_pointer(work.volume) else ""
    clock = Clock()
    _swap_off(work, plan)
    name, aside = journal.begin(work.volume), journal.begin(work.volume)
    with _dropping(work, name, aside):
        with firstroot.snapshotted(work, plan, name) as first:
            firstroot.shape(first)
            with clock.step("prove"):
                found = firstroot.make_bootable(first)
            with clock.step("copy"):
                _copy_commons(first, aside)
            known = _remember(work, plan, known, name, aside)
            files.write_atomic(work.volume.top, "fstab", fstab.encode(plan.template), 0o644)
            _lay_out(first, found, argv, clock)
        with clock.step("seal"):
            journal.seal(work.volume, name)
        pointer.check(work.volume, name, before, found.boot_paths)
        work.signals.check()
        work.signals.settle()
        _move_commons(work, plan, aside)
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


def _copy_commons(first: First, aside: str) -> None:
    """A subvolume for each common in the journal ASIDE, filled from the snapshot, in which the directory is emptied."""
    work = first.work
    place = files.open_beneath(work.volume.top, f"{journal.STAGING}/{aside}", _DIRECTORY)
    try:
        for name in first.plan.commons:
            path = fstab.mountpoint(name).strip("/")
            btrfs.create_subvolume(place, name)
            work.console.step(f"copying /{path} to commons/{name}")
            _copy_common(first, place, name, path)
            firstroot.empty(first.root, path)
            point("copied")
        if first.plan.swap_size:
            btrfs.create_subvolume(place, SWAP_COMMON)
            _make_swap_file(work, place, first.plan.swap_size)
    finally:
        os.close(place)


def _copy_common(first: First, place: int, name: str, path: str) -> None:
    source = files.open_beneath(first.root, path, _DIRECTORY)
    target = files.open_beneath(place, name, _DIRECTORY)
    try:
        live = _open_live(first, path)
        try:
            treecopy.copy_content(source, target, live, first.work.signals.check)
        finally:
            os.close(live)
    finally:
        os.close(target)
        os.close(source)


def _open_live(first: First, path: str) -> int:
    """The directory in the old root; one that is not there yet has no subvolumes in it either."""
    try:
        return files.open_beneath(first.live, path, _DIRECTORY)
    except FileNotFoundError:
        return files.open_beneath(first.root, path, _DIRECTORY)


def _make_swap_file(work: Work, place: int, size: int) -> None:
    """Data in place and no holes: what btrfs wants of a swap file."""
    fd = files.open_beneath(place, f"{SWAP_COMMON}/swapfile", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        treecopy.set_nocow(fd)
        os.posix_fallocate(fd, 0, size)
        done = process.run(["mkswap", files.fd_path(fd)], work.signals)
        if done.status:
            hint = "apk add util-linux-misc"
            raise CheckFailed(f"mkswap failed: {done.output.strip()}; nothing was changed", hint=hint)
    finally:
        os.close(fd)


def _names(plan: Plan) -> tuple[str, ...]:
    return (*plan.commons, *((SWAP_COMMON,) if plan.swap_size else ()))


def _remember(work: Work, plan: Plan, known: Adoption, name: str, aside: str) -> Adoption:
    """Which generation and copies are ours, these as old as now; on disk before the first of them is in its place."""
    files.syncfs(work.volume.top)
    now = Copied(btrfs.fs_info(work.volume.top).generation, time.time())
    copied = dict(known.copied)
    for common in _names(plan):
        fd = files.open_beneath(work.volume.top, f"{journal.STAGING}/{aside}/{common}", _DIRECTORY)
        copied[btrfs.subvolume_info(fd).uuid] = now
        os.close(fd)
    known = replace(known, generations=(*known.generations, name), copied=copied)
    adoptstate.write(work.volume, known)
    point("known")
    return known


def _lay_out(first: First, found: Bootable, argv: tuple[str, ...], clock: Clock) -> None:
    """The record and the slots, all of which lead to this generation."""
    work = first.work
    apk = installed.find(lookup.read(first.root, installed.DATABASE, installed.LIMIT) or b"", "apk-tools")
    record = Record(
        id=first.id,
        created=iso_utc(time.time()),
        kind=Kind.IMPORT,
        argv=redact_argv(argv),
        user=recording.user_name(),
        message=f"adopted from subvolume {first.plan.subvolume}",
        apk_version=apk.version if apk else "",
        kernels=found.kernels,
        initramfs=found.images,
        proof=found.proof,
        fstab_template=fstab.digest(first.plan.template),
        fstab_rendered=fstab.digest(first.text),
        durations=tuple(clock.durations.items()),
    )
    os.mkdir(f"{journal.SNAPSHOTS}/{first.id}", 0o755, dir_fd=work.volume.top)
    recording.write_record(work, record)
    pointer.lay_out(work.volume, first.id, (first.id,) * work.config.generations.slots)


def _move_commons(work: Work, plan: Plan, aside: str) -> None:
    """Each copy takes the place of an earlier one that nobody has used."""
    commons = files.open_beneath(work.volume.top, "commons", _DIRECTORY)
    try:
        for name in _names(plan):
            if btrfs.is_subvolume(commons, name):
                btrfs.destroy_tree(commons, name)
            os.rename(f"{journal.STAGING}/{aside}/{name}", name, src_dir_fd=work.volume.top, dst_dir_fd=commons)
            point("moved")
    finally:
        os.close(commons)


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


# ---- the boot menu ---------------------------------------------------------------------------------------


def _install_menu(
    work: Work, plan: Plan, choices: Choices, loader: LoaderFiles, image: str
) -> tuple[str, tuple[str, ...]]:
    """Beside the old loader, which stays the default; the number of the firmware's entry, and warnings. `image` is
    the kernel that was proved."""
    flavor = image.rpartition("/")[2].removeprefix(kernel.KERNEL_PREFIX)
    wishes = Wishes(choices.loader, flavor, plan.append, plan.resume, choices.timeout)
    try:
        found = nvram.partition(work.volume.device, work.signals)
        menu, warnings = bootinstall.compose(work.volume, work.config, wishes, found.guid if found else "")
        with esp.opened(_esp_place(plan), work.signals) as target:
            done = bootinstall.install(work, target, loader, menu, fallback=False)
            device = target.device
        warnings = (*warnings, *done.warnings)
        if choices.nvram:
            warnings += bootinstall.register(device, loader, work.signals, first=False)
    except Interrupted:
        raise
    except (AtomicError, OSError) as error:
        text = error.message if isinstance(error, AtomicError) else str(error)
        raise CheckFailed(
            f"the generation is made, but not the boot menu: {text}; the old system boots as before",
            hint="apk-atomic adopt --finish may be run again",
        ) from error
    point("menu")
    return nvram.entry(device, f"{loaders.DIRECTORY}/{loader.program}", work.signals), warnings
