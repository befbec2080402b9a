"""The daily job that was missed, for the machine was off or asleep at two in the morning, and the one that failed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from apk_atomic.commands import auto
from apk_atomic.missed import SEEN
from tests.support.world import Result
from tests.unattended.house import PERIODIC, QUARTERLY, House
from tests.unattended.test_failures import FAILS
from tests.unattended.test_neighbours import HELD
from tests.unattended.test_policies import stamp

HOUR = 3600


def quarterly(house: House) -> Result:
    """What crond calls each quarter of an hour; what it starts has ended, too."""
    return house.trial.run("sh", "-c", QUARTERLY)


def seen(house: House) -> Path:
    return Path(house.guest.root, SEEN.lstrip("/"))


def set_seen(house: House, hours_ago: float) -> None:
    now = time.time()
    os.utime(seen(house), (now, now - hours_ago * HOUR))


def does_nothing(house: House) -> None:
    """The quarterly job misses no run, and does not even start Python: where it is called there is none, nor a reboot
    to be considered."""
    mask = "mkdir -p /run/apk-atomic; for each in /usr/lib /run/apk-atomic; do mount -t tmpfs tmpfs $each || exit; done"
    result = house.guest.run(["unshare", "-m", "sh", "-c", f"{mask}; {QUARTERLY}"])
    assert (result.status, result.stdout, result.stderr) == (0, "", "")


def catches_up(house: House, version: str) -> None:
    house.release("hello", version)
    assert "is next: upgraded hello" in quarterly(house).stderr
    assert house.content("hello") == version
    house.trial.accept()
    does_nothing(house)


def test_machine_that_was_off_at_night(house: House) -> None:
    """After the boot it looks once, also when that comes to nothing."""
    assert not seen(house).exists()
    catches_up(house, "2.0-r0")
    house.trial.reboot()
    house.trial.unchanged(QUARTERLY)
    house.release("hello", "3.0-r0")
    does_nothing(house)


@pytest.mark.parametrize("hours_ago", [27, -5], ids=["asleep at night", "the clock was wrong"])
def test_machine_that_ran_on(house: House, hours_ago: float) -> None:
    house.trial.unchanged(PERIODIC)
    set_seen(house, 25)
    does_nothing(house)
    set_seen(house, hours_ago)
    catches_up(house, "2.0-r0")


def test_run_that_was_not_due_is_looked_for_again(house: House) -> None:
    """Counted from the last one that did something, but at most each two hours: else Python started each time."""
    house.configure(every_hours=40)
    house.trial.unchanged(PERIODIC)
    for ago, counted in ((15, 15), (30, 24)):
        stamp(house, time.time() - ago * HOUR)
        house.trial.unchanged(PERIODIC)
        assert abs(time.time() - seen(house).stat().st_mtime - counted * HOUR) < 300


def test_daily_job_that_the_administrator_took_away(house: House) -> None:
    house.guest.run(["mount", "-t", "tmpfs", "tmpfs", "/etc/periodic/daily"], check=True)
    house.trial.accept_mounts()
    house.release("hello", "2.0-r0")
    does_nothing(house)
    assert house.trial.unchanged(QUARTERLY).stderr == ""


# ---- what failed -----------------------------------------------------------------------------------------


@pytest.fixture
def movable(house: House) -> House:
    """A machine whose list of repositories is in a common, where a test can change it."""
    script = "mv /etc/apk/repositories /var/cache; ln -s /var/cache/repositories /etc/apk"
    house.guest.run(["apk-atomic", "run", "--", "sh", "-ec", script], check=True)
    house.trial.reboot()
    return house


@contextmanager
def network_away(house: House) -> Iterator[None]:
    """Nobody answers where the packages come from."""
    repositories = house.volume.top / "commons/@var@cache/repositories"
    right = repositories.read_text()
    repositories.write_text("http://127.0.0.1:1/\n")
    try:
        yield
    finally:
        repositories.write_text(right)


def counted(house: House) -> int:
    """Hours since the last run, as the quarterly job counts them: at 26 there is one."""
    return round((time.time() - seen(house).stat().st_mtime) / HOUR)


def fails(house: House, job: Callable[[House], Result]) -> str:
    """The job's run fails, and nothing is changed; what it said."""
    house.trial.accept()
    result = job(house)
    house.trial.check_same()
    assert result.stdout == ""
    return result.stderr


def nightly(house: House) -> Result:
    return house.trial.run(PERIODIC)


AWAY = "the indexes could not be refreshed"


def test_failed_run_is_tried_again(movable: House) -> None:
    """In an hour, and then ever more seldom: it is said once, the last time it comes to something."""
    house = movable
    house.trial.unchanged(PERIODIC)
    with network_away(house):
        assert AWAY in fails(house, nightly)
        for hours in (1, 2, 4, 8, 8):
            assert counted(house) == 26 - hours
            does_nothing(house)
            set_seen(house, 26.1)
            assert fails(house, quarterly) == ""
    set_seen(house, 26.1)
    catches_up(house, "2.0-r0")
    assert (seen(house).read_text(), counted(house)) == ("", 0)
    with network_away(house):
        assert AWAY in fails(house, nightly)
    assert counted(house) == 25


def test_failure_that_lasts_is_said_each_day(movable: House) -> None:
    house = movable
    house.trial.unchanged(PERIODIC)
    with network_away(house):
        assert AWAY in fails(house, nightly)
        for ago, said in ((19, False), (21, True), (-1, True)):
            row, told, what = seen(house).read_text().split(" ", 2)
            seen(house).write_text(f"{row} {int(told) - ago * HOUR} {what}")
            assert (AWAY in fails(house, nightly)) is said
        seen(house).write_text("nonsense\n")
        assert AWAY in fails(house, nightly)
    assert counted(house) == 25


def test_another_failure_is_news(movable: House) -> None:
    house = movable
    house.configure(lock_minutes=0)
    house.release("hello", "2.0-r0")
    with network_away(house):
        assert AWAY in fails(house, nightly)
    holder = house.trial.start("apk-atomic", "run", "--", "sh", "-c", HELD)
    house.trial.wait_for("ready")
    said = house.guest.run([PERIODIC]).stderr
    assert f"pid {holder.pid}, apk-atomic run" in said
    assert counted(house) == 24
    house.trial.flag("go").touch()
    house.trial.finish(holder)


def test_packages_that_fail_are_not_tried_again(house: House) -> None:
    """In an hour they would be the same."""
    house.trial.unchanged(PERIODIC)
    house.release("hello", "2.0-r0", scripts=FAILS)
    assert "hello-2.0-r0 failed" in fails(house, nightly)
    assert counted(house) == 0
    does_nothing(house)


def test_who_tries_it_by_hand_is_told_each_time(movable: House) -> None:
    house = movable
    house.trial.unchanged(PERIODIC)
    with network_away(house):
        for _ in range(2):
            assert AWAY in house.trial.refused("apk-atomic", "auto", "--now").stderr
    assert (seen(house).read_text(), counted(house)) == ("", 0)


def test_without_the_jobs_nothing_is_kept(movable: House) -> None:
    house = movable
    with network_away(house):
        house.trial.refused("apk-atomic", "auto", says=AWAY, env={auto.PERIODIC: "1"})
    assert not seen(house).exists()
