"""`python -m tools.completions bash|zsh|fish`: the completions, from the tables by which apk-atomic reads its lines.

What may follow each word: the verbs' options by `usage` and by their own parsers, apk's by `applets` (of both versions:
apk refuses what it does not know). The shells' side is in completions.bash, .zsh and .fish beside this file, with what
the first two share in .sh; `@NAME@` in them stands for what is made here. It needs nothing but Python, since
`make install` runs it.
"""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from argparse import Action
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from apk_atomic import cli, verbs
from apk_atomic.applets import APPLETS, Mode, Version, has_applet, options
from apk_atomic.atomic_options import OPTION_PREFIX
from apk_atomic.commands import usage

SHELLS = ("bash", "zsh", "fish")
GENERATION, INSTALLED, AVAILABLE, FILE, COMMAND = "generation", "installed", "available", "file", "command"
_ACTIONS = "=clean,purge,download,sync"  # of apk cache
_OPERANDS = {"add": AVAILABLE, "fetch": AVAILABLE, "search": AVAILABLE, "list": AVAILABLE, "query": AVAILABLE,
             "cache": _ACTIONS, "index": FILE, "verify": FILE, "extract": FILE, "mkndx": FILE, "adbsign": FILE,
             "adbdump": FILE, "adbgen": FILE, "convndx": FILE, "mkpkg": "", "convdb": "", "update": "",
             "stats": ""}  # fmt: skip
_FILES = frozenset({
    "cache-dir", "keys-dir", "repositories-file", "repository", "root", "output", "destination", "protected-paths",
    "sign-key", "script", "files", "index",
})  # fmt: skip
_OF_FILES = re.compile(r"FILE|DIR|PATH|DEVICE|ZIP|IMAGE")
_OF_GENERATIONS = re.compile(r"\b(A|ID|GEN|GENERATION)\b")


class Option(NamedTuple):
    """An option as it is typed. `value`: a kind of what follows it, "" for anything, None where nothing does."""

    name: str
    value: str | None = None
    does: str = ""


class Word(NamedTuple):
    """A verb or an applet: what it does, what may follow it. `operands` is a kind, or a list after a `=`."""

    does: str
    options: tuple[Option, ...]
    operands: str


def words() -> dict[str, Word]:
    """Ours, then apk's."""
    return {**{name: _verb(name) for name in verbs.VERBS}, **{name: _applet(name) for name in APPLETS}}


def leading() -> tuple[Option, ...]:
    """What may stand before a word: options of ours, and those that apk knows on every line."""
    return _unique([*_of_ours(usage.OPTIONS), *_of_apk("")])


# ---- our verbs -------------------------------------------------------------------------------------------


def _verb(name: str) -> Word:
    verb = usage.VERBS[name]
    if verb.flags is None:
        own = [option for action in _actions(name) for option in _of_action(action)]
    else:
        own = [Option(f"--{flag}", None, does) for flag, does in verb.flags.items()]
        own.append(Option(usage.HELP, None, "help"))
    return Word(verb.does, _unique([*own, *_of_ours(_taken(verbs.VERBS[name].takes))]), _operands(verb.words))


def _taken(fields: tuple[str, ...]) -> list[str]:
    """The options of ours with these names in AtomicOptions."""
    return [name for name in usage.OPTIONS if name.replace("-", "_") in fields]


def _operands(synopsis: str) -> str:
    """By the words behind a verb in its synopsis."""
    operands = re.sub(r"\[--[^]]*\]", "", synopsis)
    for pattern, kind in ((r"COMMAND", COMMAND), (_OF_FILES, FILE), (_OF_GENERATIONS, GENERATION)):
        if re.search(pattern, operands):
            return kind
    return ""


def _actions(verb: str) -> list[Action]:
    module = importlib.import_module(f"apk_atomic.commands.{verb.replace('-', '_')}")
    actions: list[Action] = module._parser()._actions
    return actions


def _of_action(action: Action) -> Iterator[Option]:
    """The options of an argparse action; none for an operand."""
    value = None
    if action.nargs != 0:
        named = FILE if _OF_FILES.search(str(action.metavar or "")) else ""
        value = "=" + ",".join(map(str, action.choices)) if action.choices else named
    for name in action.option_strings:
        yield Option(name, value, action.help or "")


def _of_ours(names: list[str] | Mapping[str, tuple[str, str]]) -> Iterator[Option]:
    kinds = {"base": GENERATION, "volume": FILE, "accept": INSTALLED}
    for name in names:
        metavar, does = usage.OPTIONS[name]
        yield Option(OPTION_PREFIX + name, kinds.get(name, "") if metavar else None, does)


# ---- apk's words -----------------------------------------------------------------------------------------


def _applet(name: str) -> Word:
    ours = _taken(cli._OF_APK[APPLETS[name].kind])
    return Word("as apk", _unique([*_of_apk(name), *_of_ours(ours)]), _OPERANDS.get(name, INSTALLED))


def _of_apk(applet: str) -> Iterator[Option]:
    """In the order of names, of every version that has the applet."""
    for version in Version:
        if applet and not has_applet(version, applet):
            continue
        for option in options(version, applet):
            value = None
            if option.mode is Mode.VALUE:
                value = FILE if option.name in _FILES else ""
            names = [f"--{option.name}"] if option.name else []
            negated = [f"--no-{option.name}"] if option.mode in (Mode.BOOL, Mode.AUTO) else []
            for name in (*names, *negated, *(f"-{letter}" for letter in option.letters)):
                yield Option(name, value)


def _unique(found: list[Option]) -> tuple[Option, ...]:
    """By name, the first of each; a value counts when only one of two versions wants it."""
    known: dict[str, Option] = {}
    for option in found:
        if known.setdefault(option.name, option).value is None and option.value is not None:
            known[option.name] = option
    return tuple(known[name] for name in sorted(known))


# ---- for the shells --------------------------------------------------------------------------------------


def _table() -> str:
    """For bash and zsh: a `case` that sets `options`, `values` (name:kind) and `operands` for the word in $1."""
    rows = [_row("''", Word("", leading(), "")), *(_row(name, word) for name, word in words().items())]
    return "\n".join(rows)


def _row(pattern: str, word: Word) -> str:
    names = " ".join(option.name for option in word.options)
    values = " ".join(f"{option.name}:{option.value}" for option in word.options if option.value is not None)
    return f"\t{pattern})\n\t\toptions='{names}'\n\t\tvalues='{values}'\n\t\toperands='{word.operands}'\n\t\t;;"


def _skipped() -> str:
    """The options before a word that take the next one with them."""
    return "|".join(option.name for option in leading() if option.value is not None)


def _described() -> str:
    return "\n".join("\t" + shlex.quote(f"{name}:{word.does}") for name, word in words().items())


def _fish() -> str:
    """Each option once, with all the words that know it."""
    lines = [_fish_line("__apk_atomic_no_word", f"-a {name}", word.does) for name, word in words().items()]
    lines += [_fish_line("__apk_atomic_no_word", _fish_option(option), option.does) for option in leading()]
    for option in dict.fromkeys(option for word in words().values() for option in word.options):
        names = [name for name, word in words().items() if option in word.options]
        lines.append(_fish_line(_fish_condition(names), _fish_option(option), option.does))
    for kind in dict.fromkeys(word.operands for word in words().values() if word.operands):
        names = [name for name, word in words().items() if word.operands == kind]
        lines.append(_fish_line(_fish_condition(names), _fish_values(kind)))
    return "\n".join(lines)


def _fish_line(condition: str, what: str, does: str = "") -> str:
    return f"complete -c apk-atomic -n {condition} {what}" + (f" -d {shlex.quote(does)}" if does else "")


def _fish_condition(names: list[str]) -> str:
    return f"'__apk_atomic_word {' '.join(names)}'"


def _fish_option(option: Option) -> str:
    spelled = f"-l {option.name[2:]}" if option.name.startswith("--") else f"-s {option.name[1:]}"
    if option.value is None:
        return spelled
    return f"{spelled} -r -F" if option.value == FILE else f"{spelled} -x {_fish_values(option.value)}".rstrip()


def _fish_values(kind: str) -> str:
    if kind in ("", FILE):
        return "-F" if kind else ""
    if kind == COMMAND:
        return "-a '(__fish_complete_subcommand --fcs-skip=2)'"
    return f"-a '{kind[1:].replace(',', ' ')}'" if kind[0] == "=" else f"-a '(__apk_atomic_{kind})'"


_PARTS: Mapping[str, Callable[[], str]] = {
    "TABLE": _table, "SKIPPED": _skipped, "DESCRIBED": _described, "FISH": _fish,
    "HEAD": lambda: script("sh").rstrip(),
    "WORDS": lambda: " ".join(words()),
    "SKIPPED_WORDS": lambda: _skipped().replace("|", " "),
}  # fmt: skip


def script(shell: str) -> str:
    """The whole file for `shell`; "sh": what bash and zsh begin with."""
    text = Path(__file__).with_suffix(f".{shell}").read_text()
    return re.sub(r"@([A-Z_]+)@", lambda found: _PARTS[found[1]](), text)


if __name__ == "__main__":
    sys.stdout.write(script(sys.argv[1]))
