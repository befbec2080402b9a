"""A whole system on a disk, an image file or a partition: the story of `init`.

Look, divide, make file systems, lay out, first generation, boot menu, and last of all the name that says "finished".
Whatever fails or kills it on the way, nothing stays mounted or attached, and the next run starts clean.
"""

from __future__ import annotations

import fcntl
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from apk_atomic import (
    bootinstall,
    bootstrap,
    disks,
    esp,
    layout,
    loaders,
    locate,
    loop,
    mounts,
    newmenu,
    nvram,
    partition,
    session,
)
from apk_atomic.bootmenu import Loader
from apk_atomic.console import Console
from apk_atomic.errors import AtomicError, Interrupted, Locked, NoSpace, Refused, UsageError
from apk_atomic.esp_types import Unseen
from apk_atomic.loaders import LoaderFiles
from apk_atomic.names import redact_argv
from apk_atomic.order import Found, Order, examine, make_room, parts_of
from apk_atomic.partition import Part, Target
from apk_atomic.session import Work
from apk_atomic.signals import Signals
from apk_atomic.volume import TOP_LEVEL

UNCHANGED = "; nothing was changed"


@dataclass(frozen=True, slots=True)
class Made:
    """What is there now; `parts` is empty where only a volume was made."""

    generation: str
    uuid: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class _Job:
    """What every step has at hand; `loader` None: there will be none, or a package brings it; `gone`: the UUID of what
    was there before."""

    order: Order
    target: Target
    parts: tuple[Part, ...]
    loader: LoaderFiles | None
    console: Console
    signals: Signals
    gone: str


def perform(order: Order, found: Found, console: Console, signals: Signals) -> Made:
    """Makes the system on what `order.examine` found; durable when this returns."""
    target = found.target
    loader = _find_loader(order, signals)
    with _alone(target):
        if examine(order, signals) != found:
            raise Refused(f"{target.path} has changed since init looked at it; nothing was changed", hint="try again")
        mounts.make_private()
        gone = disks.identify(disks.head_of(target.path))[1]
        _require_own_menu(order, gone, signals)
        make_room(target)
        job = _Job(order, target, parts_of(order, target), loader, console, signals, gone)
        try:
            made = _make(job)
            _finish(job)
        except BaseException as error:
            console.warn(f"{target.path} holds an unfinished system; init may be run again, and starts from nothing")
            if isinstance(error, AtomicError):
                error.message = error.message.removesuffix(UNCHANGED)  # of the steps that transactions have, too
            _require_room_below(target, error)
            raise
    return made


def _require_own_menu(order: Order, gone: str, signals: Signals) -> None:
    """Raises Refused where the ESP has the menu of another system, and Unseen where nobody can read it, before anything
    is destroyed: the menu comes last."""
    if not order.wants_menu or not order.disk.esp:
        return
    names = loaders.names_of(order.boot.wishes.loader or Loader.REFIND)
    try:
        with esp.opened(order.disk.esp, signals, writable=False) as place:
            bootinstall.require_own(place, names, gone)
    except Unseen as error:
        error.message += UNCHANGED
        raise


def _require_room_below(target: Target, error: BaseException) -> None:
    """Raises NoSpace where `error` came because an image file, which is sparse, could not grow: to what is made in it,
    that is a disk that fails."""
    if not target.is_image or not isinstance(error, (AtomicError, OSError)) or isinstance(error, Interrupted):
        return
    room, image = os.statvfs(target.path), os.stat(target.path)
    if room.f_bavail * room.f_frsize >= partition.MIB or image.st_blocks * 512 >= image.st_size:
        return
    cover = mounts.covering(target.path, mounts.mount_table())
    why = error.message if isinstance(error, AtomicError) else error.strerror
    text = f"the file system at {cover.point if cover else '/'} is full, where {target.path} lies: {why}"
    raise NoSpace(text, hint="an image file grows with what is put into it: make room there, or name another place")


@contextmanager
def _alone(target: Target) -> Iterator[None]:
    """One init at a time on a target; udev keeps away from it, too."""
    fd = _open(target)
    try:
        _lock(fd, target)
        yield
    finally:
        os.close(fd)


def _open(target: Target) -> int:
    """A descriptor of the target; an image file is made if it is missing."""
    flags = os.O_RDWR | os.O_CREAT if target.is_image else os.O_RDONLY
    try:
        return os.open(target.path, flags | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UsageError(f"{target.path}: {error.strerror}; nothing was changed") from error


def _lock(fd: int, target: Target) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise Locked(f"another program is at work on {target.path}; nothing was changed") from error


def _find_loader(order: Order, signals: Signals) -> LoaderFiles | None:
    """Before anything is destroyed."""
    kind = order.boot.wishes.loader or Loader.REFIND
    if not order.wants_menu:
        return None
    try:
        return loaders.find(kind, order.boot.refind, signals)
    except UsageError:
        if kind is Loader.REFIND and loaders.REFIND.rpartition("/")[2] in order.system.packages:
            return None
        raise


def _make(job: _Job) -> Made:
    order, signals = job.order, job.signals
    if job.parts:
        job.console.step(f"dividing {job.target.path}")
        partition.divide(job.target, job.parts, signals)
    with _devices(job) as nodes:
        located = _make_file_systems(job, nodes)
        command = shlex.join(redact_argv(order.argv))
        with session.locked(located, lambda _: order.config, job.console, signals, command=command) as work:
            name = bootstrap.first_generation(work, order.source, order.system, order.argv)
            if order.wants_menu:
                _install_menu(job, work, name, nodes.get("ESP", order.disk.esp))
    return Made(name, located.fsid, job.parts)


@contextmanager
def _devices(job: _Job) -> Iterator[Mapping[str, str]]:
    with ExitStack() as stack:
        if job.parts:
            yield stack.enter_context(partition.devices(job.target, job.parts))
        elif job.target.is_image:
            yield {"ROOT": stack.enter_context(loop.attached(job.target.path))}
        else:
            yield {"ROOT": job.target.path}


def _make_file_systems(job: _Job, nodes: Mapping[str, str]) -> locate.Located:
    """All of them, and the layout of the volume."""
    disk, signals = job.order.disk, job.signals
    root = nodes["ROOT"]
    layout.make_volume(root, disk.label if job.parts else partition.UNFINISHED, signals)
    if "ESP" in nodes:
        layout.make_esp(nodes["ESP"], signals)
    if "SWAP" in nodes:
        layout.make_swap(nodes["SWAP"], signals)
    located = locate.named(root)
    fat = nodes.get("ESP") or _device_of(disk.esp)
    swap = layout.swap_uuid(nodes["SWAP"]) if "SWAP" in nodes else ""
    layout.make(root, disk.commons, layout.template(located.fsid, disk.commons, layout.fat_uuid(fat), swap))
    signals.check()
    return located


def _device_of(place: str) -> str:
    return esp.mounted_at(place) if os.path.isdir(place) else place


def _install_menu(job: _Job, work: Work, name: str, place: str) -> None:
    """The loader from where it was found, else from the package in the new system; `place` is the ESP."""
    boot = job.order.boot
    menu, warnings = newmenu.compose(work.volume, work.config, boot.wishes, _volume_name(job, work))
    inside = f"{TOP_LEVEL}/snapshots/{name}/@/{loaders.REFIND}"
    loader = job.loader or loaders.find(menu.loader, [inside], job.signals)
    job.console.step(f"installing the boot menu for {menu.loader}")
    with esp.opened(place, job.signals) as target:
        done = bootinstall.install(work, target, loader, menu, gone=job.gone)
        device, is_fat = target.device, target.is_fat
    said = (*warnings, *done.warnings)
    said += () if is_fat else (f"{place} is not on a FAT file system, which firmware could read",)
    if boot.nvram and not job.target.is_image:
        said += bootinstall.register(device, loader, job.signals)
    for warning in said:
        job.console.warn(warning)


def _volume_name(job: _Job, work: Work) -> str:
    """What rEFInd finds the volume by: its partition's GUID, else the label that it will have."""
    known = next((part.guid for part in job.parts if part.role == "ROOT"), "")
    if known:
        return known
    found = nvram.partition(work.volume.device, job.signals)
    return found.guid if found and found.guid else job.order.disk.label


def _finish(job: _Job) -> None:
    """From here on it is a system, and no unfinished one: a signal that comes now waits."""
    job.signals.check()
    job.signals.settle()
    if job.parts:
        partition.finish(job.target, job.parts, job.order.disk.label, job.signals)
        return
    with _devices(job) as nodes:
        layout.set_label(nodes["ROOT"], job.order.disk.label, job.signals)
