"""`apk-atomic adopt [--finish]`: the layout for the system that runs, without reinstalling it."""

from __future__ import annotations

import json
import os
from argparse import Namespace

from apk_atomic import adoptreport, oldsystem, takeover
from apk_atomic.adoption import Choices, Plan
from apk_atomic.adoptwork import Job
from apk_atomic.arguments import Parser, add_menu_options, text_of
from apk_atomic.atomic_options import AtomicOptions
from apk_atomic.bootmenu import Loader
from apk_atomic.config import Config
from apk_atomic.context import Context, require_root, running_config
from apk_atomic.errors import Refused, UsageError
from apk_atomic.signals import Signals
from apk_atomic.takeover import Done

_TEXT = """\
Turns an Alpine on btrfs, at the top level of its volume or in a subvolume, into one with the layout. In two steps,
since the machine goes on writing: adopt checks, prepares and says what will be done; adopt --finish, run last, makes
the first generation and the commons. What runs is not changed; its boot loader stays the default."""
_SWAPS = ("move", "drop")
_FINISHED_BY = "apk-atomic adopt --finish, right before a reboot; or rc-update add apk-atomic-adopt shutdown"


def run(context: Context, words: list[str], options: AtomicOptions) -> int:
    """0 when the step is done; with --dry-run, when it could be."""
    parser = _parser()
    asked = parser.parse(words)
    if asked is None:
        context.console.answer(parser.format_help())
        return 0
    if asked.finish and words and set(words) - {"--finish", "--json", "--dry-run"}:
        raise UsageError("--finish does what adopt was told: give it no other options; nothing was changed")
    require_root(context.argv)
    located, subvolume = oldsystem.find()
    if oldsystem.is_adopted(subvolume):
        context.console.note("this system has the layout already; there is nothing to adopt")
        return 0
    config = running_config()
    signals = Signals()
    try:
        job = Job(located, subvolume, config, context.console, signals, context.argv, options.wait or 0)
        if asked.dry_run:
            return _show(context, job, asked)
        return _finish(context, job, asked) if asked.finish else _prepare(context, job, asked)
    finally:
        signals.release()


def _parser() -> Parser:
    parser = Parser("adopt", _TEXT)
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and change nothing")
    parser.add_argument("--finish", action="store_true", help="make the first generation, the commons, the boot menu")
    parser.add_argument("--swap", choices=_SWAPS, default="", help="a swap file of the root: make a new one, or none")
    parser.add_argument("--common", type=text_of, action="append", metavar="@NAME", help="@var@log stands for /var/log")
    parser.add_argument("--esp", type=text_of, metavar="DIR|DEVICE", help="the EFI system partition (from etc/fstab)")
    parser.add_argument("--kernel", type=text_of, metavar="FLAVOR", help="lts, virt … (the one that runs)")
    add_menu_options(parser)
    parser.add_argument("--json", action="store_true", help="a document, for programs")
    return parser


def _choices(asked: Namespace, config: Config) -> Choices:
    commons = tuple(asked.common) if asked.common else config.volume.commons
    if any(not name.startswith("@") or "/" in name or len(name) < 2 for name in commons):
        raise UsageError("--common takes names such as @var@log; nothing was changed")
    return Choices(
        commons=tuple(dict.fromkeys(commons)),
        swap=asked.swap,
        esp=asked.esp or "",
        refind=os.path.abspath(asked.refind) if asked.refind else "",
        loader=Loader(asked.loader) if asked.loader else Loader.REFIND,
        flavor=asked.kernel,
        append=asked.append,
        timeout=asked.timeout,
        nvram=not asked.no_nvram,
    )


def _show(context: Context, job: Job, asked: Namespace) -> int:
    plan, choices = takeover.look(job, None if asked.finish else _choices(asked, job.config))
    _answer_plan(context, job, asked, plan, choices)
    for blocker in plan.blockers:
        context.console.warn(f"stands against it: {blocker}")
    context.console.aside("nothing was changed")
    return Refused.exit_code if plan.blockers else 0


def _prepare(context: Context, job: Job, asked: Namespace) -> int:
    choices = _choices(asked, job.config)
    plan = takeover.prepare(job, choices)
    _answer_plan(context, job, asked, plan, choices)
    context.console.note(f"prepared; nothing that is in use was changed. To finish: {_FINISHED_BY}")
    return 0


def _answer_plan(context: Context, job: Job, asked: Namespace, plan: Plan, choices: Choices) -> None:
    if asked.json:
        context.console.answer(json.dumps(adoptreport.document(plan, choices)))
    else:
        context.console.answer("\n".join(adoptreport.describe(plan, choices, job.located.device)))
    for warning in plan.warnings:
        context.console.warn(warning)


def _finish(context: Context, job: Job, asked: Namespace) -> int:
    done = takeover.finish(job)
    behind = adoptreport.stays_behind(done.plan, job.located.device, done.top_names, done.order)
    for warning in (*done.plan.warnings, *done.warnings):
        context.console.warn(warning)
    if asked.json:
        found = {"version": adoptreport.VERSION, "generation": done.generation, "entry": done.entry or None}
        context.console.answer(json.dumps({**found, "behind": adoptreport.behind_document(behind)}))
    else:
        context.console.answer("\n".join(adoptreport.tell_behind(behind)))
    context.console.note(f"generation {done.generation} is made; {_next_step(done)}")
    return 0


def _next_step(done: Done) -> str:
    """How to boot it: once, and for good."""
    if not done.entry:
        return "reboot, and choose its loader in the firmware's menu: the old loader is the default"
    return (
        f"to boot it once: efibootmgr --bootnext {done.entry} && reboot; "
        f"to make it the default: efibootmgr --bootorder {done.order or done.entry}"
    )
