"""The pointer on a real volume: laid out, checked, switched; and the mark of what is pending."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apk_atomic import faults, journal, pointer
from apk_atomic.errors import CheckFailed, NotDurable
from apk_atomic.volume import current_links, pending_ids, read_state
from tests.support import engine
from tests.support.engine import Place


@pytest.fixture
def run() -> Iterator[Path]:
    with engine.own_run() as directory:
        yield directory


def fill(root: Path) -> None:
    (root / "boot").mkdir()
    (root / "boot/vmlinuz-lts").write_text("kernel")
    (root / "boot/kernel").symlink_to("../boot/vmlinuz-lts")
    (root / "boot/absolute").symlink_to("/boot/vmlinuz-lts")
    (root / "boot/outside").symlink_to("/../../../../../etc/passwd")


@pytest.fixture
def place(top: Path) -> Iterator[Place]:
    with engine.place(top, booted="one") as made:
        made.generation("one", fill)
        made.generation("two", fill)
        made.point("one", name="first")
        yield made


@pytest.fixture
def ready(place: Place) -> str:
    """A transaction that has laid out its pointer to `two`, with `one` as fallback."""
    name = journal.begin(place.volume)
    pointer.lay_out(place.volume, name, ("two", "one"))
    return name


def links(place: Place, name: str) -> dict[str, str]:
    directory = place.top / "links" / name
    return {entry: os.readlink(directory / entry) for entry in sorted(os.listdir(directory))}


def test_lay_out_is_the_layout_of_the_wiki(place: Place, ready: str) -> None:
    assert links(place, ready) == {"0": "../../snapshots/two", "1": "../../snapshots/one"}
    assert os.readlink(place.top / f"next/current-{ready}") == f"./links/{ready}"
    assert current_links(place.volume) == "first"


def test_check_passes_what_is_right(place: Place, ready: str) -> None:
    pointer.check(place.volume, ready, "first", ("boot/vmlinuz-lts", "boot/kernel"))


def change_next(place: Place, ready: str) -> None:
    (place.top / f"next/current-{ready}").unlink()
    (place.top / f"next/current-{ready}").symlink_to("./links/first")


def move_current(place: Place, ready: str) -> None:
    place.point("two", name="other")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(change_next, "was changed by somebody else"), (move_current, "`current` was moved by somebody else")],
)
def test_check_notices_somebody_else(
    place: Place, ready: str, spoil: Callable[[Place, str], None], message: str
) -> None:
    spoil(place, ready)
    with pytest.raises(CheckFailed, match=message):
        pointer.check(place.volume, ready, "first", ())


@pytest.mark.parametrize("path", ["boot/initramfs-lts", "boot/vmlinuz-lts/x", "boot/outside", "boot/absolute"])
def test_check_misses_what_the_menu_names(place: Place, ready: str, path: str) -> None:
    """An absolute link leads a boot loader to the top level of the volume, one that leads out of the root away."""
    with pytest.raises(CheckFailed, match=f"the boot menu names {path}"):
        pointer.check(place.volume, ready, "first", ("boot/vmlinuz-lts", path))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda top, name: (top / "links" / name / "0").unlink(),
        lambda top, name: (top / "next" / f"current-{name}").unlink(),
        lambda top, name: (top / "snapshots/two").rename(top / "snapshots/three"),
    ],
)
def test_check_of_a_pointer_that_somebody_took_apart(
    place: Place, ready: str, spoil: Callable[[Path, str], None]
) -> None:
    spoil(place.top, ready)
    with pytest.raises((CheckFailed, OSError)):
        pointer.check(place.volume, ready, "first", ())


@pytest.mark.parametrize("number", [0, 1])
def test_check_of_a_slot_that_leads_elsewhere(place: Place, ready: str, number: int) -> None:
    slot = place.top / "links" / ready / str(number)
    slot.unlink()
    slot.symlink_to("/etc")
    with pytest.raises(CheckFailed, match=f"slot {number}"):
        pointer.check(place.volume, ready, "first", ())


# ---- the switch --------------------------------------------------------------------------------------------


def test_switch_moves_the_pointer_and_marks_it(place: Place, ready: str, run: Path) -> None:
    pointer.switch(place.volume, ready, "first")
    assert current_links(place.volume) == ready
    assert os.readlink(place.top / "current") == f"./links/{ready}"
    assert place.names("next") == []
    assert pending_ids() == (ready,)
    assert (run / "next").stat().st_mode & 0o777 == 0o644
    state = read_state(place.volume)
    assert (state.pending, state.slots) == (True, ("two", "one"))
    pointer.confirm(place.volume, ready)
    assert pending_ids() == (ready,)


def test_during_a_switch_both_sides_count_as_pending(place: Place, ready: str, run: Path) -> None:
    pointer.write_pending(("first",))
    pointer.switch(place.volume, ready, "first")
    assert pending_ids() == (ready, "first")
    pointer.confirm(place.volume, ready)
    assert pending_ids() == (ready,)


def test_a_volume_that_does_not_run_has_nothing_pending(place: Place, ready: str, run: Path) -> None:
    idle = place.volume._replace(booted=None)
    pointer.switch(idle, ready, "first")
    pointer.confirm(idle, ready)
    assert current_links(idle) == ready
    assert not (run / "next").exists()


@pytest.mark.parametrize("was_pending", [False, True])
def test_a_disk_that_does_not_confirm(
    place: Place, ready: str, run: Path, monkeypatch: pytest.MonkeyPatch, was_pending: bool
) -> None:
    """The rename is taken back, and what was pending before is pending again."""
    if was_pending:
        pointer.write_pending(("first",))
    monkeypatch.setenv(faults.VARIABLE, "renamed:fail")
    with pytest.raises(NotDurable, match="did not confirm") as failure:
        pointer.switch(place.volume, ready, "first")
    assert failure.value.exit_code == 107
    assert current_links(place.volume) == "first"
    assert pending_ids() == (("first",) if was_pending else ())
    monkeypatch.delenv(faults.VARIABLE)
    assert journal.recover(place.volume) == (ready,)
    assert (place.names("links"), place.names("next")) == (["first"], [])


def test_the_first_pointer_of_a_volume(place: Place, ready: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no `current` to compare with, and none to go back to."""
    idle = place.volume._replace(booted=None)
    (place.top / "current").unlink()
    pointer.check(idle, ready, "", ("boot/vmlinuz-lts",))
    monkeypatch.setenv(faults.VARIABLE, "renamed:fail")
    with pytest.raises(NotDurable):
        pointer.switch(idle, ready, "")
    assert not os.path.lexists(place.top / "current")
    monkeypatch.delenv(faults.VARIABLE)
    pointer.link_next(idle, ready)
    pointer.switch(idle, ready, "")
    assert current_links(idle) == ready


def test_a_mark_that_cannot_be_written_stops_it_in_time(place: Place, ready: str) -> None:
    with engine.own_run() as run:
        run.rmdir()
        with pytest.raises(FileNotFoundError):
            pointer.switch(place.volume, ready, "first")
    assert current_links(place.volume) == "first"


def test_pending_comes_and_goes(run: Path) -> None:
    pointer.write_pending(("a", "", "b"))
    assert (run / "next").read_text() == "a\nb\n"
    pointer.write_pending(("", ""))
    assert not (run / "next").exists()
    pointer.clear_pending()
    (run / "next").symlink_to("/nowhere")
    pointer.write_pending(("c",))
    assert (run / "next").read_text() == "c\n"
    assert not (run / "next").is_symlink()
