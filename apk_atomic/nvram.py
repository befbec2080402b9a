"""The firmware's own list of what it can boot: our loader's entry in it, by efibootmgr.

Machines without it (an image, BIOS, a live system started by BIOS) boot from the fallback path all the same.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from apk_atomic import process
from apk_atomic.errors import AtomicError
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
    except AtomicError:
        return ""
    text = done.output.strip().lower()
    return text if not done.status and len(text) == 36 and text.count("-") == 4 else ""


def register(
    device: str, program: str, signals: Signals, efivars: str = EFIVARS, sysfs: str = _BLOCK
) -> str:
    """Makes the firmware's first entry start `program` (a path on the ESP `device`), unless an entry does already.

    Returns why there is none, as a sentence for a warning; "" when there is one now.
    """
    if not os.path.isdir(efivars) or not os.listdir(efivars):
        return "the firmware's boot entries cannot be reached here (no efivars)"
    place = partition(device, signals, sysfs) if device else None
    if place is None:
        return f"the ESP {device or '(a directory)'} is no partition that firmware could have an entry for"
    loader = "\\" + program.replace("/", "\\")
    try:
        if _is_there(process.run(["efibootmgr", "--verbose"], signals).output, place, loader):
            return ""
        done = process.run(
            ["efibootmgr", "--create", "--disk", place.disk, "--part", str(place.number),
             "--label", LABEL, "--loader", loader],
            signals,
        )  # fmt: skip
    except AtomicError as error:
        return error.message
    return f"efibootmgr failed: {done.output.strip()}" if done.status else ""


def _is_there(listing: str, place: Partition, loader: str) -> bool:
    """Whether an active entry starts this loader from this partition."""
    wanted = (place.guid, loader.lower())
    return any(
        line.startswith("Boot") and line[8:9] == "*" and place.guid and all(text in line.lower() for text in wanted)
        for line in listing.splitlines()
    )
