"""`adopt` and `adopt --finish` struck at each of their points: the old system is as it was and runs, and what was
struck can be done again, to the same end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from apk_atomic.faults import ADOPTION, POINTS
from tests.install.old import ADOPT, LAYOUT, OldSystem, old_system
from tests.support import btrfsctl
from tests.support.btrfsctl import is_read_only

PREPARE = ("locked", "mounted", "recovered", "prepared", "journal", "staged", "fstab", "changed", "proved", "unstaged",
           "unlocked")  # fmt: skip
BEFORE = ("locked", "mounted", "recovered", "journal", "staged", "fstab", "changed", "proved", "copied", "known",
          "record", "links", "laid-out", "sealed", "checked", "moved", "pending")  # fmt: skip
AFTER = ("renamed", "synced", "unstaged", "adopted", "menu", "unlocked")
FINISH = (*BEFORE, *AFTER)
AGAIN = ("copied", "known", "sealed", "moved", "pending", "renamed", "unstaged", "adopted")
NOT_DURABLE = 107


@pytest.fixture
def old() -> Iterator[OldSystem]:
    with old_system("/") as found:
        yield found


def test_the_points_of_adoption_are_all_struck() -> None:
    assert {*PREPARE, *FINISH} - {*POINTS} == {*ADOPTION}


def finished(old: OldSystem) -> None:
    """It is done, nothing is left of an earlier try, and the new system would boot."""
    said = old.adopt("--finish")
    assert said.status == 0, said.stderr
    names = os.listdir(old.top / "snapshots")
    assert [os.path.basename(os.readlink(slot)) for slot in (old.top / "current").iterdir()] == names * 4
    assert [os.listdir(old.top / each) for each in ("staging", "next")] == [[], []]
    assert os.listdir(old.top / "links") == names
    assert sorted(os.listdir(old.top / "commons")) == ["@home", "@var@cache", "@var@log"]
    assert is_read_only(old.generation()) and not LAYOUT & set(os.listdir(old.generation()))
    assert (old.top / "commons/@home/user/file").read_text() == "mine"
    assert (old.esp / "EFI/apk-atomic/refind.conf").exists()
    guest = old.boot_new()
    assert guest.booted == names[0]
    guest.run(["apk-atomic", "prove"], check=True)


def runs_as_before(old: OldSystem, before: dict[str, tuple[object, ...]]) -> None:
    """The machine is switched on again, with the old loader."""
    assert old.tree() == before
    assert old.boot().run(["cat", "/home/user/file"], check=True).stdout == "mine"
    assert (old.esp / "EFI/alpine/grubx64.efi").read_bytes() == b"old loader"
    assert not (old.esp / "EFI/BOOT").exists()


@pytest.mark.parametrize("point", PREPARE)
def test_the_first_step_is_killed(old: OldSystem, point: str) -> None:
    before = old.tree()
    old.boot()
    assert old.adopt(*ADOPT, APK_ATOMIC_FAULT=f"{point}:kill").status == -9
    runs_as_before(old, before)
    said = old.adopt(*ADOPT)
    assert said.status == 0, said.stderr
    assert old.tree() == before
    finished(old)
    assert old.tree() == before


@pytest.mark.parametrize("point", FINISH)
def test_the_finish_is_killed(old: OldSystem, point: str) -> None:
    before = old.tree()
    old.boot()
    assert old.adopt(*ADOPT).status == 0
    assert old.adopt("--finish", APK_ATOMIC_FAULT=f"{point}:kill").status == -9
    runs_as_before(old, before)
    finished(old)
    assert old.tree() == before


@pytest.mark.parametrize("point", AGAIN)
def test_a_second_finish_is_killed(old: OldSystem, point: str) -> None:
    """The first generation was made, and not used: it boots until the second one is in its place."""
    before = old.tree()
    old.boot()
    assert old.adopt(*ADOPT).status == 0
    assert old.adopt("--finish").status == 0
    assert old.adopt("--finish", APK_ATOMIC_FAULT=f"{point}:kill").status == -9
    assert btrfsctl.is_subvolume(old.generation())
    assert_mounts_all(old)
    runs_as_before(old, before)
    finished(old)
    assert old.tree() == before


def assert_mounts_all(old: OldSystem) -> None:
    """What slot 0 leads to has its commons, whichever copies these are."""
    commons = old.top / "commons"
    assert all(btrfsctl.is_subvolume(commons / name) for name in ("@home", "@var@cache", "@var@log"))
    assert (commons / "@home/user/file").read_text() == "mine"
    assert (commons / "@var@log/messages").read_text() == "a line\n"
    guest = old.boot_new()
    assert guest.run(["cat", "/home/user/file"], check=True).stdout == "mine"


def test_a_second_finish_that_fails_keeps_the_commons(old: OldSystem) -> None:
    """Some are exchanged already: slot 0 mounts old and new ones, nobody has used any, and it can be done again."""
    old.boot()
    assert old.adopt(*ADOPT).status == 0
    assert old.adopt("--finish").status == 0
    assert old.adopt("--finish", APK_ATOMIC_FAULT="moved:fail").status != 0
    assert os.listdir(old.top / "staging") == []
    assert_mounts_all(old)
    old.boot()
    finished(old)


@pytest.mark.parametrize(("action", "status"), [("fail", 104), ("full", 103), ("term", 143)])
@pytest.mark.parametrize("point", ["staged", "copied", "sealed", "moved", "pending"])
def test_the_finish_fails(old: OldSystem, point: str, action: str, status: int) -> None:
    """It cleans up at once; a signal that comes when all is laid out waits for the end."""
    before = old.tree()
    old.boot()
    assert old.adopt(*ADOPT).status == 0
    said = old.adopt("--finish", APK_ATOMIC_FAULT=f"{point}:{action}")
    late = action == "term" and point in ("moved", "pending")
    assert said.status == (0 if late else status), said.stderr
    assert "Traceback" not in said.stderr
    assert os.listdir(old.top / "staging") == []
    assert (old.top / "current").exists() == late
    assert old.tree() == before
    finished(old)


def test_a_switch_that_the_disk_does_not_confirm(old: OldSystem) -> None:
    before = old.tree()
    old.boot()
    assert old.adopt(*ADOPT).status == 0
    said = old.adopt("--finish", APK_ATOMIC_FAULT="renamed:fail")
    assert said.status == NOT_DURABLE, said.stderr
    runs_as_before(old, before)
    finished(old)


def test_two_at_once(old: OldSystem) -> None:
    guest = old.boot()
    with guest.popen(["apk-atomic", "adopt", *ADOPT], env={"APK_ATOMIC_FAULT": "mounted:stop"}) as first:
        while not os.path.exists(f"{guest.root}/run/apk-atomic/{old.fsid}.lock.holder"):
            assert first.poll() is None
        said = old.adopt(*ADOPT)
        assert (said.status, "another transaction is at work" in said.stderr) == (102, True), said.stderr
        first.kill()
    assert old.adopt(*ADOPT).status == 0
