"""`apk-atomic gc [--dry-run] [--json]`: collects generations that nothing keeps."""

from __future__ import annotations

import json
import time

from apk_atomic import session, volume
from apk_atomic.context import Context, read_config


def run(context: Context, *, dry_run: bool, as_json: bool, wait: float = 0) -> int:
    """What went, or would go, on stdout; the space comes back when btrfs's cleaner has passed."""
    now = time.time()
    if dry_run:
        with context.opened() as opened:
            state = volume.read_state(opened)
            victims = session.plan_garbage(opened, read_config(opened), state, now)
            links = session.stale_links(opened, now)
    else:
        with context.locked(wait=wait) as work:
            state = volume.read_state(work.volume)
            victims = session.plan_garbage(work.volume, work.config, state, now)
            links = session.stale_links(work.volume, now)
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
