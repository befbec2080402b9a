"""The daily job that was missed, for the machine was off or asleep at two in the morning."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from apk_atomic.unattended import SEEN
from tests.support.world import Result
from tests.unattended.house import PERIODIC, QUARTERLY, House
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
