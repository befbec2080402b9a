"""Looking at a system for `doctor`: thin readers, one for each part, that judge nothing.

Nothing is written and no lock is taken; a device is mounted read-only, in this process's own mount namespace.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress

from apk_atomic import (
    bootmenu,
    btrfs,
    disks,
    esp,
    files,
    fstab,
    generations,
    held,
    kernel,
    loaders,
    locate,
    lock,
    lookup,
    mounts,
    newmenu,
    nvram,
    proof_sealed,
    staged,
    volume,
)
from apk_atomic.bootmenu import Menu
from apk_atomic.checkup_types import EspFacts, MenuFacts, RootFacts, VolumeFacts
from apk_atomic.config import Config
from apk_atomic.errors import AtomicError
from apk_atomic.esp_types import Esp, Unseen
from apk_atomic.faults import point
from apk_atomic.journal import LINKS, NEXT, SNAPSHOTS, STAGING
from apk_atomic.kernel import MICROCODE_SUFFIX
from apk_atomic.model import State
from apk_atomic.names import is_safe_name
from apk_atomic.signals import Signals
from apk_atomic.volume import Volume

_OURS = "/apk-atomic"  # in the path of whatever a drop-in of ours is a link to
_PERIODIC, _RUNLEVELS = "etc/periodic", "etc/runlevels"
_EFI = "/sys/firmware/efi"


# ---- the volume ------------------------------------------------------------------------------------------


def look_at_volume(opened: Volume, config: Config) -> VolumeFacts:
    """Raises AtomicError where `current` leads nowhere."""
    state = volume.read_state(opened, records=True)
    point("chosen")
    template, own = staged.read_template(opened), _fstab_of(opened, state.next)
    texts = [fstab.render(template, f"/{SNAPSHOTS}/{state.next}")] if template else []
    known = {each.id for each in state.generations}
    return VolumeFacts(
        fsid=opened.fsid,
        default_subvolume=btrfs.default_subvolume(opened.top),
        missing_devices=sum(not device.path for device in btrfs.devices(opened.top)),
        space=btrfs.space(opened.top),
        least=(config.volume.min_free_data, config.volume.min_free_metadata),
        state=state,
        damaged=tuple(each.id for each in state.generations if each.record is None and _has_record(opened, each.id)),
        empty=tuple(name for name in _names(opened, SNAPSHOTS) if is_safe_name(name) and name not in known),
        staging=_names(opened, STAGING),
        links=tuple(name for name in _names(opened, LINKS) if name != volume.current_links(opened)),
        scratch=_names(opened, NEXT),
        at_work=lock.held_by(opened.fsid),
        template=template,
        fstab=own,
        commons=dict(_commons(opened, [*texts, own or ""])),
        unknown=tuple(_unknown(template or "")) if opened.running else (),
        held=_held(opened, config, state.next),
    )


def _names(opened: Volume, directory: str) -> tuple[str, ...]:
    try:
        return tuple(sorted(files.list_names(opened.top, directory)))
    except OSError:
        return ()


def _has_record(opened: Volume, name: str) -> bool:
    return lookup.exists(opened.top, f"{SNAPSHOTS}/{name}/{generations.RECORD}")


def _fstab_of(opened: Volume, name: str) -> str | None:
    try:
        root = volume.open_root(opened, name)
    except AtomicError:
        return None
    try:
        return staged.read_fstab(root)
    finally:
        os.close(root)


def _commons(opened: Volume, texts: list[str]) -> Iterator[tuple[str, bool]]:
    """The subvolumes of this volume that the texts mount beside `/`, and whether they are there."""
    for entry in (entry for text in texts for entry in fstab.parse(text)):
        subvolume = entry.value("subvol")
        if entry.fstype == "btrfs" and entry.mountpoint != "/" and subvolume and staged.is_volume(opened, entry.device):
            yield subvolume, lookup.is_directory(opened.top, subvolume)


def _unknown(template: str) -> Iterator[str]:
    """What an fstab mounts by UUID and is not at hand."""
    for entry in fstab.parse(template):
        if "noauto" not in entry.options and entry.uuid is not None and disks.is_missing(entry.uuid):
            yield entry.device


def _held(opened: Volume, config: Config, name: str) -> tuple[str, ...]:
    try:
        return held.sentences(opened, config, name)
    except AtomicError:
        return ()


# ---- the boot menu ---------------------------------------------------------------------------------------


def look_at_menu(opened: Volume, state: State, signals: Signals) -> MenuFacts:
    there = lookup.exists(opened.top, "state/boot.json")
    menu = newmenu.read_menu(opened)
    partition = nvram.partition(opened.device, signals)
    names = [partition.guid if partition else "", staged.label_of(opened)]
    return MenuFacts(
        there=there,
        menu=menu,
        names=tuple(filter(None, names)) if partition and partition.guid else (),
        lacking=_lacking(opened, state, menu),
        unused=tuple(_microcode(opened, state.next, menu)),
    )


def _lacking(opened: Volume, state: State, menu: Menu | None) -> Mapping[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for number, name in enumerate(state.slots[: menu.slots] if menu else ()):
        with suppress(AtomicError):  # that a slot leads nowhere is said elsewhere
            root = volume.open_root(opened, name)
            for path in menu.paths if menu else ():
                status = lookup.status(root, path) if lookup.is_file(root, path) else None
                if status is None or status.st_size == 0:
                    found[path] = (*found.get(path, ()), number)
            os.close(root)
    return found


def _microcode(opened: Volume, name: str, menu: Menu | None) -> Iterator[str]:
    with suppress(AtomicError):
        root = volume.open_root(opened, name)
        for path in (f"{kernel.BOOT}/{each}" for each in kernel.boot_names(root)):
            if menu and path.endswith(MICROCODE_SUFFIX) and path not in menu.microcode:
                yield path
        os.close(root)


# ---- the EFI system partition ----------------------------------------------------------------------------


def look_at_esp(opened: Volume, own_fstab: str, menu: Menu | None, place: str, signals: Signals) -> EspFacts:
    """`place`: where the user says it is, "" for where it usually is."""
    place = place or esp.usual_place(own_fstab, signals, running=opened.running)
    if not place:
        return EspFacts("")
    try:
        with esp.opened(place, signals, writable=False) as found:
            return _esp_facts(found, place, menu, signals)
    except Unseen as error:
        return EspFacts(place, unseen=error.message, way_out=error.hint)
    except (AtomicError, OSError) as error:
        return EspFacts(place, error.message if isinstance(error, AtomicError) else error.strerror or "")


def _esp_facts(found: Esp, place: str, menu: Menu | None, signals: Signals) -> EspFacts:
    free = found.free() if found.is_fat else None
    if menu is None:  # whatever boots there is not known to be ours
        return EspFacts(place, is_fat=found.is_fat, free=free)
    names, text = loaders.names_of(menu.loader), bootmenu.render(menu).encode()
    own = [f"{loaders.DIRECTORY}/{name}" for name in (names.program, *names.beside, names.config)]
    content = {path: found.read(path) for path in own}
    program, config = own[0], own[-1]
    fallback = found.read(loaders.fallback_program())
    ours = fallback is not None and fallback == content[program]
    menus = {config: content[config]}
    if ours and names.own_directory:
        path = f"{os.path.dirname(loaders.fallback_program())}/{names.config}"
        menus[path] = found.read(path)
    return EspFacts(
        place,
        is_fat=found.is_fat,
        known=True,
        missing=tuple(path for path, data in (content | menus).items() if not data),
        differing=tuple(path for path, data in menus.items() if data and data != text),
        fallback=ours,
        entry=nvram.has_entry(found.device, program, signals),
        free=free,
        wanted=max((len(data) for data in content.values() if data), default=0),
    )


# ---- the running system ----------------------------------------------------------------------------------


def look_at_root(path: str) -> RootFacts:
    """`/` and what is around it, as far as an ordinary user may see it too; `path` is PATH."""
    mount = locate.root_mount(mounts.mount_table())
    sealed = os.open(mount.point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        known = [f"{directory}/apk" for directory in path.split(":") if os.access(f"{directory}/apk", os.X_OK)]
        levels = lookup.names(root, _RUNLEVELS)
        target = proof_sealed.resolv_target(root)
        return RootFacts(
            sealed=btrfs.get_readonly(sealed),
            writable=not os.fstatvfs(root).f_flag & os.ST_RDONLY,
            layer=mount.point != "/",
            efi=os.path.isdir(_EFI),
            fstab=staged.read_fstab(root) or "",
            path_apk=known[0] if known else "",
            ours=tuple(each for each in known if _OURS in os.path.realpath(each)),
            resolv=target,
            resolv_there=lookup.is_file(root, proof_sealed.RESOLV),
            jobs=dict(_jobs(root)),
            services=frozenset(name for level in levels for name in lookup.names(root, f"{_RUNLEVELS}/{level}")),
        )
    finally:
        os.close(sealed)
        os.close(root)


def _jobs(root: int) -> Iterator[tuple[str, str]]:
    for when in lookup.names(root, _PERIODIC):
        for name in lookup.names(root, f"{_PERIODIC}/{when}"):
            yield name, f"/{_PERIODIC}/{when}/{name}"
