"""`apk-atomic add|del|upgrade|fix …`: apk's change as a transaction."""

from __future__ import annotations

from apk_atomic import apkline, transaction
from apk_atomic.cmdline import Line
from apk_atomic.context import Context
from apk_atomic.model import Kind
from apk_atomic.report import summary
from apk_atomic.transaction import Request

UNCHANGED = 77


def run(context: Context, line: Line) -> int:
    """0: committed or nothing to do (77 for that, when asked); whatever failed is raised, and nothing changed."""
    wait = line.atomic.wait if line.atomic.wait is not None else line.wait
    request = Request(
        kind=Kind.APK,
        argv=context.argv,
        change=apkline.change(line),
        base=line.atomic.base,
        message=line.atomic.message or "",
        keep_failed=line.atomic.keep_failed,
    )
    with context.locked(wait=wait or 0) as work:
        done = transaction.perform(work, request)
        summary(work, done, quiet=line.quiet)
    return UNCHANGED if not done.id and line.atomic.unchanged_77 else 0
