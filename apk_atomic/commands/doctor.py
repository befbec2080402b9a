"""`apk-atomic doctor [--esp DIR|DEVICE] [--json]`: what is wrong with a system, and what to type next.

It only reads, takes no lock, and works for an ordinary user as far as that one may look.
"""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Callable

from apk_atomic import checkup, disks, examine, hibernation, locate, volume
from apk_atomic.arguments import Parser, text_of
from apk_atomic.checkup_types import Facts, Finding, Level, ResumeFacts
from apk_atomic.config import Config
from apk_atomic.context import UNCHANGED, Context, config_of, read_config, steadily
from apk_atomic.errors import AtomicError, CheckFailed, NotSuchRoot, UsageError
from apk_atomic.signals import Signals
from apk_atomic.volume import Volume

_TEXT = """\
Looks at the volume, its slots and generations, the boot menu, the loader on the EFI system partition and the running
system. It writes nothing. The exit status is 104 where there is a problem: something that will not work, or not boot.
Warnings and notes leave it 0."""
_COUNTED = (Level.PROBLEM, Level.WARNING, Level.NOTE)


def run(context: Context, words: list[str]) -> int:
    """0, or 104 where a problem was found; the findings are the answer."""
    parser = _parser()
    asked = parser.parse(words)
    if asked is None:
        context.console.answer(parser.format_help())
        return 0
    user = os.geteuid() != 0 and context.spec is None
    findings = checkup.judge(_for_a_user() if user else _for_root(context, asked))
    if asked.json:
        context.console.answer(json.dumps(_document(findings)))
    else:
        _tell(context, findings)
    if user:
        context.console.note("only root can look at the volume, the boot menu and the EFI system partition")
    return CheckFailed.exit_code if checkup.worst(findings) is Level.PROBLEM else 0


def _parser() -> Parser:
    parser = Parser("doctor", _TEXT)
    parser.add_argument("--esp", type=text_of, metavar="DIR|DEVICE", help="the EFI system partition (from etc/fstab)")
    parser.add_argument("--json", action="store_true", help="a document, for programs")
    return parser


# ---- looking ---------------------------------------------------------------------------------------------


def _for_a_user() -> Facts:
    if locate.booted_generation() is None:
        raise NotSuchRoot("/ is not a generation of an apk-atomic volume", hint="apk-atomic init makes one")
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        trouble = _configuration(lambda: config_of(root))[1]
    finally:
        os.close(root)
    return Facts(root=examine.look_at_root(os.environ.get("PATH", "")), configuration=trouble)


def _for_root(context: Context, asked: Namespace) -> Facts:
    signals = Signals()
    try:
        with context.opened() as opened:
            return steadily(opened, lambda: _look(opened, asked.esp or "", signals))
    finally:
        signals.release()


def _look(opened: Volume, place: str, signals: Signals) -> Facts:
    root = examine.look_at_root(os.environ.get("PATH", "")) if opened.running else None
    facts = Facts(root=root, sleep=_sleep(opened))
    try:
        volume.current_links(opened)
    except AtomicError as error:
        return facts._replace(unreadable=error.message.removesuffix("; nothing was changed"), way_out=error.hint)
    config, trouble = _configuration(lambda: read_config(opened))
    seen = examine.look_at_volume(opened, config)
    menu = examine.look_at_menu(opened, seen.state, signals)
    boot = examine.look_at_esp(opened, seen.fstab or "", menu.menu, place, signals)
    return facts._replace(volume=seen, menu=menu, esp=boot, configuration=trouble)


def _sleep(opened: Volume) -> ResumeFacts:
    resume = hibernation.resume_of(hibernation.words_of_next_boot(opened.top, running=opened.running))
    if resume is None:
        return ResumeFacts(None)
    return ResumeFacts(resume, bool(disks.find(resume.spec)), hibernation.is_waiting(resume))


def _configuration(read: Callable[[], Config]) -> tuple[Config, str]:
    """The configuration, and what is wrong with it; then everything has its default."""
    try:
        return read(), ""
    except UsageError as error:
        return Config(), "; ".join(error.message.removesuffix(UNCHANGED).splitlines())


# ---- telling ---------------------------------------------------------------------------------------------


def _tell(context: Context, findings: tuple[Finding, ...]) -> None:
    for finding in findings:
        context.console.answer(f"{finding.level:<7}  {finding.code}: {finding.message}")
        if finding.hint:
            context.console.answer(f"{'':<7}  -> {finding.hint}")
    counts = {level: sum(finding.level is level for finding in findings) for level in _COUNTED}
    words = [f"{count} {level}{'s' if count > 1 else ''}" for level, count in counts.items() if count]
    context.console.note(", ".join(words) or "nothing is wrong")


def _document(findings: tuple[Finding, ...]) -> dict[str, object]:
    return {
        "version": 1,
        "level": str(checkup.worst(findings)),
        "findings": [finding._asdict() for finding in findings],
    }
