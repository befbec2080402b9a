"""`apk-atomic boot-config [--install]`: the boot menu shown, or put on the ESP with its loader."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from typing import TYPE_CHECKING

from apk_atomic import bootable, bootinstall, bootmenu, esp, loaders, newmenu, nvram, staged, volume
from apk_atomic.arguments import Parser, add_menu_options, text_of
from apk_atomic.atomic_options import AtomicOptions
from apk_atomic.bootable import KnownMenu, init_of
from apk_atomic.bootinstall import Fallback
from apk_atomic.bootmenu import Loader, Menu
from apk_atomic.context import Context, read_config, steadily
from apk_atomic.errors import CheckFailed, UsageError
from apk_atomic.newmenu import Wishes
from apk_atomic.session import Work
from apk_atomic.signals import Signals

if TYPE_CHECKING:
    from apk_atomic.volume import Volume

_SHOWN = 5  # findings that a refusal spells out
_TEXT = """\
Shows the static boot menu of the volume: one entry, and one for each slot in its submenu. It names slots and not
generations, so it has to be written only once. What is not given is as in state/boot.json, where there is one."""


def run(context: Context, words: list[str], options: AtomicOptions) -> int:
    """Without --install the menu is the answer, and nothing is written."""
    parser = _parser()
    asked = parser.parse(words)
    if asked is None:
        context.console.answer(parser.format_help())
        return 0
    if asked.fallback and not asked.install:
        raise UsageError("boot-config: --fallback goes with --install; nothing was changed")
    return _install(context, asked, options) if asked.install else _show(context, asked)


def _parser() -> Parser:
    parser = Parser("boot-config", _TEXT)
    add_menu_options(parser)
    parser.add_argument("--install", action="store_true", help="write the loader, the menu and state/boot.json")
    parser.add_argument(
        "--fallback", action="store_true", help="at EFI/BOOT, too, where another loader is: it is kept beside ours"
    )
    parser.add_argument("--esp", type=text_of, metavar="DIR|DEVICE", help="the EFI system partition (from etc/fstab)")
    parser.add_argument("--kernel", type=text_of, metavar="FLAVOR", help="lts, virt …, of the next generation")
    parser.add_argument("--resume", metavar="DEVICE", help="resume= for the kernel, UUID=… of a swap partition")
    parser.add_argument("--json", action="store_true", help="a document, for programs")
    return parser


def _wishes(asked: Namespace) -> Wishes:
    return Wishes(
        loader=Loader(asked.loader) if asked.loader else None,
        flavor=asked.kernel,
        append=asked.append,
        resume=asked.resume,
        timeout=asked.timeout,
    )


def _show(context: Context, asked: Namespace) -> int:
    signals = Signals()
    try:
        with context.opened() as opened:
            partition, wishes = _partition(opened, signals), _wishes(asked)
            menu, warnings = steadily(
                opened, lambda: newmenu.compose(opened, read_config(opened), wishes, partition)
            )
    finally:
        signals.release()
    for warning in warnings:
        context.console.warn(warning)
    if asked.json:
        context.console.answer(json.dumps(_document(menu, warnings)))
    else:
        context.console.answer(bootmenu.render(menu).rstrip("\n"))
        context.console.aside("nothing was written; --install does it")
    return 0


def _install(context: Context, asked: Namespace, options: AtomicOptions) -> int:
    with context.locked(wait=options.wait or 0) as work:
        menu, warnings = newmenu.compose(
            work.volume, work.config, _wishes(asked), _partition(work.volume, work.signals)
        )
        _require_bootable(work, menu)
        found = loaders.find(menu.loader, [asked.refind] if asked.refind else [f"/{loaders.REFIND}"], work.signals)
        place = asked.esp or _usual_esp(work)
        with esp.opened(place, work.signals) as target:
            device, is_fat = target.device, target.is_fat
            fallback = Fallback.TAKEN_OVER if asked.fallback else Fallback.IF_FREE
            done = bootinstall.install(work, target, found, menu, fallback=fallback)
        said = [*warnings, *done.warnings]
        said += [] if is_fat else [f"{place} is not on a FAT file system, which firmware could read"]
        said += () if asked.no_nvram else bootinstall.register(device, found, work.signals)
        if not done.fallback:
            bootinstall.confirm(work, device, found, menu)
    for warning in said:
        context.console.warn(warning)
    if asked.json:
        context.console.answer(json.dumps({**_document(menu, tuple(said)), "written": list(done.written)}))
    written = f"{len(done.written)} files written" if done.written else "everything was there already"
    context.console.note(f"{menu.loader} boots {menu.kernel} from {menu.slots} slots; {written}")
    return 0


def _require_bootable(work: Work, menu: Menu) -> None:
    """The proof of what the menu will boot next: nothing asked that of another kernel, nor of another init."""
    known = KnownMenu(menu.paths, init_of(menu.append))
    name = volume.read_slots(work.volume).slots[0]
    verdict = bootable.prove_sealed(work.volume, work.config, name, known, signals=work.signals)
    if not verdict.passed:
        shown = "; ".join(finding.message for finding in verdict.failures[:_SHOWN])
        raise CheckFailed(
            f"{name}, which boots next, would not boot by this menu: {shown}; nothing was changed",
            hint="--kernel and --append choose what the menu boots; apk-atomic rollback chooses another generation",
        )


def _partition(opened: Volume, signals: Signals) -> str:
    found = nvram.partition(opened.device, signals)
    return found.guid if found else ""


def _usual_esp(work: Work) -> str:
    """The ESP of the next generation's fstab. Raises UsageError where that says nothing, or it is not here."""
    slots = volume.read_slots(work.volume).slots
    root = volume.open_root(work.volume, slots[0])
    text = staged.read_fstab(root) or ""
    os.close(root)
    found = esp.usual_place(text, work.signals, running=work.volume.running)
    if not found:
        hint = "--esp DIRECTORY where it is mounted, or --esp DEVICE"
        raise UsageError("the EFI system partition could not be found; nothing was changed", hint=hint)
    return found


def _document(menu: Menu, warnings: tuple[str, ...]) -> dict[str, object]:
    return {**bootmenu.document(menu), "menu": bootmenu.render(menu), "warnings": list(warnings)}
