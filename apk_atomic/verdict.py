"""What apk's exit status and its database say together (facts: apk-cli, 5.2 and 5.3).

apk counts every package that is flagged broken as an error, also those that earlier runs broke; and a failed trigger
may exit 0. So neither the status nor the flags alone tell whether this change succeeded.
"""

from __future__ import annotations

from typing import NamedTuple


class Evidence(NamedTuple):
    """`before` and `after`: names of packages flagged broken; `committed`: apk rewrote its database.

    `accepted`: names that the user allows to be broken.
    """

    status: int
    before: frozenset[str]
    after: frozenset[str]
    committed: bool
    accepted: frozenset[str] = frozenset()


class Verdict(NamedTuple):
    """`status` 0: go on; else the exit status to discard with. `broken`: packages that stay so or became so."""

    status: int
    broken: tuple[str, ...] = ()


def judge(evidence: Evidence) -> Verdict:
    """Whether to go on. A failure before apk's commit is never mistaken for the count of packages broken earlier."""
    newly = evidence.after - evidence.before - evidence.accepted
    if newly:
        return Verdict(evidence.status or 1, tuple(sorted(newly)))
    still = tuple(sorted(evidence.after))
    if evidence.status == 0 or (evidence.committed and evidence.status == len(still)):
        return Verdict(0, still)
    return Verdict(evidence.status)
