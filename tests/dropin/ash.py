"""busybox ash as the interactive shell of a user at a terminal of the guest, with job control.

It knows the shell and its prompt, and nothing of apk-atomic. Every wait is for something that the terminal shows.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import pexpect

from tests.support.guest import Guest

PROMPT = "@@ "
INNER = "in> "  # of a shell that is started from this one
CTRL_C, CTRL_D, CTRL_Z = "\x03", "\x04", "\x1a"


class Ash:
    """An interactive shell on a terminal of its own, at its prompt."""

    def __init__(self, guest: Guest, env: Mapping[str, str] | None = None, **how: Any) -> None:
        self.guest = guest
        how.setdefault("dimensions", (24, 300))  # no line is wrapped where it is typed
        shell = ["/bin/busybox", "ash", "-i"]
        self.pty: pexpect.spawn = guest.pty(shell, env={"PS1": PROMPT, **(env or {})}, **how)
        self.prompt()
        self.settings = self.stty()

    def run(self, line: str) -> tuple[int, str]:
        """Exit status and output of a line, from the shell's prompt to the next."""
        self.start(line)
        return self.status()

    def start(self, line: str) -> None:
        """Type a line whose exit status `status` is to wait for."""
        self.type(f"{line}; echo rc=$?=")

    def status(self) -> tuple[int, str]:
        """The exit status of the line that was started; what the terminal showed since the last wait."""
        self.pty.expect(r"rc=(\d+)=\r\n")
        found = int(self.pty.match.group(1)), self.pty.before
        self.prompt()
        return found

    def type(self, line: str) -> None:
        """Type a line; it is gone from what is shown when this returns."""
        self.pty.sendline(line)
        self.pty.expect_exact(line + "\r\n")

    def press(self, key: str) -> None:
        self.pty.send(key)

    def shows(self, text: str) -> str:
        """Wait for a text; what was shown before it."""
        self.pty.expect_exact(text)
        before: str = self.pty.before
        return before

    def prompt(self) -> str:
        """Wait for this shell's prompt."""
        return self.shows(PROMPT)

    def stopped(self) -> None:
        """Wait until the job in the foreground has stopped and the shell has its prompt."""
        self.shows("Stopped")
        self.prompt()

    def fetch(self, line: str = "fg") -> None:
        """Type a line that begins with fg; once the job is the foreground, a key reaches it and not the shell."""
        self.type(line)
        deadline = time.monotonic() + 20
        while os.tcgetpgrp(self.pty.child_fd) == os.getpgid(self.pty.pid):
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def enter(self, line: str) -> None:
        """Start a command that is a shell itself, up to its prompt."""
        self.type(line)
        self.prompt()
        self.type(f"PS1='{INNER}'")
        self.shows(INNER)

    def inner(self, line: str) -> tuple[int, str]:
        """As `run`, in the shell that was entered."""
        self.type(f"{line}; echo rc=$?=")
        self.pty.expect(r"rc=(\d+)=\r\n")
        found = int(self.pty.match.group(1)), self.pty.before
        self.shows(INNER)
        return found

    def stty(self) -> str:
        """The settings of the terminal, as the shell gives them to its jobs."""
        self.type("stty -g")
        return self.prompt()

    def check(self) -> None:
        """The shell is the foreground, with the settings that it had: it answers, and echoes what is typed."""
        self.check_foreground()
        assert self.stty() == self.settings

    def check_foreground(self) -> None:
        """The shell has the terminal, and answers."""
        assert self.run("true") == (0, "")
        assert os.tcgetpgrp(self.pty.child_fd) == os.getpgid(self.pty.pid)

    def close(self) -> None:
        self.pty.close(force=True)
