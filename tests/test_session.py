"""What every changing verb works on: recovery, garbage, and what /run tells others."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apk_atomic import config, faults, generations, journal, locate, lock, mounts, pointer, session
from apk_atomic.config import Config
from apk_atomic.console import Console
from apk_atomic.errors import CheckFailed, Locked
from apk_atomic.retention import Victim
from apk_atomic.volume import Volume as Opened
from apk_atomic.volume import pending_ids, read_state
from tests.support import btrfsctl, engine
from tests.support.blockdev import unmount
from tests.support.engine import Place
from tests.support.world import FIRST, Volume

DAY = 86400.0


@pytest.fixture(autouse=True)
def run() -> Iterator[Path]:
    with engine.own_run() as directory:
        yield directory


@pytest.fixture
def place(top: Path) -> Iterator[Place]:
    with engine.place(top, booted="two") as made:
        for name in ("one", "two", "three"):
            ours(made, name)
        made.point("three", "two", name="first")
        yield made


def ours(
    place: Place, name: str, prepare: Callable[[Path], None] | None = None, *, beside: tuple[str, ...] = (),
    sealed: bool = True,
) -> Path:  # fmt: skip
    """A generation with a record beside it: it is not foreign."""
    root = place.generation(name, prepare, beside=beside, sealed=sealed)
    (root.parent / "generation.json").write_text("{}")
    return root


def collected(place: Place, *, keep: int = 0, now: float | None = None) -> list[str]:
    """IDs that would go."""
    settings = Config(generations=config.Generations(keep=keep))
    state = read_state(place.volume)
    return [victim.id for victim in session.plan_garbage(place.volume, settings, state, now or time.time() + 10)]


# ---- the plan ----------------------------------------------------------------------------------------------


def test_what_is_in_no_slot_goes_oldest_first(place: Place) -> None:
    ours(place, "four")
    assert collected(place) == ["one", "four"]
    assert collected(place, keep=1) == ["one"]
    assert collected(place, keep=9) == []


def test_a_mark_that_was_set_meanwhile_counts(place: Place) -> None:
    ours(place, "four")
    with engine.working(place.volume) as work:
        victims = session.plan_garbage(place.volume, Config(), read_state(place.volume), time.time() + 10)
        assert [victim.id for victim in victims] == ["one", "four"]
        (place.top / "snapshots/one/pinned").touch()
        assert [victim.id for victim in session.collect(work, victims).gone] == ["four"]
    assert [each.id for each in read_state(place.volume).generations] == ["one", "three", "two"]


def test_one_that_was_good_all_along_goes_where_a_newer_one_is(place: Place) -> None:
    """What is good, in no slot and not the newest good one, is a victim; one that became good meanwhile is none."""
    for name in ("four", "five"):
        ours(place, name)
    for name in ("one", "two", "four"):
        (place.top / "snapshots" / name / "good").touch()
    with engine.working(place.volume) as work:
        victims = session.plan_garbage(place.volume, Config(), read_state(place.volume), time.time() + 10)
        assert [victim.id for victim in victims] == ["one", "five"]
        (place.top / "snapshots/five/good").touch()
        assert [victim.id for victim in session.collect(work, victims).gone] == ["one"]
    assert [each.id for each in read_state(place.volume).generations] == ["five", "four", "three", "two"]


def test_who_reads_one_that_stays_is_not_held_off(place: Place) -> None:
    (place.top / "snapshots/one/pinned").touch()
    snapshots = os.open(place.top / "snapshots", os.O_RDONLY | os.O_DIRECTORY)
    try:
        holder = generations.hold(place.volume.top, "one")
        assert generations.claim(snapshots, "one") is None
        os.close(holder)
        (place.top / "snapshots/one/pinned").unlink()
        claimed = generations.claim(snapshots, "one")
        assert claimed is not None
        with pytest.raises(FileNotFoundError):
            generations.hold(place.volume.top, "one")
        os.close(claimed)
        os.close(generations.hold(place.volume.top, "one"))
    finally:
        os.close(snapshots)


def test_marks_save_a_generation(place: Place) -> None:
    home = place.top / "snapshots/one"
    for name, saved in (("pinned", True), ("good", True), ("failed", False)):
        (home / name).touch()
        assert (collected(place) == []) is saved
        (home / name).unlink()


def test_an_unsealed_one_goes_only_after_a_day(place: Place) -> None:
    ours(place, "open", sealed=False)
    assert collected(place) == ["one"]
    assert collected(place, now=time.time() + 2 * DAY) == ["one", "open"]


def test_a_foreign_one_goes_only_after_a_day(place: Place) -> None:
    """Somebody's script may have sealed it and not yet moved the pointer to it."""
    place.generation("theirs")
    assert collected(place) == ["one"]
    assert collected(place, now=time.time() + 2 * DAY) == ["one", "theirs"]


MOUNT = "mount -t btrfs -o subvol=/snapshots/one/@ {device} {place}"
MOUNT_PART = MOUNT + " && mkdir {place}2 && mount --bind {place}/etc {place}2 && umount {place}"


@pytest.mark.parametrize("mount", [MOUNT, MOUNT_PART], ids=["whole", "part"])
def test_what_is_mounted_anywhere_stays(tmp_path: Path, mount: str) -> None:
    """A mount in another process's namespace counts: btrfs would delete it under that process."""
    with engine.volume_at_top_level() as place:
        ours(place, "one", lambda root: (root / "etc").mkdir())
        ours(place, "two")
        place.point("two", name="first")
        assert collected(place) == ["one"]
        command = mount.format(device=place.volume.device, place=tmp_path) + " && echo && cat"
        argv = ["unshare", "--mount", "sh", "-c", command]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None and other.stdout.readline() == b"\n"
            assert session.mounted_generations(place.volume) == {"one"}
            assert collected(place) == []
            other.communicate()
        assert collected(place) == ["one"]


def test_mounts_of_another_volume_do_not_count(volume: Volume, top: Path) -> None:
    guest = volume.boot()
    device, fsid = engine.device_of(top)
    fd = os.open(volume.top, os.O_RDONLY)
    try:
        mine = Opened(volume.device, volume.fsid, None, fd, False)
        assert guest.booted in session.mounted_generations(mine)
        assert session.mounted_generations(Opened(device, fsid, None, fd, False)) == frozenset()
        gone = Opened("/dev/nothing", fsid, None, fd, False)
        assert session.mounted_generations(gone) == frozenset()
    finally:
        os.close(fd)


# ---- collecting --------------------------------------------------------------------------------------------


def test_collect_removes_all_of_a_generation(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    ours(place, "many", beside=("@usr",))
    btrfsctl.set_read_only(place.top / "snapshots/one/@", False)
    btrfsctl.create_subvolume(place.top / "snapshots/one/@/inner")
    with engine.working(place.volume) as work:
        session.collect(work, (Victim("one", "in no slot"), Victim("many", "never sealed", unsealed=True)))
    assert place.names("snapshots") == ["three", "two"]
    assert place.names("staging") == []
    assert capfd.readouterr().err == "apk-atomic: collecting many: never sealed\n"


def test_what_cannot_be_collected_is_no_success(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    """Here because its name is taken where it would go."""
    ours(place, "four")
    (place.top / "staging").mkdir(mode=0o700, exist_ok=True)
    (place.top / "staging/one").mkdir()
    (place.top / "staging/one/file").touch()
    with engine.working(place.volume) as work:
        done = session.collect(work, (Victim("one", "in no slot"), Victim("four", "in no slot")))
    assert ([each.id for each in done.gone], done.failed) == (["four"], ("one",))
    assert place.names("snapshots") == ["one", "three", "two"]
    assert "warning: one could not be collected: one: Directory not empty" in capfd.readouterr().err


def test_an_interrupted_collection_is_finished_by_recovery(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    with journal.opened(place.volume) as places:
        journal.adopt(places, "one")
    with engine.working(place.volume) as work:
        session.recover(work)
    assert place.names("snapshots") == ["three", "two"]
    assert place.names("staging") == []
    assert "recovered: transaction one had not finished" in capfd.readouterr().err


YOUNG = "20240302030405abcdefgh"


def test_links_directories(place: Place) -> None:
    links = place.top / "links"
    long_ago = time.time() - 3 * DAY
    for name in ("20240102030405abcdefgh", "20240102030406wiKiSown", "backup", YOUNG, "file", "link"):
        (links / name).mkdir() if name not in ("file", "link") else None
    (links / "file").write_text("somebody's")
    (links / "link").symlink_to("first")
    (links / "20240102030405abcdefgh/0").symlink_to("../../snapshots/one")
    for name in os.listdir(links):
        if name != YOUNG:
            os.utime(links / name, (long_ago, long_ago), follow_symlinks=False)
    with engine.working(place.volume) as work:
        stale = session.stale_links(work.volume, time.time())
        assert stale == ("20240102030405abcdefgh", "20240102030406wiKiSown")
        session.collect_left_over(work, stale)
    assert place.names("links") == [YOUNG, "backup", "file", "first", "link"]


def test_directories_without_a_root(place: Place) -> None:
    """Of a day ago, and with the name of a generation: others are somebody's, and whoever makes one makes it first."""
    names = (
        "20240102030405abcdefgh", "20240102030406abcdefgh", YOUNG, "notes", "20240102030407abcdefgh",
        "20240102030408abcdefgh",
    )  # fmt: skip
    for name in names:
        (place.top / "snapshots" / name).mkdir()
        (place.top / "snapshots" / name / "generation.json").touch()
    (place.top / "snapshots/20240102030406abcdefgh/@").symlink_to("../one/@")
    (place.top / "snapshots/20240102030407abcdefgh/pinned").touch()
    btrfsctl.create_subvolume(place.top / "snapshots/20240102030408abcdefgh/@db")
    long_ago = time.time() - 2 * DAY
    for name in os.listdir(place.top / "snapshots"):
        if name != YOUNG:
            os.utime(place.top / "snapshots" / name, (long_ago, long_ago))
    with engine.working(place.volume) as work:
        found = session.rootless(work.volume, time.time())
        assert found == names[:1]
        session.collect_left_over(work, (), found)
        assert session.rootless(work.volume, time.time()) == ()
    assert set(place.names("snapshots")) == {"one", "two", "three", *names[1:]}


# ---- recovery and pending ----------------------------------------------------------------------------------


def test_recovery_says_what_became_of_it(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    discarded, committed = journal.begin(place.volume), journal.begin(place.volume)
    (place.top / "links" / discarded).mkdir()
    place.point("two", name=committed)
    with engine.working(place.volume) as work:
        session.recover(work)
        session.recover(work)
    said = capfd.readouterr().err
    assert f"transaction {discarded} had not finished; it was discarded\n" in said
    assert f"transaction {committed} had not finished; it was committed\n" in said
    assert said.count("recovered") == 2


@pytest.mark.parametrize(
    ("marks", "left"),
    [
        ((), ()),
        (("first",), ("first",)),
        (("other",), ()),
        (("new", "first"), ("first",)),
        (("first", "old"), ("first",)),
    ],
)
def test_recovery_forgets_marks_that_the_pointer_does_not_bear(
    place: Place, marks: tuple[str, ...], left: tuple[str, ...]
) -> None:
    pointer.write_pending(marks)
    with engine.working(place.volume) as work:
        session.recover(work)
    assert pending_ids() == left
    pointer.write_pending(marks)
    with engine.working(place.volume._replace(booted=None)) as work:
        session.recover(work)
    assert pending_ids() == marks


# ---- what others may read ----------------------------------------------------------------------------------


def test_announcement(place: Place, run: Path) -> None:
    reboot = Path("/run/reboot-required")
    with engine.working(place.volume) as work:
        session.announce(work)
        assert json.loads((run / "status.json").read_text()) == {
            "version": 1, "booted": "two", "next": "three", "pending": False, "slots": ["three", "two"],
        }  # fmt: skip
        assert (run / "status.json").stat().st_mode & 0o777 == reboot.stat().st_mode & 0o777 == 0o644
        assert reboot.read_text() == "apk-atomic: generation three runs after the reboot\n"
        place.point("two", "three", name="back")
        session.announce(work)
        assert not reboot.exists()
        reboot.write_text("needrestart: libc\n")
        session.announce(work)
        place.point("three", name="again")
        session.announce(work)
        assert reboot.read_text() == "needrestart: libc\n"


def test_a_umask_does_not_hide_it(place: Place, run: Path) -> None:
    previous = os.umask(0o077)
    try:
        with engine.working(place.volume) as work:
            session.announce(work)
    finally:
        os.umask(previous)
    assert (run / "status.json").stat().st_mode & 0o777 == 0o644
    assert Path("/run/reboot-required").stat().st_mode & 0o777 == 0o644


def test_nothing_is_told_about_a_volume_that_does_not_run(place: Place, run: Path) -> None:
    with engine.working(place.volume._replace(booted=None)) as work:
        session.announce(work)
    assert os.listdir(run) == []
    assert not os.path.exists("/run/reboot-required")


# ---- opening -----------------------------------------------------------------------------------------------


def locked(volume: Volume, **how: float) -> None:
    """One session in a process of its own, which may enter a namespace; what it raises is raised here too."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with engine.held_signals() as signals:
                where = locate.Located(volume.device, volume.fsid, None)
                with session.locked(where, lambda _: Config(), Console(), signals, command="test", **how) as work:
                    os.write(writer, repr(read_state(work.volume).slots).encode())
        except Locked as error:
            os.write(writer, f"Locked {error}".encode())
        except CheckFailed as error:
            os.write(writer, f"CheckFailed {error}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with open(reader) as pipe:
        text = pipe.read()
    if text.startswith("Locked"):
        raise Locked(text)
    if text.startswith("CheckFailed"):
        raise CheckFailed(text)
    assert text == repr((FIRST,) * 4)


def test_a_session_leaves_nothing_mounted(volume: Volume) -> None:
    before = mounts.mount_table()
    locked(volume)
    assert mounts.mount_table() == before


def test_a_second_session_is_refused(volume: Volume) -> None:
    holder = f"pid {os.getpid()}, apk-atomic add x"
    with (
        engine.held_signals() as signals,
        lock.Lock(volume.fsid, "apk-atomic add x", wait=0, signals=signals),
        pytest.raises(Locked, match=holder),
    ):
        locked(volume)
    locked(volume)


def test_every_session_recovers(volume: Volume) -> None:
    (volume.top / "staging/20240101000000abcdefgh").mkdir(parents=True)
    locked(volume)
    assert os.listdir(volume.top / "staging") == []


def test_a_volume_that_cannot_be_written_to(volume: Volume) -> None:
    unmount(volume.top)
    subprocess.run(["blockdev", "--setro", volume.device], check=True)
    try:
        with pytest.raises(CheckFailed, match="read-only"):
            locked(volume)
    finally:
        subprocess.run(["blockdev", "--setrw", volume.device], check=True)


def test_fault_points_are_all_known() -> None:
    """Each name in the table is used by some module, and each one used is in the table."""
    sources = "".join(path.read_text() for path in Path(faults.__file__).parent.rglob("*.py"))
    tables = (
        faults.POINTS, faults.AUTO_POINTS, faults.ADOPTION, faults.BOOT_MENU, faults.COLLECTION, faults.READING,
    )  # fmt: skip
    known = {name for table in tables for name in table}
    assert set(re.findall(r'[^_.\w]point\("([\w-]+)"\)', sources)) == known
