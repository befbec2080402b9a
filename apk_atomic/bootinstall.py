"""The boot menu of a volume, from `newmenu`: state/boot.json written, the loader and the menu put on an ESP.

Nothing that another system put on the ESP is touched: EFI/apk-atomic is ours, and at the fallback path only what is
not there, or was written by us. The file apk-atomic.txt in either directory lists that, with hashes; a menu that
somebody has changed is kept beside the new one. Durable when `install` returns: all.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum

from apk_atomic import bootable, bootmenu, files, loaders, nvram, volume
from apk_atomic.bootable import MENU
from apk_atomic.bootmenu import Menu
from apk_atomic.errors import CheckFailed, Refused
from apk_atomic.esp_types import Esp
from apk_atomic.faults import point
from apk_atomic.loaders import DIRECTORY, LoaderFiles, Names
from apk_atomic.session import Work
from apk_atomic.signals import Signals
from apk_atomic.volume import Volume

_FALLBACK = "EFI/BOOT"
_MARKER = "apk-atomic.txt"


class Fallback(Enum):
    """Whether the loader is put at the disk's fallback path, too."""

    NO = "no"
    IF_FREE = "unless another system's loader is there"
    TAKEN_OVER = "in any case; what is there is kept beside it"


@dataclass(frozen=True, slots=True)
class Installed:
    """`written` are the files of the ESP that changed; `warnings` say what is not as one might expect; `fallback`: the
    disk's fallback path starts our loader."""

    written: tuple[str, ...]
    warnings: tuple[str, ...]
    fallback: bool = False


def install(
    work: Work, esp: Esp, loader: LoaderFiles, menu: Menu, *,
    fallback: Fallback = Fallback.IF_FREE, gone: str = "",
) -> Installed:  # fmt: skip
    """Puts the loader and its menu on the ESP, and says in state/boot.json what the menu names.

    `gone`: the UUID of a volume in whose place this one is.

    While another menu may be the one that boots, state/boot.json names what that needs as well, so that no transaction
    takes it away: the paths of the menu before, and where nobody knows it, all that boot/ of slot 0 holds. So it stays
    where firmware is not known to start our loader: see `confirm`.
    """
    require_own(esp, loader, work.volume.fsid, gone)
    before = bootable.menu_document(work.volume)
    kept = tuple(dict.fromkeys((*menu.paths, *_kept(work.volume))))
    _write_state(work.volume, {**bootmenu.document(menu), "paths": list(kept)})
    try:
        point("announced")
        result = put(esp, loader, bootmenu.render(menu), fallback=fallback)
    except BaseException:
        _put_back(work.volume, before, kept)
        raise
    with _already_there():
        point("installed")
        if result.fallback:
            _write_state(work.volume, bootmenu.document(menu))
            point("confirmed")
    return result


@contextmanager
def _already_there() -> Iterator[None]:
    """What fails from here on is not that nothing was changed."""
    try:
        yield
    except OSError as error:
        what = f"the boot menu is written, but {MENU} still keeps what another one may name: {error.strerror}"
        raise CheckFailed(what, hint="apk-atomic boot-config --install may be run again") from error


def require_own(esp: Esp, loader: LoaderFiles | Names, *fsids: str) -> None:
    """Raises Refused where the menu that would be replaced boots another volume than these. What cannot be read is no
    menu: who replaces it fails."""
    path = f"{DIRECTORY}/{loader.config}"
    try:
        text = (esp.read(path) or b"").decode("ascii", "replace")
    except CheckFailed:
        return
    others = {uuid.lower() for uuid in re.findall(r"root=UUID=([0-9A-Fa-f-]+)", text)}
    others -= {fsid.lower() for fsid in fsids}
    if others:
        raise Refused(
            f"{path} of the ESP is the menu of another system, on UUID={min(others)}; nothing was changed",
            hint=f"an ESP has room for one system with apk-atomic: if the other is gone, remove {path} there",
        )


def confirm(work: Work, device: str, loader: LoaderFiles, menu: Menu) -> None:
    """Only what the menu names has to stay from now on, if firmware has an entry for our loader on the ESP `device`."""
    with _already_there():
        point("registered")
        if nvram.has_entry(device, f"{DIRECTORY}/{loader.program}", work.signals):
            _write_state(work.volume, bootmenu.document(menu))
            point("confirmed")


def put(esp: Esp, loader: LoaderFiles, menu: str, *, fallback: Fallback = Fallback.IF_FREE) -> Installed:
    """The files themselves: a power cut at any time leaves the old loader and menu, or the new."""
    own = [*loader.beside, (loader.program, loader.content), (loader.config, menu.encode())]
    foreign = [] if _is_ours(esp, DIRECTORY, loader.config, menu.encode()) else [loader.config]
    done = _put_in(esp, DIRECTORY, loader.program, own, foreign)
    if fallback is Fallback.NO:
        return done
    also = _put_at_fallback(esp, loader, menu, take=fallback is Fallback.TAKEN_OVER)
    return Installed((*done.written, *also.written), (*done.warnings, *also.warnings), also.fallback)


def _put_at_fallback(esp: Esp, loader: LoaderFiles, menu: str, *, take: bool) -> Installed:
    program = loaders.fallback_program().rpartition("/")[2]
    copy = [(program, loader.content)]
    if loader.own_directory:
        copy = [*loader.beside, *copy, (loader.config, menu.encode())]
    foreign = [name for name, _ in copy if not _is_ours(esp, _FALLBACK, name)]
    if foreign and not take:
        text = f"{_FALLBACK}/{foreign[0]} is not ours and was left alone: firmware needs an entry to start apk-atomic's"
        text += " loader, and until it has one, all that boot/ holds now has to stay"
        text += "; apk-atomic boot-config --install --fallback takes its place"
        return Installed((), (text,))
    return replace(_put_in(esp, _FALLBACK, program, copy, foreign), fallback=True)


def _put_in(
    esp: Esp, directory: str, program: str, pairs: list[tuple[str, bytes]], foreign: Sequence[str]
) -> Installed:
    """What of the `foreign` ones is replaced is kept first."""
    boots = program not in foreign and esp.read(f"{directory}/{program}") is not None
    kept = {f"{directory}/{name}": _keep(esp, f"{directory}/{name}") for name in foreign}
    _mark(esp, directory, pairs, foreign)
    written = [f"{directory}/{name}" for name, data in _ordered(program, pairs, boots=boots)
               if _replace(esp, f"{directory}/{name}", data)]  # fmt: skip
    said = tuple(f"{path} was not as apk-atomic has it; it is kept as {copy}" for path, copy in kept.items())
    return Installed((*kept.values(), *written), said)


def _ordered(program: str, pairs: list[tuple[str, bytes]], *, boots: bool) -> list[tuple[str, bytes]]:
    """The menu last, where our loader boots already; else the loader itself, which without a menu would be started."""
    return pairs if boots else sorted(pairs, key=lambda pair: pair[0] == program)


def _replace(esp: Esp, path: str, data: bytes) -> bool:
    if esp.read(path) == data:
        esp.tidy(path)
        return False
    esp.write(path, data)
    return True


def _is_ours(esp: Esp, directory: str, name: str, data: bytes | None = None) -> bool:
    """Whether what is there was written by us, is nothing, or is `data` already."""
    there = esp.read(f"{directory}/{name}")
    return there is None or there == data or _line(name, there) in _marks(esp, directory)


def _keep(esp: Esp, path: str) -> str:
    """A copy of the file beside it, whose name no other content has; its path. What is kept is never replaced."""
    data = esp.read(path) or b""
    copy = f"{path}.kept-{hashlib.sha256(data).hexdigest()[:8]}"
    _replace(esp, copy, data)
    return copy


def _mark(esp: Esp, directory: str, pairs: list[tuple[str, bytes]], foreign: Sequence[str]) -> None:
    """Before the files: what is there now and what will be both count as ours, whichever a power cut leaves, but for
    the `foreign` ones that are there, which may come back. Of files of another loader of ours what is known stays."""
    names = {name for name, _ in pairs}
    lines = [line for line in _marks(esp, directory) if "  " in line and line.partition("  ")[2] not in names]
    there = ((name, esp.read(f"{directory}/{name}")) for name, _ in pairs if name not in foreign)
    lines += [_line(name, data) for name, data in there if data is not None]
    lines += [_line(name, data) for name, data in pairs]
    text = "\n".join(("Files here that apk-atomic boot-config may replace:", *dict.fromkeys(lines), ""))
    _replace(esp, f"{directory}/{_MARKER}", text.encode())


def _marks(esp: Esp, directory: str) -> tuple[str, ...]:
    return tuple((esp.read(f"{directory}/{_MARKER}") or b"").decode("ascii", "replace").splitlines())


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
