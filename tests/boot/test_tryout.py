"""README's machine to try it on: its lines, typed in order into a shell here and into the machine's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from tests.boot.disk import PROJECT
from tests.boot.kernels import debian_kernels
from tests.boot.machine import TIMEOUT
from tests.support.imagecache import scratch_directory

pytestmark = [pytest.mark.boot, pytest.mark.timeout(1500)]

CHAPTER = "## A machine to try it on\n"
PROMPT = re.compile(r"[~/]\S* # ")


def lines() -> list[str]:
    """What stands in the chapter's block, without comments."""
    block = (PROJECT / "README.md").read_text().partition(CHAPTER)[2].partition("```sh\n")[2].partition("```")[0]
    return [line.partition(" #")[0].rstrip() for line in block.splitlines()]


class Terminal:
    """A terminal, on which `make` runs or, while there is a machine, its shell."""

    def __init__(self, disk: Path, log: Path) -> None:
        self._disk = disk
        self._log = log.open("ab")
        self._machine: pexpect.spawn | None = None

    def type(self, line: str) -> str:
        """What it says; AssertionError if it fails."""
        if line.startswith("make "):
            return self._make(line.removeprefix("make "))
        machine = self._machine
        assert machine is not None
        ends = line.split()[0] in ("reboot", "poweroff")
        machine.sendline(line if ends else f'{line}; echo "@@"$?')
        if ends:
            machine.expect(pexpect.EOF)
            machine.close()
            assert machine.exitstatus == 0
            self._machine = None
            return ""
        machine.expect(r"@@(\d+)\r")
        said = (machine.before or b"").decode(errors="replace")
        assert machine.match.group(1) == b"0", said
        machine.expect(PROMPT.pattern)
        return said

    def _make(self, target: str) -> str:
        argv = ["--no-print-directory", target, f"DISK={self._disk}"]
        process = pexpect.spawn("make", argv, cwd=PROJECT, timeout=TIMEOUT, logfile=self._log, dimensions=(50, 200))
        if target == "machine":
            self._machine = process
            process.expect(PROMPT.pattern)
            return ""
        process.expect(pexpect.EOF)
        process.close()
        said = (process.before or b"").decode(errors="replace")
        assert process.exitstatus == 0, said
        return said

    def close(self) -> None:
        if self._machine is not None:
            self._machine.close(force=True)
        self._log.close()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    with scratch_directory("apk-atomic-tryout-") as place:
        made = Terminal(place / "disk.img", tmp_path / "terminal.log")
        yield made
        made.close()


def test_every_line_as_it_is_typed(terminal: Terminal) -> None:
    old, new = (kernel.release for kernel in debian_kernels())
    typed = [(line, terminal.type(line)) for line in lines()]
    said = dict(typed)
    assert "# apk-atomic init " in said["make disk"]
    assert "Read-only file system" in said["touch /etc/a || true"]
    assert "it runs after the reboot" in said["apk-atomic upgrade"] and new not in said["apk-atomic add hello"]
    assert "hello from" in said["hello"] and new in said["uname -r"]
    assert old in said["apk-atomic status"] and new in said["apk-atomic status"]
    assert "is next" in said["apk-atomic rollback 1"]
