"""What a line that apk has carried out left undone, as a simulation of it shows: words in, apk's answer in, names out.

Pure, and imported only when apk reports an error that may be an old one. It must not know how apk is asked.
"""

from __future__ import annotations

import re

from apk_atomic.applets import Version
from apk_atomic.cmdline import Kind, Line, parse
from apk_atomic.grammar import Reading, read

_AGAIN = ("--verbose", "--verbose", "--verbose", "--simulate")  # a quiet simulation would list nothing
_AS_WORLD_SAYS: tuple[str, ...] = ("add",)
_STEP = re.compile(r"\(\s*\d+/\d+\) (\S.*)")
_SUMMARY = re.compile(r"^(OK:|\d+ errors?;) ", re.MULTILINE)


def words_for(line: Line) -> tuple[str, ...]:
    """The words of the simulation; () where the line cannot be simulated.

    What `del` names may be unknown to apk by now, and `fix` does its work whenever it is asked to: of those two only
    what world asks for can be checked.
    """
    given = _AS_WORLD_SAYS if line.applet in ("del", "fix") else line.words
    end = given.index("--") if "--" in given else len(given)
    words = (*given[:end], *_AGAIN, *given[end:])
    return words if parse(words).kind is Kind.SIMULATE else ()


def undone(line: Line, answer: str) -> tuple[str, ...] | None:
    """The steps that the simulation lists; None where it came to no end, so that nobody knows.

    A virtual package is made anew whenever it is asked for.
    """
    if not _SUMMARY.search(answer):
        return None
    virtual = (_reading(line).value("virtual") or "").partition("=")[0]
    steps = (found[1].rstrip() for found in map(_STEP.search, answer.splitlines()) if found)
    return tuple(step for step in steps if not virtual or f" {virtual} (" not in step)


def to_mend(line: Line, broken: frozenset[str]) -> frozenset[str] | None:
    """Which of the broken packages a `fix` is to mend; None for another line."""
    if line.applet != "fix":
        return None
    reading = _reading(line)
    named = frozenset(reading.operands)
    return named & broken if named and not reading.is_on("depends") else broken


def _reading(line: Line) -> Reading:
    return read(Version.V3, line.words)
