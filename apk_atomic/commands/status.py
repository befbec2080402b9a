"""`apk-atomic status [--all] [--json]`: what boots, what boots next, and how it came about.

Only the generations that are shown are read in full, so a thousand others cost a directory listing. An ordinary user,
who cannot open the top level, gets what /run tells.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from typing import NamedTuple

from apk_atomic import generations, locate, volume
from apk_atomic.console import columns
from apk_atomic.context import Context, steadily
from apk_atomic.errors import NotSuchRoot
from apk_atomic.lock import RUN
from apk_atomic.model import Generation, Record, State
from apk_atomic.session import STATUS
from apk_atomic.volume import Volume

_WIDEST = 200  # characters of a command line
_HEADER = ("SLOT", "GENERATION", "CREATED", "KERNEL", "PACKAGES", "MARKS", "COMMAND")


def run(context: Context, *, everything: bool, as_json: bool) -> int:
    """The answer on stdout; 0 whenever there is one."""
    if os.geteuid() != 0 and context.spec is None:
        return _public(context, as_json=as_json)
    with context.opened() as opened:
        state, shown, records, total, kernels = steadily(opened, lambda: _look(opened, everything=everything))
    if as_json:
        context.console.answer(json.dumps(_document(state, shown, records, total)))
        return 0
    context.console.answer(headline(state))
    rows = [_HEADER, *(_row(state, each, records[each.id], kernels[each.id]) for each in shown)]
    for line in columns(rows):
        context.console.answer(line)
    for number, name in enumerate(state.slots):
        if not name:
            context.console.warn(f"slot {number} leads to no generation; apk-atomic rollback repairs the slots")
    if total > len(shown):
        context.console.answer(f"and {total - len(shown)} in no slot: apk-atomic status --all, apk-atomic gc")
    return 0


class _View(NamedTuple):
    """What is shown; `total` counts those that are not, too."""

    state: State
    shown: list[Generation]
    records: dict[str, Record | None]
    total: int
    kernels: dict[str, str]


def _look(opened: Volume, *, everything: bool) -> _View:
    state = volume.read_slots(opened) if not everything else volume.read_state(opened)
    shown = _shown(state, everything=everything)
    records = {each.id: generations.read_record(opened.top, each.id) for each in shown}
    kernels = {each.id: _kernel(opened, each, records[each.id]) for each in shown}
    return _View(state, shown, records, volume.count_generations(opened), kernels)


def headline(state: State) -> str:
    """One sentence: is what runs what will boot?"""
    if state.booted is None:
        return f"{state.next or 'nothing'} boots next (this is not the running system's volume)"
    if not state.next:
        return f"{state.booted} is booted, and nothing boots next: slot 0 leads to no generation"
    if state.pending:
        return f"{state.booted} is booted; {state.next} is pending: it runs after the reboot"
    if state.fallback_booted:
        return f"{state.booted} is booted as a fallback; {state.next} boots next, unless: apk-atomic rollback"
    return f"{state.booted} is booted and boots next"


def _shown(state: State, *, everything: bool) -> list[Generation]:
    wanted = list(dict.fromkeys([*state.slots, state.booted or ""]))
    first = [found for name in wanted if (found := state.find(name))]
    rest = [each for each in state.generations if each.id not in wanted] if everything else []
    return first + sorted(rest, key=lambda each: each.order, reverse=True)


def marks(state: State, each: Generation) -> tuple[str, ...]:
    """The words that apply to a generation, in the order of importance."""
    words = (
        ("booted", each.id == state.booted),
        ("pending", state.pending and each.id == state.next),
        ("good", each.good),
        ("failed", each.failed),
        ("pinned", each.pinned),
        ("foreign", each.foreign),
        ("unsealed", not each.sealed),
    )
    return tuple(word for word, applies in words if applies)


def slots_of(state: State, name: str) -> tuple[int, ...]:
    return tuple(number for number, each in enumerate(state.slots) if each == name)


def _row(state: State, each: Generation, record: Record | None, kernel: str) -> tuple[str, ...]:
    numbers = slots_of(state, each.id)
    return (
        _range(numbers),
        each.id,
        time.strftime("%Y-%m-%d %H:%M", time.localtime(max(each.created, 0))),
        kernel or "-",
        _counts(record),
        ",".join(marks(state, each)) or "-",
        _shortened(" ".join(record.argv)) if record else "-",
    )


def _shortened(line: str) -> str:
    """A hundred packages on one line would hide the table; --json has them all."""
    return line if len(line) <= _WIDEST else f"{line[: _WIDEST - 1]}…"


def _range(numbers: tuple[int, ...]) -> str:
    """`0`, `1-3`, `0,2-3`."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs) or "-"


def _counts(record: Record | None) -> str:
    if record is None:
        return "-"
    changes = record.changes
    parts = (("+", changes.added), ("-", changes.removed), ("!", changes.upgraded), ("=", changes.rebuilt))
    return " ".join(f"{sign}{len(rows)}" for sign, rows in parts if rows) or "0"


def _kernel(opened: Volume, each: Generation, record: Record | None) -> str:
    """Releases by the record, or by the root itself for a foreign generation."""
    if record is not None and record.kernels:
        return ",".join(release for _, release in record.kernels)
    return ",".join(volume.kernel_releases(opened, each.id))


def _document(
    state: State, shown: Iterable[Generation], records: dict[str, Record | None], total: int
) -> dict[str, object]:
    return {
        "version": 1,
        "booted": state.booted,
        "next": state.next or None,
        "pending": state.pending,
        "fallback_booted": state.fallback_booted,
        "slots": [name or None for name in state.slots],
        "total": total,
        "generations": [_generation(state, each, records[each.id]) for each in shown],
    }


def _generation(state: State, each: Generation, record: Record | None) -> dict[str, object]:
    found: dict[str, object] = {
        "id": each.id,
        "slots": list(slots_of(state, each.id)),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(max(each.created, 0))),
        "marks": list(marks(state, each)),
    }
    if record is not None:
        changes = record.changes
        found |= {
            "parent": record.parent,
            "kind": record.kind,
            "command": list(record.argv),
            "user": record.user,
            "message": record.message,
            "kernels": dict(record.kernels),
            "changes": {
                "added": len(changes.added),
                "removed": len(changes.removed),
                "upgraded": len(changes.upgraded),
                "rebuilt": len(changes.rebuilt),
            },
        }
    return found


def _public(context: Context, *, as_json: bool) -> int:
    """What an ordinary user may know: the booted generation, and the slots as root's last command left them."""
    booted = locate.booted_generation()
    if booted is None:
        raise NotSuchRoot("/ is not a generation of an apk-atomic volume", hint="apk-atomic init makes one")
    try:
        with open(f"{RUN}/{STATUS}", encoding="utf-8") as file:
            known = json.load(file)
        state = State((), tuple(str(slot) for slot in known["slots"]), booted, bool(known["pending"]))
    except (OSError, ValueError, KeyError, TypeError):
        state = State((), (), booted, False)
    if as_json:
        document = {"version": 1, "booted": booted, "next": state.next or None, "pending": state.pending,
                    "slots": list(state.slots)}  # fmt: skip
        context.console.answer(json.dumps(document))
        return 0
    context.console.answer(headline(state) if state.slots else f"{booted} is booted")
    for number, name in enumerate(state.slots):
        context.console.answer(f"{number}  {name}")
    context.console.note("only root can see more")
    return 0
