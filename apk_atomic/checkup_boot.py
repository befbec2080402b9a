"""What `doctor` says of the way to boot: the menu, the loader on the ESP, the firmware, a system that sleeps.

Pure: facts in, findings out.
"""

from __future__ import annotations

from collections.abc import Iterator

from apk_atomic.bootmenu import Loader, Menu
from apk_atomic.checkup_types import INSTALL, EspFacts, Facts, Finding, Level, MenuFacts, ResumeFacts, VolumeFacts


def check_menu(facts: Facts) -> Iterator[Finding] | None:
    return None if facts.menu is None or facts.volume is None else _menu(facts.menu, facts.volume)


def _menu(facts: MenuFacts, volume: VolumeFacts) -> Iterator[Finding]:
    if not facts.there:
        text = "there is no state/boot.json, so nobody knows what the boot menu names; all of boot/ is kept"
        yield Finding(Level.WARNING, "menu-unknown", text, INSTALL)
        return
    if facts.menu is None:
        yield Finding(Level.WARNING, "menu-damaged", "state/boot.json is none of ours, or damaged", INSTALL)
    else:
        yield from _menu_values(facts, facts.menu, volume)
    for path, slots in facts.lacking.items():
        level = Level.PROBLEM if 0 in slots else Level.WARNING
        text = f"the boot menu names {path}, which slot {', '.join(map(str, slots))} does not have"
        yield Finding(level, "menu-path", text, f"{INSTALL}, or apk-atomic rollback")
    for path in facts.unused:
        yield Finding(Level.NOTE, "microcode-unused", f"the boot menu does not load {path}", INSTALL)


def _menu_values(facts: MenuFacts, menu: Menu, volume: VolumeFacts) -> Iterator[Finding]:
    if menu.uuid.lower() != volume.fsid.lower():
        text = f"the boot menu looks for the volume {menu.uuid}, and this is {volume.fsid}"
        yield Finding(Level.PROBLEM, "menu-volume", text, INSTALL)
    if menu.loader is Loader.REFIND and facts.names and menu.volume.lower() not in map(str.lower, facts.names):
        text = f"rEFInd looks for {menu.volume}, and this is {' or '.join(facts.names)}"
        yield Finding(Level.PROBLEM, "menu-volume", text, INSTALL)
    if menu.slots > len(volume.state.slots) > 0:
        text = f"the boot menu has {menu.slots} slots, and the volume {len(volume.state.slots)}"
        yield Finding(Level.WARNING, "menu-slots", text, INSTALL)


# ---- the EFI system partition ----------------------------------------------------------------------------


def check_esp(facts: Facts) -> Iterator[Finding] | None:
    """The place itself, and where the menu is known what is on it."""
    if facts.esp is None:
        return None
    found = list(_place(facts.esp))
    if facts.esp.known:
        return iter([*found, *_content(facts.esp)])
    return iter(found) if found else None


def _place(facts: EspFacts) -> Iterator[Finding]:
    if not facts.place:
        text = "the EFI system partition was not found: not mounted, and not in etc/fstab"
        yield Finding(Level.WARNING, "esp-unknown", text, "apk-atomic doctor --esp DIRECTORY|DEVICE")
    elif facts.unseen:
        yield Finding(Level.WARNING, "esp-unseen", f"{facts.place} was not looked at: {facts.unseen}", facts.way_out)
    elif facts.trouble:
        yield Finding(Level.PROBLEM, "esp-unreadable", f"{facts.place}: {facts.trouble}")
    elif not facts.is_fat:
        text = f"{facts.place} is not on a FAT file system, which firmware could read"
        yield Finding(Level.WARNING, "esp-no-fat", text)


def _content(facts: EspFacts) -> Iterator[Finding]:
    for path in facts.missing:
        yield Finding(Level.PROBLEM, "loader-missing", f"{path} is not on {facts.place}", INSTALL)
    for path in facts.differing:
        text = f"{path} on {facts.place} is not what boot-config writes by state/boot.json"
        yield Finding(Level.WARNING, "menu-differs", text, INSTALL)
    if facts.free is not None and facts.free < facts.wanted:
        text = f"{facts.free >> 10} KiB are free on {facts.place}; to replace the loader takes {facts.wanted >> 10}"
        yield Finding(Level.WARNING, "esp-space", text)


def check_way_in(facts: Facts) -> Iterator[Finding] | None:
    """Whether the firmware finds the loader at all."""
    return None if facts.esp is None or not facts.esp.known else _way_in(facts.esp)


def _way_in(facts: EspFacts) -> Iterator[Finding]:
    if not facts.entry and not facts.fallback:
        level = Level.WARNING if facts.entry is None else Level.PROBLEM
        other = "no entry of the firmware is known" if facts.entry is None else "no entry of the firmware does"
        text = f"the disk's fallback path does not start our boot loader, and {other}"
        yield Finding(level, "loader-unreached", text, INSTALL if facts.entry is False else f"{INSTALL} --fallback")
    elif facts.entry is False:
        text = "the firmware has no entry for our boot loader; the disk's fallback path starts it"
        yield Finding(Level.NOTE, "loader-no-entry", text, INSTALL)
    elif not facts.fallback:
        text = "the disk's fallback path does not start our boot loader; an entry of the firmware does"
        yield Finding(Level.NOTE, "loader-no-fallback", text, f"{INSTALL} --fallback")


# ---- a system that sleeps --------------------------------------------------------------------------------


def check_hibernation(facts: Facts) -> Iterator[Finding] | None:
    return None if facts.sleep is None else _sleep(facts.sleep)


def _sleep(facts: ResumeFacts) -> Iterator[Finding]:
    if facts.resume is None:
        return
    if facts.waiting:
        text = f"resume={facts.resume.spec} holds a hibernated system, which has this volume mounted: no change starts"
        hint = "let it resume and shut it down, or drop it: mkswap, with the same UUID (-U), on that device"
        yield Finding(Level.PROBLEM, "hibernated", text, hint)
    elif not facts.there:
        text = f"resume={facts.resume.spec} is not here: nothing can be resumed from it"
        yield Finding(Level.WARNING, "resume-missing", text, f"{INSTALL} --resume UUID=…")
