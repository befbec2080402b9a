"""A machine in a known state, resumed as often as a crash test likes, and the oracle on what a blow has left of it.

    with stopped(PENDING) as scene:                     # made once
        with scene.resume() as machine:                 # a copy, booted, with the /run/apk-atomic that it had
            result = machine.run("add", "b", fault="sealed:kill")
            side = machine.side(old, new)               # the whole tree behind current/0/@, or an AssertionError

`each` runs many such trials, each on a machine of its own, on as many scenes as there are cores. It must not know what
is struck, or with what. Nothing here is durable.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.support import btrfsctl, oracle
from tests.support.imagecache import scratch_directory
from tests.support.isolation import copy_sparse
from tests.support.oracle import TAG, Fingerprint
from tests.support.packages import Directory, Entry, File, Package, Symlink
from tests.support.world import FIRST, Guest, Result, Volume, make_volume

THOROUGH = os.environ.get("APK_ATOMIC_THOROUGH") == "1"
WORKERS = 2
RUN = "run/apk-atomic"
PLACES = ("links", "next", "snapshots", "staging")
LITTER = ("20240102030406abcdefgh", "20240102030407abcdefgh")
FAULT = "APK_ATOMIC_FAULT"
SCRIPT = "#!/bin/sh\necho made >/etc/{name}.made\n"

T = TypeVar("T")

# A guest that is just booting still has the mounts of all the others: nobody may look for strays meanwhile.
_booting = threading.Lock()


def package(name: str, version: str = "1.0-r0", **more: Any) -> Package:
    """Files in several directories, one of them large, a link, and a script that makes one more."""
    files: dict[str, Entry] = {
        f"usr/bin/{name}": File(f"#!/bin/sh\necho {name} {version}\n".encode(), 0o755),
        f"usr/share/{name}/data": File(version.encode() * 20_000),
        f"usr/share/{name}/empty": Directory(),
        f"etc/{name}.conf": File(f"{name} {version}\n".encode(), 0o600),
        f"usr/bin/{name}-link": Symlink(name),
    }
    scripts = {"post-install": SCRIPT.format(name=name), "post-upgrade": SCRIPT.format(name=name + version)}
    return Package(name, version, files=files, scripts={**scripts, **more.pop("scripts", {})}, **more)


# ---- what is on a volume -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything at the top level but the commons: the pointer, and the names in its directories."""

    current: str
    slots: tuple[str, ...]
    names: frozenset[str]
    subvolumes: frozenset[str]

    def of(self, place: str) -> frozenset[str]:
        """The names in one of the PLACES."""
        return frozenset(name.partition("/")[2] for name in self.names if name.startswith(f"{place}/"))


def layout(top: Path) -> Layout:
    """Read it; every slot must lead to a root."""
    links = sorted((top / "current").iterdir(), key=lambda link: int(link.name))
    for link in links:
        assert (link / "@" / "etc/fstab").is_file(), f"{link} leads to no root"
    return Layout(
        current=os.path.basename(os.readlink(top / "current")),
        slots=tuple(os.path.basename(os.readlink(link)) for link in links),
        names=frozenset(f"{place}/{name}" for place in PLACES for name in _names(top / place)),
        subvolumes=oracle.subvolumes(top),
    )


def _names(directory: Path) -> list[str]:
    return os.listdir(directory) if directory.is_dir() else []


def tree(top: Path, fsid: str, slot: int = 0) -> Fingerprint:
    """The root in a slot; equal for two that differ in nothing but their own ID and that of the volume."""
    root = (top / "current" / str(slot) / "@").resolve(strict=True)
    assert btrfsctl.is_read_only(root), f"{root} is not sealed"
    text = (root / "etc/fstab").read_text()
    assert f"subvol=/snapshots/{root.parent.name}/@" in text
    plain = text.replace(root.parent.name, "ID").replace(fsid, "FSID")
    return Fingerprint(oracle.fingerprint(root, exclude=["etc/fstab"]).entries | {("etc/fstab", plain)})


# ---- the machine -------------------------------------------------------------------------------------------


class Machine:
    """A guest on a volume, both the test's own; commands bear a tag, so that none can outlive its test unseen.

    `place` is the directory where the test has its images and mounts.
    """

    def __init__(self, place: Path, top: Path, fsid: str, guest: Guest) -> None:
        self.place, self.top, self.fsid, self.guest = place, top, fsid, guest
        self.tag = f"crash-{os.getpid()}-{os.urandom(6).hex()}"
        self._before = oracle.leftovers(concerning=self._concerning())

    def _concerning(self) -> tuple[str, ...]:
        return (self.guest.device, str(self.place))

    def environment(self, fault: str = "") -> dict[str, str]:
        """What a command gets beside the clean environment."""
        return {TAG: self.tag, **({FAULT: fault} if fault else {})}

    def run(self, *words: str, fault: str = "") -> Result:
        """`apk-atomic WORDS…`, struck at a fault point (`NAME:ACTION`)."""
        return self.guest.run(["apk-atomic", *words], env=self.environment(fault), start_new_session=True)

    def start(self, *words: str, fault: str = "") -> subprocess.Popen[bytes]:
        """The same, still running, in a session and a process group of its own; talk goes to its stderr."""
        argv, quiet = ["apk-atomic", *words], subprocess.DEVNULL
        how: dict[str, Any] = {"start_new_session": True, "stdin": quiet, "stdout": quiet, "stderr": subprocess.PIPE}
        return self.guest.popen(argv, env=self.environment(fault), **how)

    def done(self, *words: str) -> Result:
        """The same; it has to succeed."""
        result = self.run(*words)
        assert result.status == 0, f"apk-atomic {' '.join(words)}: {result.status}\n{result.stdout}{result.stderr}"
        return result

    def status(self) -> dict[str, Any]:
        """The answer of `status --json`."""
        found: dict[str, Any] = json.loads(self.done("status", "--json").stdout)
        return found

    def marks(self) -> list[str]:
        """The links directories that count as pending."""
        mark = Path(self.guest.root, RUN, "next")
        return mark.read_text().split() if mark.exists() else []

    def world(self) -> set[str]:
        """The packages that were asked for in slot 0."""
        return set((self.top / "current/0/@/etc/apk/world").read_text().split())

    def layout(self) -> Layout:
        return layout(self.top)

    def tree(self) -> Fingerprint:
        return tree(self.top, self.fsid)

    def side(self, old: Fingerprint, new: Fingerprint) -> str:
        """"old" or "new": what the whole tree behind current/0/@ is."""
        found = self.tree()
        if found in (old, new):
            return "new" if found == new else "old"
        raise AssertionError("neither old nor new:\n" + "\n".join(old.differences(found)[:30]))

    def expect_nothing_left(self) -> None:
        """No process of a command's, no mount and no loop device; those of a killed one may take a moment."""
        assert oracle.survivors(self.tag, 10) == []
        with _booting:
            assert oracle.leftovers(self.tag, self._concerning()).since(self._before) == []

    def expect_clean(self) -> Layout:
        """Nothing of a transaction is on the volume, and no subvolume that is no generation's; its layout."""
        found = self.layout()
        assert not found.of("staging") and not found.of("next"), sorted(found.names)
        generations = {f"snapshots/{name}/@" for name in found.of("snapshots")}
        assert {name for name in found.subvolumes if not name.startswith("commons/")} == generations
        assert {*found.slots, FIRST} <= found.of("snapshots")
        return found


# ---- scenes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scene:
    """A machine that stands still: its disk, what was in /run/apk-atomic, and the slot that leads to what it booted."""

    image: Path
    run: Mapping[str, bytes]
    slot: int

    @contextmanager
    def resume(self) -> Iterator[Machine]:
        """A copy of it that goes on; only one at a time, for the copies bear one file system id."""
        with self.disk() as image, ExitStack() as stack:
            volume = Volume(image)
            stack.callback(_detach, volume)
            with _booting:
                guest = volume.boot(self.slot)
                self.restore(guest)
                machine = Machine(image.parent, volume.top, volume.fsid, guest)
            yield machine

    @contextmanager
    def disk(self) -> Iterator[Path]:
        """A copy of the disk alone."""
        with scratch_directory("apk-atomic-scene-") as place:
            copy_sparse(self.image, place / "volume.img")
            yield place / "volume.img"

    def restore(self, guest: Guest) -> None:
        """Give a fresh boot the /run/apk-atomic of the machine that stood still."""
        directory = Path(guest.root, RUN)
        directory.mkdir(mode=0o755)
        for name, content in self.run.items():
            (directory / name).write_bytes(content)


def _detach(volume: Volume) -> None:
    with _booting:
        volume.detach()


Story = Callable[[Volume, Guest], None]


def pending(volume: Volume, guest: Guest) -> None:
    """FIRST is booted, `a` was added and waits for the reboot; a newer `a`, `b` and `c` can be had.

    Two old generations of ours are in no slot, so that every command that collects garbage finds some.
    """
    volume.repo.publish(package("a"), package("b"), package("c"))
    guest.run(["apk-atomic", "add", "a"], check=True)
    volume.repo.publish(package("a", "2.0-r0"))
    for name in LITTER:
        volume.add_generation(name, ours=True)


@contextmanager
def stopped(story: Story) -> Iterator[Scene]:
    """The scene in which a story ends."""
    with scratch_directory("apk-atomic-story-") as place, make_volume() as volume:
        guest = volume.boot()
        story(volume, guest)
        kept = {
            each.name: each.read_bytes() for each in Path(guest.root, RUN).iterdir() if each.is_file()
        }
        slot = volume.slots().index(guest.booted)
        volume.detach()
        copy_sparse(volume.image, place / "scene.img")
        yield Scene(place / "scene.img", kept, slot)


@contextmanager
def scenes(story: Story) -> Iterator[list[Scene]]:
    """One for each worker of `each`, with file systems of their own."""
    with ExitStack() as stack:
        yield [stack.enter_context(stopped(story)) for _ in range(WORKERS)]


def each(places: Iterable[Scene], cases: Iterable[T], trial: Callable[[Scene, T], None]) -> None:
    """Every case, at several scenes side by side; fails with all that failed, named."""
    free: queue.SimpleQueue[Scene] = queue.SimpleQueue()
    for scene in places:
        free.put(scene)

    def one(case: T) -> None:
        scene = free.get()
        try:
            trial(scene, case)
        finally:
            free.put(scene)

    with ThreadPoolExecutor(free.qsize()) as pool:
        running = [(case, pool.submit(one, case)) for case in cases]
    errors = [(case, error) for case, future in running if (error := future.exception()) is not None]
    texts = [f"{case}: {''.join(traceback.format_exception(error))}" for case, error in errors]
    assert not texts, f"{len(texts)} of {len(running)} failed\n" + "\n".join(texts)
