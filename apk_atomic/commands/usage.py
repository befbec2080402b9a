"""`apk-atomic --help`, `apk-atomic VERB --help`, and the reminder for a line without a word.

The table of verbs is also what `verbs` reads their words by, so that no help can differ from what is understood. A test
compares all of it with the manual.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from apk_atomic.atomic_options import OPTION_PREFIX
from apk_atomic.console import Console

USAGE_STATUS = 1  # what apk answers to a line without an applet
HELP = "--help"
_JSON = "a document, for programs"
_LEFT = 44  # columns of the list that say what to type
_NOTHING: Mapping[str, str] = {}


class Verb(NamedTuple):
    """One of our verbs: `words` may follow it, `does` is its line in the list, `more` what its own help says.

    `flags` are its options without the dashes, and what they do, `most` is the number of operands. `flags` None: it has
    a parser of its own, whose help it is.
    """

    words: str
    does: str
    more: str = ""
    flags: Mapping[str, str] | None = None
    most: int = 0


VERBS: Mapping[str, Verb] = {
    "status": Verb(
        "[--all] [--json]", "what is booted, what boots next, how it came about",
        "A line for each generation that is in a slot or booted. An ordinary user gets a little of it.",
        {"all": "those in no slot as well", "json": _JSON},
    ),
    "diff": Verb(
        "[A [B]] [--json]", "the package sets of two generations (ID, slot, booted, next)",
        "+ added, - removed, ! upgraded, = rebuilt. B is next where it is left out; without both it is from booted to\n"
        "next, or if these are the same, from the first other generation in the slots.",
        {"json": _JSON}, most=2,
    ),
    "prove": Verb(
        "[A] [--json]", "whether a generation would boot, and what speaks against it",
        "Reads kernel, modules, initramfs, init and fstab; A is next where it is left out. Exit status 0 if it would\n"
        "boot, else 104.",
        {"json": _JSON}, most=1,
    ),
    "doctor": Verb("[--esp DIR|DEVICE] [--json]", "what is wrong with this system, and what to type next"),
    "rollback": Verb(
        "[--force] [SLOT|ID]", "another generation boots next",
        "No generation is made, and what was next becomes a fallback. Without an operand: the booted one, if that is\n"
        "not next, else the first fallback that is another one and did not fail.",
        {"force": "also one that is marked as failed or would not boot"}, most=1,
    ),
    "discard": Verb("", "drops the pending generation", "The booted generation is next again.", _NOTHING),
    "gc": Verb(
        "[--dry-run] [--json]", "collects generations that nothing keeps",
        "Kept are those in a slot, booted, mounted, pinned, the newest good one, and what the configuration says.",
        {"dry-run": "only say what would go", "json": _JSON},
    ),
    "shell": Verb(
        "", "a root shell in a new generation",
        "exit makes what was done in it the next generation; exit 1, or any status but 0, discards it.", _NOTHING,
    ),
    "run": Verb(
        "-- COMMAND…", "a command in a new generation",
        "Exit status 0 makes what it did the next generation, any other discards it.", _NOTHING,
    ),
    "auto": Verb(
        "[--now|--reboot] [--dry-run] [--json]", "the unattended upgrade, as [auto] in the configuration says",
        "Quiet when nothing happened. The periodic job calls it; it waits a random time first, and runs once a day.",
        {
            "now": "whatever the time, the power supply and earlier failures say",
            "dry-run": "only say what would be upgraded",
            "reboot": "only the reboot that an earlier one waits for",
            "json": _JSON,
        },
    ),
    "init": Verb("DEVICE|IMAGE …", "a new system on a disk, in an image file, on a partition"),
    "adopt": Verb("[--finish] …", "the layout for the system that runs, without reinstalling it"),
    "boot-config": Verb("[--install] …", "the static boot menu; with --install, onto the ESP"),
}  # fmt: skip

OPTIONS: Mapping[str, tuple[str, str]] = {
    "base": ("booted|next|ID", "the generation to start from"),
    "message": ("TEXT", "why; kept in the record"),
    "wait": ("SECONDS", "wait for another transaction"),
    "accept": ("PKG,…", "let these packages stay broken"),
    "keep-failed": ("", "keep what failed, in no slot, to look at"),
    "unchanged-77": ("", "exit with 77 when nothing changed"),
    "volume": ("DEVICE|DIR", "a volume that is not the running system's"),
}


def synopsis(verb: str) -> str:
    """`apk-atomic diff [A [B]] [--json]`."""
    return f"apk-atomic {verb} {VERBS[verb].words}".rstrip()


def text() -> str:
    """All of it, on a page."""
    rows = [
        ("usage: apk-atomic add|del|upgrade|fix …", "as apk, but in a new generation that runs after the reboot"),
        ("       apk-atomic info|list|search|update|…", "as apk"),
        *((f"       {synopsis(verb)}", each.does) for verb, each in VERBS.items()),
    ]
    return "\n".join((
        *(line for left, right in rows for line in _columns(left, right)),
        "",
        f"apk-atomic VERB {HELP} says more, and the manual all: man apk-atomic",
        "",
        "options of ours, also on apk's lines:",
        *_options(tuple(OPTIONS)),
    ))  # fmt: skip


def _columns(left: str, right: str) -> list[str]:
    """A row of the list; what does not fit has a line of its own."""
    return [f"{left:<{_LEFT}}{right}"] if len(left) < _LEFT else [left, " " * _LEFT + right]


def of(words: Sequence[str], taken: Sequence[str]) -> str | None:
    """The help of a verb, where the line asks for it and the verb has no parser of its own; `taken` are the options of
    ours that mean something to it. Neither what stands behind `--` nor the command of `run` asks for anything."""
    verb = VERBS.get(words[0])
    asked = words[1:2] if words[0] == "run" else words[1 : [*words, "--"].index("--")]
    if verb is None or verb.flags is None or HELP not in asked:
        return None
    flags = {**verb.flags, HELP.removeprefix("--"): "this text"}
    wide = max(map(len, flags))
    lines = [f"usage: {synopsis(words[0])}", "", verb.more, "", "options:"]
    lines += [f"  --{flag:<{wide}}  {what}" for flag, what in flags.items()]
    return "\n".join([*lines, *(["", "options of ours:", *_options(taken)] if taken else [])])


def _options(names: Sequence[str]) -> list[str]:
    left = {name: f"{OPTION_PREFIX}{name} {OPTIONS[name][0]}".rstrip() for name in names}
    return [f"  {left[name]:<29}  {OPTIONS[name][1]}" for name in names]


def show(console: Console, *, asked: bool) -> int:
    """The text on stdout, exit status 0, when it was asked for; else on stderr, and 1."""
    if asked:
        console.answer(text())
        return 0
    console.note(text())
    return USAGE_STATUS
