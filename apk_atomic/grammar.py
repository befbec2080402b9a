"""How apk reads its words: getopt_long of 2.14 and the own parser of 3.x, from words to a `Reading`.

Both are followed as the sources have them (`src/apk.c` of 2.14.10, with getopt_long of musl or glibc, which agree
here but for POSIXLY_CORRECT, and musl's ignores that; `src/apk.c` of 3.0.6), because the meaning of a line may hang
on one letter of a cluster. Pure; it must not know what a line means for the system (`cmdline`). Nothing is durable.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from apk_atomic.applets import Mode, Option, Version, has_applet, options

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SWITCHES = (Mode.BOOL, Mode.AUTO)
_ANSWERS = ("version", "print-arch")  # printed, then the end, with exit status 0


class Outcome(Enum):
    """How far the parser gets."""

    READ = "read"
    HELP = "help"  # usage or version is printed, nothing else happens
    REFUSED = "refused"  # apk says what is wrong, nothing else happens
    UNKNOWN = "unknown"  # v3 only: refused today for an option that our tables lack and a newer apk may know


class Problem(Enum):
    UNKNOWN = "unknown"
    MISUSED = "misused"  # ambiguous, without its value, with one too many, or with a wrong one


class Item(NamedTuple):
    """One option as written; `value` is yes, no or auto for a switch and None for a flag."""

    name: str
    value: str | None = None
    problem: Problem | None = None


class Word(NamedTuple):
    """What one word that begins with a dash holds; `spills`: its value is the next word."""

    items: tuple[Item, ...]
    spills: bool


class Reading(NamedTuple):
    """A line as one version reads it; `applet` is '' when there is none. Of `given` the last of a name counts."""

    applet: str
    outcome: Outcome
    given: tuple[Item, ...] = ()
    operands: tuple[str, ...] = ()

    def value(self, name: str) -> str | None:
        """The value that counts of an option; None when it was not given."""
        values = [item.value for item in self.given if item.name == name]
        return values[-1] if values else None

    def is_on(self, name: str) -> bool:
        """Whether a flag was given, or a switch was left on."""
        values = [item.value for item in self.given if item.name == name]
        return bool(values) and values[-1] != "no"


def read(version: Version, argv: Sequence[str], program: str = "apk", config: Sequence[str] = ()) -> Reading:
    """`argv` is without argv[0], which is `program`.

    `config` are lines of apk 3's configuration file. 2.14 has none; they count as options in front for it too, so
    that the two readings differ by the command line alone (`cmdline.parse` says why).
    """
    applet = detect(version, argv, program)
    settings = tuple(_config_items(config, options(Version.V3, applet)))
    known = options(version, applet)
    reading = _read_v2(argv, applet, known) if version is Version.V2 else _read_v3(argv, applet, known)
    return Reading(applet, reading.outcome, settings + reading.given, _operands(reading, program))


def detect(version: Version, argv: Sequence[str], program: str = "apk") -> str:
    """The applet's name or ''. v2 takes the first word that is one, even as an option's value; v3 skips the values
    of global options only. Neither stops at `--`. A program name `apk_APPLET` decides alone, in v2 even a wrong one."""
    named = by_name(version, program)
    if named or (version is Version.V2 and _base(program).startswith("apk_")):
        return named
    candidates: Iterator[str]
    if version is Version.V2:
        candidates = (word for word in argv if word[:1] != "-")
    else:
        candidates = (word for word, found in _words(version, argv, options(version, "")) if found is None)
    return next((word for word in candidates if has_applet(version, word)), "")


def by_name(version: Version, program: str) -> str:
    """The applet that a program name of the form `apk_APPLET` stands for, else ''."""
    base = _base(program)
    return base[4:] if base.startswith("apk_") and has_applet(version, base[4:]) else ""


def read_word(version: Version, word: str, following: str | None, known: tuple[Option, ...]) -> Word:
    """What a word that begins with a dash holds; after a problem it goes on, as the first of v3's two passes does."""
    if word[:2] != "--":
        return _cluster(word, following, known)
    key, equals, attached = word[2:].partition("=")
    long = _long_v2 if version is Version.V2 else _long_v3
    item, takes = long(key, attached if equals else following, bool(equals), known)
    return Word((item,), takes and not equals)


def _read_v2(argv: Sequence[str], applet: str, known: tuple[Option, ...]) -> Reading:
    """Only the last option decides whether an unknown one is fatal; version wins at once, help at the end."""
    given: list[Item] = []
    operands: list[str] = []
    helped = bad = False
    for word, found in _words(Version.V2, argv, known):
        if found is None:
            operands.append(word)
            continue
        for item in found.items:
            bad = item.problem is not None
            helped = helped or (item.name == "help" and not bad)
            if not bad and item.name in _ANSWERS:
                return Reading(applet, Outcome.HELP)
            given += [] if bad else [item]
    outcome = Outcome.HELP if helped else Outcome.REFUSED if bad or not applet else Outcome.READ
    return Reading(applet, outcome, tuple(given), tuple(operands))


def _read_v3(argv: Sequence[str], applet: str, known: tuple[Option, ...]) -> Reading:
    """The first of help, version, print-arch and a misused option ends it."""
    given: list[Item] = []
    operands: list[str] = []
    outcome = Outcome.READ if applet else Outcome.REFUSED
    for word, found in _words(Version.V3, argv, known):
        if found is None:
            operands.append(word)
            continue
        for item in found.items:
            if item.problem is Problem.MISUSED:
                return Reading(applet, Outcome.REFUSED, tuple(given))
            if item.problem is None and (item.name == "help" or item.name in _ANSWERS):
                return Reading(applet, Outcome.HELP)
            if item.problem is Problem.UNKNOWN:
                outcome = Outcome.UNKNOWN if applet else outcome
            else:
                given.append(item)
    return Reading(applet, outcome, tuple(given), tuple(operands))


def _words(
    version: Version, argv: Sequence[str], known: tuple[Option, ...]
) -> Iterator[tuple[str, Word | None]]:
    """Every word that is not the value of the one before, with what it holds, or None for an operand. A lone `-` is
    an operand, and every word after `--`."""
    position, ended = 0, False
    while position < len(argv):
        word = argv[position]
        position += 1
        if word == "--" and not ended:
            ended = True
        elif ended or word[:1] != "-" or word == "-":
            yield word, None
        else:
            found = read_word(version, word, argv[position] if position < len(argv) else None, known)
            position += found.spills
            yield word, found


def _cluster(word: str, following: str | None, known: tuple[Option, ...]) -> Word:
    """`-qUs`, `-ut .v`, `-t.v`: letters to the first that takes a value, which is the rest or the next word."""
    items: list[Item] = []
    for place, letter in enumerate(word[1:], start=2):
        item, takes = _letter(letter, word[place:] or following, known)
        items.append(item)
        if takes:
            return Word(tuple(items), not word[place:])
    return Word(tuple(items), False)


def _letter(letter: str, value: str | None, known: tuple[Option, ...]) -> tuple[Item, bool]:
    """The item is named `-a` for the options of v3's `list` that have no other name."""
    option = next((option for option in known if letter in option.letters), None)
    if option is None:
        return Item(letter, None, Problem.UNKNOWN), False
    name = option.name or "-" + letter
    if option.mode is not Mode.VALUE:
        return Item(name, "yes" if option.mode in _SWITCHES else None), False
    return Item(name, value, Problem.MISUSED if value is None else None), True


def _long_v2(key: str, value: str | None, explicit: bool, known: tuple[Option, ...]) -> tuple[Item, bool]:
    """The exact name, or the only one that begins so."""
    found = [option for option in known if option.name == key]
    found = found or [option for option in known if option.name.startswith(key)]
    if len(found) != 1:
        return Item(key, None, Problem.MISUSED if found else Problem.UNKNOWN), False
    return _candidate(found[0], False, value, explicit)


def _long_v3(key: str, value: str | None, explicit: bool, known: tuple[Option, ...]) -> tuple[Item, bool]:
    """3.x's `opt_match` for a long name, and whether it takes a value: as in apk the last candidate decides that,
    even of several."""
    item, takes, count = Item(key, None, Problem.UNKNOWN), False, 0
    for option in known:
        negated = option.mode in _SWITCHES and key.startswith("no-") and option.name.startswith(key[3:])
        if not negated and not option.name.startswith(key):
            continue
        count += 1
        item, takes = _candidate(option, negated, value, explicit)
        if len(option.name) + 3 * negated == len(key):
            return item, takes
    if count > 1:
        return Item(key, None, Problem.MISUSED), takes
    return item, takes


def _candidate(option: Option, negated: bool, value: str | None, explicit: bool) -> tuple[Item, bool]:
    if option.mode in _SWITCHES:
        answers = ("yes", "no", "auto") if option.mode is Mode.AUTO else ("yes", "no")
        wrong = explicit and (negated or value not in answers)
        answer = "no" if negated else value if explicit else "yes"
        return Item(option.name, answer, Problem.MISUSED if wrong else None), False
    takes = option.mode is Mode.VALUE
    wrong = value is None if takes else explicit
    return Item(option.name, value if takes else None, Problem.MISUSED if wrong else None), takes


def _config_items(config: Sequence[str], known: tuple[Option, ...]) -> Iterator[Item]:
    """apk 3's `load_config`: one exact long option per line, `NAME` or `NAME VALUE` (all that follows the first
    blank), a comment from `#`. What does not fit is only warned about, and so are help and version."""
    for line in config:
        text = line.rstrip("\n").partition("#")[0].rstrip(" ")
        key, blank, value = text.partition(" ")
        item, _ = _long_v3(key, value if blank else None, bool(blank), known)
        exact = key in (item.name, "no-" + item.name)
        if key and exact and item.problem is None and item.name != "help" and item.name not in _ANSWERS:
            yield item


def _operands(reading: Reading, program: str) -> tuple[str, ...]:
    """Without the applet's own word. v2 drops it only as the first operand; that one operand more or less changes
    no decision, so v3's rule serves for both."""
    operands = list(reading.operands)
    if not _base(program).startswith("apk_") and reading.applet in operands:
        operands.remove(reading.applet)
    return tuple(word for word in operands if word)


def _base(program: str) -> str:
    return program.rpartition("/")[2]
