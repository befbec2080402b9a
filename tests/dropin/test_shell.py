"""`apk-atomic shell` at a terminal: a shell like any other, whose exit status decides; and apk typed inside."""

from __future__ import annotations

import os
import signal

import pytest

from tests.dropin.ash import CTRL_C, CTRL_D, CTRL_Z, INNER, Ash
from tests.dropin.world import BARE, HELLO, LINK, is_pending
from tests.support.guest import PATH
from tests.support.packages import Package
from tests.support.world import Guest, Volume

MAKE = "touch /etc/made"
APK_FIRST = f"PATH={PATH}"  # as Alpine's /etc/profile has it


@pytest.fixture
def guest(volume: Volume) -> Guest:
    volume.repo.publish(HELLO, Package("other"))
    return volume.boot()


@pytest.fixture
def ash(guest: Guest) -> Ash:
    """In the shell of a transaction that was started from an interactive one."""
    shell = Ash(guest)
    shell.enter("apk-atomic shell; echo rc=$?=")
    return shell


def check_end(ash: Ash, status: int, *, committed: bool) -> str:
    """The shell inside has ended; what was shown since."""
    found, shown = ash.status()
    ash.check()
    assert (found, is_pending(ash.guest)) == (status, committed), shown
    assert ash.guest.strays() == [ash.pty.pid]
    return shown


@pytest.mark.parametrize(
    ("words", "status"),
    [("exit", 0), ("exit 0", 0), ("exit 1", 1), ("false; exit", 1), ("exit 77", 77), ("kill -9 $$", 137)],
)
def test_exit_status_decides(ash: Ash, words: str, status: int) -> None:
    assert ash.inner(MAKE)[0] == 0
    ash.type(words)
    shown = check_end(ash, status, committed=status == 0)
    assert ("nothing was changed" in shown) == (status != 0)


def test_end_of_input_commits(ash: Ash) -> None:
    ash.inner(MAKE)
    ash.press(CTRL_D)
    check_end(ash, 0, committed=True)


def test_unchanged_makes_no_generation(ash: Ash) -> None:
    ash.type("exit")
    assert "nothing changed" in check_end(ash, 0, committed=False)


def test_interrupt_at_the_prompt_is_the_shells(ash: Ash) -> None:
    ash.press(CTRL_C)
    ash.shows(INNER)
    ash.type("sh -c 'echo up; exec sleep 100'")
    ash.shows("up\r\n")
    ash.press(CTRL_C)
    ash.shows(INNER)
    assert ash.inner(MAKE)[0] == 0
    ash.type("exit")
    check_end(ash, 0, committed=True)


def test_jobs_inside(ash: Ash) -> None:
    ash.type("sh -c 'echo up; exec cat'")
    ash.shows("up\r\n")
    ash.press(CTRL_Z)
    ash.shows("Stopped")
    ash.shows(INNER)
    assert "Stopped" in ash.inner("jobs")[1]
    ash.type("fg")
    ash.shows("exec cat")
    ash.type("hello")
    ash.shows("hello\r\n")
    ash.press(CTRL_D)
    ash.shows(INNER)
    ash.type("sh -c 'echo up; exec sleep 100' &")
    ash.shows("up\r\n")
    assert ash.inner("kill %1; wait %1")[0] == 143
    ash.type("exit 1")
    check_end(ash, 1, committed=False)


def test_stopped_shell_is_a_stopped_job(ash: Ash) -> None:
    ash.inner(MAKE)
    for _ in range(2):
        ash.type("kill -STOP $$")
        ash.stopped()
        ash.check()
        ash.fetch()
        ash.pty.sendline("")
        ash.shows(INNER)
        assert ash.inner("echo here")[1].endswith("here\r\n")
    ash.type("exit")
    ash.prompt()
    ash.check()
    assert is_pending(ash.guest)


def test_stopped_shell_in_the_background_waits_for_the_terminal(ash: Ash) -> None:
    ash.type("kill -STOP $$")
    ash.stopped()
    ash.type("bg")
    ash.prompt()
    while "Stopped" not in ash.run("jobs")[1]:
        pass
    ash.check_foreground()  # not its settings: ash prepares them for its prompt before it reads and is stopped
    ash.fetch()
    ash.pty.sendline("")
    ash.shows(INNER)
    ash.inner(MAKE)
    ash.type("exit 0")
    ash.prompt()
    ash.check_foreground()
    assert is_pending(ash.guest)


def test_shell_started_in_the_background_waits_for_the_terminal(guest: Guest) -> None:
    ash = Ash(guest)
    ash.type("apk-atomic shell &")
    ash.prompt()
    while "Stopped" not in ash.run("jobs")[1]:
        pass
    ash.check()
    ash.fetch()
    ash.prompt()  # the same prompt, of the shell inside
    ash.type("[ -e /run/apk-atomic/inside ] && exit 3")
    ash.shows("exit status 3")
    ash.prompt()
    ash.check()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_signal_for_the_wrapper_ends_the_shell(ash: Ash, number: signal.Signals) -> None:
    ash.inner(MAKE)
    (wrapper,) = _wrappers(ash)
    os.kill(wrapper, number)
    assert f"interrupted by {number.name}" in check_end(ash, 128 + number, committed=False)


def _wrappers(ash: Ash) -> list[int]:
    children = f"/proc/{ash.pty.pid}/task/{ash.pty.pid}/children"
    with open(children) as listing:
        return [int(pid) for pid in listing.read().split()]


# ---- apk inside ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["apk", "apk-atomic", BARE, LINK])
def test_apk_typed_inside_works(ash: Ash, name: str) -> None:
    ash.inner(APK_FIRST)
    status, shown = ash.inner(f"{name} add hello")
    assert (status, "Installing hello" in shown, "apk-atomic: " in shown) == (0, True, False)
    assert ash.inner(f"{name} info -e hello") == (0, "hello\r\n")
    assert ash.inner(f"{name} add nosuch")[0] == 1
    assert ash.inner(f"{name} -q add other")[0] == 0
    assert ash.inner(f"{name} del hello")[0] == 0
    ash.type("exit")
    shown = check_end(ash, 0, committed=True)
    assert "added other-1.0-r0" in shown
    assert ash.guest.run(["apk", "info", "-e", "hello"]).status == 1


def test_our_verbs_refuse_inside(volume: Volume, ash: Ash) -> None:
    ash.inner(APK_FIRST)
    for verb in ("run -- true", "shell", "rollback", "discard", "gc"):
        status, shown = ash.inner(f"apk-atomic {verb}")
        assert (status, "nothing was changed" in shown, "hint: leave this shell first" in shown) == (106, True, True)
    assert ash.inner("apk status")[0] == 1
    ash.type("exit 1")
    check_end(ash, 1, committed=False)
    assert len(volume.generations()) == 1


def test_script_of_a_package_may_ask_apk(volume: Volume, guest: Guest) -> None:
    question = f"#!/bin/sh\n{LINK} info -e hello >/var/log/answer\napk-atomic info -e nosuch >>/var/log/answer\n:\n"
    volume.repo.publish(Package("curious", depends=("hello",), scripts={"post-upgrade": question}))
    guest.run(["apk", "add", "curious"], check=True)
    volume.repo.publish(Package("curious", "2.0-r0", depends=("hello",), scripts={"post-upgrade": question}))
    guest.run(["apk", "upgrade"], check=True)
    assert guest.run(["cat", "/var/log/answer"], check=True).stdout == "hello\n"
