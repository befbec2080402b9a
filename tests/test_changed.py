"""What counts as a change: real snapshots, changed in every way that apk, scripts and people know."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apk_atomic import changed, files, removal
from apk_atomic.changed import Changed, Part
from tests.support import btrfsctl, engine

FSTAB = b"the rendered fstab\n"
DATABASE = b"C:Q1abc=\nP:base\nV:1\n\n"


def fill(root: Path) -> None:
    for name in ("etc/apk/keys", "lib/apk/db", "usr/bin", "usr/share/doc", "var/cache", "var/log", "boot", "tmp"):
        (root / name).mkdir(parents=True)
    for name, content in {
        "etc/fstab": b"base's own\n", "etc/apk/world": b"base\n", "etc/apk/arch": b"x86_64\n", "etc/hostname": b"box\n",
        "etc/resolv.conf": b"nameserver ::1\n", "lib/apk/db/installed": DATABASE, "lib/apk/db/triggers": b"",
        "usr/bin/a": b"a", "usr/bin/b": b"b", "usr/share/doc/x": b"x", "usr/share/doc/y": b"y",
    }.items():  # fmt: skip
        (root / name).write_bytes(content)
    os.link(root / "usr/bin/a", root / "usr/bin/also-a")
    os.link(root / "usr/bin/b", root / "usr/share/doc/b")
    (root / "usr/bin/link").symlink_to("a")


class Pair:
    """A sealed base and a staged root, as a transaction has them after its own fstab was written."""

    def __init__(self, top: Path, prepare: Callable[[Path], None] = fill) -> None:
        self.stack = contextlib.ExitStack()
        self.place = self.stack.enter_context(engine.place(top)).top
        btrfsctl.create_subvolume(self.place / "base")
        prepare(self.place / "base")
        btrfsctl.set_read_only(self.place / "base", True)
        self.root = self.place / "staged"
        btrfsctl.snapshot(self.place / "base", self.root, read_only=False)
        self.part = Part("", self._open("base"), self._open("staged"))
        if (self.root / "etc").is_dir():
            files.write_atomic(self.part.staged, "etc/fstab", FSTAB, 0o644)

    def _open(self, name: str) -> int:
        fd = os.open(self.place / name, os.O_RDONLY | os.O_DIRECTORY)
        self.stack.callback(os.close, fd)
        return fd

    def replace(self, name: str, content: bytes | None = None) -> None:
        """As apk writes its files: a new one beside the old one, then a rename; by default the same bytes."""
        path = self.root / name
        new = path.with_name(f"{path.name}.new")
        new.write_bytes(path.read_bytes() if content is None else content)
        new.rename(path)

    def compare(self) -> Changed:
        return changed.compare([self.part], FSTAB)

    def close(self) -> None:
        self.stack.close()


@pytest.fixture
def pair(top: Path) -> Iterator[Pair]:
    made = Pair(top)
    yield made
    made.close()


# ---- no change ---------------------------------------------------------------------------------------------


def nothing(pair: Pair) -> None:
    """Only our own fstab is new."""


def apk_without_work(pair: Pair) -> None:
    """What a run of apk that changes nothing leaves behind."""
    for name in ("etc/apk/world", "lib/apk/db/installed", "lib/apk/db/triggers"):
        pair.replace(name)


def first_run_of_apk(pair: Pair) -> None:
    """The first one in a root also makes its lock, its cache and its log."""
    apk_without_work(pair)
    (pair.root / "lib/apk/db/lock").touch(0o600)
    (pair.root / "var/cache/apk").mkdir()
    (pair.root / "var/cache/apk/APKINDEX.tar.gz").write_bytes(b"index")
    (pair.root / "var/log/apk.log").write_bytes(b"Running `apk add`\n")


def temporary_files(pair: Pair) -> None:
    for place in ("", "etc", "usr/bin", "tmp", "boot"):
        (pair.root / place / "temporary").write_bytes(b"x")
        (pair.root / place / "temporary").unlink()
        (pair.root / place / "directory/inner").mkdir(parents=True)
        (pair.root / place / "directory/inner").rmdir()
        (pair.root / place / "directory").rmdir()


def deleted_but_open(pair: Pair) -> None:
    fd = os.open(pair.root / "usr/bin/open", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"x")
    os.unlink(pair.root / "usr/bin/open")
    pair.stack.callback(os.close, fd)


def same_name_server(pair: Pair) -> None:
    pair.replace("etc/resolv.conf")


@pytest.mark.parametrize(
    "act",
    [nothing, apk_without_work, first_run_of_apk, temporary_files, deleted_but_open, same_name_server],
    ids=lambda act: act.__name__,
)
def test_no_change(pair: Pair, act: Callable[[Pair], None]) -> None:
    act(pair)
    found = pair.compare()
    assert not found.relevant
    assert found.removed == ()


def test_the_cache_and_the_log_never_count(top: Path) -> None:
    def prepare(root: Path) -> None:
        fill(root)
        (root / "var/cache/apk").mkdir()
        (root / "var/cache/apk/old.apk").write_bytes(b"old")
        (root / "var/log/apk.log").write_bytes(b"log")

    pair = Pair(top, prepare)
    with contextlib.closing(pair):
        (pair.root / "var/cache/apk/old.apk").unlink()
        (pair.root / "var/cache/apk/new.apk").write_bytes(b"new")
        (pair.root / "var/cache/apk").chmod(0o700)
        (pair.root / "var/log/apk.log").unlink()
        found = pair.compare()
    assert not found.relevant
    assert found.removed == ("var/cache/apk/old.apk", "var/log/apk.log")


def test_a_database_of_a_merged_usr(top: Path) -> None:
    """apk 3 on a root whose /lib leads to /usr/lib: the database has its name below usr."""

    def prepare(root: Path) -> None:
        (root / "usr/lib/apk/db").mkdir(parents=True)
        (root / "lib").symlink_to("usr/lib")
        (root / "usr/lib/apk/db/installed").write_bytes(DATABASE)
        (root / "etc/apk").mkdir(parents=True)

    for content, relevant in ((DATABASE, False), (DATABASE + DATABASE, True)):
        pair = Pair(top, prepare)
        with contextlib.closing(pair):
            pair.replace("usr/lib/apk/db/installed", content)
            (pair.root / "usr/lib/apk/db/lock").touch()
            assert pair.compare().relevant is relevant


# ---- changes -----------------------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda root: (root / "usr/bin/a").write_bytes(b"A"),
    "content in place": lambda root: (root / "etc/apk/world").write_bytes(b"base more\n"),
    "chmod": lambda root: (root / "usr/bin/a").chmod(0o755),
    "chmod of the database": lambda root: (root / "lib/apk/db/installed").chmod(0o600),
    "chown": lambda root: os.chown(root / "usr/bin/a", 7, 7),
    "chown of world": lambda root: os.chown(root / "etc/apk/world", 0, 7),
    "chown of a link": lambda root: os.lchown(root / "usr/bin/link", 7, 7),
    "xattr": lambda root: os.setxattr(root / "usr/bin/a", "user.x", b"1"),
    "xattr of world": lambda root: os.setxattr(root / "etc/apk/world", "user.x", b"1"),
    "xattr of a directory": lambda root: os.setxattr(root / "usr/bin", "user.x", b"1"),
    "chmod of a directory": lambda root: (root / "usr/bin").chmod(0o700),
    "chown of a directory": lambda root: os.chown(root / "usr/share", 7, 7),
    "chmod of the root": lambda root: root.chmod(0o700),
    "a new file": lambda root: (root / "usr/bin/c").touch(),
    "a new directory": lambda root: (root / "opt").mkdir(),
    "a new key": lambda root: (root / "etc/apk/keys/k.pub").touch(),
    "a new file of the database": lambda root: (root / "lib/apk/db/more").touch(),
    "a fifo": lambda root: os.mkfifo(root / "etc/apk/fifo"),
    "a new link": lambda root: (root / "usr/bin/c").symlink_to("a"),
    "a new hard link": lambda root: os.link(root / "etc/hostname", root / "usr/bin/hostname"),
    "the name server": lambda root: (root / "etc/resolv.conf").write_text("nameserver ::2\n"),
    "the fstab": lambda root: (root / "etc/fstab").write_text("mine\n"),
    "the mode of the fstab": lambda root: (root / "etc/fstab").chmod(0o600),
    "touch": lambda root: os.utime(root / "usr/bin/a"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_change(pair: Pair, name: str) -> None:
    CHANGES[name](pair.root)
    found = pair.compare()
    assert found.relevant
    assert found.removed == ()


def swap(root: Path, one: str, other: str) -> None:
    (root / one).rename(root / "swap")
    (root / other).rename(root / one)
    (root / "swap").rename(root / other)


def replace_directory(root: Path) -> None:
    """The same name and mode, another directory: what the old one held is gone."""
    remove_tree(root, "usr/share/doc")
    (root / "usr/share/doc").mkdir()


def remove_tree(root: Path, name: str) -> None:
    fd = os.open(root, os.O_RDONLY)
    removal.remove_tree(fd, name)
    os.close(fd)


def empty_and_fill(root: Path) -> None:
    replace_directory(root)
    for name in ("x", "y", "b"):
        (root / "usr/share/doc" / name).write_bytes(name.encode())


def link_elsewhere(root: Path) -> None:
    (root / "usr/bin/link").unlink()
    (root / "usr/bin/link").symlink_to("b")


def fstab_as_link(root: Path) -> None:
    (root / "etc/fstab").rename(root / "etc/real")
    (root / "etc/fstab").symlink_to("real")


def file_to_directory(root: Path) -> None:
    (root / "etc/hostname").unlink()
    (root / "etc/hostname").mkdir()


LOSSES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "a file": (lambda root: (root / "etc/hostname").unlink(), ("etc/hostname",)),
    "world": (lambda root: (root / "etc/apk/world").unlink(), ("etc/apk/world",)),
    "the fstab": (lambda root: (root / "etc/fstab").unlink(), ("etc/fstab",)),
    "one hard link": (lambda root: (root / "usr/bin/also-a").unlink(), ("usr/bin/also-a",)),
    "a tree": (lambda root: remove_tree(root, "usr/share"), ("usr/share",)),
    "a directory made anew": (
        replace_directory, ("usr/share/doc/b", "usr/share/doc/x", "usr/share/doc/y"),
    ),
    "a directory made and filled anew": (empty_and_fill, ()),
    "a rename": (lambda root: (root / "usr/bin/a").rename(root / "usr/bin/c"), ("usr/bin/a",)),
    "a rename elsewhere": (lambda root: (root / "usr/bin/a").rename(root / "boot/a"), ("usr/bin/a",)),
    "a directory's rename": (lambda root: (root / "usr/share").rename(root / "share"), ("usr/share",)),
    "files that swap names": (lambda root: swap(root, "usr/bin/a", "etc/hostname"), ()),
    "directories that swap names": (
        lambda root: swap(root, "usr/bin", "usr/share/doc"),
        ("usr/bin/a", "usr/bin/also-a", "usr/bin/link", "usr/share/doc/x", "usr/share/doc/y"),
    ),
    "a link to something else": (link_elsewhere, ()),
    "a file that becomes a directory": (file_to_directory, ()),
    "a fstab that becomes a link": (fstab_as_link, ()),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_loss(pair: Pair, name: str) -> None:
    act, removed = LOSSES[name]
    act(pair.root)
    found = pair.compare()
    assert found.relevant
    assert found.removed == removed


def test_every_name_of_a_changed_file_is_listed(pair: Pair) -> None:
    (pair.root / "usr/bin/b").write_bytes(b"B")
    assert {"usr/bin/b", "usr/share/doc/b"} <= set(pair.compare().paths)


def test_paths_are_relative_sorted_and_only_of_what_changed(pair: Pair) -> None:
    (pair.root / "boot/vmlinuz").write_bytes(b"k")
    (pair.root / "top").touch()
    assert pair.compare().paths == (".", "boot", "boot/vmlinuz", "etc", "etc/fstab", "top")


def test_a_base_without_a_fstab(top: Path) -> None:
    """Ours is new then, and still no change; one that the change removed is."""
    pair = Pair(top, lambda root: (root / "etc").mkdir())
    with contextlib.closing(pair):
        assert not pair.compare().relevant
        (pair.root / "etc/fstab").chmod(0o640)
        assert pair.compare().relevant


def test_a_lock_that_held_something_is_no_lock(top: Path) -> None:
    def prepare(root: Path) -> None:
        fill(root)
        (root / "lib/apk/db/lock").touch()

    pair = Pair(top, prepare)
    with contextlib.closing(pair):
        (pair.root / "lib/apk/db/lock").write_bytes(b"x")
        assert pair.compare().relevant


def test_files_too_large_to_compare_count_as_changed(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changed, "_COMPARE_LIMIT", len(DATABASE) - 1)
    pair.replace("lib/apk/db/installed")
    assert pair.compare().relevant


def test_what_was_written_through_a_mapping_is_seen(pair: Pair) -> None:
    with open(pair.root / "usr/bin/a", "r+b") as file, mmap.mmap(file.fileno(), 1) as mapping:
        mapping[0:1] = b"M"
    assert pair.compare().relevant


# ---- several subvolumes ------------------------------------------------------------------------------------


@pytest.fixture
def parts(top: Path, pair: Pair) -> Iterator[tuple[Part, Part]]:
    """`@` and a second subvolume, which the generation has at /usr."""

    def prepare(root: Path) -> None:
        (root / "bin").mkdir()
        (root / "bin/tool").write_bytes(b"t")
        (root / "lib/apk/db").mkdir(parents=True)
        (root / "lib/apk/db/installed").write_bytes(DATABASE)

    other = Pair(top, prepare)
    with contextlib.closing(other):
        yield pair.part, Part("usr", other.part.base, other.part.staged)


def write(part: Part, name: str, content: bytes) -> None:
    files.write_atomic(part.staged, name, content)


def test_a_change_beside_the_root_is_one(parts: tuple[Part, Part]) -> None:
    assert not changed.compare(parts, FSTAB).relevant
    write(parts[1], "bin/new", b"x")
    os.unlink("bin/tool", dir_fd=parts[1].staged)
    found = changed.compare(parts, FSTAB)
    assert found.relevant
    assert found.removed == ("usr/bin/tool",)
    assert {"usr/bin", "usr/bin/new"} <= set(found.paths)


def test_the_rules_hold_for_the_place_that_a_part_has(parts: tuple[Part, Part]) -> None:
    write(parts[1], "lib/apk/db/installed", DATABASE)
    write(parts[1], "lib/apk/db/lock", b"")
    assert not changed.compare(parts, FSTAB).relevant
    elsewhere = Part("srv", parts[1].base, parts[1].staged)
    assert changed.compare((parts[0], elsewhere), FSTAB).relevant


def test_a_fstab_in_another_part_is_an_ordinary_file(parts: tuple[Part, Part]) -> None:
    os.mkdir("etc", dir_fd=parts[1].staged)
    write(parts[1], "etc/fstab", FSTAB)
    assert changed.compare(parts, FSTAB).relevant

