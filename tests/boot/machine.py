"""A machine that boots a disk image through UEFI, driven by its serial line: QEMU without any help of the host's CPU.

    machine = Machine(disk, place)
    with machine.booted() as system:          # or booted(Entry("Fallback 1", 1)): chosen from the menu
        system.run("apk-atomic add hello", check=True)
    with machine.booted() as system: ...

Leaving the `with` takes the power away, as `system.cut_power()` does at once: QEMU is killed. What the disk had
accepted by then stays (boots-seen 12); what only the guest knew is lost.
"""

from __future__ import annotations

import base64
import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pexpect

TIMEOUT = 300.0  # of a busy machine: one that is not needs a tenth
FIRMWARE = Path("/usr/share/OVMF")
# How the last lines of rEFInd's text screens and of GRUB's end, and what keys send over a serial line.
MENU_IS_DRAWN, SUBMENU_IS_DRAWN, GRUB_IS_DRAWN = "for more options", "return to main menu", "executed automatically in"
# The kernel patches itself while it boots, by way of this trap. QEMU without the host's help was seen to run into it
# when it was gone, from what had been translated before: then the kernel panics, and nothing on the disk has changed.
STALE_INSTRUCTION = "Oops: int3"
SUBMENU, DOWN, ENTER = "\t", "\x1b[B", "\r"


class NoBoot(Exception):
    """The machine did not come up; the text says what it had said last. `emulated`: a real one would not fail so."""

    def __init__(self, text: str, *, emulated: bool) -> None:
        super().__init__(text)
        self.emulated = emulated


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the submenu of rEFInd's first entry: its title, and how many stand above it."""

    title: str
    place: int

    def choose(self, line: pexpect.spawn) -> None:
        line.expect_exact(MENU_IS_DRAWN)
        line.send(SUBMENU)
        line.expect_exact(self.title)
        line.expect_exact(SUBMENU_IS_DRAWN)
        line.send(DOWN * self.place + ENTER)


@dataclass(frozen=True, slots=True)
class GrubEntry:
    """An entry of GRUB's menu: its title, and how many stand above it."""

    title: str
    place: int

    def choose(self, line: pexpect.spawn) -> None:
        line.expect_exact(self.title)
        line.expect_exact(GRUB_IS_DRAWN)
        line.send(DOWN * self.place + ENTER)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a script did in the guest: exit status, and what it wrote on both its outputs."""

    status: int
    text: str


class System:
    """A booted system at its console. `root`: field 4 of / in mountinfo; `mount`: the line of / in /proc/mounts."""

    def __init__(self, line: pexpect.spawn) -> None:
        self._line = line
        self._line.expect(r"@@ready (\S+)\r?\n")
        self.root, self.release, self.mount = _text(line.match.group(1)).splitlines()

    @property
    def generation(self) -> str:
        """The ID of what is booted: /snapshots/ID/@ → ID."""
        return self.root.split("/")[2]

    def run(self, script: str, *, check: bool = False) -> Answer:
        """Run a shell script to its end; AssertionError with what it said when `check` and it failed."""
        self.start(script)
        self._line.expect(r"@@done (\d+) (\S*)\r?\n")
        answer = Answer(int(self._line.match.group(1)), _text(self._line.match.group(2)))
        assert not check or answer.status == 0, f"{script}: status {answer.status}:\n{answer.text}"
        return answer

    def start(self, script: str) -> None:
        """Run a shell script and do not wait for it."""
        self._line.sendline(base64.b64encode(script.encode()).decode())

    def wait_for(self, words: str) -> None:
        """Wait until something in the guest has written `words` to the serial line."""
        self._line.expect_exact(words)

    def power_off(self) -> None:
        """Shut down in order."""
        self.start("poweroff -f")
        self._line.expect(pexpect.EOF)

    def cut_power(self) -> None:
        """Kill the machine at once."""
        self._line.close(force=True)


class Machine:
    """A machine with the disk `disk`, and `mirror` on a second one that it can only read.

    The variables of its firmware, and all that it says on its serial line, are in `place`.
    """

    def __init__(self, disk: Path, place: Path, mirror: Path) -> None:
        self._disks = (f"id=disk,file={disk}", f"id=mirror,readonly=on,file={mirror}")
        self._variables = place / "variables"
        self._log = place / "serial.log"
        shutil.copyfile(FIRMWARE / "OVMF_VARS_4M.fd", self._variables)

    @contextlib.contextmanager
    def booted(self, choice: Entry | GrubEntry | None = None) -> Iterator[System]:
        """Switch on, choose from the boot menu, or touch nothing, and wait for the console. NoBoot if that fails."""
        with open(self._log, "ab") as log:
            line, system = self._start(log, choice)
            try:
                yield system
            finally:
                line.close(force=True)

    def _start(self, log: BinaryIO, choice: Entry | GrubEntry | None) -> tuple[pexpect.spawn, System]:
        for _ in range(2):
            try:
                return self._start_once(log, choice)
            except NoBoot as failure:
                if not failure.emulated:
                    raise
        return self._start_once(log, choice)

    def _start_once(self, log: BinaryIO, choice: Entry | GrubEntry | None) -> tuple[pexpect.spawn, System]:
        line = pexpect.spawn("qemu-system-x86_64", self._arguments(), timeout=TIMEOUT, logfile=log, echo=False)
        line.delaybeforesend = None
        try:
            return line, _start(line, choice)
        except BaseException:
            line.close(force=True)
            raise

    def _arguments(self) -> list[str]:
        drives = {
            "pflash": [f"unit=0,readonly=on,file={FIRMWARE}/OVMF_CODE_4M.fd", f"unit=1,file={self._variables}"],
            "none": self._disks,
        }
        return [
            "-machine", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "768",
            "-nodefaults", "-no-reboot", "-display", "none", "-monitor", "none", "-serial", "stdio",
            *(word for kind, lines in drives.items() for drive in lines
              for word in ("-drive", f"if={kind},format=raw,{drive}")),
            "-device", "virtio-blk-pci,drive=disk", "-device", "virtio-blk-pci,drive=mirror",
        ]  # fmt: skip


def _start(line: pexpect.spawn, choice: Entry | GrubEntry | None) -> System:
    try:
        if choice is not None:
            choice.choose(line)
        return System(line)
    except (pexpect.EOF, pexpect.TIMEOUT) as error:
        said = (line.before or b"").decode(errors="replace")
        raise NoBoot(said[-4000:], emulated=STALE_INSTRUCTION in said) from error


def _text(word: bytes) -> str:
    return base64.b64decode(word).decode(errors="replace")
