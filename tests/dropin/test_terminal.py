"""apk keeps the caller's terminal: prompts, size, progress bar, input, settings."""

from __future__ import annotations

import os
import shlex

import pexpect
import pyte
import pytest

from tests.dropin.ash import CTRL_C, CTRL_D, Ash
from tests.dropin.world import BARE, HELLO, is_pending
from tests.support.oracle import fingerprint
from tests.support.packages import File, Package
from tests.support.world import Guest, Volume

QUESTION = "Do you want to continue [Y/n]? "


@pytest.fixture
def guest(volume: Volume) -> Guest:
    volume.repo.publish(HELLO)
    return volume.boot()


# ---- prompts ---------------------------------------------------------------------------------------------


def ask(guest: Guest, *words: str) -> pexpect.spawn:
    terminal = guest.pty(["apk", "add", "-i", *words, "hello"])
    terminal.expect_exact(QUESTION)
    return terminal


def end(terminal: pexpect.spawn) -> tuple[int, str]:
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus is not None
    return terminal.exitstatus, terminal.before


def test_no_discards_with_the_status_of_apk(volume: Volume, guest: Guest) -> None:
    before = volume.current(), fingerprint(volume.tree())
    terminal = ask(guest)
    terminal.send("n\n")
    status, shown = end(terminal)
    assert (status, "nothing was changed" in shown) == (99, True)
    assert (volume.current(), fingerprint(volume.tree())) == before
    assert not is_pending(guest)


@pytest.mark.parametrize("answer", ["y\n", "\n", CTRL_D], ids=["y", "return", "end"])
def test_yes_commits(guest: Guest, answer: str) -> None:
    terminal = ask(guest)
    terminal.send(answer)
    status, shown = end(terminal)
    assert (status, " is next: added hello-1.0-r0" in shown) == (0, True)
    assert is_pending(guest)


def test_interrupt_at_the_prompt_discards(volume: Volume, guest: Guest) -> None:
    before = volume.generations()
    terminal = ask(guest, "--atomic-message", "x")
    terminal.send(CTRL_C)
    assert end(terminal)[0] == 130
    assert volume.generations() == before
    assert guest.strays() == []


def test_nothing_to_do_asks_nothing(guest: Guest) -> None:
    terminal = guest.pty(["apk", "add", "-i"])
    status, shown = end(terminal)
    assert (status, QUESTION in shown, "nothing changed" in shown) == (0, False, True)


def test_input_of_the_caller_answers(guest: Guest) -> None:
    assert guest.run(["apk", "-i", "add", "hello"], input="n\n").status == 99
    assert not is_pending(guest)
    assert guest.run(["apk", "-i", "add", "hello"]).status == 0
    assert is_pending(guest)


def test_file_that_makes_apk_ask_counts_inside(guest: Guest) -> None:
    guest.run(["apk-atomic", "run", "--", "touch", "/etc/apk/interactive"], check=True)
    guest.reboot()
    terminal = guest.pty(["apk", "add", "hello"])
    terminal.expect_exact(QUESTION)
    terminal.send("n\n")
    assert end(terminal)[0] == 99
    guest.run(["apk", "add", "hello"], check=True)


def test_simulation_never_asks(guest: Guest) -> None:
    status, shown = end(guest.pty(["apk", "add", "-i", "-s", "hello"]))
    assert (status, QUESTION in shown) == (0, False)


# ---- size, bar, input ------------------------------------------------------------------------------------


def test_size_and_its_change_reach_the_command(guest: Guest) -> None:
    script = 'trap "stty size; exit 0" WINCH; stty size; while :; do read -r line; done'
    terminal = guest.pty(["apk-atomic", "run", "--", "sh", "-c", script], dimensions=(30, 90))
    terminal.expect_exact("30 90")
    terminal.setwinsize(40, 111)
    terminal.expect_exact("40 111")
    assert end(terminal)[0] == 0


def drawn(guest: Guest, argv: list[str]) -> tuple[set[str], list[str]]:
    """Every line that the cursor was on while the command ran, and what is left on the terminal."""
    terminal = guest.pty(argv, dimensions=(12, 60))
    screen = pyte.Screen(60, 12)
    stream = pyte.Stream(screen)
    shown = set()
    while True:
        try:
            stream.feed(terminal.read_nonblocking(1, timeout=20))
        except pexpect.EOF:
            break
        shown.add(screen.display[screen.cursor.y].rstrip())
    terminal.close()
    return shown, [line.rstrip() for line in screen.display if line.strip()]


@pytest.mark.real_apk
def test_progress_bar_is_that_of_bare_apk(volume: Volume, guest: Guest) -> None:
    volume.repo.publish(*(Package(f"p{n}", files={f"usr/p{n}": File(b"x" * 5000)}) for n in range(3)))
    bare, left_by_bare = drawn(guest, ["apk-atomic", "run", "--", BARE, "add", "p0", "p1", "p2"])
    guest.run(["apk-atomic", "discard"], check=True)
    through, left = drawn(guest, ["apk", "add", "p0", "p1", "p2"])
    bars = {line for line in bare if "%" in line and ("#" in line or "█" in line)}
    assert any(line.startswith("100%") for line in bars)
    assert bars <= through
    apks = [line for line in left if "OK:" in line]
    assert apks and apks == [line for line in left_by_bare if "OK:" in line]
    assert not any("%" in line for line in left)


@pytest.mark.real_apk
@pytest.mark.parametrize("number", [1, 7])
def test_progress_goes_to_its_descriptor(guest: Guest, number: int) -> None:
    script = f'apk -q add hello --progress-fd {number} {number}>/tmp/progress; echo "$?"; cat /tmp/progress'
    status, *lines = guest.run(["sh", "-c", script], check=True).stdout.split("\n")
    assert status == "0"
    assert any(line.partition("/")[0].isdigit() for line in lines)


def test_input_is_left_to_the_command(guest: Guest) -> None:
    script = """apk-atomic run -- sh -c 'read -r line; echo "$line"'; cat"""
    assert guest.run(["sh", "-c", script], input="first\nsecond\n").stdout == "first\nsecond\n"
    lines = guest.run(["apk-atomic", "shell"], input="touch /etc/made\nexit 0\n")
    assert lines.status == 0
    assert is_pending(guest)


def test_pipes_of_the_caller_work(guest: Guest) -> None:
    script = "apk add hello 2>/dev/null | cat | grep -c ^OK"
    assert guest.run(["sh", "-c", script], check=True).stdout == "1\n"
    first = guest.run(["sh", "-c", "apk-atomic run -- yes | head -n 1; apk-atomic status | head -n 1"])
    assert (first.status, first.stdout.splitlines()[0]) == (0, "y")


# ---- settings --------------------------------------------------------------------------------------------


def test_settings_that_a_script_leaves_behind_are_put_back(volume: Volume, guest: Guest) -> None:
    script = "#!/bin/sh\nstty raw -echo </dev/tty\n"
    volume.repo.publish(Package("rude", scripts={"post-install": script}))
    ash = Ash(guest)
    status, _ = ash.run("apk add rude")
    ash.check()
    assert status == 0
    ash.run("apk-atomic run -- sh -c 'stty raw -echo; exit 3'")
    ash.check()


def test_settings_of_a_pager_behind_a_pipe_are_left_alone(guest: Guest) -> None:
    settings = "stty -a </dev/tty | grep -o -e '-echo '"
    pager = f'sh -c "stty -echo </dev/tty; cat >/dev/null; {settings}; stty echo </dev/tty"'
    ash = Ash(guest)
    ash.type(f"apk-atomic run -- sh -c 'until stty -a | grep -q -e -echo; do :; done' | {pager}")
    assert "-echo \r\n" in ash.prompt()
    ash.check()


def test_group_that_a_command_leaves_in_the_foreground_is_replaced(guest: Guest) -> None:
    ash = Ash(guest)
    status, shown = ash.run("apk-atomic run -- busybox ash -ic 'tty; kill -9 $$'")
    ash.check()
    assert (status, "/dev/pts/" in shown) == (137, True)
    status, _ = ash.run("apk-atomic run -- setsid sh -c 'exit 6'")
    ash.check()
    assert status == 6


@pytest.mark.parametrize("verb", ["run -- sh -c 'echo up; while :; do sleep 100; done'", "shell"])
def test_closed_terminal_discards(volume: Volume, guest: Guest, verb: str) -> None:
    before = volume.generations()
    master, slave = os.openpty()
    argv = ["setsid", "-c", "apk-atomic", *shlex.split(verb)]
    process = guest.popen(argv, stdin=slave, stdout=slave, stderr=slave, env={"PS1": "up "})
    os.close(slave)
    shown = b""
    while b"up" not in shown:
        shown += os.read(master, 1000)
    os.close(master)
    assert process.wait(20) == 129
    assert (volume.generations(), guest.strays(), is_pending(guest)) == (before, [], False)
