"""The journal on a real volume: what each step leaves there, and that recovery removes exactly a transaction."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apk_atomic import journal, pointer
from apk_atomic.errors import CheckFailed
from apk_atomic.names import is_own_id
from tests.support import btrfsctl, engine
from tests.support.engine import Place


def fill(root: Path) -> None:
    (root / "etc").mkdir()
    (root / "etc/name").write_text("base")


@pytest.fixture
def place(top: Path) -> Iterator[Place]:
    with engine.place(top, booted="one") as made:
        made.generation("one", fill)
        made.point("one", "one", name="first")
        yield made


def whole(place: Place) -> dict[str, str]:
    """Every name on the volume with what it is; directories that the journal makes once count as there."""
    found = {}
    for directory, names, others in os.walk(place.top):
        for name in (*names, *others):
            path = Path(directory, name)
            found[str(path.relative_to(place.top))] = os.readlink(path) if path.is_symlink() else str(path.is_dir())
    return {path: what for path, what in found.items() if path not in ("staging", "next")}


def laid_out(place: Place) -> str:
    """A transaction that is ready to be committed."""
    name = journal.begin(place.volume)
    journal.stage(place.volume, name, "one")
    (place.top / "staging" / name / "@/etc/name").write_text("new")
    (place.top / "snapshots" / name).mkdir()
    pointer.lay_out(place.volume, name, (name, "one"))
    journal.seal(place.volume, name)
    return name


# ---- the steps ---------------------------------------------------------------------------------------------


def test_begin_makes_a_journal_of_its_own(place: Place) -> None:
    names = [journal.begin(place.volume) for _ in range(3)]
    assert len(set(names)) == 3
    assert all(map(is_own_id, names))
    assert place.names("staging") == sorted(names)
    assert (place.top / "staging").stat().st_mode & 0o777 == 0o700
    assert place.names("next") == []


@pytest.mark.parametrize("name", ["staging", "next"])
@pytest.mark.parametrize("make", [lambda path: path.write_text(""), lambda path: path.symlink_to("snapshots")])
def test_begin_refuses_what_is_in_its_way(place: Place, name: str, make: Callable[[Path], object]) -> None:
    make(place.top / name)
    before = whole(place)
    with pytest.raises(CheckFailed, match=f"{name} at the top level") as refusal:
        journal.begin(place.volume)
    assert whole(place) == before
    assert name in refusal.value.hint


def test_stage_snapshots_all_subvolumes_of_base_writable(place: Place) -> None:
    home = place.generation("many", fill, beside=("@usr", "@opt")).parent
    (home / "generation.json").write_text("{}")
    name = journal.begin(place.volume)
    journal.stage(place.volume, name, "many")
    staged = place.top / "staging" / name
    assert sorted(os.listdir(staged)) == ["@", "@opt", "@usr", "tmp"]
    assert not any(btrfsctl.is_read_only(staged / each) for each in ("@", "@opt", "@usr"))
    assert (staged / "@/etc/name").read_text() == "base"
    assert (staged / "tmp").stat().st_mode & 0o7777 == 0o1777


def test_stage_of_a_base_that_is_gone(place: Place) -> None:
    name = journal.begin(place.volume)
    with pytest.raises(OSError, match="No such file"):
        journal.stage(place.volume, name, "gone")
    journal.remove(place.volume, name)
    assert place.names("staging") == []


def test_seal_is_read_only_complete_and_out_of_a_writers_reach(place: Place) -> None:
    place.generation("many", fill, beside=("@usr",))
    name = journal.begin(place.volume)
    journal.stage(place.volume, name, "many")
    (place.top / "snapshots" / name).mkdir()
    with open(place.top / "staging" / name / "@/etc/name", "w") as writer:
        writer.write("new")
        writer.flush()
        journal.seal(place.volume, name)
        writer.write(" and late")
    sealed = place.top / "snapshots" / name
    assert btrfsctl.is_read_only(sealed / "@") and btrfsctl.is_read_only(sealed / "@usr")
    assert (sealed / "@/etc/name").read_text() == "new"
    assert sorted(os.listdir(sealed)) == ["@", "@usr"]


@pytest.mark.parametrize("where", ["@/inner", "@/etc/inner", "@usr/inner"])
def test_seal_refuses_a_subvolume_that_the_change_made(place: Place, where: str) -> None:
    place.generation("many", fill, beside=("@usr",))
    name = journal.begin(place.volume)
    journal.stage(place.volume, name, "many")
    (place.top / "snapshots" / name).mkdir()
    btrfsctl.create_subvolume(place.top / "staging" / name / where)
    with pytest.raises(CheckFailed, match="'inner'"):
        journal.seal(place.volume, name)
    journal.remove(place.volume, name)
    assert place.names("staging") == []
    assert place.names("snapshots") == ["many", "one"]


# ---- removal and recovery ----------------------------------------------------------------------------------


def begun(place: Place) -> str:
    return journal.begin(place.volume)


def staged(place: Place) -> str:
    name = journal.begin(place.volume)
    journal.stage(place.volume, name, "one")
    return name


def with_record(place: Place) -> str:
    name = staged(place)
    (place.top / "snapshots" / name).mkdir()
    (place.top / "snapshots" / name / "generation.json").write_text("{}")
    return name


def subvolumes_everywhere(place: Place) -> str:
    """What a hostile script can leave: subvolumes in subvolumes, in /tmp, in directories, read-only ones."""
    name = staged(place)
    home = place.top / "staging" / name
    for path in ("@/a", "@/a/b", "tmp/c", "tmp/c/d"):
        btrfsctl.create_subvolume(home / path)
    (home / "tmp/deep/er").mkdir(parents=True)
    btrfsctl.create_subvolume(home / "tmp/deep/er/e")
    (home / "tmp/deep/er/e/file").write_text("x")
    btrfsctl.set_read_only(home / "@/a/b", True)
    btrfsctl.set_read_only(home / "tmp/c", True)
    return name


STATES = (begun, staged, with_record, laid_out, subvolumes_everywhere)


@pytest.mark.parametrize("reach", STATES, ids=lambda reach: reach.__name__)
def test_remove_and_recover_undo_a_transaction_from_anywhere(place: Place, reach: Callable[[Place], str]) -> None:
    before = whole(place)
    journal.remove(place.volume, reach(place))
    assert whole(place) == before
    name = reach(place)
    assert journal.recover(place.volume) == (name,)
    assert whole(place) == before
    assert journal.recover(place.volume) == ()
    journal.remove(place.volume, name)
    assert whole(place) == before


def test_several_transactions_at_once(place: Place) -> None:
    before = whole(place)
    names = [reach(place) for reach in STATES]
    assert journal.recover(place.volume) == tuple(sorted(names))
    assert whole(place) == before


def test_what_the_pointer_reaches_stays(place: Place) -> None:
    """A kill right after the rename: only the journal itself is left to remove."""
    name = laid_out(place)
    os.rename(place.top / "next" / f"current-{name}", place.top / "current")
    assert journal.recover(place.volume) == (name,)
    assert place.names("staging") == place.names("next") == []
    assert place.names("snapshots") == sorted(["one", name])
    assert name in place.names("links")


def test_a_generation_in_a_fallback_slot_or_booted_stays(place: Place) -> None:
    """A journal that bears the name of a generation, as `adopt` makes it, is not what decides."""
    for name in ("fallback", "booted"):
        place.generation(name)
        (place.top / "staging").mkdir(exist_ok=True)
        (place.top / "staging" / name).mkdir()
    place.point("one", "fallback", name="second")
    journal.recover(place.volume._replace(booted="booted"))
    assert place.names("snapshots") == ["booted", "fallback", "one"]
    assert place.names("staging") == []


def test_nothing_else_is_ever_removed(place: Place) -> None:
    (place.top / "staging").mkdir()
    (place.top / "staging/notes").write_text("somebody's")
    (place.top / "staging/link").symlink_to("../snapshots/one")
    (place.top / "staging/.hidden").mkdir()
    (place.top / "links/old").mkdir()
    place.generation("foreign", sealed=False)
    before = whole(place)
    journal.remove(place.volume, "nothing")
    assert journal.recover(place.volume) == ()
    assert whole(place) == before


def test_recovery_without_a_usable_pointer_removes_nothing(place: Place) -> None:
    laid_out(place)
    place.set_current("./links/gone")
    before = whole(place)
    with pytest.raises(CheckFailed, match="`current` points to"):
        journal.recover(place.volume)
    assert whole(place) == before


def test_a_staging_that_is_a_link_leads_nowhere(place: Place) -> None:
    (place.top / "staging").symlink_to("snapshots")
    with pytest.raises(CheckFailed, match="staging at the top level"):
        journal.recover(place.volume)
    assert place.names("snapshots") == ["one"]


# ---- other uses --------------------------------------------------------------------------------------------


def test_adopt_turns_a_generation_into_garbage_at_once(place: Place) -> None:
    place.generation("old", fill, beside=("@usr",))
    with journal.opened(place.volume) as places:
        journal.adopt(places, "old")
    assert place.names("snapshots") == ["one"]
    assert place.names("staging") == ["old"]
    assert journal.recover(place.volume) == ("old",)
    assert place.names("staging") == []


def test_release_leaves_the_generation_alone(place: Place) -> None:
    name = laid_out(place)
    journal.release(place.volume, name)
    assert place.names("snapshots") == sorted(["one", name])
    assert place.names("staging") == place.names("next") == []
    assert place.names("links") == ["first"]
    assert (place.top / "snapshots" / name / "@/etc/name").read_text() == "new"


def test_remove_directory(place: Place) -> None:
    place.generation("old", fill)
    (place.top / "snapshots/old/@tmp").mkdir()
    journal.remove_directory(place.volume, "snapshots", "old")
    journal.remove_directory(place.volume, "snapshots", "old")
    journal.remove_directory(place.volume, "nowhere", "old")
    assert place.names("snapshots") == ["one"]


def test_no_descriptor_is_left_open(place: Place) -> None:
    before = os.listdir("/proc/self/fd")
    for reach in STATES:
        journal.remove(place.volume, reach(place))
    journal.recover(place.volume)
    place.generation("old", fill)
    with journal.opened(place.volume) as places:
        journal.collect(place.volume, places, "old")
    assert len(os.listdir("/proc/self/fd")) == len(before)
