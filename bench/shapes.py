"""The systems that are measured: volumes with a given number of files, installed packages and generations, booted.

The packages are made up: records in apk's database, 20 files each as on a usual system, without the files. The files
are there, but belong to no package. What a transaction changes is always the package `hello`, one version further.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.figures import Contestant, Sample
from bench.stopwatch import Stopwatch
from tests.support import btrfsctl
from tests.support.binaries import add_binary
from tests.support.packages import File, Package, machine_arch
from tests.support.rootfs import install_drop_in
from tests.support.world import DEFAULT_SIZE, Guest, Volume, make_volume

OURS, APK, PYTHON = "/usr/bin/apk-atomic", "/sbin/apk", "/usr/bin/python3"
FRONT = "/usr/libexec/apk-atomic/bin/apk"
SYSMUT = "usr/local/bin/sysmut"
VERSIONS = 64  # of hello: more than any case has rounds
_FILES_OF_A_PACKAGE = 20
_FILES_OF_A_DIRECTORY = 100


@dataclass(frozen=True, slots=True)
class Shape:
    """`files`: of all kinds in the root, at least; `generations` count the booted one and the pending one."""

    files: int = 1000
    packages: int = 300
    generations: int = 4

    @property
    def size(self) -> int:
        """Bytes of the volume; the usual ones are made from the same image as those of the tests."""
        return DEFAULT_SIZE if self == Shape() else 4 * DEFAULT_SIZE


class Machine:
    """A booted volume and the stopwatch in it."""

    def __init__(self, volume: Volume, guest: Guest) -> None:
        self.volume = volume
        self.guest = guest
        self._watch = Stopwatch(guest)

    def once(self, *argv: str) -> Sample:
        """Runs argv one time; its first word is a path."""
        return self._watch.run(argv)

    def contestant(self, *argv: str) -> Contestant:
        """Runs argv; `{}` in it becomes the number of the round."""
        return lambda number: self.once(*(word.replace("{}", str(number)) for word in argv))

    def reboot(self) -> None:
        """Boots slot 0: nothing is pending then."""
        self.guest.reboot()
        self._watch = Stopwatch(self.guest)


Prepare = Callable[[Path], None]


class Lab:
    """The machines of one run, each made when it is first asked for."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._made: dict[tuple[Shape, str], Machine] = {}

    def ours(self, shape: Shape, name: str = "", prepare: Prepare | None = None) -> Machine:
        """A machine for apk-atomic; those with the same `name` share one, whose first tree `prepare` may change."""
        return self._machine(shape, f"ours {name}", prepare)

    def bare(self, shape: Shape) -> Machine:
        """A machine whose root is writable, for apk by itself."""
        return self._machine(shape, "bare")

    def wiki(self, shape: Shape) -> Machine:
        """A machine for the wiki's script: a volume of its own, so that ours need not flush what it wrote."""
        return self._machine(shape, "wiki")

    def _machine(self, shape: Shape, role: str, prepare: Prepare | None = None) -> Machine:
        if (shape, role) not in self._made:
            made = machine(shape, writable=role == "bare", prepare=prepare)
            self._made[shape, role] = self._stack.enter_context(made)
        return self._made[shape, role]


@contextlib.contextmanager
def machine(shape: Shape, *, writable: bool = False, prepare: Prepare | None = None) -> Iterator[Machine]:
    """A machine of that shape with its own volume; `writable`: / can be changed in place, as bare apk wants it.

    One of ours is booted from a generation that a transaction made; nothing is pending.
    """

    def fill(tree: Path) -> None:
        _fill(tree, shape)
        if prepare is not None:
            prepare(tree)

    with make_volume(shape.size, prepare=fill) as volume:
        volume.repo.publish(*(_hello(version) for version in range(VERSIONS)))
        if writable:
            btrfsctl.set_read_only(volume.tree(), False)
        made = Machine(volume, volume.boot(options="rw,noatime" if writable else "ro,noatime"))
        made.once(APK if writable else OURS, "add", "hello=1.0-r0")
        if not writable:
            made.reboot()
            add_generations(volume, shape.generations - 2)
        yield made


def _hello(version: int) -> Package:
    files = {"usr/bin/hello": File(b"#!/bin/sh\necho %d\n" % version, 0o755)}
    return Package("hello", f"1.{version}-r0", files=files)


def add_generations(volume: Volume, count: int) -> None:
    """`count` more generations, as transactions of ours leave them, pinned: else the next one would collect them.

    Those that are there already are pinned again.
    """
    newest = volume.top / "snapshots" / volume.slots()[0]
    record = (newest / "generation.json").read_text()
    for number in range(count):
        name = f"20250101{number:06d}genertat"
        place = volume.top / "snapshots" / name
        if not place.exists():
            place.mkdir()
            btrfsctl.snapshot(newest / "@", place / "@", read_only=True)
            (place / "generation.json").write_text(record.replace(newest.name, name))
        (place / "pinned").touch()
    subprocess.run(["sync", "-f", volume.top], check=True)


def unpin_generations(volume: Volume) -> None:
    """Lets the next transaction, or gc, collect what `add_generations` made."""
    for pinned in (volume.top / "snapshots").glob("*/pinned"):
        pinned.unlink()


# ---- the tree --------------------------------------------------------------------------------------------


def _fill(tree: Path, shape: Shape) -> None:
    _add_tools(tree)
    _add_packages(tree, shape.packages)
    there = sum(len(directories) + len(names) for _, directories, names in os.walk(tree))
    _add_files(tree / "usr/share/bench", shape.files - there)


def _add_tools(tree: Path) -> None:
    """The drop-in, the wiki's script, and what that needs beside busybox."""
    btrfs = shutil.which("btrfs")
    if btrfs is None:
        raise FileNotFoundError("btrfs (package btrfs-progs) is not installed")
    add_binary(tree, Path(btrfs), "usr/sbin/btrfs")
    shutil.copy(Path(__file__).with_name("sysmut"), tree / SYSMUT)
    install_drop_in(tree)


def _add_files(place: Path, count: int) -> None:
    for number in range(0, count, _FILES_OF_A_DIRECTORY):
        directory = place / f"{number // _FILES_OF_A_DIRECTORY:04d}"
        directory.mkdir(parents=True)
        for each in range(min(_FILES_OF_A_DIRECTORY, count - number)):
            (directory / f"{each:02d}").write_bytes(b"content of a file\n" * 4)


def _add_packages(tree: Path, count: int) -> None:
    names = [f"package-{number:05d}" for number in range(count)]
    with open(tree / "lib/apk/db/installed", "a", encoding="ascii") as database:
        database.writelines(_record(name) for name in names)
    (tree / "etc/apk/world").write_text("".join(f"{name}\n" for name in names))


def _record(name: str) -> str:
    """A package in lib/apk/db/installed."""
    identity = "Q1" + base64.b64encode(hashlib.sha1(name.encode()).digest()).decode()
    head = (
        f"C:{identity}\nP:{name}\nV:1.0-r0\nA:{machine_arch()}\nS:20000\nI:60000\nT:{name} that was made up\n"
        f"U:http://localhost/\nL:MIT\no:{name}\nm:Nobody <nobody@localhost>\nt:1700000000\nF:usr/share/{name}\n"
    )
    return head + "".join(f"R:{number:02d}\nZ:{identity}\n" for number in range(_FILES_OF_A_PACKAGE)) + "\n"
