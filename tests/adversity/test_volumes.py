"""A volume that is not the running system's, named by device or by a directory on it: all verbs, nothing mixed up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.adversity.trial import Trial
from tests.support import oracle
from tests.support.packages import File, Package
from tests.support.world import FIRST, Volume, make_volume

THREE = "[generations]\nslots = 3\n"


@pytest.fixture
def machine() -> Iterator[Trial]:
    """What runs: a machine that boots from a volume of its own."""
    with make_volume() as volume:
        yield Trial(volume)


@pytest.fixture
def other(machine: Trial) -> Iterator[Trial]:
    """The volume that is named; its generation is configured for three slots."""

    def prepare(tree: Path) -> None:
        (tree / "etc/apk-atomic/apk-atomic.toml").write_text(THREE)

    with make_volume(prepare=prepare) as volume:
        volume.repo.publish(Package("hello", files={"usr/share/hello": File(b"x")}))
        yield Trial(volume, machine.guest)


@pytest.fixture(params=["device", "directory"])
def named(request: pytest.FixtureRequest, other: Trial) -> Iterator[tuple[str, str]]:
    """The option; the directory is a commons of the volume, mounted at /mnt."""
    if request.param == "device":
        yield ("--atomic-volume", other.volume.device)
        return
    argv = ["mount", "-t", "btrfs", "-o", "subvol=/commons/@home", other.volume.device, "/mnt"]
    other.guest.run(argv, check=True)
    other.accept_mounts()
    yield ("--atomic-volume", "/mnt/user")
    other.guest.run(["umount", "/mnt"], check=True)


def status(other: Trial, named: tuple[str, str]) -> dict[str, object]:
    found: dict[str, object] = json.loads(other.run("apk-atomic", "status", "--all", "--json", *named).stdout)
    return found


def test_every_verb(machine: Trial, other: Trial, named: tuple[str, str]) -> None:
    untouched = oracle.fingerprint(machine.volume.top / "snapshots")
    first = other.committed("apk-atomic", "add", *named, "hello")
    assert (other.volume.tree() / "usr/share/hello").exists()
    assert len(other.volume.slots()) == 3
    assert "+ hello 1.0-r0" in other.run("apk-atomic", "diff", FIRST, "next", *named).stdout
    second = other.committed("apk-atomic", "run", *named, "--", "touch", "/etc/made")
    assert other.volume.slots() == [second, first, FIRST]
    assert "it boots next" in other.run("apk-atomic", "run", *named, "touch", "/etc/more").stderr
    assert other.run("apk-atomic", "info", "-e", "hello", *named).stdout == "hello\n"
    assert other.run("apk-atomic", "info", "-e", "hello").status == 1
    other.accept()
    other.refused("apk-atomic", "discard", *named, status=106, says="nothing is pending")
    assert other.run("apk-atomic", "rollback", second, *named).status == 0
    assert other.volume.slots()[0] == second
    shown = status(other, named)
    assert (shown["booted"], shown["pending"], shown["next"]) == (None, False, second)
    assert other.run("apk-atomic", "gc", *named).status == 0
    assert other.pending() == ""
    machine.check_same()
    assert oracle.fingerprint(machine.volume.top / "snapshots") == untouched
    boots(other.volume)


def boots(volume: Volume) -> None:
    """The volume as it is now is one that boots, and works when it runs."""
    volume.boot().run(["apk-atomic", "run", "--atomic-base=next", "touch", "/etc/booted"], check=True)
    assert (volume.tree() / "etc/booted").exists()


def test_hooks_of_the_running_system_are_not_run(machine: Trial, other: Trial) -> None:
    with machine.etc() as etc:
        for each in ("pre-change.d", "pre-commit.d", "post-commit.d"):
            (etc / "hooks.d" / each).mkdir(parents=True)
            hook = etc / "hooks.d" / each / "refuse"
            hook.write_text("#!/bin/sh\nexit 1\n")
            hook.chmod(0o755)
        machine.refused("apk-atomic", "run", "touch", "/etc/made", status=106)
        other.accept_mounts()
        other.committed("apk-atomic", "run", "--atomic-volume", other.volume.device, "touch", "/etc/made")


def test_configuration_of_the_running_system_does_not_count(machine: Trial, other: Trial) -> None:
    with machine.etc() as etc:
        (etc / "apk-atomic.toml").write_text("broken")
        machine.refused("apk-atomic", "run", "touch", "/etc/made", status=100)
        other.accept_mounts()
        other.committed("apk-atomic", "run", "--atomic-volume", other.volume.device, "touch", "/etc/made")


@pytest.mark.parametrize("spec", ["/", "/home", "/var/log", "device"])
def test_running_volume_named_explicitly(machine: Trial, spec: str) -> None:
    """It is the running one all the same: what it makes is pending, and its lock is the same."""
    named = ("--atomic-volume", machine.volume.device if spec == "device" else spec)
    machine.committed("apk-atomic", "run", *named, "touch", "/etc/made")
    assert machine.pending() == f"{machine.volume.current()}\n"
    assert status(machine, named)["booted"] == FIRST
    assert machine.run("apk-atomic", "discard", *named).status == 0
    assert machine.volume.slots() == [FIRST] * 4


def test_volume_without_apk_of_this_machine(machine: Trial, other: Trial) -> None:
    """The apk that works there is that volume's own: this machine may have none."""
    machine.guest.run(["mount", "--bind", "/dev/null", "/sbin/apk"], check=True)
    other.accept_mounts()
    other.committed("apk-atomic", "add", "--atomic-volume", other.volume.device, "hello")
    machine.guest.run(["umount", "/sbin/apk"], check=True)
