"""The installed database as bytes: whatever the shortcuts are, the answers are those of a naive full parse."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from apk_atomic import installed
from apk_atomic.installed import Package
from apk_atomic.model import PackageChanges
from tests.support.properties import cheap


@dataclass(frozen=True, slots=True)
class Row:
    """A record as apk writes one; `files` are (directory, names)."""

    name: str
    version: str
    identity: str
    flags: str = ""
    files: tuple[tuple[str, tuple[str, ...]], ...] = ()
    filler: str = ""

    def record(self) -> bytes:
        lines = [f"C:{self.identity}", f"P:{self.name}", f"V:{self.version}", "A:x86_64", f"T:{self.filler}", "L:MIT"]
        lines += [f"f:{self.flags}"] if self.flags else []
        for directory, names in self.files:
            lines += [f"F:{directory}", "M:0:0:755", *(line for name in names for line in (f"R:{name}", "Z:Q1abc="))]
        return "".join(f"{line}\n" for line in lines).encode() + b"\n"

    def parsed(self) -> Package:
        flags = "".join(flag for flag in "fsx" if flag in self.flags)
        return Package(self.name, self.version, self.identity, flags)

    def paths(self) -> list[str]:
        return [f"{directory}/{name}".lstrip("/") for directory, names in self.files for name in names]


WORDS = st.text(alphabet="abP:f-", min_size=1, max_size=4)
FILES = st.lists(st.tuples(st.sampled_from(["", "usr", "usr/bin", "etc"]), st.lists(WORDS, max_size=3).map(tuple)),
                 max_size=3).map(tuple)  # fmt: skip
ROWS = st.builds(
    Row,
    name=st.sampled_from(["a", "ab", "abc", "b", "musl", "so:x", ".group"]),
    version=st.sampled_from(["1-r0", "1-r1", "2-r0"]),
    identity=st.sampled_from(["Q1AAA=", "Q1BBB=", "Q2CCC="]),
    flags=st.sampled_from(["", "", "f", "s", "x", "S", "fs", "sS"]),
    files=FILES,
    filler=st.sampled_from(["", "x", "P:musl", "f:s", "y" * 63, "z" * 300]),
)
TABLES = st.lists(ROWS, max_size=7, unique_by=lambda row: row.name)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[list[Row], list[Row]]:
    """Two databases that often have a beginning, an end or everything in common."""
    old = draw(TABLES)
    new = list(old)
    for _ in range(draw(st.integers(0, 3))):
        row = draw(ROWS)
        at = draw(st.integers(0, len(new)))
        others = [each for each in new if each.name != row.name]
        new = draw(st.sampled_from([[*others[:at], row, *others[at:]], others, new[at:], new[:at]]))
    return old, new


def text(rows: list[Row]) -> bytes:
    return b"".join(row.record() for row in rows)


def difference(old: bytes, new: bytes) -> PackageChanges:
    return installed.difference(installed.source(old), installed.source(new))


def naive(old: list[Row], new: list[Row]) -> PackageChanges:
    before, after = ({row.name: row for row in rows} for rows in (old, new))
    both = sorted(set(before) & set(after))
    return PackageChanges(
        added=tuple((name, after[name].version) for name in sorted(set(after) - set(before))),
        removed=tuple((name, before[name].version) for name in sorted(set(before) - set(after))),
        upgraded=tuple(
            (name, before[name].version, after[name].version)
            for name in both
            if before[name].version != after[name].version
        ),
        rebuilt=tuple(
            name
            for name in both
            if before[name].version == after[name].version and before[name].identity != after[name].identity
        ),
    )


A, B, C = (Row(name, "1-r0", f"Q1{name}=", files=(("usr", (name,)),), filler="f" * 90) for name in "abc")


@cheap(120)
@given(pairs())
@example(([], []))
@example(([A], []))
@example(([], [A, B]))
@example(([A, B, C], [A, C]))
@example(([A, C], [A, B, C]))
@example(([A, B, C], [A, replace(B, version="2-r0"), C]))
@example(([A, A], [A, A]))
def test_difference_and_new_files_are_those_of_a_full_parse(pair: tuple[list[Row], list[Row]]) -> None:
    old, new = pair
    assert difference(text(old), text(new)) == naive(old, new)
    known = {row.record() for row in old}
    expected = [path for row in new if row.record() not in known for path in row.paths()]
    assert list(installed.new_files(text(old), text(new))) == expected


@cheap(200)
@given(pairs(), st.integers(2, 80))
@example(([A, B, C], [A, C]), 2)
@example(([A, B, C], [A, B, C]), 3)
def test_what_is_apart_is_whole_records_between_common_ones(pair: tuple[list[Row], list[Row]], piece: int) -> None:
    old, new = map(text, pair)
    before, after = installed.parts_apart(installed.source(old, piece), installed.source(new, piece))
    starts = {len(text(pair[0][:count])) for count in range(len(pair[0]) + 1)}
    assert any(old[at:].startswith(before) and new == old[:at] + after + old[at + len(before) :] for at in starts)
    for part in (before, after):
        assert not part or part.endswith(b"\n\n")
    if old == new:
        assert (before, after) == (b"", b"")
    assert installed.compare(installed.packages(before), installed.packages(after)) == naive(*pair)


@cheap(80)
@given(TABLES, st.integers(2, 80))
def test_blocks_are_the_database_cut_between_records(rows: list[Row], piece: int) -> None:
    found = list(installed.blocks(installed.source(text(rows), piece)))
    assert b"".join(found) == text(rows)
    assert all(block.endswith(b"\n\n") for block in found if block)


def test_a_database_of_one_endless_record_is_read_a_few_times_at_most() -> None:
    database = b"x" * 100_000
    read = 0

    def counted(at: int, length: int) -> bytes:
        nonlocal read
        read += 1
        return database[at : at + length]

    assert b"".join(installed.blocks(installed.Source(len(database), counted, 10))) == database
    assert read < 30


@cheap(80)
@given(TABLES)
def test_packages_find_and_broken_agree_with_a_full_parse(rows: list[Row]) -> None:
    database = text(rows)
    expected = {row.name: row.parsed() for row in rows}
    assert installed.packages(database) == expected
    for name in ("a", "ab", "musl", "so:x", "missing", ""):
        assert installed.find(database, name) == expected.get(name)
    assert installed.broken(database) == {row.name for row in rows if set(row.flags) & set("fsx")}


@pytest.mark.parametrize("first", [b"P:a\nV:1\nf:s\n\n", b"P:a\nf:s\nV:1\nC:Q1x\n\n"])
def test_a_record_may_begin_with_its_name(first: bytes) -> None:
    """Of no apk that we know, but nothing in the format forbids it."""
    database = first + first.replace(b"P:a", b"P:b") + b"P:c\nV:2\n\n"
    assert installed.broken(database) == {"a", "b"}
    assert [installed.find(database, name) for name in "abc"] == list(installed.packages(database).values())


def test_a_large_common_part_is_not_what_decides() -> None:
    """Common ends that are longer than what is compared at a time, with the change at each end and in the middle."""
    rows = [Row(f"p{number}", "1-r0", f"Q1{number}=", filler="x" * 200) for number in range(900)]
    for at in (0, 1, 450, 898, 899):
        new = list(rows)
        new[at] = replace(rows[at], version="2-r0", files=(("usr/bin", ("tool",)),))
        apart = installed.parts_apart(installed.source(text(rows)), installed.source(text(new)))
        assert apart == (rows[at].record(), new[at].record())
        assert difference(text(rows), text(new)).upgraded == ((f"p{at}", "1-r0", "2-r0"),)
        assert installed.new_files(text(rows), text(new)) == ("usr/bin/tool",)


def test_a_path_that_is_not_utf_8_survives() -> None:
    record = b"C:Q1a\nP:a\nV:1\nF:usr\nR:\xff\n\n"
    assert installed.new_files(b"", record) == ("usr/\udcff",)


@cheap(80)
@given(st.binary(max_size=200), st.binary(max_size=200))
def test_any_bytes_give_an_answer(old: bytes, new: bytes) -> None:
    difference(old, new)
    installed.new_files(old, new)
    assert installed.broken(old) <= {name.decode("utf-8", "replace") for line in old.split(b"\n")
                                     for name in [line[2:]] if line[:2] == b"P:"}  # fmt: skip
    assert installed.find(old, "a") is None or b"P:a" in old


def test_packages_with_a_trigger_are_known_by_identity() -> None:
    database = b"C:Q1aaa=\nP:one\nV:1\n\nC:Q1bbb=\nP:two\nV:1\n\n"
    triggers = b"Q1bbb= /usr/share/two /etc\nQ1ccc= /x\n"
    both = installed.packages(database).values()
    assert installed.with_trigger(both, triggers) == {"two"}
    assert installed.with_trigger(both, b"") == frozenset()
