"""`apk-atomic add|del|upgrade|fix …`: apk's change as a transaction."""

from __future__ import annotations

import os

from apk_atomic import apkchange, apkline, holds, installed, lookup, session, transaction, volume
from apk_atomic.cmdline import Line
from apk_atomic.context import Context
from apk_atomic.model import Kind
from apk_atomic.report import summary
from apk_atomic.session import Work
from apk_atomic.transaction import Request

UNCHANGED = 77


def run(context: Context, line: Line) -> int:
    """0: committed or nothing to do (77 for that, when asked); whatever failed is raised, and nothing changed."""
    wait = line.atomic.wait if line.atomic.wait is not None else line.wait
    request = Request(
        kind=Kind.APK,
        argv=context.argv,
        change=apkchange.change(line),
        base=line.atomic.base,
        message=line.atomic.message or "",
        keep_failed=line.atomic.keep_failed,
    )
    with context.locked(wait=wait or 0) as work:
        done = transaction.perform(work, request)
        summary(work, done, quiet=line.quiet)
        if line.applet == "upgrade" and not line.quiet:
            session.after_switch(work, lambda: _name_holds(work, done.id))
    return UNCHANGED if not done.id and line.atomic.unchanged_77 else 0


def _name_holds(work: Work, name: str) -> None:
    """Which kernels the upgrade left behind, and for whose sake; apk is asked only where there is such a package."""
    name = name or volume.read_slots(work.volume).slots[0]
    root = volume.open_root(work.volume, name)
    try:
        database = lookup.read(root, installed.DATABASE, installed.LIMIT) or b""
        world = (lookup.read(root, installed.WORLD, installed.LIMIT) or b"").decode("utf-8", "replace")
    finally:
        os.close(root)
    found = holds.find_holds(database, world)
    if found:
        names = [hold.kernel for hold in found]
        answer = apkline.ask(work.volume, work.config, name, [*holds.QUESTION, *names])
        for sentence in holds.sentences(found, answer.text if answer.status == 0 else ""):
            work.console.note(sentence)
