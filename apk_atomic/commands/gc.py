"""`apk-atomic gc [--dry-run] [--json]`: collects generations that nothing keeps."""

from __future__ import annotations

import json
import time

from apk_atomic import session, volume
from apk_atomic.config import Config
from apk_atomic.context import Context, read_config, steadily
from apk_atomic.model import State
from apk_atomic.retention import Victim
from apk_atomic.volume import Volume


def run(context: Context, *, dry_run: bool, as_json: bool, wait: float = 0) -> int:
    """What went, or would go, on stdout; the space comes back when btrfs's cleaner has passed."""
    now = time.time()
    if dry_run:
        with context.opened() as opened:
            state, victims, links = steadily(opened, lambda: _plan(opened, read_config(opened), now))
    else:
        with context.locked(wait=wait) as work:
            state, victims, links = _plan(work.volume, work.config, now)
            session.collect(work, victims)
            session.collect_links(work, links)
            session.announce(work)
    if as_json:
        rows = [{"id": victim.id, "reason": victim.reason} for victim in victims]
        document = {"version": 1, "dry_run": dry_run, "collected": rows, "links": links}
        context.console.answer(json.dumps(document))
        return 0
    for victim in victims:
        context.console.answer(f"{victim.id}  {victim.reason}")
    for name in links:
        context.console.answer(f"links/{name}  nothing leads to it")
    kept = len(state.generations) - len(victims)
    verb = "would be collected" if dry_run else "collected"
    context.console.note(f"{len(victims)} {verb}, {kept} kept")
    return 0


def _plan(opened: Volume, config: Config, now: float) -> tuple[State, tuple[Victim, ...], tuple[str, ...]]:
    """The generations that there are, those of them that go, and links directories that go."""
    state = volume.read_state(opened)
    return state, session.plan_garbage(opened, config, state, now), session.stale_links(opened, now)
