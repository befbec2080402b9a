"""The boot menu for a volume as it is now: what was wished for, else what state/boot.json has, else what there is.

It reads the roots of the slots and changes nothing; how the menu comes to an ESP is `bootinstall`'s to know.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

from apk_atomic import bootable, bootmenu, kernel, volume
from apk_atomic.bootmenu import Loader, Menu
from apk_atomic.config import Config
from apk_atomic.errors import CheckFailed, UsageError
from apk_atomic.faults import point
from apk_atomic.staged import label_of
from apk_atomic.volume import Volume

_PREFERRED = ("lts", "stable", "virt")  # flavors, where several are installed and none was named


@dataclass(frozen=True, slots=True)
class Wishes:
    """What was asked for; None: as in state/boot.json, else by default. `flavor` is the kernel's."""

    loader: Loader | None = None
    flavor: str | None = None
    append: str | None = None
    resume: str | None = None
    timeout: int | None = None


def read_menu(opened: Volume) -> Menu | None:
    """The menu that state/boot.json describes; None without a usable one."""
    return bootmenu.from_document(bootable.boot_json(opened))


def compose(opened: Volume, config: Config, wishes: Wishes, partition: str = "") -> tuple[Menu, tuple[str, ...]]:
    """The menu for the volume as it is now, and warnings; `partition` is the GUID of the volume's, "" if unknown.

    Raises UsageError or CheckFailed where slot 0 could not be booted by it.
    """
    old = read_menu(opened)
    slots = volume.slot_links(opened, volume.current_links(opened))
    point("chosen")
    root = volume.open_root(opened, slots[0] if slots else "")
    try:
        paths = kernel_paths(root, wishes.flavor, old)
        microcode = tuple(f"{kernel.BOOT}/{name}" for name in kernel.boot_names(root) if _is_microcode(name))
    finally:
        os.close(root)
    lacking = {path: _lacking(opened, slots, path) for path in (*paths, *microcode)}
    menu = Menu(
        uuid=opened.fsid,
        volume=partition or (old.volume if old and old.uuid == opened.fsid else "") or label_of(opened),
        kernel=paths[0],
        initramfs=paths[1],
        microcode=tuple(path for path in microcode if not lacking[path]),
        slots=max(1, min(len(slots), config.generations.slots)),
    )
    return _wished(menu, old, wishes), tuple(_warnings(lacking, paths))


def _wished(menu: Menu, old: Menu | None, wishes: Wishes) -> Menu:
    base = old or menu
    if not menu.volume:
        raise UsageError(
            "rEFInd finds a volume by its partition or its label, and this one has neither",
            hint="btrfs filesystem label / ROOT",
        )
    return bootmenu.checked(
        replace(
            menu,
            loader=base.loader if wishes.loader is None else wishes.loader,
            append=base.append if wishes.append is None else wishes.append,
            resume=base.resume if wishes.resume is None else wishes.resume,
            timeout=base.timeout if wishes.timeout is None else wishes.timeout,
        )
    )


def kernel_paths(root: int, flavor: str | None, old: Menu | None) -> tuple[str, str]:
    """Kernel and initramfs of the flavor wished for, else of the old menu's, else of the only or usual one."""
    there = {each.flavor: each for each in kernel.kernels(root)}
    if flavor is None and old is not None:
        before = old.kernel.rpartition("/")[2].removeprefix(kernel.KERNEL_PREFIX)
        flavor = before if before in there else None
    if flavor is None:
        flavor = next((each for each in (*_PREFERRED, *sorted(there)) if each in there), "")
    if flavor not in there:
        known = ", ".join(sorted(there)) or "none"
        raise UsageError(f"the next generation has no kernel {flavor!r}: there is {known}; nothing was changed")
    names = set(kernel.boot_names(root))
    image = next((path for path in kernel.image_names(flavor) if path.rpartition("/")[2] in names), "")
    if not image:
        raise CheckFailed(f"the next generation has no initramfs for kernel {flavor}; nothing was changed")
    return there[flavor].image, image


def _lacking(opened: Volume, slots: tuple[str, ...], path: str) -> tuple[int, ...]:
    """The numbers of the slots whose generation does not have `path`."""
    return tuple(number for number, name in enumerate(slots) if not _has(opened, name, path))


def _has(opened: Volume, name: str, path: str) -> bool:
    try:
        root = volume.open_root(opened, name)
    except CheckFailed:
        return False
    try:
        return path.rpartition("/")[2] in kernel.boot_names(root)
    finally:
        os.close(root)


def _warnings(lacking: dict[str, tuple[int, ...]], needed: tuple[str, ...]) -> Iterator[str]:
    for path, numbers in lacking.items():
        slots = f"slot{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
        if numbers and path in needed:
            yield f"{slots} cannot be booted by this menu: no {path} there"
        elif numbers:
            yield f"{path} is left out of the menu, since {slots} lack it; run boot-config again when all have it"


def _is_microcode(name: str) -> bool:
    return name.endswith(kernel.MICROCODE_SUFFIX)
