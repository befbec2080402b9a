"""`apk-atomic add|del|upgrade|fix …`: apk's change as a transaction."""

from __future__ import annotations

import os

from apk_atomic import apkchange, held, session, settings, transaction, volume
from apk_atomic.cmdline import Line
from apk_atomic.context import Context
from apk_atomic.model import Kind
from apk_atomic.report import summary
from apk_atomic.retention import Base
from apk_atomic.session import Work
from apk_atomic.transaction import Request
from apk_atomic.volume import Volume

UNCHANGED = 77


def run(context: Context, line: Line) -> int:
    """0: committed or nothing to do (77 for that, when asked); whatever failed is raised, and nothing changed.

    Raises SortedAgain where the base's configuration makes the line a simulation.
    """
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
        request = request._replace(examine=lambda base: _require_change(work.volume, base, line))
        done = transaction.perform(work, request)
        summary(work, done, quiet=line.quiet)
        if line.applet == "upgrade" and not line.quiet:
            session.after_switch(work, lambda: _name_held(work, done.id))
    return UNCHANGED if not done.id and line.atomic.unchanged_77 else 0


def _require_change(opened: Volume, base: Base, line: Line) -> None:
    """The line was sorted by the configuration of the running system; apk goes by that of its root."""
    if base.id == opened.booted:
        return
    root = volume.open_root(opened, base.id)
    try:
        settings.require_sorted(line, root)
    finally:
        os.close(root)


def _name_held(work: Work, name: str) -> None:
    for sentence in held.sentences(work.volume, work.config, name or volume.read_slots(work.volume).next):
        work.console.note(sentence)
