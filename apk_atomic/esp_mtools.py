"""The EFI system partition where the kernel has no vfat: files by mtools, and by `fat` what mtools cannot do safely.

It must not know what the files are. Durable when `write` returns: that file.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import TypeVar

from apk_atomic import fat, process
from apk_atomic.errors import CannotRun, CheckFailed
from apk_atomic.esp_types import LIMIT, Unseen, refused
from apk_atomic.lock import RUN
from apk_atomic.signals import Signals

_NOISE = "Could not get geometry of device ("
_NEW = ".new"  # what mtools writes before it renames
Result = TypeVar("Result")


class ByTools:
    """A FAT that nothing mounts: mtools makes the new file, which then trades places with the old one (see `fat`).

    Each call is a process, so what was read, written or made is remembered.
    """

    is_fat = True

    def __init__(self, device: str, signals: Signals) -> None:
        self.device = device
        self._signals = signals
        self._known: dict[str, bytes | None] = {}
        self._made: set[str] = set()
        if self._run("mdir", "-b", "-i", device, "::/"):
            raise CheckFailed(f"{device} holds no FAT file system, so it is no ESP")

    def read(self, path: str) -> bytes | None:
        if path not in self._known:
            self._known[path] = self._fetch(path)
        return self._known[path]

    def _fetch(self, path: str) -> bytes | None:
        with tempfile.TemporaryDirectory(dir=RUN) as place:
            if self._run("mcopy", "-n", "-i", self.device, f"::/{path}", f"{place}/file"):
                return None
            with open(f"{place}/file", "rb") as file:
                return file.read(LIMIT)

    def write(self, path: str, data: bytes) -> None:
        self._make_parents(path)
        with tempfile.NamedTemporaryFile(dir=RUN) as file:
            file.write(data)
            file.flush()
            self.tidy(path)
            self._must(path, "mcopy", "-D", "o", "-i", self.device, file.name, f"::/{path}{_NEW}")
        self._with_device(path, os.fsync)
        if self._with_device(path, lambda device: fat.find(device, path)):
            self._with_device(path, lambda device: fat.trade(device, path, path + _NEW))
            self._must(path, "mdel", "-i", self.device, f"::/{path}{_NEW}")
        else:
            self._must(path, "mren", "-i", self.device, f"::/{path}{_NEW}", f"::/{path}")
        self._with_device(path, os.fsync)
        self._known[path] = data

    def tidy(self, path: str) -> None:
        new = path + _NEW
        if self._with_device(path, lambda device: fat.find(device, new)):
            self._with_device(path, lambda device: fat.settle(device, path, new))
            self._must(path, "mdel", "-i", self.device, f"::/{new}")

    def free(self) -> int | None:
        self._run("mdir", "-i", self.device, "::/")
        last = self._said.splitlines()[-1:] or [""]
        digits = "".join(char for char in last[0].partition(" bytes free")[0] if char.isdigit())
        return int(digits) if digits and last[0].endswith("bytes free") else None

    def _make_parents(self, path: str) -> None:
        parts = path.split("/")
        for depth in range(1, len(parts)):
            directory = "/".join(parts[:depth])
            if directory not in self._made:
                self._run("mmd", "-D", "s", "-i", self.device, f"::/{directory}")  # fails where it is there
                self._made.add(directory)

    def _must(self, path: str, *argv: str) -> None:
        if self._run(*argv):
            raise refused(path, self._said, full="full" in self._said.lower())

    def _run(self, *argv: str) -> int:
        try:
            done = process.run(argv, self._signals, {"MTOOLS_SKIP_CHECK": "1", "MTOOLSRC": os.devnull})
        except CannotRun as error:
            text = f"this kernel cannot mount a FAT file system, and without it: {error.message}"
            raise Unseen(text, hint="modprobe vfat, or apk add mtools") from error
        self._said = _plain(done.output)
        return done.status

    def _with_device(self, path: str, act: Callable[[int], Result]) -> Result:
        device = os.open(self.device, os.O_RDWR | os.O_CLOEXEC)
        try:
            return act(device)
        except fat.NoFat as error:
            raise refused(path, f"{self.device} {error}", full=False) from error
        finally:
            os.close(device)


def _plain(said: str) -> str:
    """What mtools says, without its word on every device that is no floppy disk."""
    while _NOISE in said:
        before, _, after = said.partition(_NOISE)
        said = before + after.partition(")")[2]
    return said.strip()
