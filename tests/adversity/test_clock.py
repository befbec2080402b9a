"""A clock that is wrong: names stay unique, and what is newer is never told by them.

The guest's Python gets a clock of the test's: a module in its site-packages replaces time.time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.adversity.trial import Trial
from tests.support.pythontree import site_packages
from tests.support.world import FIRST, make_volume

FAKE = """\
import itertools, os, time
try:
    now = float(open("/run/clock").read())
except OSError:
    pass
else:
    time.time = lambda: now
if os.path.exists("/run/dice"):
    numbers = itertools.count()
    os.urandom = lambda count: next(numbers).to_bytes(count, "big")
"""
YEAR = 31556952.0


@pytest.fixture
def trial() -> Iterator[Trial]:
    def prepare(tree: Path) -> None:
        (site_packages(tree) / "fakeclock.py").write_text(FAKE)
        (site_packages(tree) / "fakeclock.pth").write_text("import fakeclock\n")

    with make_volume(prepare=prepare) as volume:
        yield Trial(volume, deep=False)


def at(trial: Trial, now: float) -> str:
    """A commit at that time of the clock; its ID."""
    Path(trial.guest.root, "run/clock").write_text(str(now))
    return trial.committed("apk-atomic", "run", "--", "touch", f"/etc/made-{now}")


@pytest.mark.parametrize(
    ("now", "begins"),
    [
        (0, "19700101000000"),
        (-5, "19700101000000"),
        (131 * YEAR, "2100"),
        (2**31, "20380119031408"),
        (253402300799, "99991231235959"),
        (1e18, "99991231235959"),
        (float("nan"), "19700101000000"),
        (float("inf"), "99991231235959"),
    ],
)
def test_one_commit(trial: Trial, now: float, begins: str) -> None:
    new = at(trial, now)
    assert new.startswith(begins)
    assert trial.run("apk-atomic", "status").status == 0
    assert trial.run("apk-atomic", "gc").status == 0
    assert trial.volume.slots() == [new, FIRST, FIRST, FIRST]
    trial.reboot()
    trial.works()


def test_clock_goes_backwards(trial: Trial) -> None:
    """Each is booted, so that each keeps a slot: the newest commit comes first, whatever its name says."""
    made = []
    for now in (131 * YEAR, 10 * YEAR, 0, 60 * YEAR):
        made.append(at(trial, now))
        trial.reboot()
        trial.run("apk-atomic", "status")
    assert sorted(made) != made
    assert trial.volume.slots()[:2] == [made[3], made[2]]
    lines = trial.run("apk-atomic", "status", "--all").stdout.splitlines()[2:]
    order = [name for line in lines for name in line.split() if name in made]
    assert order == [name for name in reversed(made) if name in order]
    assert trial.run("apk-atomic", "rollback").status == 0
    assert trial.volume.slots()[0] == made[2]


def test_base_is_what_is_next_not_what_is_named_latest(trial: Trial) -> None:
    late = at(trial, 131 * YEAR)
    early = at(trial, 0)
    assert late > early
    third = at(trial, 20 * YEAR)
    tree = trial.volume.tree()
    assert len(list((tree / "etc").glob("made-*"))) == 3
    assert trial.volume.slots() == [third, FIRST, FIRST, FIRST]


def test_same_second_twice(trial: Trial) -> None:
    first, second = at(trial, 1e9), trial.committed("apk-atomic", "run", "--", "touch", "/etc/again")
    assert first[:14] == second[:14] == "20010909014640"
    assert first != second


def test_dice_that_repeat_themselves(trial: Trial) -> None:
    """A name that anything on the volume bears already is not taken again."""
    Path(trial.guest.root, "run/clock").write_text("0")
    Path(trial.guest.root, "run/dice").touch()
    for number in range(6):
        name = "19700101000000" + chr(ord("a") + number) + "aaaaaaa"
        place = trial.volume.top / ("snapshots", "links")[number % 2] / name
        place.mkdir()
        (place / "mine").touch()
    trial.accept()
    result = trial.run("apk-atomic", "run", "touch", "/etc/made")
    assert result.status == 0, result.stderr
    new = trial.volume.slots()[0]
    assert new.startswith("19700101000000")
    assert new[14] > "f"
    again = trial.guest.run(["apk-atomic", "run", "touch", "/etc/more"], start_new_session=True)
    assert again.status == 0, again.stderr
    assert trial.volume.slots()[0] != new


def test_garbage_of_a_time_to_come_is_collected_in_its_turn(trial: Trial) -> None:
    """A generation made while the clock was wrong neither stays for ever nor takes a slot."""
    for name in ("21000101000000futurexx", "19700101000000pastxxxx"):
        trial.volume.add_generation(name, ours=True)
    trial.accept()
    new = at(trial, 50 * YEAR)
    assert trial.volume.generations() == sorted([FIRST, new])
