"""The bench runs and its arithmetic is right; how fast anything is, is not tested."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from bench.__main__ import main
from bench.figures import HEADINGS, Row, Sample, Series, compared, in_turns, table
from bench.shapes import APK, OURS, SYSMUT, Machine, Shape, add_generations, machine, unpin_generations
from bench.stopwatch import Failed
from tests.support import btrfsctl
from tests.support.world import FIRST


@pytest.mark.parametrize(("name", "figures"), [("query", 3), ("nothing", 2)])
def test_a_case_runs(name: str, figures: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--only", name]) == 0
    answer = capsys.readouterr()
    rows = [line for line in answer.out.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in rows[0].strip("|").split("|")] == list(HEADINGS)
    assert len(rows) == 2 + figures
    assert f"bench: {name}: " in answer.err


def test_only_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as wrong:
        main(["--only", "nosuch"])
    assert wrong.value.code == 2
    assert "'transaction'" in capsys.readouterr().err


# ---- the machines ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made() -> Iterator[Machine]:
    with machine(Shape()) as found:
        yield found


def test_a_machine_has_its_shape(made: Machine) -> None:
    installed = made.once(APK, "info").said.split()
    assert len([name for name in installed if name.startswith("package-")]) == Shape().packages
    assert "hello" in installed
    assert len(made.volume.generations()) == Shape().generations
    assert made.guest.booted == made.volume.slots()[0] != FIRST


def test_the_wikis_script_makes_a_generation(made: Machine) -> None:
    before = made.volume.slots()
    made.once(f"/{SYSMUT}", made.volume.device, APK, "add", "hello=1.7-r0")
    new, *older = made.volume.slots()
    assert new not in before
    assert older == before[:3]
    tree = made.volume.tree()
    assert btrfsctl.is_read_only(tree)
    assert (tree / "usr/bin/hello").read_text().endswith("echo 7\n")
    assert f"subvol=/snapshots/{new}/@" in (tree / "etc/fstab").read_text()
    made.once(OURS, "rollback", before[0])
    made.once(OURS, "gc")


def test_generations_come_and_go(made: Machine) -> None:
    there = set(made.volume.generations())
    add_generations(made.volume, 6)
    assert len(made.volume.generations()) > len(there)
    made.once(OURS, "gc")
    pinned = set(made.volume.generations())
    assert pinned > there
    unpin_generations(made.volume)
    made.once(OURS, "gc")
    assert set(made.volume.generations()) < pinned


def test_what_fails_is_not_timed(made: Machine) -> None:
    with pytest.raises(Failed, match="exited with 3"):
        made.once("/bin/sh", "-c", "exit 3")
    assert made.once("/bin/sh", "-c", "echo out; echo err >&2").said == "out\nerr\n"


# ---- the figures -------------------------------------------------------------------------------------------


def series(*walls: float) -> Series:
    return Series(tuple(Sample(wall, wall / 2) for wall in walls))


def test_contestants_run_in_turns_and_warm_up_once() -> None:
    seen = []

    def contestant(name: str, number: int) -> Sample:
        seen.append((name, number))
        return Sample(number, 0)

    found = in_turns(2, {name: partial(contestant, name) for name in "ab"})
    assert seen == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert [sample.wall for sample in found["b"].samples] == [1, 2]


def test_medians_and_bars() -> None:
    ours, bare = series(0.030, 0.010, 0.020), series(0.010, 0.010, 0.500)
    assert (ours.wall, ours.cpu, bare.wall) == (0.020, 0.010, 0.010)
    by_ratio, too_slow = compared("x", ours, bare, "apk", ratio=2.0), compared("x", ours, bare, "apk", ratio=1.9)
    assert (by_ratio.result, by_ratio.verdict, by_ratio.missed) == ("x 2.00", "pass", False)
    assert (too_slow.verdict, too_slow.missed) == ("MISSED", True)
    by_difference = compared("x", ours, bare, "apk", added=0.005)
    assert (by_difference.result, by_difference.bar, by_difference.missed) == ("+10.0 ms", "≤ +5.0 ms", True)
    told = compared("x", ours, bare, "apk")
    assert (told.verdict, told.missed, told.pairs) == ("", False, 3)


def test_a_goal_is_no_bar() -> None:
    goal = Row("x", "1", "2", "3", met=False, goal=True)
    assert (goal.verdict, goal.missed) == ("not reached", False)


def test_the_table_lines_up() -> None:
    lines = table([Row("a long name", "1", "2", "3"), Row("b", "12345", "", "")]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert all(line.count("|") == len(HEADINGS) + 1 for line in lines)
