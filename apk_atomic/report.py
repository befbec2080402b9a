"""Sentences about generations and package changes, for people; used by every command that talks of them."""

from __future__ import annotations

from apk_atomic.model import PackageChanges
from apk_atomic.session import Work
from apk_atomic.transaction import Done

_NAMED = 4  # packages that a summary names; the rest is counted


def summary(work: Work, done: Done, *, quiet: bool = False) -> None:
    """The one line that ends a transaction, behind its warnings; `quiet` leaves only those."""
    for warning in done.warnings:
        work.console.warn(warning)
    if quiet:
        return
    if not done.id:
        work.console.note("nothing changed, no generation was made")
        return
    what = short(done.changes)
    when = "it runs after the reboot" if work.volume.running else "it boots next"
    work.console.note(f"generation {done.id} is next{': ' + what if what else ''}; {when}")


def short(changes: PackageChanges) -> str:
    """`added nginx-1.26, upgraded musl 1.2.4 -> 1.2.5 and 3 more`; '' when no package changed."""
    words = [
        *(f"added {name}-{version}" for name, version in changes.added),
        *(f"removed {name}-{version}" for name, version in changes.removed),
        *(f"upgraded {name} {old} -> {new}" for name, old, new in changes.upgraded),
        *(f"rebuilt {name}" for name in changes.rebuilt),
    ]
    more = f" and {len(words) - _NAMED} more" if len(words) > _NAMED else ""
    return ", ".join(words[:_NAMED]) + more


def lines(changes: PackageChanges) -> list[str]:
    """One package a line, as `diff` prints them: `+ new`, `- gone`, `! name old -> new`, `= name rebuilt`."""
    rows = [
        *((name, f"+ {name} {version}") for name, version in changes.added),
        *((name, f"- {name} {version}") for name, version in changes.removed),
        *((name, f"! {name} {old} -> {new}") for name, old, new in changes.upgraded),
        *((name, f"= {name} rebuilt") for name in changes.rebuilt),
    ]
    return [row for _, row in sorted(rows)]
