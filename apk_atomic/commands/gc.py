"""`apk-atomic gc [--dry-run] [--json]`: collects generations that nothing keeps."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import NamedTuple

from apk_atomic import session, volume
from apk_atomic.config import Config
from apk_atomic.console import Console
from apk_atomic.context import Context, read_config, steadily
from apk_atomic.errors import CheckFailed
from apk_atomic.retention import Victim
from apk_atomic.volume import Volume


class _Plan(NamedTuple):
    """The IDs of all generations, those that go, and directories that go: in links/, and in snapshots/."""

    known: frozenset[str]
    victims: tuple[Victim, ...]
    links: tuple[str, ...]
    rootless: tuple[str, ...]


def run(context: Context, *, dry_run: bool, as_json: bool, wait: float = 0) -> int:
    """What went, or would go, on stdout; the space comes back when btrfs's cleaner has passed.

    Raises CheckFailed at the end where something could not be deleted.
    """
    now, failed = time.time(), 0
    if dry_run:
        with context.opened() as opened:
            plan = steadily(opened, lambda: _plan(opened, read_config(opened), now))
    else:
        with context.locked(wait=wait) as work:
            plan = _plan(work.volume, work.config, now)
            work.signals.check()  # until here; it is done to its end then, which is soon
            gone, left = session.collect(work, plan.victims)
            plan, failed = plan._replace(victims=gone), len(left)
            session.after_switch(
                work,
                partial(session.collect_left_over, work, plan.links, plan.rootless),
                partial(session.announce, work),
            )
    _tell(context.console, plan, dry_run=dry_run, as_json=as_json)
    if failed:
        text = f"{failed} of {failed + len(plan.victims)} generations could not be collected"
        raise CheckFailed(text, hint="the next command that changes something tries again what was begun")
    return 0


def _tell(console: Console, plan: _Plan, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        rows = [{"id": victim.id, "reason": victim.reason} for victim in plan.victims]
        document = {
            "version": 1, "dry_run": dry_run, "collected": rows, "links": plan.links, "rootless": plan.rootless
        }  # fmt: skip
        console.answer(json.dumps(document))
        return
    for victim in plan.victims:
        console.answer(f"{victim.id}  {victim.reason}")
    for name in plan.links:
        console.answer(f"links/{name}  nothing leads to it")
    for name in plan.rootless:
        console.answer(f"snapshots/{name}  holds no root")
    verb = "would be collected" if dry_run else "collected"
    console.note(f"{len(plan.victims)} {verb}, {len(plan.known) - len(plan.victims)} kept")


def _plan(opened: Volume, config: Config, now: float) -> _Plan:
    state = volume.read_state(opened)
    return _Plan(
        frozenset(each.id for each in state.generations),
        session.plan_garbage(opened, config, state, now),
        session.stale_links(opened, now),
        session.rootless(opened, now),
    )
