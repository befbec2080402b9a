"""What an adoption says: the plan beforehand, and what stays behind afterwards, for people and for programs. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from apk_atomic import fstab
from apk_atomic.adoption import LAYOUT, Choices, Plan
from apk_atomic.oldfstab import SWAP_POINT

VERSION = 1


@dataclass(frozen=True, slots=True)
class Behind:
    """What the new system does not use: `removable` may be deleted once that has proved itself, by `commands`;
    `never` are the names at the top level that must stay."""

    removable: tuple[str, ...]
    never: tuple[str, ...]
    commands: tuple[str, ...]
    notes: tuple[str, ...]


# ---- before ----------------------------------------------------------------------------------------------


def describe(plan: Plan, choices: Choices, device: str) -> tuple[str, ...]:
    """The plan in lines."""
    place = "the top level" if plan.at_top else f"subvolume {plan.subvolume.strip('/')}"
    points = [fstab.mountpoint(name) for name in plan.commons]
    kernel = f"copied in from /boot ({plan.separate.device})" if plan.separate else "in /boot of the root"
    lines = [
        f"root      {place} of {device}: snapshotted, changed in no way but for the layout's names beside it",
        f"commons   {', '.join(points) or 'none'}: copied, sharing the data",
        f"kernel    {kernel}",
        f"loader    {choices.loader} on the ESP {plan.esp}, behind the old one, which stays the default",
    ]
    lines += [f"as is     {', '.join(plan.shared)}"] if plan.shared else []
    lines += [f"swap      {line}" for line in _swap(plan)]
    lines += [f"inside    subvolume /{each.path}: {_FATES[each.fate]}" for each in plan.nested]
    return (*lines, "fstab", *(f"    {line}" for line in plan.template.splitlines()))


_FATES = {
    "copied": "copied with the common that it is in",
    "mounted": "mounted by its line of etc/fstab, as now",
    "left": "empty in the new system; what is in it stays in the old one",
}


def _swap(plan: Plan) -> Iterator[str]:
    if plan.swap_size:
        yield f"{SWAP_POINT}/swapfile, {plan.swap_size >> 20} MiB, in a common of its own"
    if plan.swap_files:
        yield f"{', '.join(plan.swap_files)} stays behind"


def document(plan: Plan, choices: Choices) -> dict[str, object]:
    """The plan for programs."""
    return {
        "version": VERSION,
        "subvolume": plan.subvolume,
        "blockers": list(plan.blockers),
        "warnings": list(plan.warnings),
        "commons": list(plan.commons),
        "shared": list(plan.shared),
        "separate_boot": plan.separate.device if plan.separate else None,
        "esp": plan.esp,
        "loader": choices.loader.value,
        "append": plan.append,
        "resume": plan.resume,
        "swap_files": list(plan.swap_files),
        "swap_size": plan.swap_size,
        "nested": {each.path: each.fate for each in plan.nested},
        "fstab": plan.template,
    }


# ---- afterwards ------------------------------------------------------------------------------------------


def stays_behind(plan: Plan, device: str, top_names: tuple[str, ...]) -> Behind:
    """The report for after the finish; `top_names` is what lies at the top level."""
    own = "" if plan.at_top else plan.subvolume.split("/")[1]
    used = sorted({path.split("/")[1] for path in plan.used} - {own})
    never = tuple(dict.fromkeys((*LAYOUT, *used)))
    mount = f"mount -o subvolid=5 {device} /mnt"
    if not plan.at_top:
        delete = f"btrfs subvolume delete {shlex.quote(f'/mnt{plan.subvolume}')}"
        return Behind((plan.subvolume.strip("/"),), never, (mount, delete), tuple(_notes(plan)))
    removable = tuple(name for name in top_names if name not in never)
    delete = f"cd /mnt && rm -rf {shlex.join(removable)}"
    return Behind(removable, never, (mount, delete), tuple(_notes(plan)))


def _notes(plan: Plan) -> Iterator[str]:
    yield (
        "the old loader stays on the ESP, and in the firmware's list, until you remove it: "
        "efibootmgr --bootnum NUMBER --delete-bootnum"
    )
    if plan.separate:
        yield f"the old /boot ({plan.separate.device}) is not used any more: kernels are in the generations"
    for path in plan.swap_files:
        more = f"{SWAP_POINT}/swapfile takes its place" if plan.swap_size else "the new system has none"
        yield f"swap file {path} stays behind; {more}"
    left = [f"/{each.path}" for each in plan.nested if each.fate == "left"]
    if left:
        yield f"empty in the new system, with their contents in the old one: {', '.join(left)}"
    mounted = [f"/{each.path}" for each in plan.nested if each.fate == "mounted"]
    if mounted:
        yield f"subvolumes of the old root that the new system mounts, so keep them: {', '.join(mounted)}"


def tell_behind(behind: Behind) -> Iterator[str]:
    """The report in lines."""
    yield from behind.notes
    yield "the old system is as it was; once the new one has proved itself, delete it, from the new one, with:"
    yield from (f"    {command}" for command in behind.commands)
    yield f"but never delete {', '.join(behind.never)}"


def behind_document(behind: Behind) -> dict[str, object]:
    return {
        "removable": list(behind.removable),
        "never": list(behind.never),
        "commands": list(behind.commands),
        "notes": list(behind.notes),
    }
