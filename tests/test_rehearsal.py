"""What is left of a line that was carried out: the words that ask for it, and what the answer says."""

from __future__ import annotations

import pytest

from apk_atomic import cmdline, rehearsal
from apk_atomic.cmdline import Kind

OK = "OK: 1 B in 2 packages\n"
AGAIN = "--verbose --verbose --verbose --simulate"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("upgrade", f"upgrade {AGAIN}"),
        ("-q upgrade -a", f"-q upgrade -a {AGAIN}"),
        ("add -X /repo hello", f"add -X /repo hello {AGAIN}"),
        ("add -- hello -x", f"add {AGAIN} -- hello -x"),
        ("add -s --no-simulate hello", f"add -s --no-simulate hello {AGAIN}"),
        ("del hello", f"add {AGAIN}"),
        ("fix", f"add {AGAIN}"),
        ("fix -u hello", f"add {AGAIN}"),
        ("add hello --virtual", ""),  # swallows the first of them
    ],
)
def test_words(line: str, words: str) -> None:
    asked = rehearsal.words_for(cmdline.parse(line.split()))
    if not words:
        assert asked == () or cmdline.parse(asked).kind is Kind.SIMULATE
        return
    assert " ".join(asked) == words
    assert cmdline.parse(asked).kind is Kind.SIMULATE


def test_name_of_the_program_counts() -> None:
    assert rehearsal.words_for(cmdline.parse(["hello"], program="apk_add")) == ("add", "hello", *AGAIN.split())


@pytest.mark.parametrize(
    ("line", "answer", "undone"),
    [
        ("upgrade", "OK: 0 MiB in 2 packages\n", ()),
        ("upgrade", "1 error; 10 B in 2 packages\n", ()),
        ("upgrade", "2 errors; 3 packages, 5 dirs, 2 files, 11 B\n", ()),
        ("upgrade", "", None),
        ("upgrade", "The following packages will be upgraded:\n", None),
        (
            "upgrade",
            "( 1/10) Upgrading gone (1.0-r0 -> 1.1-r0)\n(10/10) Installing x (1-r0)\nOK: 1 MiB in 2 packages\n",
            ("Upgrading gone (1.0-r0 -> 1.1-r0)", "Installing x (1-r0)"),
        ),
        ("upgrade", "(1/1) Upgrading gone (1.0-r0 -> 1.1-r0)\n", None),
        ("upgrade --progress", f"\x1b7  0% \x1b8\x1b[0K(1/1) Purging x (1-r0)\n{OK}", ("Purging x (1-r0)",)),
        ("add -t .v x", f"(1/1) Upgrading .v (2026.1 -> 2026.2)\n{OK}", ()),
        ("add -t .v=1 x", f"(1/2) Upgrading .v (0 -> 1)\n(2/2) Installing x (1)\n{OK}", ("Installing x (1)",)),
        ("add .v", f"(1/1) Upgrading .v (2026.1 -> 2026.2)\n{OK}", ("Upgrading .v (2026.1 -> 2026.2)",)),
    ],
)
def test_answer(line: str, answer: str, undone: tuple[str, ...] | None) -> None:
    assert rehearsal.undone(cmdline.parse(line.split()), answer) == undone


@pytest.mark.parametrize(
    ("line", "mended"),
    [
        ("add a", None),
        ("upgrade", None),
        ("fix", "ab"),
        ("fix a c", "a"),
        ("fix c", ""),
        ("fix -d c", "ab"),
        ("fix -- b", "b"),
    ],
)
def test_what_fix_is_to_mend(line: str, mended: str | None) -> None:
    found = rehearsal.to_mend(cmdline.parse(line.split()), frozenset("ab"))
    assert found == (None if mended is None else frozenset(mended))
