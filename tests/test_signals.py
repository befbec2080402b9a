"""Signals held back: read when it suits, with their origin, and the state of before afterwards."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from apk_atomic import signals as module
from apk_atomic.errors import Interrupted
from apk_atomic.signals import ENDING, Signal, Signals
from tests.support import engine

PROJECT = Path(module.__file__).parents[1]


@pytest.fixture
def held() -> Iterator[Signals]:
    with engine.held_signals() as made:
        yield made


def blocked() -> set[int]:
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))


def send(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def test_held_for_good() -> None:
    """Not even after the last look does one of them end us: the exit status is decided then."""
    before = blocked()
    with engine.held_signals() as signals:
        assert blocked() == before | {*ENDING, signal.SIGCHLD}
        signals.release()
        send(*ENDING)
        assert blocked() == before | {*ENDING, signal.SIGCHLD}
        signals.fd = os.open(os.devnull, os.O_RDONLY)
    assert blocked() == before


@pytest.mark.parametrize("number", ENDING)
def test_an_ending_signal_interrupts_when_asked(held: Signals, number: int) -> None:
    held.check()
    send(number)
    with pytest.raises(Interrupted, match=f"interrupted by {signal.Signals(number).name}") as end:
        held.check()
    assert end.value.exit_code == 128 + number
    with pytest.raises(Interrupted):
        held.check()


def test_the_first_is_what_counts(held: Signals) -> None:
    assert held.poll() is None
    send(signal.SIGTERM)
    assert held.poll() == Signal(signal.SIGTERM, from_terminal=False)
    send(signal.SIGINT)
    assert held.poll() == Signal(signal.SIGINT, from_terminal=False)
    assert held.poll() is None
    assert held.first == Signal(signal.SIGTERM, from_terminal=False)


def test_a_child_that_ends_wakes_and_is_no_signal(held: Signals) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    poll = select.poll()
    poll.register(held.fd, select.POLLIN)
    assert poll.poll(10_000)
    assert held.poll() is None
    held.check()
    os.waitpid(child, 0)


def test_what_the_caller_ignores_stays_ignored() -> None:
    """`nohup`: the hangup is neither blocked nor read."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with engine.held_signals() as held:
            assert signal.SIGHUP not in blocked()
            send(signal.SIGHUP)
            held.check()
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_a_child_starts_with_the_mask_of_the_beginning(held: Signals) -> None:
    child = os.fork()
    if child == 0:
        try:
            held.restore_for_exec()
            os.execv("/bin/sh", ["sh", "-c", "grep -q '^SigBlk:.0*$' /proc/self/status"])
        finally:
            os._exit(127)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_dispositions_are_the_defaults_again(held: Signals) -> None:
    child = os.fork()
    if child == 0:
        try:
            held.restore_for_exec()
            os.execv("/bin/sh", ["sh", "-c", "kill -PIPE $$; exit 0"])
        finally:
            os._exit(127)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGPIPE


FROM_TERMINAL = """\
import select
from apk_atomic.signals import Signals
signals = Signals()
print("ready", flush=True)
while True:
    select.select([signals.fd], [], [])
    arrived = signals.poll()
    print(arrived.number, arrived.from_terminal, flush=True)
    if arrived.number == 1:
        break
"""


def test_the_terminal_is_told_from_a_process() -> None:
    """A Ctrl-C has reached the whole foreground group; a kill has reached us alone."""
    argv = ["-c", FROM_TERMINAL]
    terminal = pexpect.spawn(sys.executable, argv, cwd=str(PROJECT), timeout=20, encoding="utf-8", echo=False)
    terminal.delaybeforesend = None
    try:
        terminal.expect_exact("ready")
        terminal.sendintr()
        terminal.expect_exact("2 True")
        terminal.send("\x1c")
        terminal.expect_exact("3 True")
        os.kill(terminal.pid, signal.SIGINT)
        terminal.expect_exact("2 False")
        os.kill(terminal.pid, signal.SIGHUP)
        terminal.expect_exact("1 False")
        terminal.expect(pexpect.EOF)
    finally:
        terminal.close(force=True)


def test_the_descriptor_is_not_inherited(held: Signals) -> None:
    assert not os.get_inheritable(held.fd)
    listing = subprocess.run(["ls", "-l", "/proc/self/fd"], capture_output=True, text=True, close_fds=False, check=True)
    assert "signalfd" not in listing.stdout


def test_settled(held: Signals) -> None:
    send(signal.SIGTERM)
    held.settle()
    held.check()
    assert held.first == Signal(signal.SIGTERM, from_terminal=False)
