"""Queries: bare apk at once while nothing is pending, answered from next while something is."""

from __future__ import annotations

from pathlib import Path

import pytest

from apk_atomic import cmdline, front
from tests.dropin.ash import Ash
from tests.dropin.world import BARE, HELLO, Told, told
from tests.support.guest import USER_ID
from tests.support.packages import Package
from tests.support.world import Guest, Volume

DESIGN = {
    "info", "list", "query", "search", "policy", "version", "dot", "stats", "manifest", "audit",
}  # fmt: skip
NOTE = "apk-atomic: answered by "
FORMS = ("info -e hello", "-q info -e hello", "--root / info -e hello", "info -e --root=/ hello", "-qv info -e hello")


@pytest.fixture
def pending(volume: Volume) -> Guest:
    """Booted without hello; pending with it."""
    volume.repo.publish(HELLO)
    guest = volume.boot()
    guest.run(["apk", "add", "hello"], check=True)
    return guest


def test_next_answers_while_it_is_pending(volume: Volume, pending: Guest) -> None:
    assert pending.run([BARE, "info", "-e", "hello"]).status == 1
    for name in ("apk", "apk-atomic"):
        for form in FORMS:
            answer = pending.run([name, *form.split()])
            assert (answer.status, answer.stderr) == (0, ""), form
    assert pending.run(["apk", "list", "-I"], check=True).stdout.startswith("hello-1.0-r0 ")
    assert pending.run([BARE, "list", "-I"], check=True).stdout == ""
    pending.run(["apk", "del", "hello"], check=True)
    assert pending.run(["apk", "info", "-e", "hello"]).status == 1
    pending.run(["apk", "add", "hello"], check=True)
    pending.run(["apk-atomic", "discard"], check=True)
    assert pending.run(["apk", "info", "-e", "hello"]).status == 1
    pending.run(["apk", "add", "hello"], check=True)
    pending.reboot()
    for name in ("apk", BARE):
        assert pending.run([name, "info", "-e", "hello"]).status == 0
    assert volume.slots()[0] == pending.booted


def test_note_is_for_a_terminal_only(pending: Guest) -> None:
    ash = Ash(pending)
    status, shown = ash.run("apk info -e hello")
    assert (status, shown.count(NOTE), "hello\r\n" in shown) == (0, 1, True)
    status, shown = ash.run("apk -q info -e hello")
    assert (status, NOTE in shown) == (0, False)
    assert ash.run("apk info -e hello 2>/tmp/log; cat /tmp/log") == (0, "hello\r\n")
    status, shown = ash.run("apk info -e hello >/tmp/out; cat /tmp/out")
    assert shown.endswith("hello\r\n") and NOTE in shown


def test_ordinary_user_is_answered_from_booted(pending: Guest) -> None:
    answer = pending.run(["apk", "info", "-e", "hello"], uid=USER_ID)
    assert (answer.status, answer.stdout, answer.stderr) == (1, "", "")
    ash = Ash(pending, uid=USER_ID)
    status, shown = ash.run("apk info -e hello")
    assert (status, NOTE + "the booted generation" in shown) == (1, True)
    assert ash.run("apk -q info -e hello") == (1, "")
    assert pending.run(["apk", "add", "-s", "hello"], uid=USER_ID, check=True).stdout.startswith("(1/1) Installing")
    refused = pending.run(["apk", "add", "other"], uid=USER_ID)
    assert (refused.status, "only root can do this; nothing was changed" in refused.stderr) == (100, True)


@pytest.mark.parametrize("words", ["info", "add -s hello", "update"])
def test_ordinary_user_gets_no_answer_for_another_volume(volume: Volume, pending: Guest, words: str) -> None:
    """Least of all that of the running system."""
    named = ["apk-atomic", "--atomic-volume", volume.device, *words.split()]
    refused = pending.run(named, uid=USER_ID)
    assert (refused.status, refused.stdout) == (100, "")
    assert "only root can do this; nothing was changed" in refused.stderr


def test_questions_of_a_pending_generation_change_nothing(volume: Volume, pending: Guest) -> None:
    before = volume.generations(), volume.current()
    pending.run(["apk", "version"])
    pending.run(["apk", "audit"])
    pending.run(["apk", "info", "-e", "hello"], check=True)
    assert (volume.generations(), volume.current()) == before
    mounts = pending.run(["cat", "/proc/self/mountinfo"], check=True).stdout
    assert "/run/apk-atomic" not in mounts


def test_stale_mark_is_not_believed(volume: Volume, pending: Guest) -> None:
    volume.point(pending.booted, name="20250102030405abcdefgh")  # by hand, as the wiki's rollback
    assert (Path(pending.root) / "run/apk-atomic/next").exists()
    assert pending.run(["apk", "info", "-e", "hello"]).status == 1


def test_simulation_starts_from_the_base_of_the_real_thing(volume: Volume, pending: Guest) -> None:
    volume.repo.publish(Package("other", depends=("hello",)))
    before = volume.generations()
    bare = pending.run([BARE, "add", "-s", "other"], check=True).stdout
    answer = pending.run(["apk", "add", "-s", "other"], check=True)
    assert ("Installing hello" in bare, "Installing hello" in answer.stdout) == (True, False)
    assert "(1/1) Purging hello" in pending.run(["apk", "-s", "del", "hello"], check=True).stdout
    booted = pending.run(["apk", "add", "-s", "other", "--atomic-base", "booted"], check=True)
    assert booted.stdout == bare
    wrong = pending.run(["apk", "add", "-s", "other", "--atomic-base", "nosuch"])
    assert (wrong.status >= 100, wrong.stdout) == (True, "")
    assert volume.generations() == before
    pending.run(["apk", "info", "-e", "hello"], check=True)


# ---- the fast path ---------------------------------------------------------------------------------------


def test_query_words_are_those_of_the_design() -> None:
    assert front.QUERY_WORDS == cmdline.QUERY_WORDS == DESIGN


def imported(listing: str) -> set[str]:
    rows = (line.rpartition("|") for line in listing.splitlines() if line.startswith("import time:"))
    return {name.strip() for _, _, name in rows}


@pytest.mark.parametrize("word", sorted(DESIGN))
def test_query_imports_nothing_more_than_the_interpreter(probed: Volume, word: str) -> None:
    guest = probed.boot()
    least = guest.run(["python3", "-I", "-X", "importtime", "-c", "import os, sys"], check=True)
    query = guest.run(["python3", "-I", "-X", "importtime", "/usr/bin/apk-atomic", word], check=True)
    assert told(query).all("word") == [word]
    assert imported(query.stderr) - imported(least.stderr) == set()
    guest.shutdown()


def test_query_with_an_option_of_ours_is_no_plain_one(probed: Volume) -> None:
    guest = probed.boot()
    refused = guest.run(["apk", "info", "--atomic-bogus"])
    assert (refused.status, refused.stdout) == (100, "")
    answer = guest.run(["apk", "info", "-e", "x", "--atomic-volume", probed.device], check=True)
    assert Told(tuple(answer.stdout.splitlines())).all("word") == ["info", "-e", "x"]


def test_query_without_any_apk_says_so(probed: Volume) -> None:
    guest = probed.boot()
    guest.run(["mount", "--bind", "/dev/null", BARE], check=True)
    for line in ("info", "-q info", "foo"):
        answer = guest.run(["apk-atomic", *line.split()])
        assert (answer.status, answer.stdout) == (100, "")
        assert "there is no apk on this system" in answer.stderr
