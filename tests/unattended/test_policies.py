"""What `apk-atomic auto` does under each policy, and that it does it once."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.support import btrfsctl
from tests.unattended.house import PERIODIC, House, make_house


def test_stage_makes_one_generation_and_leaves_it_pending(house: House) -> None:
    booted = house.guest.booted
    assert house.nothing()["base"] == booted
    house.release("hello", "2.0-r0")
    new = house.committed()
    assert (house.content("hello"), house.content("hello", 1)) == ("2.0-r0", "1.0-r0")
    assert house.record()["kind"] == "auto"
    assert house.record()["argv"] == ["apk-atomic", "auto", "--json"]
    assert house.guest.booted == booted == house.volume.slots()[1]
    assert (house.guest.run(["cat", "/run/reboot-needed"]).stdout, house.trial.pending().split()) == ("reboot\n", [new])
    house.nothing()
    house.trial.reboot()
    house.nothing()
    assert house.content("hello") == "2.0-r0"


def test_check_only_reports(house: House) -> None:
    house.configure(policy="check")
    house.nothing()
    house.release("hello", "2.0-r0")
    answer = house.nothing(outcome="planned")
    assert answer["upgraded"] == [{"name": "hello", "old": "1.0-r0", "new": "2.0-r0"}]
    assert "hello 1.0-r0 -> 2.0-r0" in answer["message"]
    result = house.trial.unchanged("apk-atomic", "auto")
    assert (result.stdout, result.stderr) == ("", "")  # it was reported before
    result = house.trial.unchanged("apk-atomic", "auto", "--now")
    assert result.stdout == "! hello 1.0-r0 -> 2.0-r0\n"
    house.release("hello", "3.0-r0")
    result = house.trial.unchanged("apk-atomic", "auto")
    assert result.stdout == "! hello 1.0-r0 -> 3.0-r0\n"


def test_none_does_nothing(house: House) -> None:
    house.configure(policy="none")
    house.release("hello", "2.0-r0")
    assert house.nothing("--now", outcome="skipped")["message"] == "the policy is none"
    assert not (house.volume.top / "state/auto.json").exists()
    assert house.nothing("--dry-run", outcome="planned")["dry_run"] is True


def test_dry_run_changes_nothing(house: House) -> None:
    house.release("hello", "2.0-r0")
    result = house.trial.unchanged("apk-atomic", "auto", "--dry-run")
    assert result.stdout == "! hello 1.0-r0 -> 2.0-r0\n"
    assert not (house.volume.top / "state").exists()


def test_periodic_job_is_quiet_when_nothing_happened(house: House) -> None:
    result = house.trial.unchanged(PERIODIC)
    assert (result.stdout, result.stderr) == ("", "")
    house.release("hello", "2.0-r0")
    house.trial.accept()
    result = house.trial.run(PERIODIC)
    new = house.trial.check_new(result)
    line = f"generation {new} is next: upgraded hello 1.0-r0 -> 2.0-r0; it runs after the reboot"
    assert (result.stdout, result.stderr) == ("", f"apk-atomic: {line}\n")


def test_run_parts_finds_the_job(house: House) -> None:
    house.release("hello", "2.0-r0")
    house.trial.accept()
    house.trial.check_new(house.trial.run("run-parts", "/etc/periodic/daily"))


def test_month_without_a_reboot(house: House) -> None:
    """The running system keeps its slot, and there is at most one pending generation."""
    booted = house.guest.booted
    kept = set(house.volume.generations())
    for night in range(30):
        if night % 3 != 2:
            house.release("hello", f"2.{night}-r0")
        house.trial.run("apk-atomic", "auto")
        slots = house.volume.slots()
        assert slots[1] == booted
        assert btrfsctl.is_read_only(house.volume.tree(1))
        new = set(house.volume.generations()) - kept
        assert new == {slots[0]} and slots[0] != booted
        assert house.content("hello") == f"2.{night - (night % 3 == 2)}-r0"
    house.trial.reboot()
    assert house.content("hello") == "2.28-r0"


# ---- when ------------------------------------------------------------------------------------------------


def test_once_in_so_many_hours(house: House) -> None:
    house.configure(every_hours=20)
    house.nothing()
    house.release("hello", "2.0-r0")
    answer = house.nothing(outcome="skipped")
    assert answer["message"] == "the last run was too short a time ago"
    stamp(house, time.time() - 19 * 3600)
    house.nothing(outcome="skipped")
    stamp(house, time.time() - 21 * 3600)
    house.committed()


NEXT_YEAR = json.dumps({"version": 1, "finished": time.time() + 86400 * 365})


@pytest.mark.parametrize("text", [NEXT_YEAR, "{", '{"finished": 1e400}'], ids=range(3))
def test_stamp_of_a_wrong_clock_counts_as_none(house: House, text: str) -> None:
    house.configure(every_hours=20)
    (house.volume.top / "state").mkdir()
    (house.volume.top / "state/auto.json").write_text(text)
    house.release("hello", "2.0-r0")
    house.committed()
    assert abs(house.state("auto.json")["finished"] - time.time()) < 300
    house.nothing(outcome="skipped")


def stamp(house: House, when: float) -> None:
    (house.volume.top / "state/auto.json").write_text(json.dumps({"version": 1, "finished": when}))


def test_now_does_not_wait_for_the_next_day(house: House) -> None:
    house.configure(every_hours=20, delay_minutes=1440)
    (house.volume.top / "state").mkdir()
    stamp(house, time.time())
    house.nothing(outcome="skipped")
    house.release("hello", "2.0-r0")
    house.committed("--now")


def test_battery(house: House) -> None:
    house.configure(only_on_mains=True)
    house.release("hello", "2.0-r0")
    house.guest.run(["mount", "-t", "tmpfs", "tmpfs", "/sys/class"], check=True)
    house.trial.accept_mounts()
    supplies = Path(house.guest.root, "sys/class/power_supply")
    for name, key, value in (("BAT0", "type", "Battery"), ("BAT0", "status", "Discharging"), ("AC", "type", "Mains")):
        (supplies / name).mkdir(parents=True, exist_ok=True)
        (supplies / name / key).write_text(f"{value}\n")
    (supplies / "AC/online").write_text("0\n")
    assert "battery" in house.nothing(outcome="skipped")["message"]
    (supplies / "AC/online").write_text("1\n")
    house.committed()


def test_inhibit_file(house: House) -> None:
    house.release("hello", "2.0-r0")
    house.guest.run(["touch", "/run/apk-atomic.inhibit"], check=True)
    for words in ((), ("--now",)):
        assert "inhibit" in house.nothing(*words, outcome="skipped")["message"]
    house.guest.run(["rm", "/run/apk-atomic.inhibit"], check=True)
    house.committed()


def test_random_delay(house: House) -> None:
    """It holds nothing up meanwhile: neither a lock nor a mount namespace, nor who wants it now."""
    house.configure(delay_minutes=1440, every_hours=20)
    house.release("hello", "2.0-r0")
    terminal = house.guest.pty(["apk-atomic", "auto"])
    terminal.expect("waiting for \\d+ seconds")
    assert os.readlink(f"/proc/{terminal.pid}/ns/mnt") == os.readlink(f"/proc/{house.guest.pid}/ns/mnt")
    result = house.guest.run(["apk-atomic", "auto", "--now"], check=True)
    assert "upgraded hello 1.0-r0 -> 2.0-r0" in result.stderr
    os.kill(terminal.pid, signal.SIGTERM)
    terminal.expect("interrupted by SIGTERM; nothing was changed")
    terminal.wait()
    assert terminal.exitstatus == 143
    house.nothing(outcome="skipped")


def test_run_that_is_stuck_is_said(house: House) -> None:
    process = house.trial.start("apk-atomic", "auto", env={"APK_ATOMIC_FAULT": "started:stop"})
    house.trial.wait_stopped(process)
    refused = house.guest.run(["apk-atomic", "auto", "--now"])
    assert refused.status == 102 and f"pid {process.pid}, apk-atomic auto" in refused.stderr
    assert house.guest.run(["apk-atomic", "auto"]).stderr == ""
    holder = Path(house.guest.root, f"run/apk-atomic/{house.volume.fsid}.auto.lock.holder")
    os.utime(holder, (0, time.time() - 90000))
    refused = house.guest.run(["apk-atomic", "auto"])
    assert refused.status == 102 and f"pid {process.pid}, apk-atomic auto" in refused.stderr
    house.trial.go_on(process)
    assert house.trial.finish(process).status == 0


def test_wrong_usage(house: House) -> None:
    for words in (("--soon",), ("x",), ("--reboot", "--now")):
        house.trial.refused("apk-atomic", "auto", *words, status=100, says="nothing was changed")
    house.trial.refused("apk-atomic", "--atomic-volume", house.volume.device, "auto", status=100)
    assert house.guest.run(["apk-atomic", "auto"], uid=1000).status == 100


def test_excluded_packages_without_a_pattern_that_fits() -> None:
    with make_house(exclude=["nothing-*"]) as house:
        house.release("hello", "2.0-r0")
        house.committed()
