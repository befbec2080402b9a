"""What `init` was asked for, and whether the disk is one that it may be done to.

Nothing on a disk is changed here; only `make_room` gives an image file its size, when all was asked and answered.
"""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import dataclass, replace

from apk_atomic import esp, layout, partition
from apk_atomic.bootstrap import Source, System
from apk_atomic.config import Config
from apk_atomic.console import size as for_people
from apk_atomic.errors import Refused, UsageError
from apk_atomic.newmenu import Wishes
from apk_atomic.partition import Part, Target
from apk_atomic.signals import Signals

NO_ESP = "none"


@dataclass(frozen=True, slots=True)
class Disk:
    """Where to: `esp` "" divides the whole of `path`; else `path` becomes the volume, and the loader goes to that
    ESP (NO_ESP: nowhere). Sizes in bytes; `image_size` makes an image file, or an empty one larger."""

    path: str
    esp: str
    esp_size: int
    swap: int
    label: str
    commons: tuple[str, ...]
    image_size: int = 0
    force: bool = False


@dataclass(frozen=True, slots=True)
class Boot:
    """The loader and its menu; `refind` are the places where rEFInd may be."""

    wishes: Wishes
    refind: tuple[str, ...]
    nvram: bool


@dataclass(frozen=True, slots=True)
class Order:
    """All that was asked for; `argv` for the record."""

    disk: Disk
    source: Source
    system: System
    boot: Boot
    config: Config
    argv: tuple[str, ...]

    @property
    def wants_menu(self) -> bool:
        return bool(self.system.flavor) and self.disk.esp != NO_ESP


@dataclass(frozen=True, slots=True)
class Found:
    """The target, fit to be made a system on; what would be lost on it, "" for nothing."""

    target: Target
    lost: str


def examine(order: Order, signals: Signals) -> Found:
    """What is there. Raises UsageError, Refused, NoSpace where no system can be made; nothing is changed."""
    disk = order.disk
    _require_tools(order)
    target = _sized(disk)
    if partition.is_partition(target) and not disk.esp:
        raise UsageError(
            f"{target.path} is a partition, and no ESP was named; nothing was changed",
            hint="--esp DEVICE puts the boot loader on an ESP that is there, --esp none leaves it out",
        )
    _require_esp(disk, target)
    partition.require_unused(target)
    lost = _lost(disk, target, signals)
    parts_of(order, target)
    return Found(target, lost)


def make_room(target: Target) -> None:
    """Gives an image file its size, once it may lose what is in it."""
    if target.is_image and os.path.getsize(target.path) != target.size:
        os.truncate(target.path, target.size)


def _lost(disk: Disk, target: Target, signals: Signals) -> str:
    """What is on the target that somebody may miss, "" for nothing; Refused where nobody said that it may go."""
    if target.is_image and not partition.has_data(target):
        return ""
    found = partition.signatures(target, signals)
    if not found and partition.has_data(target):
        found = ("unknown data",)
    if not found or partition.is_unfinished(target, signals):
        return ""
    if not disk.force:
        what = f"{target.path} is not empty: {', '.join(found)}; nothing was changed"
        raise Refused(what, hint="--force destroys what is there")
    return ", ".join(found)


def _require_esp(disk: Disk, target: Target) -> None:
    """Raises UsageError for an ESP that the loader could not be put on: that comes last, and all would be in vain."""
    why = _unfit(disk.esp, target) if disk.esp not in ("", NO_ESP) else ""
    if why:
        raise UsageError(f"the ESP {disk.esp}: {why}; nothing was changed")


def _unfit(place: str, target: Target) -> str:
    """Why `place` cannot be the ESP, "" for no reason."""
    try:
        mode = os.stat(place).st_mode
    except OSError as error:
        return error.strerror or ""
    if stat.S_ISDIR(mode):
        if not esp.is_mount_point(place):
            return "nothing is mounted there"
        return "" if os.access(place, os.W_OK) else "it cannot be written to"
    if not stat.S_ISBLK(mode):
        return "it is neither a block device nor a directory"
    if os.path.realpath(place) == target.path:
        return "it is what is to become the volume"
    return "" if layout.fat_uuid(place) else "it holds no FAT file system"


def _require_tools(order: Order) -> None:
    """Raises UsageError where a program that init will run is not there."""
    wanted = ["wipefs", "sfdisk", "btrfs", "mkfs.btrfs", *([] if order.disk.esp else ["mkfs.vfat"]),
              *(["mkswap"] if order.disk.swap else [])]  # fmt: skip
    missing = [tool for tool in wanted if shutil.which(tool) is None]
    if missing:
        hint = "apk add wipefs sfdisk btrfs-progs dosfstools util-linux-misc"
        raise UsageError(f"init needs {', '.join(missing)}; nothing was changed", hint=hint)


def _sized(disk: Disk) -> Target:
    """The target with the size that it will have; an image file may not be there yet."""
    if not disk.image_size:
        return partition.look_at(disk.path)
    if not os.path.lexists(disk.path):
        return _to_be_made(disk)
    target = partition.look_at(disk.path)
    if not target.is_image:
        raise UsageError(f"--size is for image files, and {disk.path} is a device; nothing was changed")
    return replace(target, size=disk.image_size)


def _to_be_made(disk: Disk) -> Target:
    directory = os.path.dirname(os.path.abspath(disk.path))
    if not os.path.isdir(directory):
        raise UsageError(f"there is no directory {directory}; nothing was changed")
    return partition.image(os.path.realpath(disk.path), disk.image_size)


def parts_of(order: Order, target: Target) -> tuple[Part, ...]:
    """How the target will be divided, () for not at all. Raises NoSpace, UsageError."""
    disk = order.disk
    if not disk.esp:
        return partition.plan(target, disk.esp_size, disk.swap)
    partition.require_room(target)
    return ()


def describe(order: Order, found: Found) -> str:
    """What will be done to the target, for the question."""
    disk, target = order.disk, found.target
    what = "a btrfs volume" if disk.esp else "an ESP, a btrfs volume" + (" and swap" if disk.swap else "")
    lost = f" ({found.lost})" if found.lost else ""
    return f"{target.path} ({for_people(target.size)}) will hold {what}; whatever is on it is lost{lost}"
