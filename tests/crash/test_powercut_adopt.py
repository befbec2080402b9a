"""Power cuts in the middle of an adoption: the old root is whole, and what is there of the new system is whole too.

The disk is put together as a cut may have left it, and read as a boot loader does, without replaying the log tree, and
as the kernel does. On some of the disks the old system boots and the adoption goes on.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pytest

from tests.crash.machine import THOROUGH
from tests.install.old import ADOPT, LAYOUT, OldSystem, fingerprint, old_system
from tests.support import powercut
from tests.support.btrfsctl import is_read_only, is_subvolume
from tests.support.isolation import copy_sparse
from tests.support.judge import read_top
from tests.support.powercut import (
    BOOT_LOADER_VIEW,
    KERNEL_VIEW,
    Plan,
    Recorder,
    State,
    attached,
    flush,
    mounted,
    recorded,
    states,
)

pytestmark = pytest.mark.skipif(bool(powercut.unavailable()), reason=str(powercut.unavailable()))

PLAN = Plan("begin") if THOROUGH else Plan("begin", prefixes=0, subsets=1)
GOES_ON = 1 if THOROUGH else 6
EACH = 1 if THOROUGH else 3  # no multiple of the number of states between two flushes
STATES = 10  # at least, for it to say anything
# The interpreter and its library, which an adoption is nowhere near.
EXCLUDED = () if THOROUGH else ("usr/lib", "usr/bin")
Tree = dict[str, tuple[object, ...]]


@contextmanager
def running(image: Path, device: str = "") -> Iterator[OldSystem]:
    """The old system on a device of the test's, at run."""
    old = OldSystem(image, "/", device)
    try:
        old.boot()
        yield old
    finally:
        old.close()


def old_tree(top: Path) -> Tree:
    names = sorted(set(os.listdir(top)) - LAYOUT)
    found = {path: seen for name in names for path, seen in fingerprint(top / name, top).items()}
    return {path: seen for path, seen in found.items() if not path.startswith(EXCLUDED)}


def record(image: Path) -> tuple[Recorder, Tree]:
    with recorded(image, image.parent) as recorder, running(image, recorder.device) as old:
        flush(old.top)
        before = old_tree(old.top)
        recorder.mark("begin")
        for words in (ADOPT, ("--finish",), ("--finish",)):
            said = old.adopt(*words)
            assert said.status == 0, said.stderr
            recorder.mark(f"done {words[0]}")
        assert old_tree(old.top) == before
    return recorder, before


def place_of(image: Path, options: str, before: Tree) -> str:
    """Where slot 0 leads to in one view of the disk, "" for nowhere yet; what is there is complete."""
    with attached(image) as device, mounted(device, options) as top:
        assert old_tree(top) == before
        if not (top / "current").is_symlink():
            return ""
        root = top / "current/0/@"
        place = read_top(top, EXCLUDED).place
        assert is_read_only(root) and not LAYOUT & set(os.listdir(root))
        assert f"subvol=/{place} " in (root / "etc/fstab").read_text()
        assert all(is_subvolume(top / "commons" / name) for name in ("@var@cache", "@var@log"))
        assert (top / "commons/@home/user/file").read_text() == "mine"
        return place


def judge(state: State, before: Tree) -> str:
    """The boot loader sees what the kernel does, and what was reported as done is there."""
    loader, kernel = (place_of(state.image, view, before) for view in (BOOT_LOADER_VIEW, KERNEL_VIEW))
    assert loader == kernel
    assert kernel or not state.passed("done --finish")
    return "new" if kernel else "old"


def goes_on(image: Path, before: Tree) -> None:
    with attached(image) as device, running(image, device) as old:
        for words in (ADOPT, ("--finish",)):
            said = old.adopt(*words)
            assert said.status == 0, said.stderr
        assert old_tree(old.top) == before
        assert [os.listdir(old.top / each) for each in ("staging", "next")] == [[], []]
        old.boot_new().run(["apk-atomic", "prove"], check=True)


def test_every_cut_leaves_the_old_system(say: Callable[[str], None]) -> None:
    count: Counter[str] = Counter()
    with old_system("/") as original:
        flush(original.top)
        image = original.image.with_name("cut") / "volume.img"
        image.parent.mkdir()
        copy_sparse(original.image, image)
        original.close()
        recorder, before = record(image)
        found = states(recorder.log, recorder.base, image.parent, PLAN)
        for number, state in enumerate(islice(found, 0, None, EACH)):
            try:
                count[judge(state, before)] += 1
                if number % GOES_ON == 0:
                    goes_on(state.image, before)
                    count["went on"] += 1
            except (AssertionError, OSError) as error:
                error.add_note(f"after a cut at {state.label}")
                raise
    say(", ".join(f"{number} {name}" for name, number in sorted(count.items())))
    assert count.total() - count["went on"] >= STATES
    assert count["old"] and count["new"]
