"""apk's database in base and in the staged root, as two directories: answers are those of a parse of the whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from apk_atomic import installed
from apk_atomic.databases import Databases
from apk_atomic.model import PackageChanges
from tests.test_installed import Row, text

ROWS = [
    Row(f"p{number}", "1-r0", f"Q1{number}=", files=(("usr/bin", (f"t{number}",)),), filler="x" * 150)
    for number in range(600)
]
ROWS[3:3] = [Row("apk-tools", "3.0.6-r0", "Q1apk=", flags="S")]
ROWS[500] = Row("old", "1-r0", "Q1old=", flags="s")
BROKEN_BEFORE = frozenset({"old"})


class Pair:
    """A base whose database `make` has made, and a copy of it as root."""

    def __init__(self, place: Path, make: Callable[[Path], object] = lambda path: path.write_bytes(text(ROWS))) -> None:
        self.base, self.root = place / "base", place / "root"
        for each in (self.base, self.root):
            (each / "lib/apk/db").mkdir(parents=True)
            make(self.file(each))
            age(self.file(each))
        self._fds = [os.open(each, os.O_RDONLY | os.O_DIRECTORY) for each in (self.base, self.root)]
        self.databases = Databases(*self._fds)

    @staticmethod
    def file(root: Path) -> Path:
        return root / installed.DATABASE

    def replace(self, database: bytes) -> None:
        """As apk does."""
        new = self.root / "lib/apk/db/installed.new"
        new.write_bytes(database)
        age(new)
        new.rename(self.file(self.root))

    def close(self) -> None:
        self.databases.close()
        for fd in self._fds:
            os.close(fd)


def age(path: Path) -> None:
    """Makes it older than a tick of the kernel's clock: what is written next is seen by its mtime."""
    if path.is_file():
        os.utime(path, (1, 1))


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.close()


def agrees(pair: Pair) -> None:
    """Every answer is that of a parse of both."""
    before, after = (
        each.read_bytes() if each.exists() else b"" for each in (pair.file(pair.base), pair.file(pair.root))
    )
    found = pair.databases
    assert found.broken_before() == installed.broken(before)
    assert found.broken() == installed.broken(after)
    old, new = installed.packages(before), installed.packages(after)
    assert found.changes() == installed.compare(old, new)
    assert found.new_files() == installed.new_files(before, after)
    for name in {*old, *new, "missing"}:
        assert found.find(name) == new.get(name)
    assert found.apk_version() == (new["apk-tools"].version if "apk-tools" in new else "")


def test_nothing_is_apart_until_apk_replaced_it(pair: Pair) -> None:
    pair.databases.prepare()
    agrees(pair)
    assert pair.databases.changes() == PackageChanges() and pair.databases.new_files() == ()


@pytest.mark.parametrize("at", [0, 3, 300, 500, 600])
@pytest.mark.parametrize("row", [
    Row("new", "1-r0", "Q1new=", flags="f", files=(("etc", ("new",)),)),
    Row("apk-tools", "3.0.7-r0", "Q1apk7="),
])  # fmt: skip
def test_a_record_is_replaced(pair: Pair, at: int, row: Row) -> None:
    pair.databases.prepare()
    rows = [each for each in ROWS if each.name != row.name]
    rows[min(at, len(rows) - 1)] = row
    pair.replace(text(rows))
    agrees(pair)


@pytest.mark.parametrize("rows", [[], ROWS[1:], ROWS[:3] + ROWS[4:], ROWS[:-1], ROWS[::-1]], ids=len)
def test_records_are_gone_or_moved(pair: Pair, rows: list[Row]) -> None:
    pair.replace(text(rows))
    agrees(pair)


def test_what_was_mended_is_broken_no_more(pair: Pair) -> None:
    pair.databases.prepare()
    assert pair.databases.broken() == BROKEN_BEFORE
    pair.replace(text(ROWS).replace(b"f:s\n", b""))
    assert (pair.databases.broken_before(), pair.databases.broken()) == (BROKEN_BEFORE, frozenset())


def test_it_is_read_again_when_it_changes_again(pair: Pair) -> None:
    for rows in (ROWS[1:], ROWS[2:], ROWS):
        pair.replace(text(rows))
        agrees(pair)


def test_a_change_in_place_is_seen(pair: Pair) -> None:
    """What a shell may do, though apk does not: size and inode stay."""
    pair.replace(text(ROWS[1:]))
    agrees(pair)
    write_in_place(pair.file(pair.root))
    agrees(pair)


@pytest.mark.parametrize("early", [False, True], ids=["after it was read", "before it was read"])
def test_base_stays_what_it_is_when_its_copy_is_written_to(pair: Pair, early: bool) -> None:
    if not early:
        pair.databases.prepare()
    write_in_place(pair.file(pair.root))
    agrees(pair)
    pair.replace(text(ROWS[1:]))
    agrees(pair)


def write_in_place(path: Path) -> None:
    with open(path, "r+b") as file:
        at = file.read().index(b"V:1-r0")
        file.seek(at)
        file.write(b"V:2-r0")


def test_it_goes_on_when_the_held_file_is_let_go(pair: Pair) -> None:
    pair.databases.prepare()
    pair.replace(text(ROWS[1:]))
    pair.databases.settle()
    assert not [link for link in links_of_open_files() if "installed" in link]
    agrees(pair)
    pair.replace(text(ROWS[2:]))
    agrees(pair)


def links_of_open_files() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one of the directory that is listed
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return found


NO_FILES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.parent.mkdir(exist_ok=True),
    "fifo": os.mkfifo,
    "directory": Path.mkdir,
    "link out": lambda path: path.symlink_to("../../../../host"),
}


@pytest.mark.parametrize("what", NO_FILES)
@pytest.mark.parametrize("side", ["base", "root"])
def test_what_is_no_file_counts_as_empty(tmp_path: Path, side: str, what: str) -> None:
    (tmp_path / "host").write_bytes(text(ROWS))
    pair = Pair(tmp_path, NO_FILES[what]) if side == "base" else Pair(tmp_path)
    place = pair.file(pair.root)
    if place.is_dir():
        place.rmdir()
    else:
        place.unlink(missing_ok=True)
    if side == "base":
        place.write_bytes(text(ROWS))
    else:
        NO_FILES[what](place)
    names = {row.name for row in ROWS}
    changes = pair.databases.changes()
    assert {name for name, _ in (changes.added if side == "base" else changes.removed)} == names
    assert (pair.databases.broken_before(), pair.databases.broken()) == (
        (frozenset(), BROKEN_BEFORE) if side == "base" else (BROKEN_BEFORE, frozenset())
    )
    assert (pair.databases.find("old") is None) == (side == "root")
    pair.close()
