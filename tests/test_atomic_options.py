"""Options of ours on an apk line: what they say, where they may stand, and what stays apk's."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest

from apk_atomic import cli, verbs
from apk_atomic.atomic_options import AtomicOptions, split_atomic
from apk_atomic.errors import UsageError

ACCEPTED = [
    ("add x", AtomicOptions(), "add x"),
    ("add --atomic-base ID x", AtomicOptions(base="ID"), "add x"),
    ("add --atomic-base=ID x", AtomicOptions(base="ID"), "add x"),
    ("--atomic-base add info", AtomicOptions(base="add"), "info"),
    ("add x --atomic-base a --atomic-base=b", AtomicOptions(base="b"), "add x"),
    ("add --atomic-message 'for the night' x", AtomicOptions(message="for the night"), "add x"),
    ("add --atomic-message= x", AtomicOptions(message=""), "add x"),
    ("add --atomic-message -s x", AtomicOptions(message="-s"), "add x"),
    ("add --atomic-message=a=b x", AtomicOptions(message="a=b"), "add x"),
    ("add --atomic-accept a,b,a x", AtomicOptions(accept=("a", "b")), "add x"),
    ("add --atomic-accept a --atomic-accept=c,b x", AtomicOptions(accept=("a", "c", "b")), "add x"),
    ("add --atomic-keep-failed x", AtomicOptions(keep_failed=True), "add x"),
    ("add --atomic-unchanged-77", AtomicOptions(unchanged_77=True), "add"),
    ("add --atomic-wait 30 x", AtomicOptions(wait=30), "add x"),
    ("add --atomic-wait=0 x", AtomicOptions(wait=0), "add x"),
    ("add --atomic-volume /dev/vdb2 x", AtomicOptions(volume="/dev/vdb2"), "add x"),
    ("add --wait 3 --atomic-wait 4 x", AtomicOptions(wait=4), "add --wait 3 x"),
    # after -- nothing is ours
    ("add -- --atomic-base x", AtomicOptions(), "add -- --atomic-base x"),
    ("add --atomic-wait 1 -- --atomic-nonsense", AtomicOptions(wait=1), "add -- --atomic-nonsense"),
    ("run --atomic-base=b -- cmd --atomic-base", AtomicOptions(base="b"), "run -- cmd --atomic-base"),
    ("add --atomic-message -- x", AtomicOptions(message="--"), "add x"),
    # values of apk's options stay apk's
    ("add -t --atomic-base x", AtomicOptions(), "add -t --atomic-base x"),
    ("add -ut --atomic-base x", AtomicOptions(), "add -ut --atomic-base x"),
    ("add --virtual --atomic-nonsense x", AtomicOptions(), "add --virtual --atomic-nonsense x"),
    ("--root --atomic-base add x", AtomicOptions(), "--root --atomic-base add x"),
    ("add -X --atomic-wait=5 x", AtomicOptions(), "add -X --atomic-wait=5 x"),
    ("query -F --atomic-base x", AtomicOptions(), "query -F --atomic-base x"),
    ("add -t -- --atomic-base b x", AtomicOptions(base="b"), "add -t -- x"),
    # but these take none
    ("add -t.v --atomic-base b x", AtomicOptions(base="b"), "add -t.v x"),
    ("add --virtual=.v --atomic-base b x", AtomicOptions(base="b"), "add --virtual=.v x"),
    ("info -t --atomic-base b x", AtomicOptions(base="b"), "info -t x"),
    ("add -q --atomic-base b x", AtomicOptions(base="b"), "add -q x"),
    ("add - --atomic-base b x", AtomicOptions(base="b"), "add - x"),
    ("-q --atomic-base b foo", AtomicOptions(base="b"), "-q foo"),
    ("--atomic-message -- --atomic-base fix add -t --atomic-x y", AtomicOptions(base="fix", message="--"),
     "add -t --atomic-x y"),
    ("add --atomic", AtomicOptions(), "add --atomic"),
]  # fmt: skip

REFUSED = [
    ("add --atomic-bogus x", "--atomic-bogus"),
    ("add --atomic- x", "--atomic-"),
    ("add --atomic-bas ID x", "--atomic-bas"),
    ("add --atomic-no-base x", "--atomic-no-base"),
    ("add x --atomic-base", "--atomic-base"),
    ("add --atomic-base= x", "--atomic-base"),
    ("add --atomic-base '' x", "--atomic-base"),
    ("add --atomic-volume= x", "--atomic-volume"),
    ("add --atomic-accept , x", "--atomic-accept"),
    ("add --atomic-accept= x", "--atomic-accept"),
    ("add --atomic-keep-failed=yes x", "--atomic-keep-failed"),
    ("add --atomic-unchanged-77= x", "--atomic-unchanged-77"),
    ("add --atomic-wait soon x", "soon"),
    ("add --atomic-wait -1 x", "-1"),
    ("add --atomic-wait=1.5 x", "1.5"),
    ("add --atomic-wait=² x", "²"),
    ("add --atomic-wait=" + "9" * 5000, "--atomic-wait"),
    ("info -F --atomic-nonsense x", "--atomic-nonsense"),
]


@pytest.mark.parametrize(("line", "atomic", "rest"), ACCEPTED, ids=[row[0] for row in ACCEPTED])
def test_accepted(line: str, atomic: AtomicOptions, rest: str) -> None:
    assert split_atomic(shlex.split(line)) == (atomic, rest.split())


@pytest.mark.parametrize(("line", "named"), REFUSED, ids=[row[0][:40] for row in REFUSED])
def test_refused(line: str, named: str) -> None:
    with pytest.raises(UsageError) as caught:
        split_atomic(shlex.split(line))
    assert named in caught.value.message
    assert "nothing was changed" in caught.value.message
    assert "--atomic-unchanged-77" in caught.value.hint
    assert caught.value.exit_code == 100


def test_words_are_kept_verbatim() -> None:
    odd = ["add", "", " ", "a\nb", "\udcff", "--x=\u00e9", "-"]
    assert split_atomic(["--atomic-wait", "1", *odd])[1] == odd


# ---- which line takes which ------------------------------------------------------------------------------

PROGRAM = "import sys; from apk_atomic.cli import main; sys.exit(main(['apk-atomic', *sys.argv[1:]]))"
GIVEN = {
    "base": "--atomic-base=x", "message": "--atomic-message=", "accept": "--atomic-accept=x",
    "keep_failed": "--atomic-keep-failed", "unchanged_77": "--atomic-unchanged-77", "wait": "--atomic-wait=0",
    "volume": "--atomic-volume=/nowhere",
}  # fmt: skip
CHANGES = "base message wait keep_failed unchanged_77 volume"
TAKEN = {
    "add x": f"{CHANGES} accept",
    "del x": f"{CHANGES} accept",
    "upgrade": f"{CHANGES} accept",
    "fix": f"{CHANGES} accept",
    "shell": CHANGES,
    "run -- true": CHANGES,
    "add -s x": "base volume",
    "info -e x": "volume",
    "search x": "volume",
    "update": "volume",
    "cache clean": "volume",
    "status": "volume",
    "diff": "volume",
    "prove": "volume",
    "doctor": "volume",
    "rollback 1": "wait volume",
    "discard": "wait volume",
    "gc": "wait volume",
    "gc --dry-run": "wait volume",
    "boot-config": "wait volume",
    "boot-config --install": "wait volume",
    "init /nowhere": "",
    "auto": "",
    "adopt": "wait",
    "adopt --finish": "wait",
    "fetch x": "",
    "add --root /nowhere x": "",
    "--version": "",
    "frobnicate": "",
}


def test_every_verb_has_its_row() -> None:
    assert {line.split()[0] for line in TAKEN} >= set(verbs.VERBS) | {"add", "del", "upgrade", "fix"}
    assert set(GIVEN) == set(AtomicOptions._fields)


@pytest.mark.parametrize("line", TAKEN)
def test_an_option_that_means_nothing_is_refused(line: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Before anything is looked at: these tests need no volume, nor root."""
    for field in set(GIVEN) - set(TAKEN[line].split()):
        assert cli.main(["apk-atomic", GIVEN[field], *line.split()]) == 100
        said = capfd.readouterr()
        name = GIVEN[field].partition("=")[0]
        assert (said.out, f"{name} means nothing to" in said.err) == ("", True)
        assert "nothing was changed" in said.err
        for taken in TAKEN[line].split():
            assert GIVEN[taken].partition("=")[0] in said.err.partition("hint: ")[2]


@pytest.mark.parametrize("line", [line for line, taken in TAKEN.items() if "volume" in taken])
def test_what_it_takes_is_not_refused(line: str) -> None:
    """All of them at once; what is refused then is the volume that they name. It holds signals back: not in here."""
    words = [GIVEN[field] for field in TAKEN[line].split()]
    argv = [sys.executable, "-c", PROGRAM, *words, *line.split()]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode in (100, 101)
    assert "means nothing" not in done.stderr
    assert "/nowhere" in done.stderr or "only root" in done.stderr
