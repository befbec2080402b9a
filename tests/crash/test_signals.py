"""Signals in every phase of a transaction, once and twice: discarded before the switch, waited out after it.

Whether they come to the wrapper alone or to its whole group, and whatever a package script makes of them, the exit
status is 128 + the signal's number and nothing is left; after the switch it is 0. SIGKILL gives no time for anything:
what the wrapper has started dies with it, and the lock is held until then.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM, Signals

import pytest

from apk_atomic.faults import POINTS
from tests.crash.machine import Machine, Scene, each, package, pending, scenes
from tests.support import oracle
from tests.support.oracle import Fingerprint
from tests.support.waiting import until
from tests.support.world import Guest, Volume

PATIENCE = 30.0
READY = "/var/log/ready"  # a FIFO in commons: whoever opens it to write says that he runs
DEAF = f"trap '' TERM INT HUP; echo ready >{READY}; sleep 1000"
TRAPPING = f"trap 'echo trapped >/var/log/trapped' TERM INT HUP; echo ready >{READY}; while :; do sleep 9 & wait; done"
LOCKED = 102


def with_scripts(volume: Volume, guest: Guest) -> None:
    """As `pending`, and there are packages whose scripts do not end by themselves."""
    pending(volume, guest)
    volume.repo.publish(
        *(package(name) for name in ("b", "c")),
        package("deaf", scripts={"post-install": f"#!/bin/sh\n{DEAF}\n"}),
        package("trapping", scripts={"post-install": f"#!/bin/sh\n{TRAPPING}\n"}),
    )
    os.mkfifo(volume.top / "commons/@var@log/ready")


@pytest.fixture(scope="module")
def places() -> Iterator[list[Scene]]:
    with scenes(with_scripts) as made:
        yield made


@pytest.fixture(scope="module")
def old(places: list[Scene]) -> Fingerprint:
    with places[0].resume() as machine:
        return machine.tree()



@contextmanager
def script_running(machine: Machine) -> Iterator[list[str]]:
    """What is started in the block has come to its script when the block is left; what that wrote is in the list."""
    fifo = os.open(machine.top / "commons/@var@log/ready", os.O_RDONLY | os.O_NONBLOCK)
    said: list[str] = []
    try:
        yield said
        poll = select.poll()
        poll.register(fifo, select.POLLIN)
        assert poll.poll(PATIENCE * 1000), "the script was not run"
        said.append(os.read(fifo, 100).decode())
    finally:
        os.close(fifo)


def has(process: subprocess.Popen[bytes], mask: str, number: Signals) -> bool:
    """Whether a signal is in a mask (SigBlk, ShdPnd) of /proc/PID/status."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == mask:
            return bool(int(value, 16) >> (number - 1) & 1)
    raise LookupError(mask)


def wait_stopped(process: subprocess.Popen[bytes]) -> None:
    """Until the command has stopped itself at a fault point; its status stays for whoever waits for its end."""
    found = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert found is not None and found.si_code == os.CLD_STOPPED


def go_on(process: subprocess.Popen[bytes]) -> None:
    """To its end, whenever it comes by that point again."""
    found = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    while found is not None and found.si_code == os.CLD_STOPPED:
        process.send_signal(signal.SIGCONT)
        found = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Exit status and talk."""
    _, data = process.communicate(timeout=PATIENCE)
    said: str = data.decode(errors="surrogateescape")
    assert "/apk_atomic/" not in said, said
    return process.returncode, said


def expect_discarded(machine: Machine, old: Fingerprint, process: subprocess.Popen[bytes], *sent: Signals) -> None:
    """The status names (one of) the signals, the old tree is behind slot 0, and the next run works."""
    status, said = ended(process)
    assert status in {128 + each for each in sent}, said
    assert "nothing was changed" in said
    machine.expect_nothing_left()
    assert machine.tree() == old
    machine.expect_clean()
    machine.done("add", "c")
    assert machine.world() == {"a", "c"}


# ---- at every fault point, two at once -------------------------------------------------------------------------------

PAIRS = ((SIGINT, SIGINT), (SIGTERM, SIGHUP), (SIGTERM, SIGTERM), (SIGHUP, SIGINT), (SIGHUP, SIGHUP))
TWICE = [(point, PAIRS[number % len(PAIRS)]) for number, point in enumerate(POINTS)]


def test_two_signals_at_each_point(places: list[Scene], old: Fingerprint) -> None:
    def trial(scene: Scene, case: tuple[str, tuple[Signals, Signals]]) -> None:
        point, pair = case
        with scene.resume() as machine:
            process = machine.start("add", "b", fault=f"{point}:stop")
            wait_stopped(process)
            for number in pair:
                process.send_signal(number)
            go_on(process)
            if POINTS.index(point) < POINTS.index("pending"):
                return expect_discarded(machine, old, process, *pair)
            status, said = ended(process)
            machine.expect_nothing_left()
            machine.expect_clean()
            assert (status, machine.world()) == (0, {"a", "b"}), said
            return None

    each(places, TWICE, trial)


# ---- while a script runs -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Blow:
    """Which signals, to whom, while which package's script runs."""

    package: str
    sent: tuple[Signals, ...]
    group: bool


SCRIPTS = [
    Blow(name, sent, group)
    for name in ("deaf", "trapping")
    for sent in ((SIGINT,), (SIGTERM,), (SIGHUP,), (SIGINT, SIGINT), (SIGTERM, SIGHUP))
    for group in (False, True)
]


def test_signals_while_a_script_runs(places: list[Scene], old: Fingerprint) -> None:
    def trial(scene: Scene, blow: Blow) -> None:
        with scene.resume() as machine:
            with script_running(machine):
                process = machine.start("add", blow.package)
            for number in blow.sent:
                os.killpg(process.pid, number) if blow.group else process.send_signal(number)
            expect_discarded(machine, old, process, *blow.sent)

    each(places, SCRIPTS, trial)


def test_a_command_that_is_deaf_is_killed_by_the_second_signal(places: list[Scene], old: Fingerprint) -> None:
    with places[0].resume() as machine:
        with script_running(machine):
            process = machine.start("run", "--", "sh", "-c", DEAF)
        process.send_signal(SIGTERM)
        until(lambda: not has(process, "ShdPnd", SIGTERM), PATIENCE)
        process.send_signal(SIGTERM)
        expect_discarded(machine, old, process, SIGTERM)


def test_a_command_that_is_deaf_is_killed_in_the_end(places: list[Scene], old: Fingerprint) -> None:
    """After the grace that it is given, which is 10 seconds."""
    with places[0].resume() as machine:
        with script_running(machine):
            process = machine.start("run", "--", "sh", "-c", DEAF)
        process.send_signal(SIGHUP)
        expect_discarded(machine, old, process, SIGHUP)


def test_ctrl_c_twice_on_a_terminal(places: list[Scene], old: Fingerprint) -> None:
    with places[0].resume() as machine:
        with script_running(machine):
            terminal = machine.guest.pty(["apk-atomic", "add", "deaf"], env=machine.environment())
        terminal.sendintr()
        terminal.sendintr()
        terminal.expect("interrupted by SIGINT; nothing was changed")
        terminal.wait()
        terminal.close()
        assert terminal.exitstatus == 130
        machine.expect_nothing_left()
        machine.expect_clean()
        assert machine.tree() == old


# ---- elsewhere ---------------------------------------------------------------------------------------------------


def test_signals_while_waiting_for_the_lock(places: list[Scene]) -> None:
    def trial(scene: Scene, number: Signals) -> None:
        with scene.resume() as machine:
            holder = machine.start("add", "b", fault="mounted:stop")
            wait_stopped(holder)
            start = machine.layout()
            waiting = machine.start("--atomic-wait", "600", "add", "c")
            until(lambda: has(waiting, "SigBlk", number), PATIENCE)
            waiting.send_signal(number)
            status, said = ended(waiting)
            assert (status, machine.layout()) == (128 + number, start), said
            assert "nothing was changed" in said
            holder.send_signal(signal.SIGCONT)
            assert ended(holder)[0] == 0
            assert machine.world() == {"a", "b"}

    each(places, (SIGINT, SIGTERM, SIGHUP), trial)


def test_a_signal_that_the_caller_ignores_is_ignored(places: list[Scene]) -> None:
    with places[0].resume() as machine:
        argv = ["sh", "-c", "trap '' HUP; exec apk-atomic add b"]
        result = machine.guest.run(argv, env=machine.environment("changed:hup"))
        assert (result.status, machine.world()) == (0, {"a", "b"}), result.stderr
        machine.expect_clean()


# ---- SIGKILL of the wrapper --------------------------------------------------------------------------------------


def test_all_that_a_killed_wrapper_has_started_dies(places: list[Scene], old: Fingerprint) -> None:
    def trial(scene: Scene, name: str) -> None:
        with scene.resume() as machine:
            with script_running(machine):
                process = machine.start("add", name)
            assert len(oracle.tagged(machine.tag)) > 3  # wrapper, intermediate, init, apk, the script …
            process.kill()
            assert ended(process)[0] == -signal.SIGKILL
            machine.expect_nothing_left()
            assert machine.tree() == old
            assert "recovered" in machine.done("add", "c").stderr
            machine.expect_clean()
            assert machine.world() == {"a", "c"}

    each(places, ("deaf", "trapping"), trial)


@pytest.mark.parametrize("depth", [1, 2], ids=["the one between", "init of the namespace"])
def test_what_stands_between_wrapper_and_command_is_killed(places: list[Scene], old: Fingerprint, depth: int) -> None:
    """As the kernel does where memory is short. The wrapper is there to tidy up, and to say so."""
    with places[0].resume() as machine:
        with script_running(machine):
            process = machine.start("add", "deaf")
        victim = process.pid
        for _ in range(depth):
            (victim,) = map(int, Path(f"/proc/{victim}/task/{victim}/children").read_text().split())
        os.kill(victim, signal.SIGKILL)
        status, said = ended(process)
        assert (status, "nothing was changed" in said) == (137, True), said
        machine.expect_nothing_left()
        assert machine.tree() == old
        machine.expect_clean()
        machine.done("add", "c")
        assert machine.world() == {"a", "c"}


def test_a_hook_of_a_killed_wrapper_dies(places: list[Scene], old: Fingerprint) -> None:
    with places[0].resume() as machine:
        machine.guest.run(["mount", "-t", "tmpfs", "tmpfs", "/etc/apk-atomic"], check=True)
        hook = Path(machine.guest.root, "etc/apk-atomic/hooks.d/pre-commit.d/10-deaf")
        hook.parent.mkdir(parents=True)
        hook.write_text(f"#!/bin/sh\ntrap '' TERM INT HUP; echo $$ >{READY}; exec sleep 1000\n")
        hook.chmod(0o755)
        with script_running(machine) as said:
            process = machine.start("add", "b")
        command = Path(f"/proc/{int(said[0])}/cmdline")
        assert command.read_bytes()
        process.kill()
        assert process.wait(PATIENCE) == -signal.SIGKILL
        until(lambda: not command.exists() or not command.read_bytes(), PATIENCE)  # a zombie has none
        hook.unlink()
        assert machine.tree() == old
        machine.done("add", "c")
        machine.expect_clean()
        machine.guest.run(["umount", "/etc/apk-atomic"], check=True)


def test_the_lock_is_held_until_the_last_of_a_killed_transaction_is_dead(places: list[Scene]) -> None:
    """The process between wrapper and namespace is held up, so that the end of the transaction is."""
    with places[0].resume() as machine:
        with script_running(machine):
            process = machine.start("add", "deaf")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        (intermediate,) = map(int, children)
        os.kill(intermediate, signal.SIGSTOP)
        process.kill()
        assert process.wait(PATIENCE) == -signal.SIGKILL
        until(lambda: oracle.tagged(machine.tag) == [intermediate], PATIENCE)
        refused = machine.run("add", "c")
        assert refused.status == LOCKED and str(process.pid) in refused.stderr
        waiting = machine.start("--atomic-wait", "600", "add", "c")
        os.kill(intermediate, signal.SIGCONT)
        assert ended(waiting)[0] == 0
        machine.expect_nothing_left()
        assert machine.world() == {"a", "c"}
