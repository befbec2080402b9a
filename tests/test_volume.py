"""The volume as it is read: pointer, slots, generations and records, whatever somebody did to them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apk_atomic import locate, lock, mounts
from apk_atomic.errors import AtomicError, CheckFailed, NotSuchRoot
from apk_atomic.model import State
from apk_atomic.names import is_safe_name
from apk_atomic.volume import (
    count_generations,
    current_links,
    kernel_releases,
    links_of,
    open_root,
    opened,
    pending_ids,
    read_again,
    read_slots,
    read_state,
    slot_links,
    slot_target,
    subvolumes_of,
)
from tests.support import btrfsctl, engine
from tests.support.engine import Place
from tests.support.properties import cheap
from tests.support.world import FIRST, Volume

HOSTILE = st.text(st.sampled_from("./ab-,\\ \n\x1b\udcff0é"), max_size=24)
PATHS = st.one_of(
    HOSTILE, HOSTILE.map("./links/".__add__), HOSTILE.map("links/".__add__), HOSTILE.map("../../snapshots/".__add__)
)


@pytest.fixture
def place(top: Path) -> Iterator[Place]:
    with engine.two_generations(top) as made:
        yield made


# ---- texts of links ----------------------------------------------------------------------------------------


@cheap(150)
@given(PATHS)
def test_a_link_text_names_one_safe_component_or_nothing(text: str) -> None:
    for found, prefixes in ((links_of(text), ("./links/", "links/")), (slot_target(text), ("../../snapshots/",))):
        if found is not None:
            assert is_safe_name(found)
            assert text.rstrip("/") in {prefix + found for prefix in prefixes}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("./links/a", "a"), ("links/a", "a"), ("./links/a/", "a"), ("./links/..", None), ("./links/", None),
        ("./links", None), ("./links/a/b", None), ("/links/a", None), ("../links/a", None), ("", None), ("./", None),
        ("././links/a", None), ("./links/.a", None), ("./links//a", None), ("./links/a\n", None),
    ],
)  # fmt: skip
def test_links_of(text: str, found: str | None) -> None:
    assert links_of(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("../../snapshots/a", "a"), ("../../snapshots/a/", "a"), ("../../snapshots/../x", None), ("snapshots/a", None),
        ("../../snapshots/..", None), ("/snapshots/a", None), ("../../../snapshots/a", None), ("", None),
        ("../../snapshots/a/@", None), ("../../snapshots/", None),
    ],
)  # fmt: skip
def test_slot_target(text: str, found: str | None) -> None:
    assert slot_target(text) == found


# ---- the pointer -------------------------------------------------------------------------------------------


def test_current(place: Place) -> None:
    assert current_links(place.volume) == "first"
    assert slot_links(place.volume, "first") == ("two", "one")


@pytest.mark.parametrize("text", ["./links/nowhere", "./links/..", "/etc", "current", "./links/file", "./links/link"])
def test_a_current_that_leads_nowhere(place: Place, text: str) -> None:
    (place.top / "links/file").write_text("")
    (place.top / "links/link").symlink_to("first")
    place.set_current(text)
    with pytest.raises(CheckFailed, match="`current` points to") as refusal:
        current_links(place.volume)
    assert "ln -sfn" in refusal.value.hint
    with pytest.raises(CheckFailed):
        read_state(place.volume)
    with pytest.raises(CheckFailed):
        read_slots(place.volume)


def test_a_current_that_is_none(place: Place) -> None:
    (place.top / "current").unlink()
    with pytest.raises(NotSuchRoot, match="has no `current`"):
        current_links(place.volume)
    (place.top / "current").mkdir()
    with pytest.raises(CheckFailed, match="not a symbolic link"):
        current_links(place.volume)


def test_slots_that_are_damaged(place: Place) -> None:
    links = place.top / "links/first"
    (links / "2").symlink_to("../../snapshots/gone")
    (links / "3").symlink_to("/snapshots/one")
    (links / "4").mkdir()
    (links / "6").symlink_to("../../snapshots/one")
    for name in ("9999", "-1", "x", "٣", "007"):
        (links / name).symlink_to("../../snapshots/one")
    assert slot_links(place.volume, "first") == ("two", "one", "gone", "", "", "", "one", "")
    assert read_state(place.volume).slots == ("two", "one", "", "", "", "", "one", "")


# ---- generations -------------------------------------------------------------------------------------------


def test_state(place: Place) -> None:
    state = read_state(place.volume)
    assert [each.id for each in state.generations] == ["one", "two"]
    assert (state.slots, state.booted, state.next, state.pending) == (("two", "one"), "one", "two", False)
    one, two = state.generations
    assert one.order < two.order
    assert one.sealed and one.foreign and not (one.good or one.failed or one.pinned or one.attempts or one.record)
    assert abs(one.created - os.stat(place.top / "snapshots/one").st_mtime) < 60


def test_what_is_no_generation(place: Place) -> None:
    snapshots = place.top / "snapshots"
    (snapshots / "file").write_text("")
    (snapshots / "empty").mkdir()
    (snapshots / "plain/@").mkdir(parents=True)
    (snapshots / "link").symlink_to("one")
    (snapshots / "inside").mkdir()
    (snapshots / "inside/@").symlink_to("../one/@")
    place.generation(".hidden")
    place.generation("with space")
    btrfsctl.create_subvolume(snapshots / "direct")
    assert [each.id for each in read_state(place.volume).generations] == ["one", "two"]
    assert count_generations(place.volume) == 8


def test_read_slots_is_read_state_on_the_slots(place: Place) -> None:
    place.generation("three")
    (place.top / "snapshots/two/good").touch()
    for slots in (("two", "one"), ("three", "gone", "two"), ("gone",), (), ("two", "two", "two")):
        place.point(*slots, name="-".join(("links", *slots)))
        whole, part = read_state(place.volume), read_slots(place.volume)
        wanted = {*slots, "one"}
        assert whole._replace(generations=()) == part._replace(generations=())
        assert {each.id for each in part.generations} == {each.id for each in whole.generations} & wanted
        assert all(whole.find(each.id) == each for each in part.generations)


def test_read_again_reads_what_it_is_told_to(place: Place) -> None:
    place.generation("three")
    known = read_state(place.volume)
    for name in ("one", "three"):
        (place.top / "snapshots" / name / "pinned").touch()
    place.generation("four")
    place.point("four", "one", name="second")
    assert read_again(place.volume, known, ()) == known._replace(slots=("", "one"), links="second")
    found = read_again(place.volume, known, ("four", "three", "three", "gone"))
    now = read_state(place.volume)
    assert found.slots == ("four", "one")
    assert {each.id for each in found.generations} == {each.id for each in now.generations}
    for each in found.generations:
        assert (each == now.find(each.id)) is (each.id != "one"), each.id


# ---- pending -----------------------------------------------------------------------------------------------


def test_pending_is_what_the_file_and_the_pointer_agree_on(place: Place) -> None:
    with engine.own_run() as run:
        assert pending_ids() == ()
        for text, pending in (("first\n", True), ("other\nfirst\n", True), ("other\n", False), ("\xff\n", False)):
            (run / "next").write_bytes(text.encode("latin-1"))
            assert read_state(place.volume).pending is read_slots(place.volume).pending is pending
        (run / "next").write_text("first\n")
        assert not read_state(place.volume._replace(booted=None)).pending
        assert not read_state(place.volume._replace(booted="two")).pending
        (run / "next").write_bytes(b"x" * 5000)
        assert len(pending_ids()[0]) == 1024


# ---- roots -------------------------------------------------------------------------------------------------


def test_open_root(place: Place) -> None:
    (place.top / "snapshots/link").symlink_to("one")
    fd = open_root(place.volume, "one")
    assert os.fstat(fd).st_ino == 256
    os.close(fd)
    for name in ("gone", "link"):
        with pytest.raises(CheckFailed, match=f"cannot open generation {name}"):
            open_root(place.volume, name)


def test_subvolumes(place: Place) -> None:
    home = place.generation("many", beside=("@usr", "@opt")).parent
    (home / "directory").mkdir()
    (home / "link").symlink_to("@usr")
    assert subvolumes_of(place.volume, "many") == ["@", "@opt", "@usr"]
    assert subvolumes_of(place.volume, "one") == ["@"]


def test_kernel_releases(place: Place) -> None:
    def prepare(root: Path) -> None:
        for flavor in ("lts", "virt", "none"):
            (root / "usr/share/kernel" / flavor).mkdir(parents=True)
        (root / "usr/share/kernel/lts/kernel.release").write_text("6.12.1-0-lts\n")
        (root / "usr/share/kernel/virt/kernel.release").write_text("6.12.2-0-virt\n")
        (root / "usr/share/kernel/stray").write_text("")

    place.generation("kernels", prepare)
    open_before = len(os.listdir("/proc/self/fd"))
    assert kernel_releases(place.volume, "kernels") == ("6.12.1-0-lts", "6.12.2-0-virt")
    assert kernel_releases(place.volume, "one") == ()
    assert kernel_releases(place.volume, "gone") == ()
    assert len(os.listdir("/proc/self/fd")) == open_before


# ---- opening a volume --------------------------------------------------------------------------------------


def located(world: Volume) -> locate.Located:
    return locate.Located(world.device, world.fsid, None)


def test_opened_for_reading_and_for_writing(volume: Volume) -> None:
    with engine.own_run():
        with opened(located(volume), writable=False) as found:
            assert read_state(found) == State(read_state(found).generations, (FIRST,) * 4, links=FIRST)
            with pytest.raises(OSError, match="Read-only"):
                os.mkdir("x", dir_fd=found.top)
        with opened(located(volume), writable=True) as found:
            assert not found.read_only
            os.mkdir("x", dir_fd=found.top)
        assert not [each for each in mounts.mount_table() if each.point.startswith("/run/")]
    assert (volume.top / "x").is_dir()


def test_opened_where_there_is_no_layout(volume: Volume) -> None:
    (volume.top / "snapshots").rename(volume.top / "elsewhere")
    (volume.top / "snapshots").symlink_to("elsewhere")
    with (
        engine.own_run(),
        pytest.raises(NotSuchRoot, match="no snapshots") as refusal,
        opened(located(volume), writable=True),
    ):
        pytest.fail("that is no layout")
    assert "init" in refusal.value.hint
    (volume.top / "snapshots").unlink()
    (volume.top / "elsewhere").rename(volume.top / "snapshots")


def test_opened_where_nothing_can_be_mounted() -> None:
    with (
        engine.own_run(),
        pytest.raises(NotSuchRoot, match="cannot mount the top level of /dev/null"),
        opened(locate.Located("/dev/null", "x", None), writable=True),
    ):
        pytest.fail("that is no volume")


def test_a_run_directory_that_is_not_ours() -> None:
    with engine.own_run() as run:
        lock.make_run_directory()
        os.chmod(run, 0o777)
        with pytest.raises(AtomicError, match="only root can write"):
            lock.make_run_directory()
        run.rmdir()
        run.symlink_to("/tmp")
        with pytest.raises(AtomicError, match="only root can write"):
            lock.make_run_directory()
