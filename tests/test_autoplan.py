"""What a simulation says, and what is remembered of it: pure."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apk_atomic import autoplan
from apk_atomic.autoplan import Denied, Memory
from apk_atomic.model import PackageChanges

SAID = """\
fetch http://localhost/x86_64/APKINDEX.tar.gz
Upgrading critical system libraries and apk-tools:
(1/1) Upgrading apk-tools (2.14.9-r0 -> 2.14.10-r0)
Continuing the upgrade transaction with new apk-tools:
( 1/10) Installing newdep (1.0-r0)
( 2/10) Upgrading gamma@edge (1.0-r0 -> 2.0-r0)
( 3/10) Purging old (0.9_git20240101-r3)
( 4/10) Replacing same (1.0-r0 -> 1.0-r0)
( 5/10) Downgrading lower (2.0-r0 -> 1.9-r0)
( 6/10) Reinstalling again (1.0-r0)
( 7/10) Updating pinning pinned (1.0-r0)
( 8/10) [APK unavailable, skipped] Reinstalling lost (1.0-r0)
WARNING: (9/10) Installing trick (1.0-r0)
OK: 29 KiB in 5 packages
"""


def test_simulation() -> None:
    assert autoplan.parse_simulation(SAID) == PackageChanges(
        added=(("newdep", "1.0-r0"),),
        removed=(("old", "0.9_git20240101-r3"),),
        upgraded=(
            ("apk-tools", "2.14.9-r0", "2.14.10-r0"), ("gamma", "1.0-r0", "2.0-r0"), ("lower", "2.0-r0", "1.9-r0"),
        ),
        rebuilt=("again", "same"),
    )  # fmt: skip
    assert autoplan.parse_simulation("OK: 29 KiB in 5 packages\n").is_empty


@given(st.text())
def test_whatever_it_says(text: str) -> None:
    autoplan.parse_simulation(text)


def test_the_set_is_the_same_by_whatever_way() -> None:
    old = {"a": "1", "b": "1", "c": "1"}
    at_once = autoplan.applied(old, PackageChanges((("d", "1"),), (("c", "1"),), (("a", "1", "2"),)))
    first = autoplan.applied(old, PackageChanges(upgraded=(("a", "1", "2"),)))
    second = autoplan.applied(first, PackageChanges((("d", "1"),), (("c", "1"),)))
    assert at_once == second == {"a": "2", "b": "1", "d": "1"}
    assert autoplan.fingerprint(at_once) == autoplan.fingerprint(dict(reversed(second.items())))
    assert autoplan.fingerprint(old) != autoplan.fingerprint(first)


def test_names() -> None:
    changes = autoplan.parse_simulation(SAID)
    assert autoplan.downloads(changes) == ("again", "apk-tools", "gamma", "lower", "newdep", "same")
    assert autoplan.touched(changes) == {"again", "apk-tools", "gamma", "lower", "old", "same"}
    names = ["linux-lts", "linux-virt", "linux", "postgresql16", "a.b"]
    assert autoplan.excluded(["linux-*", "postgresql1?", "none"], names) == ("linux-lts", "linux-virt", "postgresql16")
    assert autoplan.excluded(["a.b"], ["a.b", "axb"]) == ("a.b",)
    assert autoplan.excluded([], names) == ()


@given(
    st.one_of(st.none(), st.floats(0, 1e11)), st.lists(st.text(), max_size=3).map(tuple), st.text(max_size=20)
)
def test_memory_comes_back(finished: float | None, downloaded: tuple[str, ...], reported: str) -> None:
    memory = Memory(finished, downloaded, reported)
    assert autoplan.parse_memory(autoplan.format_memory(memory)) == memory


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from([*Memory._fields, *Denied._fields, "denied"]), inner),
)


@given(st.one_of(st.binary(), JSON.map(lambda value: json.dumps(value).encode())))
def test_any_bytes_are_remembered_as_something(data: bytes) -> None:
    memory = autoplan.parse_memory(data)
    assert autoplan.parse_memory(autoplan.format_memory(memory)) == memory
    denied = autoplan.parse_denied(data)
    assert autoplan.parse_denied(autoplan.format_denied(denied)) == tuple({each.set: each for each in denied}.values())


def test_what_somebody_went_back_from() -> None:
    changes = PackageChanges((("new", "1"),), (("old", "1"),), (("a", "1", "2"),), ("same",))
    assert autoplan.brought(changes) == {("new", "1"), ("a", "2")}
    before = {"a": "1", "old": "1", "same": "1", "b": "1"}
    assert autoplan.brought_over(before, autoplan.applied(before, changes)) == autoplan.brought(changes)
    entry = Denied("x", "then", "why", (("a", "2"), ("new", "1")))
    assert autoplan.parse_denied(autoplan.format_denied([entry])) == (entry,)
    damaged = json.dumps({"denied": [{"set": "x", "changes": [["a", 2]]}, {"set": "y", "changes": ["ab"]}]}).encode()
    assert autoplan.parse_denied(damaged) == (Denied("x"), Denied("y"))


def test_denied_sets_are_few_and_the_newest() -> None:
    known = [Denied(str(number), "then", "why") for number in range(80)]
    kept = autoplan.parse_denied(autoplan.format_denied([*known, Denied("70", "now", "again")]))
    assert len(kept) == 50
    assert [each.when for each in kept if each.set == "70"] == ["now"]
    assert kept[-1].set == "79"


@pytest.mark.parametrize("data", [b"[" * 100_000, b"\xff", b"", b"null"])
def test_damaged(data: bytes) -> None:
    assert autoplan.parse_memory(data) == Memory()
    assert autoplan.parse_denied(data) == ()
