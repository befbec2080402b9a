"""`apk-atomic gc [--dry-run] [--json]`: collects generations that nothing keeps."""

from __future__ import annotations

import json
import time
from functools import partial

from apk_atomic import session, volume
from apk_atomic.config import Config
from apk_atomic.console import Console
from apk_atomic.context import Context, read_config, steadily
from apk_atomic.errors import CheckFailed
from apk_atomic.model import State
from apk_atomic.retention import Victim
from apk_atomic.volume import Volume


def run(context: Context, *, dry_run: bool, as_json: bool, wait: float = 0) -> int:
    """What went, or would go, on stdout; the space comes back when btrfs's cleaner has passed.

    Raises CheckFailed at the end where something could not be deleted.
    """
    now, failed = time.time(), 0
    if dry_run:
        with context.opened() as opened:
            state, victims, links = steadily(opened, lambda: _plan(opened, read_config(opened), now))
    else:
        with context.locked(wait=wait) as work:
            state, planned, links = _plan(work.volume, work.config, now)
            work.signals.check()  # until here; it is done to its end then, which is soon
            victims, left = session.collect(work, planned)
            failed = len(left)
            session.after_switch(work, partial(session.collect_links, work, links), partial(session.announce, work))
    _tell(context.console, state, victims, links, dry_run=dry_run, as_json=as_json)
    if failed:
        text = f"{failed} of {failed + len(victims)} generations could not be collected"
        raise CheckFailed(text, hint="the next command that changes something tries again what was begun")
    return 0


def _tell(
    console: Console, state: State, victims: tuple[Victim, ...], links: tuple[str, ...], *, dry_run: bool, as_json: bool
) -> None:
    if as_json:
        rows = [{"id": victim.id, "reason": victim.reason} for victim in victims]
        document = {"version": 1, "dry_run": dry_run, "collected": rows, "links": links}
        console.answer(json.dumps(document))
        return
    for victim in victims:
        console.answer(f"{victim.id}  {victim.reason}")
    for name in links:
        console.answer(f"links/{name}  nothing leads to it")
    kept = len(state.generations) - len(victims)
    verb = "would be collected" if dry_run else "collected"
    console.note(f"{len(victims)} {verb}, {kept} kept")


def _plan(opened: Volume, config: Config, now: float) -> tuple[State, tuple[Victim, ...], tuple[str, ...]]:
    """The generations that there are, those of them that go, and links directories that go."""
    state = volume.read_state(opened)
    return state, session.plan_garbage(opened, config, state, now), session.stale_links(opened, now)
