"""The boot menu of a volume, from `newmenu`: state/boot.json written, the loader and the menu put on an ESP.

Nothing that another system put on the ESP is touched: EFI/apk-atomic is ours, and at the fallback path only what is
not there, or was written by us (EFI/BOOT/apk-atomic.txt lists it, with hashes). Durable when `install` returns: all.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass

from apk_atomic import bootable, bootmenu, files, loaders, nvram, volume
from apk_atomic.bootable import MENU
from apk_atomic.bootmenu import Menu
from apk_atomic.errors import CheckFailed, Refused
from apk_atomic.esp_types import Esp
from apk_atomic.loaders import DIRECTORY, LoaderFiles
from apk_atomic.session import Work
from apk_atomic.signals import Signals
from apk_atomic.volume import Volume

_FALLBACK = "EFI/BOOT"
_MARKER = f"{_FALLBACK}/apk-atomic.txt"


@dataclass(frozen=True, slots=True)
class Installed:
    """`written` are the files of the ESP that changed; `warnings` say what is not as one might expect; `fallback`: the
    disk's fallback path starts our loader."""

    written: tuple[str, ...]
    warnings: tuple[str, ...]
    fallback: bool = False


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
