"""Records, marks and names in snapshots/, links/ and staging/ that are damaged, hostile or somebody else's."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.adversity.trial import Trial
from tests.support import btrfsctl, oracle
from tests.support.world import FIRST, Volume

RECORD = "generation.json"


def record_of(name: str, **changed: object) -> str:
    """A record that is whole, but for what is changed."""
    return json.dumps({"version": 1, "id": name, "kind": "run", "argv": ["apk-atomic", "run"], "changes": {}} | changed)


def bind_socket(path: Path) -> None:
    """Its address may not be longer than 107 bytes."""
    with socket.socket(socket.AF_UNIX) as made:
        directory = os.open(path.parent, os.O_PATH)
        made.bind(f"/proc/self/fd/{directory}/{path.name}")
        os.close(directory)


def text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": text(""),
    "garbage": lambda path: path.write_bytes(bytes(range(256)) * 16),
    "truncated": text(record_of(FIRST)[:30]),
    "zeroes": lambda path: path.write_bytes(bytes(4096)),
    "nested": text("[" * 200_000),
    "nested objects": text('{"a":' * 100_000 + "1" + "}" * 100_000),
    "huge": lambda path: path.write_bytes(bytes(17 << 20)),
    "list": text("[1]"),
    "number": text("1e999"),
    "endless number": text('{"version": ' + "9" * 10_000 + "}"),
    "nan": text(record_of(FIRST, durations={"seal": float("nan")})),
    "no version": text(json.dumps({"id": FIRST})),
    "version 0": text(record_of(FIRST, version=0)),
    "climbing id": text(record_of("../../etc")),
    "climbing parent": text(record_of(FIRST, parent="../..")),
    "argv of numbers": text(record_of(FIRST, argv=[1, 2])),
    "argv a string": text(record_of(FIRST, argv="apk-atomic")),
    "changes a list": text(record_of(FIRST, changes=[])),
    "rows too short": text(record_of(FIRST, changes={"added": [["a"]]})),
    "kernels a list": text(record_of(FIRST, kernels=["lts"])),
    "proof a string": text(record_of(FIRST, proof="passed")),
    "unknown kind": text(record_of(FIRST, kind="magic")),
    "lone surrogate": text('{"version": 1, "id": "\\ud800"}'),
    "a directory": lambda path: path.mkdir(),
    "a FIFO": lambda path: os.mkfifo(path),
    "a socket": bind_socket,
    "a link": lambda path: path.symlink_to("/etc/passwd"),
    "a loop": lambda path: path.symlink_to(RECORD),
    "a device": lambda path: os.mknod(path, 0o20600, os.makedev(1, 5)),
}


def name_of(number: int) -> str:
    return f"2024020100{number:04}damagedx"


def test_no_damaged_record_stops_anything(trial: Trial) -> None:
    """Every damage at once, each in a generation of its own: list, diff, commit, rollback and gc go on."""
    for number, damage in enumerate(DAMAGES.values()):
        name = name_of(number)
        trial.volume.add_generation(name)
        damage(trial.volume.top / "snapshots" / name / RECORD)
    trial.accept()
    listed = trial.run("apk-atomic", "status", "--all", "--json")
    generations = json.loads(listed.stdout)["generations"]
    assert {each["id"] for each in generations} >= {name_of(number) for number in range(len(DAMAGES))}
    assert trial.run("apk-atomic", "status", "--all").stdout.count("damagedx") == len(DAMAGES)
    assert trial.run("apk-atomic", "diff", name_of(0), FIRST).status == 0
    for number in (4, 26):
        assert trial.run("apk-atomic", "rollback", name_of(number)).status == 0
        assert trial.volume.slots()[0] == name_of(number)
    trial.works()
    trial.reboot()
    assert trial.run("apk-atomic", "gc").status == 0
    assert len(trial.volume.generations()) <= 4
    trial.accept()
    trial.works()


@pytest.mark.parametrize("damage", ["nested", "huge", "climbing id", "a directory", "a FIFO", "a link"])
def test_base_with_a_damaged_record(trial: Trial, damage: str) -> None:
    DAMAGES[damage](trial.volume.top / "snapshots" / FIRST / RECORD)
    trial.works()
    assert trial.run("apk-atomic", "status").status == 0
    assert trial.run("apk-atomic", "diff").status == 0


def test_record_of_a_later_version_is_read_and_kept(trial: Trial) -> None:
    path = trial.volume.top / "snapshots" / FIRST / RECORD
    path.write_text(record_of(FIRST, version=7, future={"deep": [1, None]}, message="kept"))
    before = path.read_bytes()
    shown = json.loads(trial.run("apk-atomic", "status", "--json").stdout)["generations"][0]
    assert shown["message"] == "kept"
    trial.works()
    assert path.read_bytes() == before


MARKS: dict[str, Callable[[Path], object]] = {
    "directories": lambda path: path.mkdir(),
    "FIFOs": lambda path: os.mkfifo(path),
    "links": lambda path: path.symlink_to("nowhere"),
    "huge numbers": text("9" * 5000),
    "not a number": text("-1\x1b[2J"),
}


@pytest.mark.parametrize("shape", MARKS)
def test_marks_of_a_wrong_shape(trial: Trial, shape: str) -> None:
    """A mark is its name; what it is otherwise does not matter."""
    for number, name in enumerate(("good", "pinned", "attempts")):
        trial.volume.add_generation(name_of(number))
        MARKS[shape](trial.volume.top / "snapshots" / name_of(number) / name)
    trial.accept()
    answer = trial.run("apk-atomic", "status", "--all")
    assert answer.status == 0
    assert "\x1b" not in answer.stdout
    trial.works()
    kept = trial.volume.generations()
    assert name_of(0) in kept  # good
    assert name_of(1) in kept  # pinned


# ---- names -----------------------------------------------------------------------------------------------

HOSTILE = (
    b"..x", b"-rf", b"new\nline", b"x" * 255, b"\xff\xfe\xfd", b"with space", b"with,comma", b"back\\slash",
    b"\x1b[2J", b"tab\t", b"...", b".hidden", b"~", b"$(touch pwned)", b"`id`", b"'quote\"", b"%s%n", b"@", b"0",
    b"booted", b"next", "\u202e\u0430".encode(), b"*",
)  # fmt: skip
# What is taken for a generation if it holds a subvolume "@": no control characters, space, comma, option, dot file.
HARMLESS = (b"x" * 255, b"~", b"`id`", b"'quote\"", b"%s%n", b"@", b"0", b"booted", b"next", b"*")


def add_raw(volume: Volume, name: bytes) -> None:
    """A sealed generation of any name; the oracle cannot list a subvolume with a newline in its path."""
    place = Path(os.fsdecode(os.path.join(os.fsencode(volume.top / "snapshots"), name)))
    place.mkdir()
    if b"\n" not in name:
        btrfsctl.snapshot(volume.tree(), place / "@", read_only=True)
        (place / "generation.json").write_text("{}")  # a foreign one would be spared from garbage for a day


def test_hostile_names_in_snapshots(trial: Trial) -> None:
    """What is no name of a generation is left alone, whatever it holds; the rest is listed, used and collected."""
    for name in HOSTILE:
        add_raw(trial.volume, name)
    trial.accept()
    answer = trial.run("apk-atomic", "status", "--all")
    assert answer.status == 0
    assert all(line.isprintable() for line in answer.stdout.splitlines())
    document = json.loads(trial.run("apk-atomic", "status", "--all", "--json").stdout)
    assert {each["id"] for each in document["generations"]} == {FIRST, *(name.decode() for name in HARMLESS)}
    trial.committed("apk-atomic", "run", "--atomic-base=*", "touch", "/etc/made")
    left = {os.fsencode(name) for name in trial.volume.generations()}
    assert left & set(HOSTILE) == set(HOSTILE) - set(HARMLESS)
    trial.works()


def test_hostile_names_as_operands(shared: Trial) -> None:
    for name in HOSTILE:
        word = os.fsdecode(name)
        if word in ("booted", "next", "0"):
            continue
        argvs = [("rollback", "--", word), ("diff", "--", word), ("run", f"--atomic-base={word}", "true")]
        for argv in argvs if word.startswith("-") else argvs[-1:]:
            result = shared.refused("apk-atomic", *argv, status=100)
            assert result.stderr.replace("\n", "").replace("\t", "").isprintable()


def test_hostile_names_in_staging_and_links(trial: Trial) -> None:
    """Recovery finishes journals with names of ours only, and keeps to the top level."""
    (trial.volume.top / "staging").mkdir(mode=0o700)
    for part in ("staging", "links"):
        for name in HOSTILE:
            place = Path(os.fsdecode(os.path.join(os.fsencode(trial.volume.top / part), name)))
            place.mkdir()
            (place / "file").write_text("x")
            (place / "up").symlink_to("../../commons")
    before = oracle.fingerprint(trial.volume.top / "commons/@home")
    result = trial.guest.run(["apk-atomic", "run", "touch", "/etc/made"], start_new_session=True)
    assert result.status == 0, result.stderr
    assert all(line.isprintable() for line in result.stderr.splitlines())
    assert trial.guest.run(["apk-atomic", "gc"], start_new_session=True).status == 0
    assert oracle.fingerprint(trial.volume.top / "commons/@home") == before
    left = {os.fsencode(name) for name in os.listdir(trial.volume.top / "staging")}
    assert left <= set(HOSTILE)
    assert trial.guest.run(["apk-atomic", "add"], start_new_session=True).status == 0


def test_files_among_the_generations(trial: Trial) -> None:
    """Strays in snapshots/: files, links to the outside, a directory with a plain @, one with a link for @."""
    top = trial.volume.top / "snapshots"
    (top / "afile").write_text("x")
    (top / "alink").symlink_to("/home")
    (top / "another").symlink_to(FIRST)
    (top / "plain/@/etc").mkdir(parents=True)
    (top / "linked").mkdir()
    (top / "linked/@").symlink_to(f"../{FIRST}/@")
    os.mkfifo(top / "fifo")
    (top / "nothing").mkdir()
    trial.accept()
    answer = json.loads(trial.run("apk-atomic", "status", "--all", "--json").stdout)
    assert [each["id"] for each in answer["generations"]] == [FIRST]
    trial.works()
    assert trial.run("apk-atomic", "gc").status == 0
    assert {"afile", "alink", "another", "plain", "linked", "fifo", "nothing"} <= set(trial.volume.generations())
