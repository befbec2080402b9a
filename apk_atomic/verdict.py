"""What apk's exit status and its database say together (facts: apk-cli, 5.2 and 5.3).

apk counts every package that is flagged broken as an error, also those that earlier runs broke; and a failed trigger
may exit 0. So neither the status nor the flags alone tell whether this change succeeded. Nor do both: each version
counts a package of this run in its own way, and one that could not be fetched counts like one that is broken. So a
status that broken packages may explain is believed only when nothing of what was asked is left to do.
"""

from __future__ import annotations

from typing import NamedTuple

_NOBODY: frozenset[str] = frozenset()


class Evidence(NamedTuple):
    """`before` and `after`: names of packages flagged broken; `committed`: apk rewrote its whole database.

    `accepted`: names that the user allows to be broken. `triggers`: those of `after` that have a trigger. `mended`:
    what `fix` was to mend. `undone`: what is left to do of the line, one text for each package; None: not known.
    """

    status: int
    before: frozenset[str]
    after: frozenset[str]
    committed: bool
    accepted: frozenset[str] = _NOBODY
    triggers: frozenset[str] = _NOBODY
    mended: frozenset[str] | None = None
    undone: tuple[str, ...] | None = None


class Verdict(NamedTuple):
    """`status` 0: go on; else the exit status to discard with. `broken`: packages that stay so or became so."""

    status: int
    broken: tuple[str, ...] = ()


def is_explicable(evidence: Evidence) -> bool:
    """Whether a status that is not 0 may come from packages that are allowed to be broken, and from nothing else.

    Such a package is counted once; 3.x counts its trigger, too, when that fails, and 2.14 counts nothing else then.
    What `fix` mends cannot be asked for again, so there the count has to be that of the packages it did not touch.
    """
    if evidence.status == 0 or not evidence.committed or _newly(evidence):
        return False
    if evidence.mended is not None:
        return not evidence.mended & evidence.after and evidence.status == len(evidence.after)
    return evidence.status <= len(evidence.after) + len(evidence.triggers & evidence.after)


def judge(evidence: Evidence) -> Verdict:
    """Whether to go on. A failure that left something undone is never mistaken for the count of broken packages."""
    newly = _newly(evidence)
    if newly:
        return Verdict(evidence.status or 1, tuple(sorted(newly)))
    if evidence.status == 0 or (is_explicable(evidence) and evidence.undone == ()):
        return Verdict(0, tuple(sorted(evidence.after)))
    return Verdict(evidence.status)


def _newly(evidence: Evidence) -> frozenset[str]:
    return evidence.after - evidence.before - evidence.accepted
