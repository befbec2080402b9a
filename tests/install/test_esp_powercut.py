"""The power goes while the boot loader on a FAT is replaced: every disk that this can leave has a menu that boots.

The writes below the FAT are recorded, and each state that a disk may be in after a cut is looked at as firmware does:
by names and chains of clusters, nothing repaired.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from apk_atomic import bootinstall, esp, loaders
from apk_atomic.bootinstall import Fallback
from apk_atomic.loaders import LoaderFiles
from tests.install.disks import DRIVER, MIB, NAME, PROGRAM, make_fat
from tests.support import engine
from tests.support.imagecache import scratch_directory
from tests.support.powercut import Plan, attached, recorded, states, unavailable

OURS, FALLBACK = loaders.DIRECTORY, "EFI/BOOT"
PLACES = ((OURS, f"{OURS}/{PROGRAM}"), (FALLBACK, loaders.fallback_program()))
pytestmark = pytest.mark.skipif(unavailable() is not None, reason=f"{unavailable()}")


def refind(version: str) -> LoaderFiles:
    """Larger than a cluster, so that there are chains to be torn."""
    beside = ((f"drivers_{NAME}/{DRIVER}", f"driver {version}\n".encode() * 3000),)
    return LoaderFiles(PROGRAM, f"refind {version}\n".encode() * 9000, beside, "refind.conf", own_directory=True)


def menu(version: str) -> str:
    return f"menu {version}\n" * 2000


def content(image: Path, path: str) -> bytes:
    """What firmware would read; nothing where it cannot."""
    command = ["mtype", "-i", str(image), f"::/{path}"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "MTOOLS_SKIP_CHECK": "1"})
    return done.stdout if done.returncode == 0 else b""


@pytest.fixture
def work() -> Iterator[Path]:
    with scratch_directory("apk-atomic-esp-") as place, engine.own_run():
        yield place


def test_a_cut_at_any_write_leaves_a_menu_that_boots(work: Path) -> None:
    image = make_fat(work / "esp.img", 34 * MIB)
    with recorded(image, work) as recorder, engine.held_signals() as signals:
        with esp.opened(recorder.device, signals) as place:
            bootinstall.put(place, refind("1"), menu("1"))
            recorder.mark("begin")
            bootinstall.put(place, refind("2"), menu("2"))
        recorder.mark("success")
    old, new = refind("1"), refind("2")
    seen = set()
    plan = Plan(first="begin", prefixes=6, subsets=4)
    for number, state in enumerate(states(recorder.log, recorder.base, work, plan)):
        for directory, program in PLACES:
            said = {
                "program": (content(state.image, program), {old.content, new.content}),
                "driver": (content(state.image, f"{directory}/drivers_{NAME}/{DRIVER}"),
                           {old.beside[0][1], new.beside[0][1]}),
                "menu": (content(state.image, f"{directory}/refind.conf"), {menu("1").encode(), menu("2").encode()}),
            }  # fmt: skip
            for what, (data, whole) in said.items():
                assert data in whole, f"{state.label}: {directory}: the {what} is torn ({len(data)} bytes)"
            if state.passed("success"):
                assert (said["program"][0], said["menu"][0]) == (new.content, menu("2").encode())
            seen.add(said["menu"][0][:6])
        if number % 7 == 0:
            finish(state.image)
    assert seen == {b"menu 1", b"menu 2"}


def test_a_cut_while_others_are_replaced_loses_nothing_of_theirs(work: Path) -> None:
    """A menu that somebody wrote, and a loader at the fallback path: as they are, or kept whole beside ours."""
    image = make_fat(work / "esp.img", 34 * MIB)
    theirs = {f"{OURS}/refind.conf": b"their menu\n" * 2000, loaders.fallback_program(): b"their loader\n" * 9000}
    with recorded(image, work) as recorder, engine.held_signals() as signals:
        with esp.opened(recorder.device, signals) as place:
            for path, data in theirs.items():
                place.write(path, data)
            recorder.mark("begin")
            done = bootinstall.put(place, refind("1"), menu("1"), fallback=Fallback.TAKEN_OVER)
        recorder.mark("success")
    copies = {path.partition(".kept-")[0]: path for path in done.written if ".kept-" in path}
    seen = set()
    for state in states(recorder.log, recorder.base, work, Plan(first="begin", prefixes=6, subsets=4)):
        for path, data in theirs.items():
            there = content(state.image, path)
            seen.add((path, there == data))
            whole = there == data or content(state.image, copies[path]) == data
            assert whole, f"{state.label}: {path} is lost"
        loader = content(state.image, loaders.fallback_program())
        if loader != theirs[loaders.fallback_program()]:
            assert loader == refind("1").content, state.label
            assert content(state.image, f"{FALLBACK}/refind.conf") == menu("1").encode(), state.label
    assert len(seen) == 4


def finish(image: Path) -> None:
    """The next boot-config, on what the cut left: all is new, and no cluster belongs to two files."""
    with engine.held_signals() as signals, attached(image) as device, esp.opened(device, signals) as place:
        bootinstall.put(place, refind("2"), menu("2"))
    for directory, program in PLACES:
        assert content(image, program) == refind("2").content
        assert content(image, f"{directory}/refind.conf") == menu("2").encode()
    said = subprocess.run(["fsck.vfat", "-n", image], capture_output=True, text=True).stdout
    assert "share clusters" not in said and "Bad" not in said and "Start cluster" not in said, said
