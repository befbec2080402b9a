"""Records survive JSON, damage is one exception, names are safe, secrets do not reach the disk."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apk_atomic.model import (
    DamagedRecord,
    Generation,
    Image,
    Kind,
    PackageChanges,
    Proof,
    Record,
    State,
    from_json_dict,
    is_own_id,
    is_safe_name,
    iso_utc,
    new_id,
    redact_argv,
    to_json_dict,
)
from tests.support.properties import cheap

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
WORDS = st.text(max_size=8)
TEXTS = st.lists(WORDS, max_size=3).map(tuple)
PAIRS = st.lists(st.tuples(WORDS, WORDS), max_size=3).map(tuple)
NAMES = st.from_regex(r"[A-Za-z0-9_@+:~][A-Za-z0-9._@+:~-]{0,20}", fullmatch=True)
FIELDS = st.sampled_from(sorted(Record._fields))


def unknown_keys(kind: type[Record | PackageChanges | Image | Proof]) -> st.SearchStrategy[dict[str, object]]:
    ours = {*kind._fields} - {"unknown"}
    keys = (st.text(max_size=5) | st.just("unknown")).filter(lambda key: key not in ours)
    return st.dictionaries(keys, st.integers() | st.lists(st.text()), max_size=2)


CHANGES = st.builds(
    PackageChanges,
    added=PAIRS,
    removed=PAIRS,
    upgraded=st.lists(st.tuples(WORDS, WORDS, WORDS), max_size=2).map(tuple),
    rebuilt=TEXTS,
    unknown=unknown_keys(PackageChanges),
)
RECORDS = st.builds(
    Record,
    id=NAMES,
    parent=st.none() | NAMES,
    created=WORDS,
    kind=st.sampled_from(Kind),
    argv=TEXTS,
    user=WORDS,
    message=WORDS,
    apk_version=WORDS,
    kernels=st.dictionaries(WORDS, WORDS, max_size=3).map(lambda each: tuple(each.items())),
    changes=CHANGES,
    initramfs=st.lists(
        st.builds(Image, flavor=WORDS, members=TEXTS, unknown=unknown_keys(Image)), max_size=2
    ).map(tuple),
    proof=st.none() | st.builds(Proof, of=WORDS, inputs=TEXTS, menu=TEXTS, warnings=TEXTS, unknown=unknown_keys(Proof)),
    fstab_template=WORDS,
    fstab_rendered=WORDS,
    durations=st.dictionaries(WORDS, st.floats(0, 1e6), max_size=3).map(lambda each: tuple(each.items())),
    version=st.integers(1, 5),
    unknown=unknown_keys(Record),
)


@cheap()
@given(RECORDS)
def test_a_record_survives_json(record: Record) -> None:
    assert from_json_dict(json.loads(json.dumps(to_json_dict(record)))) == record


@cheap()
@given(JSON)
def test_any_json_value_is_a_record_or_damage(value: object) -> None:
    try:
        record = from_json_dict(value)
    except DamagedRecord:
        return
    assert isinstance(record, Record)


@cheap()
@given(RECORDS, st.dictionaries(FIELDS, JSON, max_size=4), st.sets(FIELDS))
def test_a_record_with_any_field_replaced_or_gone_is_a_record_or_damage(
    record: Record, replaced: dict[str, object], gone: set[str]
) -> None:
    value = {key: each for key, each in {**to_json_dict(record), **replaced}.items() if key not in gone}
    try:
        read = from_json_dict(value)
    except DamagedRecord:
        return
    assert from_json_dict(to_json_dict(read)) == read


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", 0),
        ("version", True),
        ("version", "1"),
        ("id", "../x"),
        ("id", None),
        ("parent", "-rf"),
        ("kind", 3),
        ("kind", ["apk"]),
        ("argv", "add"),
        ("argv", [1]),
        ("kernels", [["lts", "6.6"]]),
        ("kernels", {"lts": None}),
        ("changes", {"upgraded": [["musl", "1"]]}),
        ("changes", None),
        ("initramfs", [{"members": {}}]),
        ("proof", []),
        ("durations", {"seal": float("nan")}),
        ("durations", {"seal": 10**400}),
        ("durations", {"seal": False}),
    ],
)
def test_wrong_values_are_damage_and_named(key: str, value: object) -> None:
    sound = to_json_dict(Record(id="20260101000000abcdefgh"))
    with pytest.raises(DamagedRecord, match=key):
        from_json_dict({**sound, key: value})


def test_a_kind_of_another_version_is_kept() -> None:
    document = {**to_json_dict(Record(id="20260101000000abcdefgh")), "kind": "magic"}
    assert from_json_dict(document).kind == "magic"
    assert to_json_dict(from_json_dict(document))["kind"] == "magic"


def test_only_id_and_version_are_required() -> None:
    assert from_json_dict({"id": "x", "version": 1}) == Record(id="x")
    for half in ({"id": "x"}, {"version": 1}):
        with pytest.raises(DamagedRecord):
            from_json_dict(half)


def test_keys_of_another_version_are_written_back() -> None:
    source: dict[str, object] = {
        **to_json_dict(Record(id="x", proof=Proof(of="x"), initramfs=(Image("lts"),))),
        "version": 2,
        "colour": {"deep": [1]},
        "changes": {"added": [], "held": ["a"]},
    }
    written = to_json_dict(from_json_dict(source))
    assert written["colour"] == {"deep": [1]}
    assert written["version"] == 2
    changes = written["changes"]
    assert isinstance(changes, dict)
    assert changes["held"] == ["a"]


@pytest.mark.parametrize(
    "changes",
    [
        PackageChanges(added=(("a", "1"),)),
        PackageChanges(removed=(("a", "1"),)),
        PackageChanges(upgraded=(("a", "2", "1"),)),
        PackageChanges(rebuilt=("a",)),
    ],
)
def test_any_change_of_packages_is_a_change(changes: PackageChanges) -> None:
    assert PackageChanges().is_empty
    assert not changes.is_empty


# Names and times


@cheap()
@given(st.floats() | st.integers(-(10**30), 10**30), st.binary(min_size=8, max_size=8))
def test_whatever_the_clock_says_an_id_is_well_formed(now: float, noise: bytes) -> None:
    made = new_id(now, lambda size: noise[:size])
    assert is_own_id(made)
    assert is_safe_name(made)
    assert len(iso_utc(now)) == 20


def test_ids_tell_the_time_and_differ_within_a_second() -> None:
    assert new_id(86400.9, lambda size: bytes(size)) == "19700102000000aaaaaaaa"
    assert is_own_id("20260101000000abCdefgH")  # the wiki's scripts
    assert iso_utc(86400.9) == "1970-01-02T00:00:00Z"
    assert len({new_id(0, os.urandom) for _ in range(1000)}) == 1000


@pytest.mark.parametrize(
    "name",
    [
        "20260101000000abcdefg",
        "20260101000000abcdefg1",
        "2026010100000xabcdefgh",
        "20260101000000abcdef\u0661h",
        "",
    ],
)
def test_other_names_are_not_our_ids(name: str) -> None:
    assert not is_own_id(name)


@pytest.mark.parametrize(
    "name", ["20211224180000qwertzui", "before-upgrade", "Ωmega", "a" * 255, "1", "a.b", "x@y"]
)
def test_names_that_people_give_are_safe(name: str) -> None:
    assert is_safe_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "-rf", ".hidden", "a/b", "/", "a\nb", "a\0b", "a b", "a,ro", "a\\040b"),
        *("a" * 256, "é" * 128, "\udcff", "a\x1b[2J", "a\u202eb", "a\u00a0b", "a\tb", "\u2028"),
    ],
)
def test_hostile_names_are_not_safe(name: str) -> None:
    assert not is_safe_name(name)


@cheap()
@given(st.text(st.characters(), max_size=300) | st.binary(max_size=300).map(os.fsdecode))
def test_what_is_safe_is_one_component_in_one_field(name: str) -> None:
    if is_safe_name(name):
        assert os.path.join("/snapshots", name) == os.path.normpath(f"/snapshots/{name}")
        assert f"subvol=/snapshots/{name}/@,ro".split() == [f"subvol=/snapshots/{name}/@,ro"]
        assert len(os.fsencode(name)) <= 255


# Secrets


@pytest.mark.parametrize(
    ("argument", "redacted"),
    [
        ("https://user:pass@host/alpine", "https://***@host/alpine"),
        ("--repository=https://ghp_12345@host/alpine", "--repository=https://***@host/alpine"),
        ("-Xhttps://u:p@ss@host", "-Xhttps://***@host"),
        ("http://u:p?#x@host/", "http://***@host/"),
        ("a http://u:p@h/1 b HTTP://u:p@h/2", "a http://***@h/1 b HTTP://***@h/2"),
        ("https://host/x?access_token=abc&v=1", "https://host/x?access_token=***&v=1"),
        ("https://host/alpine@edge/main", "https://host/alpine@edge/main"),
        ("musl@edge", "musl@edge"),
        ("", ""),
    ],
)
def test_credentials_in_urls_are_redacted(argument: str, redacted: str) -> None:
    assert redact_argv([argument]) == (redacted,)


@cheap()
@given(WORDS, st.text(st.characters(codec="ascii", exclude_characters="/ \n\t"), max_size=8), WORDS)
def test_no_password_survives(before: str, noise: str, after: str) -> None:
    (argument,) = redact_argv([f"{before}https://user{noise}:hunter2{noise}@host/{after}"])
    assert "hunter2" not in argument


@cheap()
@given(st.lists(st.text(max_size=30)))
def test_redaction_never_fails_and_is_stable(argv: list[str]) -> None:
    once = redact_argv(argv)
    assert len(once) == len(argv)
    assert redact_argv(once) == once


# State


def test_words_of_a_state() -> None:
    a, b = Generation("a"), Generation("b")
    assert State((a, b), ("b", "a"), "b").next == "b"
    assert State((a, b), ("b", "a"), "a").fallback_booted
    assert not State((a, b), ("b", "a"), "a", pending=True).fallback_booted
    assert not State((a, b), ("b", "a"), None).fallback_booted
    assert State((a, b), (), "a").next == ""
    assert State((a, b)).find("b") is b
    assert State((a, b)).find("") is None
