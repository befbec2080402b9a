"""`apk-atomic diff [A [B]] [--json]`: the difference of two generations' package sets."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

from apk_atomic import databases, installed, lookup, report, volume
from apk_atomic.context import Context, steadily
from apk_atomic.errors import UsageError
from apk_atomic.installed import Source
from apk_atomic.model import PackageChanges, State
from apk_atomic.retention import named
from apk_atomic.volume import Volume


def run(context: Context, first: str | None, second: str | None, *, as_json: bool) -> int:
    """Without operands: booted and next, or if they are the same the first fallback and next; with one: it and next."""
    with context.opened() as opened:
        before, after, changes = steadily(opened, lambda: _compare(opened, first, second))
    if as_json:
        context.console.answer(json.dumps(_as_json(before, after, changes)))
        return 0
    context.console.note(f"from {before} to {after}")
    for line in report.lines(changes):
        context.console.answer(line)
    if changes.is_empty:
        context.console.note("the same packages")
    return 0


def _compare(opened: Volume, first: str | None, second: str | None) -> tuple[str, str, PackageChanges]:
    before, after = choose(volume.read_state(opened), first, second)
    with _database(opened, before) as old, _database(opened, after) as new:
        return before, after, installed.difference(old, new)


def choose(state: State, first: str | None, second: str | None) -> tuple[str, str]:
    """The two generations that the operands mean. Raises UsageError for one that does not exist."""
    if first is not None:
        return named(state, first), named(state, second or "next")
    if state.booted is not None and state.booted != state.next:
        return state.booted, named(state, "next")
    others = [name for name in state.slots if name and name != state.next]
    if not others:
        raise UsageError("there is no other generation in the slots to compare with", hint="apk-atomic diff A B")
    return others[0], state.next


@contextmanager
def _database(opened: Volume, name: str) -> Iterator[Source]:
    root = volume.open_root(opened, name)
    try:
        if not lookup.is_file(root, installed.DATABASE):
            raise UsageError(f"generation {name} has no package database", hint="apk-atomic status --all")
        with databases.opened(root) as database:
            yield database
    finally:
        os.close(root)


def _as_json(before: str, after: str, changes: PackageChanges) -> dict[str, object]:
    return {
        "version": 1,
        "from": before,
        "to": after,
        "added": [{"name": name, "version": version} for name, version in changes.added],
        "removed": [{"name": name, "version": version} for name, version in changes.removed],
        "upgraded": [{"name": name, "old": old, "new": new} for name, old, new in changes.upgraded],
        "rebuilt": list(changes.rebuilt),
    }
