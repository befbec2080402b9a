"""The options of ours on a command line, `--atomic-…`: which words they are, and what they say.

Pure: no I/O, nothing durable. It must not know what an apk line means (`cmdline`) nor what is done about an option.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from apk_atomic.applets import Version, options
from apk_atomic.errors import UsageError
from apk_atomic.grammar import detect, read_word

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

OPTION_PREFIX = "--atomic-"
_VALUE_OPTIONS = ("base", "message", "accept", "wait", "volume")
_FLAG_OPTIONS = ("keep-failed", "unchanged-77")
OF_A_CHANGE = ("base", "message", "wait", "keep_failed", "unchanged_77", "volume")
"""What means something to whoever makes a generation, as fields of AtomicOptions."""


class AtomicOptions(NamedTuple):
    """The options of ours on an apk line; `wait` in seconds."""

    base: str | None = None
    message: str | None = None
    accept: tuple[str, ...] = ()
    keep_failed: bool = False
    unchanged_77: bool = False
    wait: int | None = None
    volume: str | None = None


def require_only(options: AtomicOptions, taken: Sequence[str], subject: str) -> None:
    """Raises UsageError where one was given that means nothing to `subject`; `taken` are the fields that do."""
    default = AtomicOptions()
    for field, value in options._asdict().items():
        if value != getattr(default, field) and field not in taken:
            name = OPTION_PREFIX + field.replace("_", "-")
            which = ", ".join(OPTION_PREFIX + other.replace("_", "-") for other in taken)
            hint = f"it takes {which}" if which else "it takes no option of ours"
            raise UsageError(f"{name} means nothing to {subject}; nothing was changed", hint=hint)


def split_atomic(argv: Sequence[str]) -> tuple[AtomicOptions, list[str]]:
    """Ours, and the rest verbatim and in order; UsageError for an unknown, incomplete or wrong one.

    They may stand anywhere before `--`, as `--atomic-x V` or `--atomic-x=V`, never abbreviated. The last one of a
    name counts; `--atomic-accept` adds up. A word that is the value of the apk option before it, in each version
    that has the line's applet, stays apk's.
    """
    has_value = _value_test(_without_ours(argv))
    given: list[tuple[str, str]] = []
    rest: list[str] = []
    position = 0
    while position < len(argv):
        word = argv[position]
        following = argv[position + 1] if position + 1 < len(argv) else None
        if word == "--":
            rest += argv[position:]
            break
        if word.startswith(OPTION_PREFIX):
            name, value, used = _own_option(word, following)
            given.append((name, value))
        else:
            used = 2 if following is not None and has_value(word, following) else 1
            rest += argv[position : position + used]
        position += used
    return _atomic_options(given), rest


def _value_test(line: Sequence[str]) -> Callable[[str, str], bool]:
    """A test whether a word takes the next one as its value, in each version that has the line's applet."""
    found = [(version, detect(version, line)) for version in Version]
    found = [(version, applet) for version, applet in found if applet] or found
    tables = [(version, options(version, applet)) for version, applet in found]

    def has_value(word: str, following: str) -> bool:
        return word[:1] == "-" and all(read_word(version, word, following, known).spills for version, known in tables)

    return has_value


def _without_ours(argv: Sequence[str]) -> list[str]:
    """The line for finding the applet: an --atomic-base named like an applet must not be taken for one."""
    rest: list[str] = []
    skip = False
    for position, word in enumerate(argv):
        if word == "--" and not skip:
            return [*rest, *argv[position:]]
        if not skip and not word.startswith(OPTION_PREFIX):
            rest.append(word)
        skip = not skip and word.startswith(OPTION_PREFIX) and word[len(OPTION_PREFIX) :] in _VALUE_OPTIONS
    return rest


def _own_option(word: str, following: str | None) -> tuple[str, str, int]:
    """Name, value and number of words of one option of ours."""
    name, equals, value = word[len(OPTION_PREFIX) :].partition("=")
    if name in _FLAG_OPTIONS:
        if equals:
            raise _usage(f"{OPTION_PREFIX}{name} takes no value")
        return name, "", 1
    if name not in _VALUE_OPTIONS:
        raise _usage(f"{word} is not an option of apk-atomic")
    if not equals and following is None:
        raise _usage(f"{word} needs a value")
    return name, value if equals else following or "", 1 if equals else 2


def _atomic_options(given: list[tuple[str, str]]) -> AtomicOptions:
    last = dict(given)
    for name in ("base", "accept", "wait", "volume"):
        if last.get(name, "x").strip(",") == "":
            raise _usage(f"{OPTION_PREFIX}{name} needs a value")
    accepted = ",".join(value for name, value in given if name == "accept").split(",")
    packages = tuple(dict.fromkeys(package for package in accepted if package))
    wait = last.get("wait")
    if wait is not None and not (wait.isascii() and wait.isdigit() and len(wait) <= 9):
        raise _usage(f"{OPTION_PREFIX}wait needs a number of seconds, not {wait!r}")
    return AtomicOptions(
        base=last.get("base"),
        message=last.get("message"),
        accept=packages,
        keep_failed="keep-failed" in last,
        unchanged_77="unchanged-77" in last,
        wait=None if wait is None else int(wait),
        volume=last.get("volume"),
    )


def _usage(problem: str) -> UsageError:
    names = [OPTION_PREFIX + name for name in _VALUE_OPTIONS + _FLAG_OPTIONS]
    return UsageError(f"{problem}; nothing was changed", hint="ours are " + ", ".join(names))
