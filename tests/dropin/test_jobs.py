"""Job control: a transaction is one job of the caller's shell, whatever it starts."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess

import pytest

from tests.dropin.ash import CTRL_C, CTRL_Z, Ash
from tests.dropin.world import HELLO, is_pending
from tests.support.packages import Package
from tests.support.world import Guest, Volume

# Their post-install scripts: one shows itself on the terminal, the other in a file, and waits for a file.
SHOWN = Package("shown", scripts={"post-install": "#!/bin/sh\necho up >/dev/tty\nsleep 100\n"})
WAITING = Package(
    "waiting",
    scripts={"post-install": "#!/bin/sh\ntouch /var/log/up\nuntil [ -e /var/log/go ]; do sleep 0.02; done\n"},
)
READER = "apk-atomic run -- sh -c 'touch /etc/made; echo up; read -r line; echo got-$line'"


@pytest.fixture
def guest(volume: Volume) -> Guest:
    volume.repo.publish(HELLO, SHOWN, WAITING)
    return volume.boot()


@pytest.fixture
def ash(guest: Guest) -> Ash:
    return Ash(guest)


# ---- Ctrl-C ----------------------------------------------------------------------------------------------


def test_interrupt_reaches_the_command_once(volume: Volume, ash: Ash) -> None:
    before = volume.generations()
    count = 'n=0; trap "n=\\$((n+1)); echo INT-\\$n" INT; echo up; until read -r line; do :; done; echo count-$n'
    ash.start(f"apk-atomic run -- sh -c '{count}; exit 0'")
    ash.shows("up\r\n")
    ash.press(CTRL_C)
    ash.shows("INT-1\r\n")
    ash.type("end")
    status, shown = ash.status()
    assert (status, "count-1\r\n" in shown) == (130, True)
    ash.check()
    assert (volume.generations(), ash.guest.strays()) == (before, [ash.pty.pid])


def test_interrupt_in_a_script_of_a_package_discards(volume: Volume, ash: Ash) -> None:
    before = volume.generations()
    ash.start("apk add shown")
    ash.shows("up\r\n")
    ash.press(CTRL_C)
    status, shown = ash.status()
    assert (status, "interrupted by SIGINT" in shown) == (130, True)
    ash.check()
    assert (volume.generations(), ash.guest.strays()) == (before, [ash.pty.pid])
    assert ash.run("apk -q add hello")[0] == 0


def test_second_interrupt_kills_what_ignores_the_first(ash: Ash) -> None:
    ash.start("apk-atomic run -- sh -c 'trap \"echo trapped\" INT; echo up; while :; do read -r line; done'")
    ash.shows("up\r\n")
    ash.press(CTRL_C)
    while ash.pty.expect([r"trapped\r\n", r"rc=130=\r\n"]) == 0:
        ash.press(CTRL_C)  # two that arrive before the first is read are one
    ash.prompt()
    ash.check()


def test_quit_discards(ash: Ash) -> None:
    ash.start("apk-atomic run -- sh -c 'trap \"exit 5\" QUIT; echo up; while :; do read -r line; done'")
    ash.shows("up\r\n")
    ash.press("\x1c")
    assert ash.status()[0] == 131
    ash.check()
    assert not is_pending(ash.guest)


# ---- Ctrl-Z, fg, bg, & -----------------------------------------------------------------------------------


def test_stopped_job_goes_on_in_the_foreground(ash: Ash) -> None:
    ash.type(READER)
    ash.shows("up\r\n")
    for _ in range(2):
        ash.press(CTRL_Z)
        ash.stopped()
        ash.check()
        ash.fetch()
    ash.pty.sendline("hello")
    ash.shows("got-hello\r\n")
    assert " is next" in ash.prompt()
    ash.check()


def test_stopped_job_ends_in_the_background(ash: Ash) -> None:
    ash.type("apk add waiting")
    _wait_for(ash.guest, "/var/log/up")
    ash.press(CTRL_Z)
    ash.stopped()
    ash.type("bg")
    ash.prompt()
    ash.run("stty -ixon")
    ash.guest.run(["touch", "/var/log/go"], check=True)
    assert ash.run("wait %1")[0] == 0
    # what the user set meanwhile stays: the job was not in the foreground when it ended
    assert ash.stty() != ash.settings
    ash.run("stty ixon")
    ash.check()
    assert is_pending(ash.guest)


def test_job_in_the_background_leaves_the_terminal_alone(ash: Ash) -> None:
    ash.type("apk add waiting &")
    ash.prompt()
    _wait_for(ash.guest, "/var/log/up")
    ash.check()
    assert ash.run("echo free")[1].endswith("free\r\n")
    ash.guest.run(["touch", "/var/log/go"], check=True)
    assert ash.run("wait %1")[0] == 0
    ash.check()
    assert is_pending(ash.guest)


def test_job_of_the_background_can_be_fetched_and_interrupted(ash: Ash) -> None:
    ash.type("apk add waiting &")
    ash.prompt()
    _wait_for(ash.guest, "/var/log/up")
    ash.fetch("fg; echo rc=$?=")
    ash.press(CTRL_C)
    assert ash.status()[0] == 130
    ash.check()
    assert not is_pending(ash.guest)


def test_question_stops_a_job_in_the_background(ash: Ash) -> None:
    ash.type("apk add -i hello &")
    ash.prompt()
    ash.shows("continue [Y/n]? ")
    ash.pty.sendline("")
    while "Stopped" not in ash.prompt():
        ash.pty.sendline("")
    ash.start("fg")
    ash.shows("apk add -i hello\r\n")
    ash.pty.sendline("y")
    status, shown = ash.status()
    assert (status, " is next" in shown) == (0, True)
    ash.check()


def test_stopped_job_can_be_killed(volume: Volume, ash: Ash) -> None:
    before = volume.generations()
    ash.type(READER)
    ash.shows("up\r\n")
    ash.press(CTRL_Z)
    ash.stopped()
    ash.start("kill %1; fg")
    assert ash.status()[0] == 143
    ash.check()
    assert volume.generations() == before


def test_command_that_stops_itself_stops_the_job(ash: Ash) -> None:
    ash.type("apk-atomic run -- sh -c 'echo up; kill -STOP $$; echo on; touch /etc/made'")
    ash.stopped()
    ash.check()
    ash.start("fg")
    status, shown = ash.status()
    assert (status, "on\r\n" in shown) == (0, True)
    ash.check()
    assert is_pending(ash.guest)


# ---- signals for the wrapper alone -----------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
@pytest.mark.parametrize("line", ["apk add waiting", "apk-atomic run -- sh -c 'touch /var/log/up; sleep 100'"])
def test_signal_for_the_wrapper_alone_ends_all(volume: Volume, guest: Guest, line: str, number: signal.Signals) -> None:
    before = volume.generations()
    process = guest.popen(["sh", "-c", f"exec {line}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    _wait_for(guest, "/var/log/up")
    os.kill(process.pid, number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number, said
    assert f"interrupted by {number.name}".encode() in said
    assert (volume.generations(), guest.strays(), is_pending(guest)) == (before, [], False)


def test_ignored_signal_stays_ignored(guest: Guest) -> None:
    process = guest.popen(["sh", "-c", "trap '' HUP; exec apk add waiting"], stdout=subprocess.DEVNULL)
    _wait_for(guest, "/var/log/up")
    os.kill(process.pid, signal.SIGHUP)
    guest.run(["touch", "/var/log/go"], check=True)
    assert process.wait(30) == 0
    assert is_pending(guest)


IGNORING = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execvp(sys.argv[1], sys.argv[1:])"


@pytest.mark.parametrize(
    ("line", "status"), [("apk add hello", 0), ("apk-atomic run -- sh -c 'true; exit 7'", 7), ("apk info", 0)]
)
def test_caller_that_ignores_the_end_of_children(guest: Guest, line: str, status: int) -> None:
    """As some daemons do: the kernel would bury the command, and we would wait for its end for ever."""
    result = guest.run(["python3", "-I", "-c", IGNORING, *shlex.split(line)], timeout=30)
    assert (result.status, guest.strays()) == (status, []), result


def _wait_for(guest: Guest, path: str) -> None:
    guest.run(["sh", "-c", f"until [ -e {path} ]; do sleep 0.02; done"], check=True)
