"""Called as apk-atomic and through a link named apk: apk's words reach apk, and its answers and statuses the caller."""

from __future__ import annotations

from pathlib import Path

import pytest

from apk_atomic import verbs
from tests.dropin.world import BARE, HELLO, Told, link_apk, make_pending, ours, probe_instead_of_apk, told
from tests.support.world import Guest, Volume, make_volume

NAMES = ("apk", "apk-atomic")

# Whatever apk makes of these, the stand-in and each version something else: it must be the same through us.
ANSWERED = (
    "", "--version", "--help", "add --help", "help", "foo bar", "ADD hello", "info", "info -e nosuch", "info nosuch",
    "-q info", "--root / info", "list -I", "search nosuch", "policy nosuch", "query nosuch", "version", "stats",
    "info --bogus", "--bogus info", "--root", "-s add nosuch", "upgrade -s", "fetch nosuch", "verify /nosuch",
    "--root /nosuch info",
)  # fmt: skip
OF_OURS = ("status", "rollback", "discard", "run true", "init /dev/null")
REFUSED = ("add nosuch", "del --bogus nosuch", "add --bogus hello", "upgrade --bogus", "add hello=9", "fix nosuch")


@pytest.mark.parametrize("line", ANSWERED)
def test_answers_are_those_of_bare_apk(untouched: Guest, line: str) -> None:
    bare = untouched.run([BARE, *line.split()])
    for name in NAMES:
        if name == "apk-atomic" and line in ("", "--help", "-h", "help"):
            continue  # our own usage
        answer = untouched.run([name, *line.split()])
        assert (answer.status, answer.stdout, answer.stderr) == (bare.status, bare.stdout, bare.stderr), name


@pytest.mark.parametrize("line", OF_OURS)
def test_our_verbs_are_no_words_of_apk(untouched: Guest, line: str) -> None:
    bare = untouched.run([BARE, *line.split()])
    answer = untouched.run(["apk", *line.split()])
    assert answer.status == 1
    assert (answer.status, answer.stdout, answer.stderr) == (bare.status, bare.stdout, bare.stderr)


@pytest.mark.parametrize("line", REFUSED)
def test_failures_have_the_status_of_apk(untouched: Guest, line: str) -> None:
    bare = untouched.run(["apk-atomic", "run", "--", BARE, *line.split()])
    for name in ("apk", "apk-atomic"):
        answer = untouched.run([name, *line.split()])
        assert (answer.status, answer.stdout) == (bare.status, bare.stdout), (name, answer, bare)
        assert [line for line in answer.stderr.splitlines() if line not in ours(answer)] == [
            line for line in bare.stderr.splitlines() if line not in ours(bare)
        ]


def test_own_usage_and_nothing_of_it_as_apk(untouched: Guest) -> None:
    assert untouched.run(["apk-atomic"]).status == 1  # as apk
    asked = untouched.run(["apk-atomic", "--help"])
    assert (asked.status, asked.stdout[:17]) == (0, "usage: apk-atomic")
    assert "apk-atomic" not in untouched.run(["apk", "--help"]).stdout


@pytest.mark.parametrize("verb", verbs.VERBS)
def test_help_of_every_verb(untouched: Guest, verb: str) -> None:
    """To everybody, on every system, and without looking at it."""
    asked = untouched.run(["apk-atomic", verb, "--help"])
    assert (asked.status, asked.stderr) == (0, "")
    assert asked.stdout.startswith(f"usage: apk-atomic {verb}")
    assert untouched.run(["apk-atomic", verb, "--help"], uid=1000).stdout == asked.stdout


def test_help_is_not_for_the_command_of_run(untouched: Guest) -> None:
    for line in (["run", "--", "echo", "--help"], ["run", "echo", "--help"]):
        assert untouched.run(["apk-atomic", *line]).stdout == "--help\n"


def test_change_through_the_link_says_on_stdout_what_apk_says(volume: Volume) -> None:
    volume.repo.publish(HELLO)
    guest = volume.boot()
    bare = guest.run(["apk-atomic", "run", "--", BARE, "add", "hello"], check=True)
    guest.run(["apk-atomic", "discard"], check=True)
    added = guest.run(["apk", "add", "hello"], check=True)
    assert added.stdout == bare.stdout
    assert ours(added) != []
    assert '"apk",' in (volume.top / "snapshots" / volume.slots()[0] / "generation.json").read_text()
    quiet = guest.run(["apk", "-q", "del", "hello"], check=True)
    assert quiet.stdout == ""
    assert not any(" is next" in line for line in ours(quiet))


def test_reader_that_goes_away_ends_apk_as_without_us() -> None:
    def prepare(tree: Path) -> None:
        link_apk(tree)
        (tree / "sbin/apk").unlink()
        (tree / "sbin/apk").write_text("#!/bin/sh\nwhile :; do echo line || exit 3; done\n")
        (tree / "sbin/apk").chmod(0o755)

    with make_volume(prepare=prepare) as made:
        guest = made.boot()
        for line in ("info", "-q info", "fetch x", "add x", "update"):
            script = f"{{ apk {line}; echo $? >/tmp/status; }} | head -n 1"
            assert guest.run(["sh", "-c", script]).stdout == "line\n"
            assert guest.run(["sh", "-c", "cat /tmp/status"]).stdout == "141\n", line
        assert made.generations() == [guest.booted]


# ---- verbatim --------------------------------------------------------------------------------------------

LINES = (
    ("info", "-e", "a b", "", "ü\n*"), ("-q", "info", "$x"), ("--root", "/", "info"), ("foo", "--", "-s"),
    ("fetch", "x"), ("--version",), ("add", "a b", "", "-t", ".v", "--", "-x", "--atomic-y"), ("del", "x"), ("fix",),
    ("upgrade", "-U"),
    ("update",), ("cache", "clean"), ("add", "-s", "x"), ("add", "--simulate=no", "x"),
)  # fmt: skip
SET = {"LD_LIBRARY_PATH": "/nowhere", "LD_BIND_NOW": "1", "TMPDIR": "/nowhere", "MORE": "more", "http_proxy": "x"}


def comparable(answer: Told) -> list[str]:
    """Without what a change is not to see.

    Signals 32 and 33 are the C library's own: its posix_spawn(3) leaves them ignored, and no program can use them.
    """
    lines = [line for line in answer.lines if not line.startswith(("env=LD_", "env=TMPDIR=", "env=SHLVL="))]
    ignored = [number for number, line in enumerate(lines) if line.startswith("SigIgn:")]
    for number in ignored:
        lines[number] = f"SigIgn: {int(lines[number].split()[1], 16) & ~(0b11 << 31):x}"
    return lines


@pytest.fixture(scope="module")
def booted(probed: Volume) -> Guest:
    return probed.boot()


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_everything_reaches_apk_verbatim(booted: Guest, line: tuple[str, ...]) -> None:
    script = 'umask 0031; exec "$@"'
    bare = told(booted.run(["sh", "-c", script, "sh", BARE, *line], env=SET, cwd="/usr/bin"))
    answer = told(booted.run(["sh", "-c", script, "sh", "apk", *line], env=SET, cwd="/usr/bin"))
    assert bare.one("program") == BARE
    assert comparable(answer) == comparable(bare)


def test_environment_that_would_lead_outside_is_dropped_in_a_change(booted: Guest) -> None:
    inside = told(booted.run(["apk", "add", "x"], env=SET)).all("env")
    assert not [word for word in inside if word.startswith(("LD_", "TMPDIR"))]
    assert "MORE=more" in inside
    passed = told(booted.run(["apk", "fetch", "x"], env=SET)).all("env")
    assert {f"{name}={value}" for name, value in SET.items()} <= set(passed)


def test_exit_status_of_apk_is_ours(booted: Guest) -> None:
    for line in ("info", "-q info", "foo", "fetch x", "update", "add -s x", "add x"):
        for status in (1, 99, 126):
            assert booted.run(["apk", *line.split()], env={"STATUS": str(status)}).status == status, line


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors_are_open_for_a_change(booted: Guest, closed: str) -> None:
    report = "/var/log/probe"
    for line in ("add x", "info", "update"):
        booted.run(["rm", "-f", report], check=True)
        status = booted.run(["sh", "-c", f"exec apk {line} {closed}"], env={"PROBE": report}).status
        answer = Told(tuple(booted.run(["cat", report], check=True).stdout.splitlines()))
        assert (status, answer.all("word")) == (0, line.split())
        if line != "info":  # which is bare apk at once
            assert answer.all("fd")[:3] == ["0", "1", "2"]


def test_deleted_directory_is_no_obstacle(booted: Guest) -> None:
    for line in ("info", "-q info", "add x", "update", "add -s x"):
        script = f"mkdir /tmp/gone && cd /tmp/gone && rmdir /tmp/gone && exec apk {line}"
        assert told(booted.run(["sh", "-c", script])).all("word") == line.split()


def test_directory_that_the_new_root_lacks_becomes_its_top(booted: Guest) -> None:
    booted.run(["mkdir", "-p", "/run/mine"], check=True)
    assert told(booted.run(["apk", "add", "x"], cwd="/run/mine")).one("cwd") == "/"
    assert told(booted.run(["apk", "add", "x"], cwd="/home/user")).one("cwd") == "/home/user"


def test_progress_descriptor_is_handed_through_if_it_is_open(booted: Guest) -> None:
    def descriptors(script: str) -> list[str]:
        return told(booted.run(["sh", "-c", script])).all("fd")

    assert descriptors("exec apk add x --progress-fd 9 8>/dev/null 9>/dev/null") == ["0", "1", "2", "9"]
    assert descriptors("exec apk add x --progress-fd=1 9>/dev/null") == ["0", "1", "2"]
    for number in range(3, 10):  # one of ours must not be taken for the caller's
        assert descriptors(f"exec apk add x --progress-fd {number}") == ["0", "1", "2"]


def test_front_of_ours_in_the_place_of_apk_is_never_taken_for_it() -> None:
    def prepare(tree: Path) -> None:
        probe_instead_of_apk(tree)
        (tree / "sbin/apk").rename(tree / "usr/bin/apk")
        (tree / "usr/sbin/apk").symlink_to("/usr/bin/apk-atomic")
        (tree / "usr/libexec/apk-atomic").mkdir(parents=True)
        (tree / "usr/libexec/apk-atomic/front").write_text('#!/bin/sh\nexec apk-atomic "$@"\n')
        (tree / "usr/libexec/apk-atomic/front").chmod(0o755)
        (tree / "sbin/apk").symlink_to("/usr/libexec/apk-atomic/front")

    with make_volume(prepare=prepare) as made:
        guest = made.boot()
        for line in ("info", "-q info", "add x", "update"):
            answer = told(guest.run(["/usr/sbin/apk", *line.split()], timeout=20))
            assert (answer.one("program"), answer.all("word")) == ("/usr/bin/apk", line.split())
        make_pending(guest)
        assert told(guest.run(["/usr/sbin/apk", "info"], timeout=20)).one("program") == "/usr/bin/apk"
