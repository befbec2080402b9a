"""What `init` was asked for, and whether the disk is one that it may be done to.

Nothing on a disk is changed here; only an image file is made, or gets another size while there is nothing in it.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass

from apk_atomic import partition
from apk_atomic.bootinstall import Wishes
from apk_atomic.bootstrap import Source, System
from apk_atomic.config import Config
from apk_atomic.console import size as for_people
from apk_atomic.errors import Refused, UsageError
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


def examine(order: Order, signals: Signals) -> tuple[Target, str]:
    """The target, fit to be made a system on, and what would be lost on it, "" for nothing.

    Raises UsageError, Refused, NoSpace; nothing was changed, but that an image file may be there now, or be larger.
    """
    disk = order.disk
    _require_tools(order)
    target = _sized(disk, signals)
    if partition.is_partition(target) and not disk.esp:
        raise UsageError(
            f"{target.path} is a partition, and no ESP was named; nothing was changed",
            hint="--esp DEVICE puts the boot loader on an ESP that is there, --esp none leaves it out",
        )
    partition.require_unused(target)
    parts_of(order, target)
    return target, _lost(disk, target, signals)


def _lost(disk: Disk, target: Target, signals: Signals) -> str:
    """What is on the target that somebody may miss, "" for nothing; Refused where nobody said that it may go."""
    found = partition.signatures(target, signals) if target.size else ()
    if not found or partition.is_unfinished(target, signals):
        return ""
    if not disk.force:
        what = f"{target.path} is not empty: {', '.join(found)}; nothing was changed"
        raise Refused(what, hint="--force destroys what is there")
    return ", ".join(found)


def _require_tools(order: Order) -> None:
    """Raises UsageError where a program that init will run is not there."""
    wanted = ["wipefs", "sfdisk", "btrfs", "mkfs.btrfs", *([] if order.disk.esp else ["mkfs.vfat"]),
              *(["mkswap"] if order.disk.swap else [])]  # fmt: skip
    missing = [tool for tool in wanted if shutil.which(tool) is None]
    if missing:
        hint = "apk add wipefs sfdisk btrfs-progs dosfstools util-linux-misc"
        raise UsageError(f"init needs {', '.join(missing)}; nothing was changed", hint=hint)


def _sized(disk: Disk, signals: Signals) -> Target:
    """The target; an image file is made, or grows or shrinks while there is nothing on it."""
    if not disk.image_size:
        return partition.look_at(disk.path)
    if not os.path.exists(disk.path):
        os.close(os.open(disk.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
    target = partition.look_at(disk.path)
    if not target.is_image:
        raise UsageError(f"--size is for image files, and {disk.path} is a device; nothing was changed")
    if target.size == disk.image_size:
        return target
    partition.require_unused(target)
    _lost(disk, target, signals)
    os.truncate(disk.path, disk.image_size)
    return partition.look_at(disk.path)


def parts_of(order: Order, target: Target) -> tuple[Part, ...]:
    """How the target will be divided, () for not at all. Raises NoSpace, UsageError."""
    disk = order.disk
    if not disk.esp:
        return partition.plan(target, disk.esp_size, disk.swap)
    partition.require_room(target)
    return ()


def describe(order: Order, target: Target) -> str:
    """What will be done to the target, for the question."""
    disk = order.disk
    what = "a btrfs volume" if disk.esp else "an ESP, a btrfs volume" + (" and swap" if disk.swap else "")
    return f"{target.path} ({for_people(target.size)}) will hold {what}; whatever is on it is lost"
