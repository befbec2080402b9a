"""`status` in every state of a volume: headline, rows, marks, JSON; and what an ordinary user gets."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from apk_atomic.commands.status import headline, marks, slots_of
from apk_atomic.model import Generation, State
from tests.support.guest import USER_ID
from tests.support.packages import File, Package
from tests.support.world import FIRST, SLOTS, Guest, Result, Volume, make_volume

SECOND, THIRD = "20240202030405abcdefgh", "20240302030405abcdefgh"
HELLO = Package("hello", files={"usr/bin/hello": File(b"#!/bin/sh\n", 0o755)})
A, B = Generation("a", foreign=True), Generation("b", good=True, pinned=True)
BROKEN = Generation("c", failed=True, sealed=False)
ROW = {"id", "slots", "created", "marks"}
RECORDED = {*ROW, "parent", "kind", "command", "user", "message", "kernels", "changes"}


@pytest.mark.parametrize(
    ("slots", "booted", "pending", "text"),
    [
        (("a", "b"), "a", False, "a is booted and boots next"),
        (("b", "a"), "a", True, "a is booted; b is pending: it runs after the reboot"),
        (("b", "a"), "a", False, "a is booted as a fallback; b boots next, unless: apk-atomic rollback"),
        (("b", "a"), None, False, "b boots next (this is not the running system's volume)"),
        ((), None, False, "nothing boots next (this is not the running system's volume)"),
        (("", "a"), "a", False, "a is booted, and nothing boots next: slot 0 leads to no generation"),
        ((), "a", False, "a is booted, and nothing boots next: slot 0 leads to no generation"),
    ],
)
def test_headline(slots: tuple[str, ...], booted: str | None, pending: bool, text: str) -> None:
    assert headline(State((A, B), slots, booted, pending)) == text


def test_marks() -> None:
    state = State((A, B, BROKEN), ("b", "a"), "a", True)
    assert marks(state, A) == ("booted", "foreign")
    assert marks(state, B) == ("pending", "good", "pinned")
    assert marks(state, BROKEN) == ("failed", "unsealed")
    assert slots_of(State((A, B), ("a", "b", "a"), "a"), "a") == (0, 2)


# ---- for real ----------------------------------------------------------------------------------------------


def table(guest: Guest, *options: str) -> list[list[str]]:
    """The rows of the table, split at their blanks."""
    lines = guest.run(["apk-atomic", "status", *options], check=True).stdout.splitlines()
    assert lines[1].split() == ["SLOT", "GENERATION", "CREATED", "KERNEL", "PACKAGES", "MARKS", "COMMAND"]
    return [line.split() for line in lines[2:]]


def document(guest: Guest, *options: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(guest.run(["apk-atomic", "status", "--json", *options], check=True).stdout)
    return found


def test_from_first_boot_to_rollback(volume: Volume, guest: Guest) -> None:
    volume.repo.publish(HELLO)
    created = time.strftime("%Y-%m-%d", time.gmtime((volume.top / "snapshots" / FIRST).stat().st_mtime))
    (row,) = table(guest)
    assert row[:3] == [f"0-{SLOTS - 1}", FIRST, created]
    assert row[4:] == ["-", "-", "booted,foreign", "-"]

    guest.run(["apk-atomic", "add", "hello"], check=True)
    new = volume.slots()[0]
    pending, booted = table(guest)
    assert (pending[0], pending[1], pending[5:]) == ("0", new, ["+1", "pending", "apk-atomic", "add", "hello"])
    assert (booted[0], booted[1], booted[6]) == (f"1-{SLOTS - 1}", FIRST, "booted,foreign")

    guest.reboot(1)
    assert guest.run(["apk-atomic", "status"], check=True).stdout.splitlines()[0] == (
        f"{FIRST} is booted as a fallback; {new} boots next, unless: apk-atomic rollback"
    )
    guest.run(["apk-atomic", "rollback"], check=True)
    assert [row[:2] for row in table(guest)] == [["0", FIRST], [f"1-{SLOTS - 1}", new]]


def test_more_than_the_slots_hold(volume: Volume, guest: Guest) -> None:
    volume.add_generation(SECOND)
    volume.add_generation(THIRD)
    lines = guest.run(["apk-atomic", "status"], check=True).stdout.splitlines()
    assert lines[-1] == "and 2 in no slot: apk-atomic status --all, apk-atomic gc"
    assert [row[:2] for row in table(guest, "--all")] == [[f"0-{SLOTS - 1}", FIRST], ["-", THIRD], ["-", SECOND]]


def test_slots_that_are_damaged_or_apart(volume: Volume, guest: Guest) -> None:
    volume.add_generation(SECOND)
    volume.point(FIRST, SECOND, FIRST, "gone", name="20240202030406abcdefgh")
    done = guest.run(["apk-atomic", "status"], check=True)
    assert [line.split()[:2] for line in done.stdout.splitlines()[2:]] == [["0,2", FIRST], ["1", SECOND]]
    assert "slot 3 leads to no generation" in done.stderr
    assert document(guest)["slots"] == [FIRST, SECOND, FIRST, None]
    volume.point("gone", FIRST, name="20240202030407abcdefgh")
    done = guest.run(["apk-atomic", "status"], check=True)
    assert done.stdout.startswith(f"{FIRST} is booted, and nothing boots next")
    assert document(guest)["next"] is None


def test_kernels_of_a_foreign_generation(volume: Volume, guest: Guest) -> None:
    def prepare(root: Path) -> None:
        (root / "usr/share/kernel/lts").mkdir(parents=True)
        (root / "usr/share/kernel/lts/kernel.release").write_text("6.12.1-0-lts\n")

    volume.add_generation(SECOND, prepare)
    volume.point(SECOND, FIRST, name="20240202030406abcdefgh")
    assert [row[4] for row in table(guest)] == ["6.12.1-0-lts", "-"]


def test_json(volume: Volume, guest: Guest) -> None:
    volume.repo.publish(HELLO)
    found = document(guest)
    assert set(found) == {
        "version", "booted", "next", "pending", "fallback_booted", "slots", "total", "generations",
    }  # fmt: skip
    assert (found["version"], found["booted"], found["next"]) == (1, FIRST, FIRST)
    assert (found["pending"], found["fallback_booted"], found["total"]) == (False, False, 1)
    assert [set(row) for row in found["generations"]] == [ROW]
    assert found["generations"][0]["slots"] == list(range(SLOTS))

    guest.run(["apk-atomic", "--atomic-message", "why not", "add", "hello"], check=True)
    found = document(guest)
    new, old = found["generations"]
    assert set(new) == RECORDED
    assert (found["pending"], found["slots"]) == (True, [new["id"], *[FIRST] * (SLOTS - 1)])
    assert (new["parent"], new["kind"], new["user"], new["message"]) == (FIRST, "apk", "root", "why not")
    assert new["command"] == ["apk-atomic", "--atomic-message", "why not", "add", "hello"]
    assert new["changes"] == {"added": 1, "removed": 0, "upgraded": 0, "rebuilt": 0}
    assert time.strptime(new["created"], "%Y-%m-%dT%H:%M:%SZ")
    assert set(old) == ROW


def test_a_long_command_line_is_cut_in_the_table_only(volume: Volume, guest: Guest) -> None:
    words = [f"/etc/made-{number}" for number in range(100)]
    guest.run(["apk-atomic", "run", "--", "touch", *words], check=True)
    line = guest.run(["apk-atomic", "status"], check=True).stdout.splitlines()[2]
    assert len(line) < 320 and line.endswith("…") and words[0] in line
    document = json.loads(guest.run(["apk-atomic", "status", "--json"], check=True).stdout)
    assert document["generations"][0]["command"] == ["apk-atomic", "run", "--", "touch", *words]


def test_an_ordinary_user(volume: Volume, guest: Guest) -> None:
    """What runs, always; what is next as soon as root has done something in this boot; never a command line."""

    def ask(*options: str) -> Result:
        return guest.run(["apk-atomic", "status", *options], uid=USER_ID, check=True)

    done = ask()
    assert (done.stdout, done.stderr) == (f"{FIRST} is booted\n", "apk-atomic: only root can see more\n")
    volume.repo.publish(HELLO)
    guest.run(["apk-atomic", "--atomic-message", "secret", "add", "hello"], check=True)
    new = volume.slots()[0]
    done = ask()
    assert done.stdout.splitlines() == [
        f"{FIRST} is booted; {new} is pending: it runs after the reboot",
        *(f"{number}  {name}" for number, name in enumerate(volume.slots())),
    ]
    found = json.loads(ask("--json").stdout)
    assert found == {"version": 1, "booted": FIRST, "next": new, "pending": True, "slots": volume.slots()}
    for damage in ("{", "[]", '{"slots": 1, "pending": true}', '{"pending": true}'):
        (Path(guest.root) / "run/apk-atomic/status.json").write_text(damage)
        assert ask().stdout == f"{FIRST} is booted\n"


def test_another_volume_by_name(volume: Volume, guest: Guest) -> None:
    with make_volume() as other:
        done = guest.run(["apk-atomic", "--atomic-volume", other.device, "status"], check=True)
        assert done.stdout.startswith(f"{FIRST} boots next (this is not the running system's volume)\n")
        found = document(guest, "--atomic-volume", other.device)
        assert (found["booted"], found["pending"], found["next"]) == (None, False, FIRST)


def test_names_that_drive_a_terminal_are_shown_harmless(volume: Volume, guest: Guest) -> None:
    home = volume.top / "snapshots" / FIRST
    record = {"version": 1, "id": FIRST, "argv": ["a\x1b[2Jb\nc"], "kernels": {"x": "\x07"}}
    (home / "generation.json").write_text(json.dumps(record))
    said = guest.run(["apk-atomic", "status"], check=True).stdout
    assert "\x1b" not in said and "\x07" not in said
    assert "a\\x1b[2Jb\\x0ac" in said
