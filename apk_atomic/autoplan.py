"""What an unattended upgrade would change, from the lines of a simulation, and whether it was tried before: pure.

A package set is known by a fingerprint of all its names and versions, so that the same upgrade is recognised whatever
generation it starts from. It must not know how apk is run. What is durable is the JSON form of `Memory`
(`state/auto.json`) and of `Denied` (`state/denied.json`), version 1: keys may be added, never renamed or retyped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from apk_atomic.model import PackageChanges

VERSION = 1
_DENIED_KEPT = 50  # the newest ones
_LINE = re.compile(r"\(\s*\d+/\d+\) (.+?) (\S+?)(?:@\S+)? \((\S+?)(?: -> (\S+))?\)")


class Memory(NamedTuple):
    """What one run tells the next: when the last successful one ended; NAME-VERSION of the package files that
    were put into the cache for an upgrade which did not happen yet; the fingerprint that was reported last."""

    finished: float | None = None
    downloaded: tuple[str, ...] = ()
    reported: str = ""


class Denied(NamedTuple):
    """A package set that must not be tried again by itself: its fingerprint, when (ISO-8601) and why.

    `changes`: where somebody went back from it, the names and versions that he went back from; then nothing that brings
    all of them back is tried.
    """

    set: str
    when: str = ""
    why: str = ""
    changes: tuple[tuple[str, str], ...] = ()


# ---- the plan --------------------------------------------------------------------------------------------


def parse_simulation(text: str) -> PackageChanges:
    """The changes that `apk upgrade -s` names (facts: apk-cli, 8); 2.14 may name a package twice, then the last counts.

    A change of pinning alone is none: it changes no package.
    """
    added: dict[str, str] = {}
    removed: dict[str, str] = {}
    upgraded: dict[str, tuple[str, str]] = {}
    rebuilt: set[str] = set()
    for line in text.splitlines():
        found = _LINE.fullmatch(line.strip())
        if found is None:
            continue
        verb, name, version, new = found.groups()
        if verb == "Installing":
            added[name] = version
        elif verb == "Purging":
            removed[name] = version
        elif verb in ("Upgrading", "Downgrading") and new:
            upgraded[name] = (version, new)
        elif verb in ("Replacing", "Reinstalling"):
            rebuilt.add(name)
    return PackageChanges(
        added=tuple(sorted(added.items())),
        removed=tuple(sorted(removed.items())),
        upgraded=tuple((name, *versions) for name, versions in sorted(upgraded.items())),
        rebuilt=tuple(sorted(rebuilt)),
    )


def applied(versions: Mapping[str, str], changes: PackageChanges) -> dict[str, str]:
    """The package set, name to version, after the changes."""
    gone = {name for name, _ in changes.removed}
    kept = {name: version for name, version in versions.items() if name not in gone}
    return {**kept, **dict(changes.added), **{name: new for name, _, new in changes.upgraded}}


def fingerprint(versions: Mapping[str, str]) -> str:
    """SHA-256, in hex, of a package set."""
    import hashlib

    text = "".join(f"{name}={version}\n" for name, version in sorted(versions.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def brought(changes: PackageChanges) -> frozenset[tuple[str, str]]:
    """Name and version of what the changes bring."""
    return frozenset((*changes.added, *((name, new) for name, _, new in changes.upgraded)))


def brought_over(base: Mapping[str, str], versions: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    """The same for what one package set has and another one has not."""
    return frozenset(versions.items()) - frozenset(base.items())


def downloads(changes: PackageChanges) -> tuple[str, ...]:
    """Names of the packages whose files the upgrade needs."""
    return tuple(
        sorted({*dict(changes.added), *(name for name, _, _ in changes.upgraded), *changes.rebuilt})
    )


def excluded(patterns: Iterable[str], names: Iterable[str]) -> tuple[str, ...]:
    """Which installed packages the patterns of `[auto] exclude` mean; apk refuses a name that it does not know."""
    wanted = tuple(patterns)
    return tuple(sorted(name for name in names if any(fnmatchcase(name, pattern) for pattern in wanted)))


def touched(changes: PackageChanges) -> frozenset[str]:
    """Names of the installed packages that the changes are about."""
    return frozenset((*dict(changes.removed), *(name for name, _, _ in changes.upgraded), *changes.rebuilt))


# ---- what is remembered ----------------------------------------------------------------------------------


def parse_memory(data: bytes) -> Memory:
    """`state/auto.json`; what is damaged in it counts as not there."""
    found = _object(data)
    finished, downloaded, reported = (found.get(key) for key in ("finished", "downloaded", "reported"))
    is_time = isinstance(finished, int | float) and not isinstance(finished, bool)
    return Memory(
        finished=float(finished) if is_time and abs(finished) < 1e12 else None,  # type: ignore[arg-type]
        downloaded=tuple(each for each in downloaded if isinstance(each, str)) if isinstance(downloaded, list) else (),
        reported=reported if isinstance(reported, str) else "",
    )


def format_memory(memory: Memory) -> bytes:
    """What `parse_memory` reads."""
    return json.dumps({"version": VERSION, **memory._asdict()}, indent=1).encode() + b"\n"


def parse_denied(data: bytes) -> tuple[Denied, ...]:
    """`state/denied.json`, oldest first; an entry without a fingerprint counts as not there."""
    entries = _object(data).get("denied")
    if not isinstance(entries, list):
        return ()
    known = [each for each in entries if isinstance(each, dict) and isinstance(each.get("set"), str)]
    return tuple(
        Denied(each["set"], str(each.get("when", "")), str(each.get("why", "")), _pairs(each.get("changes")))
        for each in known
    )


def format_denied(known: Iterable[Denied]) -> bytes:
    """What `parse_denied` reads: one entry for a set, the newest ones only."""
    last = {each.set: each for each in known}
    entries = [each._asdict() for each in last.values()][-_DENIED_KEPT:]
    return json.dumps({"version": VERSION, "denied": entries}, indent=1).encode() + b"\n"


def _pairs(found: object) -> tuple[tuple[str, str], ...]:
    """Lists of a name and a version; () where anything else is among them: to hold back too little is no harm."""
    if not isinstance(found, list):
        return ()
    are_pairs = all(isinstance(each, list) and [type(word) for word in each] == [str, str] for each in found)
    return tuple((each[0], each[1]) for each in found) if are_pairs else ()


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
