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
    """What the new system does not use: `removable` may be deleted once that has proved itself, by `commands`, when
    the steps of `first` are done; `never` are the names at the top level that must stay."""

    removable: tuple[str, ...]
    never: tuple[str, ...]
    first: tuple[str, ...]
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
    lines += [f"options   {' '.join(words)}"] if (words := _kernel_words(plan)) else []
    lines += [f"as is     {', '.join(plan.shared)}"] if plan.shared else []
    lines += [f"swap      {line}" for line in _swap(plan)]
    lines += [f"inside    subvolume /{each.path}: {_FATES[each.fate]}" for each in plan.nested]
    return (*lines, "fstab", *(f"    {line}" for line in plan.template.splitlines()))


_FATES = {
    "copied": "copied with the common that it is in",
    "mounted": "mounted by its line of etc/fstab, as now",
    "left": "empty in the new system; what is in it stays in the old one",
}


def _kernel_words(plan: Plan) -> tuple[str, ...]:
    """What the new command line has of the old one."""
    return tuple(filter(None, (f"resume={plan.resume}" if plan.resume else "", plan.append)))


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


def stays_behind(plan: Plan, device: str, top_names: tuple[str, ...], order: str) -> Behind:
    """The report for after the finish; `top_names` is what lies at the top level, `order` the boot order that begins
    with the new loader, "" where firmware has no entry for it.

    A name that is or holds a subvolume is never removable: `rm` would take what is nowhere else.
    """
    own = "" if plan.at_top else plan.subvolume.split("/")[1]
    used = sorted({path.split("/")[1] for path in plan.used} - {own})
    never = tuple(dict.fromkeys((*LAYOUT, *used)))
    if plan.at_top:
        holding = {each.path.split("/")[0] for each in plan.nested}
        removable = tuple(name for name in top_names if name not in (*never, *holding))
        delete = f"cd /mnt && rm -rf -- {shlex.join(removable)}"
    else:
        removable = () if plan.nested else (plan.subvolume.strip("/"),)
        delete = f"btrfs subvolume delete {shlex.quote(f'/mnt{plan.subvolume}')}"  # refused while one is in it
    commands = (f"mount -o subvolid=5 {device} /mnt", delete)
    return Behind(removable, never, tuple(_first(plan, order)), commands, tuple(_notes(plan)))


def _first(plan: Plan, order: str) -> Iterator[str]:
    """What has to be done before anything of the old system is deleted."""
    if order:
        yield f"make the new loader the default: efibootmgr --bootorder {order}"
    else:
        yield (
            "wait until the firmware starts the new loader by itself, which it does not yet: in the new system, "
            "apk-atomic boot-config --install has to end without a warning; if it says that a file of EFI/BOOT is not "
            "ours, that is the old loader's: move it to another directory of the ESP, and run it again"
        )
    yield from _subvolumes_first(plan)
    for place in plan.whole:
        yield f"look at what is used through {place}, where the new system mounts the whole volume: it has to stay"
    if plan.at_top:
        yield "see that no subvolume has come into what is deleted: btrfs subvolume list /mnt"


def _subvolumes_first(plan: Plan) -> Iterator[str]:
    paths = {fate: ", ".join(f"/{each.path}" for each in plan.nested if each.fate == fate) for fate in _FATES}
    if paths["left"]:
        yield (
            "move these subvolumes of the old root elsewhere, or delete them yourself; "
            f"they are empty in the new system, and their contents are nowhere else: {paths['left']}"
        )
    if paths["mounted"]:
        more = "" if plan.at_top else "; move them out of the old root, and change their lines of the fstab template"
        yield f"the new system mounts these subvolumes of the old root, so keep them: {paths['mounted']}{more}"
    if paths["copied"]:
        yield f"delete these subvolumes of the old root yourself, which were copied with a common: {paths['copied']}"


def _notes(plan: Plan) -> Iterator[str]:
    yield (
        "the old loader stays on the ESP, and in the firmware's list, until you remove it: "
        "efibootmgr --bootnum NUMBER --delete-bootnum, and its directory of EFI/, which is not EFI/apk-atomic"
    )
    if plan.separate:
        yield f"the old /boot ({plan.separate.device}) is not used any more: kernels are in the generations"
    for path in plan.swap_files:
        more = f"{SWAP_POINT}/swapfile takes its place" if plan.swap_size else "the new system has none"
        yield f"swap file {path} stays behind; {more}"


def tell_behind(behind: Behind) -> Iterator[str]:
    """The report in lines."""
    yield from behind.notes
    yield "the old system is as it was; once the new one has proved itself, it may be deleted, from the new one. First:"
    yield from (f"  {number}. {step}" for number, step in enumerate(behind.first, 1))
    yield "then, and not before:"
    yield from (f"    {command}" for command in behind.commands)
    yield f"but never delete {', '.join(behind.never)}"


def behind_document(behind: Behind) -> dict[str, object]:
    return {
        "removable": list(behind.removable),
        "never": list(behind.never),
        "first": list(behind.first),
        "commands": list(behind.commands),
        "notes": list(behind.notes),
    }
