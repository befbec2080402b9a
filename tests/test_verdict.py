"""What apk's exit status and the flags in its database come to, as a table and as properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apk_atomic.verdict import Evidence, Verdict, judge
from tests.support.properties import cheap

NAMES = st.frozensets(st.sampled_from("abcd"))
EVIDENCE = st.builds(Evidence, st.integers(0, 255), NAMES, NAMES, st.booleans(), NAMES)


def evidence(status: int, before: str = "", after: str = "", *, committed: bool = True, accepted: str = "") -> Evidence:
    return Evidence(status, frozenset(before), frozenset(after), committed, frozenset(accepted))


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        (evidence(0), Verdict(0)),
        (evidence(0, "ab", "a"), Verdict(0, ("a",))),
        (evidence(1, "a", "a"), Verdict(0, ("a",))),
        (evidence(2, "ab", "ba"), Verdict(0, ("a", "b"))),
        (evidence(2, "a", "a"), Verdict(2)),
        (evidence(1, "a", "a", committed=False), Verdict(1)),
        (evidence(1, "", "a"), Verdict(1, ("a",))),
        (evidence(3, "a", "abc"), Verdict(3, ("b", "c"))),
        (evidence(0, "", "a"), Verdict(1, ("a",))),
        (evidence(1, "", "a", accepted="a"), Verdict(0, ("a",))),
        (evidence(2, "a", "ab", accepted="b"), Verdict(0, ("a", "b"))),
        (evidence(1, "", "ab", accepted="a"), Verdict(1, ("b",))),
        (evidence(0, "", "a", accepted="a"), Verdict(0, ("a",))),
        (evidence(99), Verdict(99)),
        (evidence(1, "a", ""), Verdict(1)),
        (evidence(137, "a", "a", committed=False), Verdict(137)),
    ],
    ids=str,
)
def test_judgement(seen: Evidence, verdict: Verdict) -> None:
    assert judge(seen) == verdict


@cheap(100)
@given(EVIDENCE)
def test_nothing_newly_broken_ever_passes(seen: Evidence) -> None:
    verdict = judge(seen)
    newly = seen.after - seen.before - seen.accepted
    assert (verdict.status == 0) <= (not newly)
    assert not newly or verdict.broken == tuple(sorted(newly))


@cheap(100)
@given(EVIDENCE)
def test_a_failure_that_the_flags_do_not_explain_stays_a_failure(seen: Evidence) -> None:
    verdict = judge(seen)
    explained = seen.status == 0 or (seen.committed and seen.status == len(seen.after))
    assert (verdict.status == 0) <= explained
    assert verdict.status in (0, seen.status) or (seen.status, verdict.status) == (0, 1)
