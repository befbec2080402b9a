"""What apk's exit status and the flags in its database come to, as a table and as properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apk_atomic.verdict import Evidence, Verdict, is_explicable, judge
from tests.support.properties import cheap

NAMES = st.frozensets(st.sampled_from("abcd"))
UNDONE = st.sampled_from((None, (), ("Installing a (1)",)))
EVIDENCE = st.builds(
    Evidence, st.integers(0, 255), NAMES, NAMES, st.booleans(), NAMES, NAMES, st.none() | NAMES, UNDONE
)


def evidence(
    status: int, before: str = "", after: str = "", *, committed: bool = True, accepted: str = "", triggers: str = "",
    mended: str | None = None, undone: tuple[str, ...] | None = (),
) -> Evidence:  # fmt: skip
    sets = (frozenset(names) for names in (before, after, accepted, triggers))
    before_, after_, accepted_, triggers_ = sets
    to_mend = None if mended is None else frozenset(mended)
    return Evidence(status, before_, after_, committed, accepted_, triggers_, to_mend, undone)


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        (evidence(0), Verdict(0)),
        (evidence(0, undone=None), Verdict(0)),
        (evidence(0, "ab", "a"), Verdict(0, ("a",))),
        (evidence(0, "", "a"), Verdict(1, ("a",))),
        (evidence(0, "", "a", accepted="a"), Verdict(0, ("a",))),
        (evidence(99), Verdict(99)),
        (evidence(1, "a", ""), Verdict(1)),
        # what was broken before, and nothing else
        (evidence(1, "a", "a"), Verdict(0, ("a",))),
        (evidence(2, "ab", "ba"), Verdict(0, ("a", "b"))),
        (evidence(2, "a", "a"), Verdict(2)),
        (evidence(1, "a", "a", committed=False), Verdict(1)),
        (evidence(137, "a", "a", committed=False), Verdict(137)),
        # newly broken
        (evidence(1, "", "a"), Verdict(1, ("a",))),
        (evidence(3, "a", "abc"), Verdict(3, ("b", "c"))),
        (evidence(1, "", "a", accepted="a"), Verdict(0, ("a",))),
        (evidence(2, "a", "ab", accepted="b"), Verdict(0, ("a", "b"))),
        (evidence(1, "", "ab", accepted="a"), Verdict(1, ("b",))),
        # a trigger counts beside its package in 3.x, and not at all in 2.14
        (evidence(2, "a", "a", triggers="a"), Verdict(0, ("a",))),
        (evidence(3, "a", "a", triggers="a"), Verdict(3)),
        (evidence(2, "a", "a", triggers="b"), Verdict(2)),
        (evidence(1, "a", "ab", accepted="b", triggers="b"), Verdict(0, ("a", "b"))),
        # the count fits, but it is of something else
        (evidence(1, "a", "a", undone=("Upgrading b (1 -> 2)",)), Verdict(1)),
        (evidence(2, "ab", "ab", undone=("Upgrading a (1 -> 2)",)), Verdict(2)),
        (evidence(1, "a", "a", undone=None), Verdict(1)),
        # fix
        (evidence(1, "a", "a", mended=""), Verdict(0, ("a",))),
        (evidence(1, "a", "a", mended="a"), Verdict(1)),
        (evidence(2, "ab", "b", mended="a", triggers="b"), Verdict(2)),
        (evidence(1, "ab", "b", mended="a"), Verdict(0, ("b",))),
        (evidence(0, "a", "a", mended="a"), Verdict(0, ("a",))),
    ],
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
def test_a_failure_passes_only_where_it_is_explained_and_nothing_is_left_to_do(seen: Evidence) -> None:
    verdict = judge(seen)
    passes = seen.committed and seen.undone == () and seen.status <= 2 * len(seen.after)
    assert (verdict.status == 0) <= (seen.status == 0 or passes)
    assert verdict.status in (0, seen.status) or (seen.status, verdict.status) == (0, 1)


@cheap(100)
@given(EVIDENCE)
def test_what_is_left_is_asked_for_only_where_the_answer_decides(seen: Evidence) -> None:
    answers = {judge(seen._replace(undone=undone)) for undone in (None, (), ("Installing a (1)",))}
    assert (len(answers) > 1) == is_explicable(seen)
