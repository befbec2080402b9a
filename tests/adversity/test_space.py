"""No room for data or metadata, before, in the middle and at each step: old, said so, and the space comes back."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from apk_atomic import faults
from tests.adversity.trial import Trial, publish_script
from tests.support.packages import File, Package
from tests.support.waiting import until
from tests.support.world import FIRST, MIB, Volume, make_volume

IOC_SYNC = 0x9408
BEFORE_COMMIT = faults.POINTS[faults.POINTS.index("preflight") : faults.POINTS.index("renamed")]
AFTER_COMMIT = faults.POINTS[faults.POINTS.index("synced") : faults.POINTS.index("unlocked")]
NO_LIMITS = '[volume]\nmin_free_data = "0"\nmin_free_metadata = "0"\n'


@pytest.fixture
def small() -> Iterator[Trial]:
    """A volume that is quickly full."""
    with make_volume(256 * MIB) as volume:
        yield Trial(volume)


def free(volume: Volume) -> int:
    status = os.statvfs(volume.top)
    return status.f_bavail * status.f_frsize


def fill_data(volume: Volume, leave: int) -> Path:
    """One file in commons that takes all room for data but `leave` bytes, as near as block groups allow."""
    path = volume.top / "commons/@home/fill"
    with path.open("wb") as out:
        step = 32 * MIB
        while step >= 4096:
            try:
                os.posix_fallocate(out.fileno(), out.seek(0, os.SEEK_END), step)
            except OSError:
                step //= 2
    os.truncate(path, max(0, path.stat().st_size - leave))
    os.sync()
    return path


def fill_metadata(volume: Volume) -> Path:
    """Links, whose text lives in the metadata, until no more can be made."""
    place = volume.top / "commons/@home/many"
    place.mkdir()
    try:
        for number in range(1_000_000):
            os.symlink("x" * 3000, place / f"{number}")
    except OSError:
        return place
    raise AssertionError("the volume never was full")


def comes_back(volume: Volume, wanted: int) -> None:
    """btrfs deletes in the background: until as much is free again."""

    def is_back() -> bool:
        handle = os.open(volume.top, os.O_RDONLY)
        try:
            fcntl.ioctl(handle, IOC_SYNC)
        finally:
            os.close(handle)
        return free(volume) >= wanted

    until(is_back)


def make_room(volume: Volume, path: Path, place: Path) -> None:
    """Undo both; a full btrfs takes a deletion only once there is some room."""
    os.truncate(path, 0)
    until(lambda: _removed(place))
    path.unlink()
    comes_back(volume, 80 * MIB)


def _removed(place: Path) -> bool:
    try:
        shutil.rmtree(place)
    except OSError:
        return False
    return True


# ---- found before anything is written --------------------------------------------------------------------


def test_too_little_room_is_refused(small: Trial) -> None:
    path = fill_data(small.volume, leave=8 * MIB)
    small.accept()
    result = small.refused("apk-atomic", "run", "true", status=103, says="are free for data")
    assert "nothing was changed" in result.stderr
    assert "apk-atomic gc" in result.stderr
    path.unlink()
    comes_back(small.volume, 80 * MIB)
    small.works()


def test_too_little_metadata_is_refused(small: Trial) -> None:
    with small.etc() as etc:
        (etc / "apk-atomic.toml").write_text('[volume]\nmin_free_data = "0"\n')
        path = fill_data(small.volume, leave=0)
        place = fill_metadata(small.volume)
        small.accept()
        small.refused("apk-atomic", "run", "true", status=103, says="are free for metadata")
    make_room(small.volume, path, place)
    small.works()


def grow(tree: Path) -> None:
    (tree / "opt/big").write_bytes(bytes(20 * MIB))


def test_gc_and_rollback_work_on_a_full_volume(small: Trial) -> None:
    """What makes room again, and the way back, must not need room."""
    before = free(small.volume)
    for number in range(3):
        name = f"2024020100000{number}garbagex"
        small.volume.add_generation(name, grow, ours=True)
    small.works()
    older = f"20240301{0:06}fallback"
    small.volume.add_generation(older)
    path = fill_data(small.volume, leave=0)
    assert small.run("apk-atomic", "gc", "--dry-run").status == 0
    assert small.run("apk-atomic", "rollback", older).status == 0
    assert small.volume.slots()[0] == older
    assert small.run("apk-atomic", "gc").status == 0
    assert len(small.volume.generations()) <= 3
    path.unlink()
    comes_back(small.volume, before - 40 * MIB)


@pytest.mark.parametrize("journal", ["a journal", "room for none"])
def test_gc_works_without_room_for_metadata(small: Trial, journal: str) -> None:
    """There a rename has no room, and mkdir on a volume that we never worked on; a deletion has."""
    volume = small.volume
    if journal == "a journal":
        small.works()
    assert (volume.top / "staging").exists() == (journal == "a journal")
    slots = volume.slots()
    path, place = full_of_garbage(small)
    result = small.run("apk-atomic", "gc")
    assert (result.status, result.stdout.count("garbagex  in no slot")) == (0, 3), result
    assert set(volume.generations()) == set(slots) == set(volume.slots())
    make_room(volume, path, place)
    small.works()


def full_of_garbage(trial: Trial) -> tuple[Path, Path]:
    """Three generations to collect, and no room for as much as a rename; what takes it up, for `make_room`."""
    volume = trial.volume
    for number in range(3):
        volume.add_generation(f"2024020100000{number}garbagex", grow, ours=True)
    path = fill_data(volume, leave=0)
    place = fill_metadata(volume)
    with pytest.raises(OSError, match="No space"):
        os.rename(volume.top / "snapshots", volume.top / "moved")
    trial.accept()
    return path, place


def test_gc_is_killed_without_room_for_metadata(small: Trial) -> None:
    """No journal tells of the one that has lost its root: it is no generation any more, and goes a day later."""
    volume, slots = small.volume, small.volume.slots()
    path, place = full_of_garbage(small)
    assert small.run("apk-atomic", "gc", env={faults.VARIABLE: "uprooted:kill"}).status == -signal.SIGKILL
    (left,) = (each for each in (volume.top / "snapshots").iterdir() if not (each / "@").exists())
    small.accept()
    assert small.run("apk-atomic", "status", "--all").status == 0
    result = small.run("apk-atomic", "gc")
    assert (result.status, result.stdout.count("garbagex  in no slot"), left.exists()) == (0, 2, True), result
    make_room(volume, path, place)
    os.utime(left, (0, 0))
    assert small.run("apk-atomic", "gc").stdout == f"snapshots/{left.name}  holds no root\n"
    assert {each.name for each in (volume.top / "snapshots").iterdir()} == set(slots)
    small.accept()
    small.works()


# ---- in the middle ---------------------------------------------------------------------------------------


def without_limits(trial: Trial) -> None:
    """For the rest of the test the configuration asks for no room at all."""
    trial.guest.run(["mount", "-t", "tmpfs", "tmpfs", "/etc/apk-atomic"], check=True)
    Path(trial.guest.root, "etc/apk-atomic/apk-atomic.toml").write_text(NO_LIMITS)
    trial.accept_mounts()


BIG = Package("big", files={f"usr/share/big{number}": File(os.urandom(MIB)) for number in range(12)})


@pytest.mark.parametrize("leave", [6 * MIB, 64 * 1024, 0])
def test_package_does_not_fit(small: Trial, leave: int) -> None:
    without_limits(small)
    small.volume.repo.publish(BIG)
    path = fill_data(small.volume, leave)
    room = free(small.volume)
    small.accept()
    result = small.refused("apk-atomic", "add", "big")
    assert "nothing was changed" in result.stderr
    comes_back(small.volume, room - MIB)
    path.unlink()
    comes_back(small.volume, 80 * MIB)
    small.committed("apk-atomic", "add", "big")


def test_metadata_is_full(small: Trial) -> None:
    without_limits(small)
    small.volume.repo.publish(BIG)
    path = fill_data(small.volume, leave=0)
    place = fill_metadata(small.volume)
    small.accept()
    result = small.refused("apk-atomic", "add", "big")
    assert "nothing was changed" in result.stderr
    make_room(small.volume, path, place)
    small.accept()
    small.committed("apk-atomic", "add", "big")


FILLING = {
    "data": "dd if=/dev/zero of=/opt/fill bs=1M 2>/dev/null; exit {status}",
    "data and tmp": "dd if=/dev/zero of=/opt/fill bs=1M 2>/dev/null; dd if=/dev/zero of=/tmp/fill bs=4k 2>/dev/null; "
    "exit {status}",
    "metadata": "dd if=/dev/zero of=/opt/fill bs=1M 2>/dev/null\n"
    "python3 -I -c 'import os\nfor n in range(10**6): os.symlink(\"x\" * 3000, f\"/opt/{{n}}\")' 2>/dev/null\n"
    "exit {status}",
}


@pytest.mark.parametrize("kind", FILLING)
@pytest.mark.parametrize("status", [0, 1])
def test_script_fills_the_volume(small: Trial, kind: str, status: int) -> None:
    """A script that fails: old. One that does not care: what it made is committed whole, or it is old."""
    room = free(small.volume)
    publish_script(small.volume, "filler", FILLING[kind].format(status=status))
    result = small.run("apk-atomic", "add", "filler")
    if result.status:
        assert "nothing was changed" in result.stderr
        small.check_old(result)
    else:
        assert status == 0
        small.check_new(result)
        size = (small.volume.tree() / "opt/fill").stat().st_size
        assert size > 20 * MIB
        assert small.run("apk-atomic", "discard").status == 0
    comes_back(small.volume, room - 8 * MIB)
    small.works()


def test_run_of_the_running_system_is_full(trial: Trial) -> None:
    """/run holds what is pending; where that cannot be written, nothing is switched."""
    trial.run("apk-atomic", "run", "true")
    trial.guest.run(["sh", "-c", "mount -o remount,size=64k /run; dd if=/dev/zero of=/run/fill 2>/dev/null; true"])
    trial.refused("apk-atomic", "run", "touch", "/etc/made")
    trial.guest.run(["rm", "/run/fill"], check=True)
    trial.works()


# ---- at each step ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["full", "fail"])
def test_every_step_before_the_commit(shared: Trial, action: str) -> None:
    for name in BEFORE_COMMIT:
        env = {faults.VARIABLE: f"{name}:{action}"}
        result = shared.refused("apk-atomic", "run", "touch", "/etc/made", env=env)
        assert result.status == (103 if action == "full" else 104), (name, result)
        assert "nothing was changed" in result.stderr, (name, result)


def test_switch_that_is_not_confirmed(trial: Trial) -> None:
    """The rename is taken back; 107 says that nobody knows what the disk holds."""
    argv = ["apk-atomic", "run", "touch", "/etc/made"]
    result = trial.guest.run(argv, env={faults.VARIABLE: "renamed:fail"}, start_new_session=True)
    assert (result.status, "may or may not boot" in result.stderr) == (107, True)
    assert trial.volume.slots() == [FIRST] * 4
    assert "recovered" in trial.run("apk-atomic", "run", "true").stderr
    trial.works()


def test_no_step_after_the_commit_fails_it(trial: Trial) -> None:
    for name in AFTER_COMMIT:
        env = {faults.VARIABLE: f"{name}:full"}
        result = trial.guest.run(["apk-atomic", "run", "touch", f"/etc/{name}"], env=env, start_new_session=True)
        assert result.status == 0, (name, result)
        assert (trial.volume.tree() / "etc" / name).exists()
    assert trial.volume.slots()[1] == FIRST
    trial.works()
