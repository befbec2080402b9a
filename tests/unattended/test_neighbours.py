"""Others at work at the same moment, death in each phase, no room, and a clock that is wrong."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from apk_atomic import faults
from tests.adversity.test_clock import FAKE
from tests.adversity.test_space import fill_data
from tests.support.pythontree import site_packages
from tests.unattended.house import PERIODIC, House, make_house

# Each of a run's own but "downloaded", which needs a network (test_network), and one of each kind of the transaction's,
# all of which tests/crash goes through.
PHASES = [point for point in faults.AUTO_POINTS if point != "downloaded"]
PHASES += ["staged", "changed", "sealed", "renamed", "synced", "collected"]
HELD = "touch /etc/held; touch /var/log/ready; while [ ! -e /var/log/go ]; do sleep 0.01; done"


# ---- several at once -------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["started", "sealed"])
def test_crond_starts_it_twice(house: House, point: str) -> None:
    """The second one says nothing, and there is one generation."""
    house.release("hello", "2.0-r0")
    first = house.trial.start(PERIODIC, env={"APK_ATOMIC_FAULT": f"{point}:stop"})
    house.trial.wait_stopped(first)
    second = house.guest.run([PERIODIC])
    assert (second.status, second.stdout, second.stderr) == (0, "", "")
    house.trial.go_on(first)
    house.trial.check_new(house.trial.finish(first))
    house.nothing()


def test_two_that_start_together_make_one_generation(house: House) -> None:
    house.release("hello", "2.0-r0")
    before = len(house.volume.generations())
    runs = [house.trial.start(PERIODIC) for _ in range(4)]
    results = [house.trial.finish(process, clean=False) for process in runs]
    house.trial.check_clean(results[-1])
    assert [result.status for result in results] == [0] * 4, results
    assert len([result for result in results if result.stderr]) <= 1
    assert len(house.volume.generations()) == before + 1
    house.nothing()


def test_previous_run_was_killed_and_its_change_goes_on(house: House) -> None:
    """The lock is held until the last process of it is gone; then the next run works."""
    script = "#!/bin/sh\ntouch /var/log/ready\nwhile [ ! -e /var/log/go ]; do sleep 0.01; done\n"
    house.release("hello", "2.0-r0", scripts={"post-upgrade": script})
    first = house.trial.start("apk-atomic", "auto")
    house.trial.wait_for("ready")
    first.send_signal(signal.SIGKILL)
    house.trial.finish(first, clean=False)
    house.trial.flag("go").touch()
    house.configure(lock_minutes=1)
    result = house.trial.run("apk-atomic", "auto")
    if not result.stderr:  # the dying one still had the lock of unattended runs
        result = house.trial.run("apk-atomic", "auto")
    assert result.status == 0 and "is next: upgraded hello" in result.stderr
    assert house.content("hello") == "2.0-r0"


def test_user_changes_the_system_at_the_same_moment(house: House) -> None:
    """Between plan and transaction somebody adds a package: the run plans again, and both are there."""
    house.release("extra", "1.0-r0")
    house.release("hello", "2.0-r0")
    process = house.trial.start("apk-atomic", "auto", env={"APK_ATOMIC_FAULT": "planned:stop"})
    house.trial.wait_stopped(process)
    house.guest.run(["apk-atomic", "add", "extra"], check=True)
    house.trial.accept()
    while process.poll() is None:  # it stops at the second plan again
        house.trial.go_on(process)
        time.sleep(0.01)
    house.trial.check_new(house.trial.finish(process))
    assert (house.content("hello"), house.content("extra")) == ("2.0-r0", "1.0-r0")


def test_generation_is_collected_under_the_plan(house: House) -> None:
    """A commit drops the pending generation that the plan was to start from: then it starts from the new one."""
    house.release("hello", "2.0-r0")
    old = house.committed()
    house.release("extra", "1.0-r0")
    house.release("hello", "3.0-r0")
    process = house.trial.start("apk-atomic", "auto", env={"APK_ATOMIC_FAULT": "chosen:stop"})
    house.trial.wait_stopped(process)
    house.guest.run(["apk-atomic", "add", "extra"], check=True)
    assert old not in house.volume.generations()
    house.trial.accept()
    house.trial.go_on(process)
    house.trial.wait_stopped(process)
    house.trial.go_on(process)
    house.trial.check_new(house.trial.finish(process))
    assert (house.content("hello"), house.content("extra")) == ("3.0-r0", "1.0-r0")


def test_user_upgrades_at_the_same_moment(house: House) -> None:
    """What he has made meanwhile is nothing that somebody went back from, although it is newer than the plan's base."""
    house.release("hello", "2.0-r0")
    process = house.trial.start("apk-atomic", "auto", "--json", env={"APK_ATOMIC_FAULT": "planned:stop"})
    house.trial.wait_stopped(process)
    house.guest.run(["apk-atomic", "upgrade"], check=True)
    house.trial.accept()
    house.trial.go_on(process)
    house.trial.wait_stopped(process)
    house.trial.go_on(process)
    result = house.trial.finish(process)
    house.trial.check_same()
    assert json.loads(result.stdout)["outcome"] == "nothing", result


def test_user_meets_the_run_in_its_transaction(house: House) -> None:
    house.release("extra", "1.0-r0")
    house.release("hello", "2.0-r0")
    process = house.trial.start("apk-atomic", "auto", env={"APK_ATOMIC_FAULT": "change-started:stop"})
    house.trial.wait_stopped(process)
    refused = house.guest.run(["apk-atomic", "add", "extra"])
    assert refused.status == 102 and "apk-atomic auto" in refused.stderr
    waiting = house.trial.start("apk-atomic", "add", "--atomic-wait", "60", "extra")
    house.trial.go_on(process)
    assert house.trial.finish(process, clean=False).status == 0
    assert house.trial.finish(waiting).status == 0
    assert (house.content("hello"), house.content("extra")) == ("2.0-r0", "1.0-r0")


def test_transaction_that_does_not_end(house: House) -> None:
    """The run gives up after lock_minutes, with the holder's command."""
    house.configure(lock_minutes=0)
    house.release("hello", "2.0-r0")
    holder = house.trial.start("apk-atomic", "run", "--", "sh", "-c", HELD)
    house.trial.wait_for("ready")
    result = house.guest.run(["apk-atomic", "auto"])
    assert result.status == 102 and f"pid {holder.pid}, apk-atomic run" in result.stderr
    house.trial.flag("go").touch()
    house.trial.finish(holder)
    house.committed()


# ---- death -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", PHASES)
def test_killed_in_each_phase(house: House, point: str) -> None:
    """What boots is the old or the new one, and the next run leaves exactly one new generation."""
    before = set(house.volume.generations())
    old = house.guest.booted
    house.release("hello", "2.0-r0")
    result = house.guest.run(["apk-atomic", "auto"], env={"APK_ATOMIC_FAULT": f"{point}:kill"}, start_new_session=True)
    assert result.status == -signal.SIGKILL, result
    assert house.content("hello") in ("1.0-r0", "2.0-r0")
    result = house.trial.run("apk-atomic", "auto", "--now")
    if result.status == 0 and house.content("hello") == "1.0-r0":  # the dying one still had the lock
        result = house.trial.run("apk-atomic", "auto", "--now")
    assert result.status == 0, result
    assert house.content("hello") == "2.0-r0"
    assert house.volume.slots()[1] == old
    assert len(set(house.volume.generations()) - before) == 1
    house.nothing("--now")


@pytest.mark.parametrize("point", ["planned", "changed"])
def test_ended_in_each_phase(house: House, point: str) -> None:
    house.release("hello", "2.0-r0")
    house.trial.refused("apk-atomic", "auto", env={"APK_ATOMIC_FAULT": f"{point}:term"}, status=143)
    house.committed()


@pytest.mark.parametrize("point", ["staged", "changed", "sealed"])
def test_disk_fills_up_in_each_phase(house: House, point: str) -> None:
    """ENOSPC is nobody's fault but the disk's: the packages are tried again."""
    house.release("hello", "2.0-r0")
    house.trial.refused("apk-atomic", "auto", env={"APK_ATOMIC_FAULT": f"{point}:full"}, status=103)
    assert not (house.volume.top / "state/denied.json").exists()
    house.committed()


def test_too_little_room(house: House) -> None:
    house.configure(min_free="100G")
    house.release("hello", "2.0-r0")
    house.trial.refused("apk-atomic", "auto", status=103, says="an unattended upgrade needs 102400 MiB")
    house.configure(min_free="64M")
    fill = fill_data(house.volume, 8 << 20)
    house.trial.refused("apk-atomic", "auto", status=103, says="MiB are free")
    fill.unlink()
    os.sync()
    house.committed()


def test_room_is_made_before_it_is_missed(house: House) -> None:
    """What no slot leads to is collected first."""
    extra = house.volume.top / "snapshots/20240102030499abcdefgh"
    house.volume.add_generation(extra.name, lambda tree: _fill(tree / "big", 150 << 20), ours=True)
    os.sync()
    free = os.statvfs(house.volume.top)
    house.configure(min_free=f"{((free.f_bavail * free.f_frsize) >> 20) + 60}M")
    house.release("hello", "2.0-r0")
    house.committed()
    assert not extra.exists()


def _fill(path: Path, size: int) -> None:
    with path.open("wb") as out:
        for _ in range(size >> 20):
            out.write(os.urandom(1 << 20))


# ---- the clock -------------------------------------------------------------------------------------------


def test_clock_is_wrong() -> None:
    """A machine without a battery for its clock lives in 1970, and in between in 2100; it is upgraded each day."""

    def fake_clock(tree: Path) -> None:
        (site_packages(tree) / "fakeclock.py").write_text(FAKE)
        (site_packages(tree) / "fakeclock.pth").write_text("import fakeclock\n")

    with make_house(prepare=fake_clock, every_hours=20) as house:
        clock = Path(house.guest.root, "run/clock")
        for number, now in enumerate((4e9, 0.0, 4e9 + 1e5, 1.7e9)):
            clock.write_text(str(now))
            house.release("hello", f"2.{number}-r0")
            house.committed()
            assert house.state("auto.json")["finished"] == now
            house.nothing(outcome="skipped")
        clock.write_text(str(1.7e9 + 19 * 3600))
        house.nothing(outcome="skipped")


# ---- what must not be a base -----------------------------------------------------------------------------


def test_failed_generation_is_no_base(house: House) -> None:
    house.release("hello", "2.0-r0")
    (house.volume.top / "snapshots" / house.guest.booted / "failed").touch()
    house.trial.refused("apk-atomic", "auto", status=106, says="marked as failed")


def test_fallback_is_no_base_by_itself(house: House) -> None:
    house.release("hello", "2.0-r0")
    house.committed()
    house.trial.reboot(1)
    house.release("hello", "3.0-r0")
    house.trial.refused("apk-atomic", "auto", status=106, says="is booted, not")


def test_record_says_what_boot_health_needs(house: House) -> None:
    """The set of a generation is in its own database, its changes and kind in the record; the marks are not there."""
    house.release("hello", "2.0-r0")
    new = house.committed()
    record = house.record()
    assert record["changes"]["upgraded"] == [["hello", "1.0-r0", "2.0-r0"]]
    assert (record["kind"], record["parent"]) == ("auto", house.guest.booted)
    beside = {path.name for path in (house.volume.top / "snapshots" / new).iterdir()}
    assert beside == {"@", "generation.json"}
    assert json.loads((house.volume.top / "state/auto.json").read_text())["version"] == 1
