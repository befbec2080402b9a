"""The mount table: parsed whatever names mounts have, and the mount that a path lies in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apk_atomic import mounts
from apk_atomic.mounts import Mount, covering, parse_mountinfo
from tests.support.isolation import private_mounts
from tests.support.properties import cheap

LINES = """\
21 1 0:20 /snapshots/20260101000000abcdefgh/@ / ro,noatime shared:1 - btrfs /dev/sda2 ro,subvolid=260,subvol=/x
22 21 0:5 / /proc rw,nosuid master:2 propagate_from:3 unbindable - proc proc rw
23 21 0:31 /a\\040b /mnt/with\\040space\\011tab\\012line\\134back rw - ext4 /dev/disk/by-label/a\\043b rw,x=1\\0542
nonsense
24 21 0:6 /
"""
NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8)


def escaped(text: str) -> str:
    """As mangle() of fs/proc_namespace.c writes a field."""
    return "".join(f"\\{ord(char):03o}" if char in " \t\n\\#" else char for char in text)


def mount_at(point: str, device: str = "0:1") -> Mount:
    return Mount(device, "/", point, "tmpfs", "tmpfs", ("rw",))


def test_fields_and_escapes() -> None:
    root, proc, spaced = parse_mountinfo(LINES)
    assert root == Mount(
        "0:20", "/snapshots/20260101000000abcdefgh/@", "/", "btrfs", "/dev/sda2", ("ro", "subvolid=260", "subvol=/x")
    )
    assert (proc.point, proc.fstype) == ("/proc", "proc")
    assert (spaced.root, spaced.point) == ("/a b", "/mnt/with space\ttab\nline\\back")
    assert (spaced.source, spaced.super_options) == ("/dev/disk/by-label/a#b", ("rw", "x=1,2"))


@cheap(100)
@given(st.lists(st.tuples(NAMES, NAMES), max_size=4))
def test_every_name_comes_back(names: list[tuple[str, str]]) -> None:
    text = "".join(
        f"1 2 0:3 /{escaped(root)} /{escaped(point)} rw - tmpfs {escaped(root)} rw\n" for root, point in names
    )
    found = parse_mountinfo(text)
    assert [(each.root, each.point, each.source) for each in found] == [(f"/{a}", f"/{b}", a) for a, b in names]


@cheap(60)
@given(st.text(st.sampled_from(" -\\014/\na"), max_size=60))
def test_any_text_gives_an_answer(text: str) -> None:
    assert len(parse_mountinfo(text)) <= text.count("\n") + 1


def test_a_real_mount_with_a_hostile_name(tmp_path: Path) -> None:
    """Names that would end a line of the table for anything less strict than the kernel."""
    private_mounts()
    for name in (b"a b\\040#", b"line\x0bfeed\x0c\x1c\xc2\x85\xe2\x80\xa8x", b"return\rx", b"\xff\xfe"):
        point = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        point.mkdir()
        mounts.mount("source " + point.name, str(point), "tmpfs")
        try:
            last = mounts.mount_table()[-1]
        finally:
            mounts.unmount(str(point))
        assert (last.point, last.fstype, last.source) == (str(point), "tmpfs", "source " + point.name)


def test_the_table_of_a_process_that_is_gone() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(OSError, match="No such"):
        mounts.mount_table(str(child))


@pytest.mark.parametrize(
    ("path", "point"),
    [
        ("/", "/"),
        ("/etc/fstab", "/"),
        ("/home", "/home"),
        ("/home/user/x", "/home"),
        ("/homely", "/"),
        ("/home/user2", "/home"),
        ("/mnt/a/b", "/mnt/a"),
    ],
)
def test_covering(path: str, point: str) -> None:
    table = tuple(map(mount_at, ("/", "/home", "/mnt/a", "/mnt", "/home/user2x")))
    found = covering(path, table)
    assert found is not None
    assert found.point == point


def test_of_two_mounts_at_one_place_the_later_covers() -> None:
    table = (mount_at("/"), mount_at("/mnt", "0:1"), mount_at("/mnt", "0:2"))
    assert covering("/mnt/x", table) == table[2]
    assert covering("/x", ()) is None
