"""The firmware's own list of what it can boot: our loader's entry in it, by efibootmgr.

Machines without it (an image, BIOS, a live system started by BIOS) boot from the fallback path all the same.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from apk_atomic import process
from apk_atomic.errors import CannotRun
from apk_atomic.signals import Signals

EFIVARS = "/sys/firmware/efi/efivars"
LABEL = "Alpine Linux (apk-atomic)"
_BLOCK = "/sys/class/block"


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition as efibootmgr names it."""

    disk: str
    number: int
    guid: str


def partition(device: str, signals: Signals, sysfs: str = _BLOCK) -> Partition | None:
    """Which partition the block device is; None for a whole disk, a loop device and the like.

    `guid` is in lower case, "" where the table has none (or sfdisk is not there to ask).
    """
    name = os.path.basename(os.path.realpath(device))
    try:
        with open(f"{sysfs}/{name}/partition", encoding="ascii") as file:
            number = int(file.read())
    except (OSError, ValueError):
        return None
    disk = "/dev/" + os.path.basename(os.path.dirname(os.path.realpath(f"{sysfs}/{name}")))
    return Partition(disk, number, _guid(disk, number, signals))


def _guid(disk: str, number: int, signals: Signals) -> str:
    try:
        done = process.run(["sfdisk", "--part-uuid", disk, str(number)], signals)
    except CannotRun:
        return ""
    text = done.output.strip().lower()
    return text if not done.status and len(text) == 36 and text.count("-") == 4 else ""


def register(
    device: str, program: str, signals: Signals, efivars: str = EFIVARS, sysfs: str = _BLOCK, *, first: bool = True
) -> str:
    """Makes the firmware's first entry start `program` (a path on the ESP `device`), unless an entry does already.

    Not `first`: what started this system stays the default, and ours stands behind all others. Returns why there is
    none, as a sentence for a warning; "" when there is one now.
    """
    if not os.path.isdir(efivars) or not os.listdir(efivars):
        return "the firmware's boot entries cannot be reached here (no efivars)"
    place = partition(device, signals, sysfs) if device else None
    if place is None:
        return f"the ESP {device or '(a directory)'} is no partition that firmware could have an entry for"
    loader = _on_esp(program)
    try:
        if number_in(_listing(signals), place, loader):
            return "" if first else _stand_last(place, loader, signals)
        done = process.run(
            ["efibootmgr", "--create" if first else "--create-only", "--disk", place.disk, "--part", str(place.number),
             "--label", LABEL, "--loader", loader],
            signals,
        )  # fmt: skip
        if done.status:
            return f"efibootmgr failed: {done.output.strip()}"
        return "" if first else _stand_last(place, loader, signals)
    except CannotRun as error:
        return error.message


def entry(device: str, program: str, signals: Signals, efivars: str = EFIVARS, sysfs: str = _BLOCK) -> str:
    """The number of the entry that starts `program` from the ESP `device`, such as 0003; "" for none."""
    place = partition(device, signals, sysfs) if device and os.path.isdir(efivars) else None
    try:
        return number_in(_listing(signals), place, _on_esp(program)) if place else ""
    except CannotRun:
        return ""


def has_entry(device: str, program: str, signals: Signals, efivars: str = EFIVARS, sysfs: str = _BLOCK) -> bool | None:
    """Whether the firmware has an entry that starts `program` from the ESP `device`; None where nobody can say."""
    if not os.path.isdir(efivars) or not os.listdir(efivars):
        return None
    place = partition(device, signals, sysfs) if device else None
    if place is None or not place.guid:
        return None
    try:
        return bool(number_in(_listing(signals), place, _on_esp(program)))
    except CannotRun:
        return None


def order_from(number: str, signals: Signals) -> str:
    """The boot order that begins with entry `number`, as `efibootmgr --bootorder` takes it."""
    order = _fields(_listing(signals)).get("BootOrder", "").split(",")
    return ",".join((number, *(each for each in order if each not in ("", number))))


def number_in(listing: str, place: Partition, loader: str) -> str:
    """The number of the active entry, in what efibootmgr lists, that starts this loader from this partition."""
    wanted = (place.guid, loader.lower())
    numbers = (
        line[4:8]
        for line in listing.splitlines()
        if line.startswith("Boot") and line[8:9] == "*" and place.guid and all(text in line.lower() for text in wanted)
    )
    return next(numbers, "")


def order_with(listing: str, number: str) -> str | None:
    """The boot order with entry `number` at its end; "" where it is in it already.

    None where the entry that started this system is in no order: firmware came to it some other way, such as the
    disk's fallback path, and would come to ours first.
    """
    fields = _fields(listing)
    order = [each for each in fields.get("BootOrder", "").split(",") if each]
    if number in order:
        return ""
    return ",".join((*order, number)) if fields.get("BootCurrent") in order else None


def _fields(listing: str) -> dict[str, str]:
    """BootCurrent, BootOrder and the like of what efibootmgr lists."""
    lines = (line.partition(": ") for line in listing.splitlines() if line.startswith("Boot"))
    return {name: value.strip() for name, colon, value in lines if colon}


def _stand_last(place: Partition, loader: str, signals: Signals) -> str:
    listing = _listing(signals)
    number = number_in(listing, place, loader)
    order = order_with(listing, number) if number else None
    if order is None:
        return f"the entry {number or LABEL} is left out of the boot order, where it would come before the old loader"
    done = process.run(["efibootmgr", "--bootorder", order], signals) if order else None
    return f"efibootmgr failed: {done.output.strip()}" if done and done.status else ""


def _listing(signals: Signals) -> str:
    return process.run(["efibootmgr", "--verbose"], signals).output


def _on_esp(program: str) -> str:
    return "\\" + program.replace("/", "\\")
