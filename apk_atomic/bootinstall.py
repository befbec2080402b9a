"""The boot menu of a volume: its values found, state/boot.json written, the loader and the menu put on an ESP.

Nothing that another system put on the ESP is touched: EFI/apk-atomic is ours, and at the fallback path only what is
not there, or was written by us (EFI/BOOT/apk-atomic.txt lists it, with hashes). Durable when `install` returns: all.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from apk_atomic import bootable, bootmenu, files, kernel, loaders, nvram, volume
from apk_atomic.bootable import MENU
from apk_atomic.bootmenu import Loader, Menu
from apk_atomic.config import Config
from apk_atomic.errors import CheckFailed, Refused, UsageError
from apk_atomic.esp_types import Esp
from apk_atomic.faults import point
from apk_atomic.loaders import DIRECTORY, LoaderFiles
from apk_atomic.session import Work
from apk_atomic.signals import Signals
from apk_atomic.staged import label_of
from apk_atomic.volume import Volume

_LIMIT = 1 << 20  # bytes of state/boot.json
_FALLBACK = "EFI/BOOT"
_MARKER = f"{_FALLBACK}/apk-atomic.txt"
_PREFERRED = ("lts", "stable", "virt")  # flavors, where several are installed and none was named


@dataclass(frozen=True, slots=True)
class Wishes:
    """What was asked for; None: as in state/boot.json, else by default. `flavor` is the kernel's."""

    loader: Loader | None = None
    flavor: str | None = None
    append: str | None = None
    resume: str | None = None
    timeout: int | None = None


@dataclass(frozen=True, slots=True)
class Installed:
    """`written` are the files of the ESP that changed; `warnings` say what is not as one might expect; `fallback`: the
    disk's fallback path starts our loader."""

    written: tuple[str, ...]
    warnings: tuple[str, ...]
    fallback: bool = False


# ---- the values ------------------------------------------------------------------------------------------


def read_menu(opened: Volume) -> Menu | None:
    """The menu that state/boot.json describes; None without a usable one."""
    try:
        return bootmenu.from_document(json.loads(files.read_file(opened.top, MENU, _LIMIT)))
    except (OSError, ValueError, RecursionError):
        return None


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


# ---- the installation ------------------------------------------------------------------------------------


def install(work: Work, esp: Esp, loader: LoaderFiles, menu: Menu, *, fallback: bool = True) -> Installed:
    """Puts the loader and its menu on the ESP, and says in state/boot.json what the menu names.

    `fallback`: at the disk's fallback path, too, unless another system's loader is there.

    While another menu may be the one that boots, state/boot.json names what that needs as well, so that no transaction
    takes it away: the paths of the menu before, and where nobody knows it, all that boot/ of slot 0 holds. So it stays
    where firmware is not known to start our loader: see `confirm`.
    """
    require_own(esp, loader, work.volume.fsid)
    before = bootable.menu_document(work.volume)
    kept = tuple(dict.fromkeys((*menu.paths, *_kept(work.volume))))
    _write_state(work.volume, {**bootmenu.document(menu), "paths": list(kept)})
    try:
        result = put(esp, loader, bootmenu.render(menu), fallback=fallback)
    except BaseException:
        _put_back(work.volume, before, kept)
        raise
    if result.fallback:
        _write_state(work.volume, bootmenu.document(menu))
    return result


def require_own(esp: Esp, loader: LoaderFiles, fsid: str) -> None:
    """Raises Refused where the menu that would be replaced boots another volume. What cannot be read is no menu: who
    replaces it fails."""
    path = f"{DIRECTORY}/{loader.config}"
    try:
        text = (esp.read(path) or b"").decode("ascii", "replace")
    except CheckFailed:
        return
    others = {uuid.lower() for uuid in re.findall(r"root=UUID=([0-9A-Fa-f-]+)", text)} - {fsid.lower()}
    if others:
        raise Refused(
            f"{path} of the ESP is the menu of another system, on UUID={min(others)}; nothing was changed",
            hint=f"an ESP has room for one system with apk-atomic: if the other is gone, remove {path} there",
        )


def confirm(work: Work, device: str, loader: LoaderFiles, menu: Menu) -> None:
    """Only what the menu names has to stay from now on, if firmware has an entry for our loader on the ESP `device`."""
    if nvram.has_entry(device, f"{DIRECTORY}/{loader.program}", work.signals):
        _write_state(work.volume, bootmenu.document(menu))


def put(esp: Esp, loader: LoaderFiles, menu: str, *, fallback: bool = True) -> Installed:
    """The files themselves: a power cut at any time leaves the old loader and menu, or the new."""
    own = [*loader.beside, (loader.program, loader.content), (loader.config, menu.encode())]
    written = [f"{DIRECTORY}/{name}" for name, data in _ordered(esp, DIRECTORY, loader.program, own)
               if _replace(esp, f"{DIRECTORY}/{name}", data)]  # fmt: skip
    if not fallback:
        return Installed(tuple(written), ())
    program = loaders.fallback_program().rpartition("/")[2]
    copy = [(program, loader.content)]
    if loader.own_directory:
        copy = [*loader.beside, *copy, (loader.config, menu.encode())]
    foreign = [f"{_FALLBACK}/{name}" for name, _ in copy if not _may_replace(esp, name)]
    if foreign:
        text = f"{foreign[0]} is not ours and was left alone: firmware needs an entry to start apk-atomic's loader"
        text += ", and until it has one, all that boot/ holds now has to stay"
        return Installed(tuple(written), (text,))
    _mark(esp, copy)
    written += [f"{_FALLBACK}/{name}" for name, data in _ordered(esp, _FALLBACK, program, copy)
                if _replace(esp, f"{_FALLBACK}/{name}", data)]  # fmt: skip
    return Installed(tuple(written), (), fallback=True)


def _ordered(esp: Esp, directory: str, program: str, pairs: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """The menu last, where the loader boots already; else the loader itself, which without a menu would be started."""
    if esp.read(f"{directory}/{program}") is not None:
        return pairs
    return sorted(pairs, key=lambda pair: pair[0] == program)


def _replace(esp: Esp, path: str, data: bytes) -> bool:
    if esp.read(path) == data:
        esp.tidy(path)
        return False
    esp.write(path, data)
    return True


def _may_replace(esp: Esp, name: str) -> bool:
    there = esp.read(f"{_FALLBACK}/{name}")
    return there is None or _line(name, there) in _marks(esp)


def _mark(esp: Esp, pairs: list[tuple[str, bytes]]) -> None:
    """Before the files: what is there now and what will be both count as ours, whichever a power cut leaves."""
    there = ((name, esp.read(f"{_FALLBACK}/{name}")) for name, _ in pairs)
    lines = [_line(name, data) for name, data in there if data is not None]
    lines += [_line(name, data) for name, data in pairs]
    text = "\n".join(("Files here that apk-atomic boot-config may replace:", *dict.fromkeys(lines), ""))
    _replace(esp, _MARKER, text.encode())


def _marks(esp: Esp) -> frozenset[str]:
    return frozenset((esp.read(_MARKER) or b"").decode("ascii", "replace").splitlines())


def _line(name: str, data: bytes) -> str:
    return f"{hashlib.sha256(data).hexdigest()}  {name}"


def _kept(opened: Volume) -> tuple[str, ...]:
    """What the menu that boots now may need."""
    known = bootable.menu_paths(opened)
    if known is not None:
        return known
    root = volume.open_root(opened, volume.read_slots(opened).slots[0])
    try:
        return bootable.boot_names(root)
    finally:
        os.close(root)


def _put_back(opened: Volume, before: dict[str, object] | None, kept: tuple[str, ...]) -> None:
    """state/boot.json as it was; but the ESP may have the new menu already, so the paths of both stay in it."""
    if before is not None:
        _write_state(opened, {**before, "paths": list(kept)})
        return
    os.unlink(MENU, dir_fd=opened.top)
    files.fsync_dir(opened.top, os.path.dirname(MENU))


def _write_state(opened: Volume, document: dict[str, object]) -> None:
    """state/ is a directory of its own: nothing beside `current` is ever synced by itself."""
    try:
        os.mkdir(os.path.dirname(MENU), 0o755, dir_fd=opened.top)
    except FileExistsError:
        pass
    else:
        files.syncfs(opened.top)
    files.write_durable(opened.top, MENU, json.dumps(document, indent=1).encode() + b"\n", 0o644)


def register(device: str, loader: LoaderFiles, signals: Signals, *, first: bool = True) -> tuple[str, ...]:
    """The firmware's entry for the loader on the ESP `device`, before or behind all others; warnings."""
    program = f"{DIRECTORY}/{loader.program}"
    trouble = nvram.register(device, program, signals, first=first)
    other = "the disk's fallback path starts it" if first else f"the firmware's own menu may start {program}"
    return (f"{trouble}; {other}",) if trouble else ()
