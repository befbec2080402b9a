"""What a command line asks for, and which of its words are ours: pure decisions, no I/O, nothing durable.

`parse` reads the line as apk 2.14 and as 3.x (`grammar`) and takes the more consequential answer: a transaction
too many ends with "nothing changed", one too few would be a change outside of any. It must not know what is done
about a line. The rules are those of design section 5, "Which lines change the system".
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from apk_atomic.applets import APPLETS, Kind, Version
from apk_atomic.atomic_options import OPTION_PREFIX, AtomicOptions, split_atomic
from apk_atomic.grammar import Outcome, Reading, by_name, read

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "OPTION_PREFIX", "QUERY_WORDS", "VERBS", "AtomicOptions", "Kind", "Line", "LocalPath", "Role",
    "is_our_verb", "parse", "reaches_live_root", "repository_directories", "split_atomic",
]  # fmt: skip

VERBS = (
    "status", "diff", "history", "prove", "rollback", "pin", "unpin", "gc", "discard", "shell", "run", "exec",
    "edit", "init", "adopt", "boot-config", "doctor", "auto", "health", "export", "import",
)  # fmt: skip

QUERY_WORDS = frozenset(name for name, applet in APPLETS.items() if applet.kind is Kind.QUERY)
"""With exactly one of these as argv[1], each version that knows the word runs that query, whatever follows (it may
be one of another root). 2.14 does not know `query` and would go on looking: its `apk query add x` is an add, for
which `parse` makes a transaction; a fast path that does not look further leaves that to the sealed root."""

# A line gets the highest kind that one of the two readings has. CACHE stands above the readers because what it
# needs (a writable lock and cache) does them no harm.
_RANK = (Kind.HELP, Kind.ELSEWHERE, Kind.QUERY, Kind.SIMULATE, Kind.CACHE, Kind.CHANGE)
_C_INT_MAX = 2**31 - 1


class Role(Enum):
    """What a path of the caller's is to apk. Relative ones count from the caller's directory, but for CACHE_DIR
    and KEYS_DIR from apk's root; an absolute one means the caller's file in every case."""

    PACKAGE = "package"  # an operand: a file only if it exists
    REPOSITORY = "repository"  # a directory, or an index file of its own
    REPOSITORIES_FILE = "repositories-file"
    PROTECTED_PATHS = "protected-paths"  # a file, of audit
    CACHE_DIR = "cache-dir"
    KEYS_DIR = "keys-dir"


class LocalPath(NamedTuple):
    """A candidate: whether it exists is for the caller to see. `path` is bare: no tag, no `file:`, no components."""

    role: Role
    path: str


class Line(NamedTuple):
    """A line as decided.

    `applet` is '' when there is none; `argv` are apk's words, verbatim and in order. `wait` (seconds),
    `progress_fd` (an inherited descriptor, never 0) and `root` (None for the literal `/`) are options of apk's,
    `quiet` means more -q than -v. `implied` is the applet when the program's name alone said it.
    """

    kind: Kind
    applet: str
    argv: tuple[str, ...]
    atomic: AtomicOptions
    wait: int | None = None
    progress_fd: int | None = None
    root: str | None = None
    quiet: bool = False
    locals_: tuple[LocalPath, ...] = ()
    implied: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        """What to pass to a program that is called `apk`: `argv`, after the applet if only the name said it."""
        return (self.implied, *self.argv) if self.implied else self.argv


def is_our_verb(word: str) -> bool:
    """Whether `apk-atomic WORD` is one of ours; none of them is an applet of apk."""
    return word in VERBS


def reaches_live_root(root: str) -> bool:
    """Whether `--root ROOT` is the running system by its spelling: `/`, but `//`, `/.` and `/usr/..` too.

    Only the literal `/` is "no root" to apk; the others reach the same files, so a changing line with one of them
    is a transaction, in which the same words reach the root of the snapshot. A relative path or a link counts as
    foreign: who can look gives `parse` a test that does. `/x/..` counts as `/` though x may be a link to
    elsewhere; the change then fails in the snapshot, which is the harmless side of the doubt.
    """
    depth = 0
    for part in root.split("/"):
        if part == "..":
            depth = max(0, depth - 1)
        elif part not in ("", "."):
            depth += 1
    return root[:1] == "/" and depth == 0


def parse(
    argv: Sequence[str],
    config: Sequence[str] = (),
    program: str = "apk",
    is_live_root: Callable[[str], bool] = reaches_live_root,
) -> Line:
    """Decide on a whole line; raises UsageError for a wrong option of ours and nothing else.

    `argv` is without argv[0]; `program` is argv[0] (`apk_add x` is `apk add x`). `config` are the lines of apk 3's
    configuration file that counts for the line ($APK_CONFIG, etc/apk/config, lib/apk/config). They count for the
    reading of 2.14 as well, which has no such file: nobody writes one that is not read, and a 2.14 that meets one
    fails on the sealed root. `is_live_root` is asked about a --root other than `/`.

    An option that the tables lack makes a changing line a transaction although 3.0.6 refuses it: a newer apk may
    know it. A line that both versions refuse for another reason is HELP: apk says what is wrong and does nothing.
    """
    atomic, rest = split_atomic(argv)
    readings = [read(version, rest, program, config) for version in (Version.V3, Version.V2)]
    kinds = [_kind(reading, is_live_root) for reading in readings]
    best = max(kinds, key=_RANK.index)
    decided = readings[kinds.index(best)]
    return Line(
        kind=best,
        applet=decided.applet,
        argv=tuple(rest),
        atomic=atomic,
        wait=_number(decided.value("wait")),
        progress_fd=_number(decided.value("progress-fd")) or None,
        root=_root(decided),
        quiet=_quiet(decided),
        locals_=tuple(dict.fromkeys(local for reading in readings for local in _local_paths(reading))),
        implied=by_name(Version.V3, program),
    )


def _kind(reading: Reading, is_live_root: Callable[[str], bool]) -> Kind:
    if not reading.applet or reading.outcome in (Outcome.HELP, Outcome.REFUSED):
        return Kind.HELP
    root = _root(reading)
    if root is not None and not is_live_root(root):
        return Kind.ELSEWHERE
    kind = APPLETS[reading.applet].kind
    return Kind.SIMULATE if kind is Kind.CHANGE and reading.is_on("simulate") else kind


def _root(reading: Reading) -> str | None:
    root = reading.value("root")
    return None if root == "/" else root


def _quiet(reading: Reading) -> bool:
    names = [item.name for item in reading.given]
    return names.count("quiet") > names.count("verbose")


def _local_paths(reading: Reading) -> list[LocalPath]:
    """`add` opens operands (2.14 those with `.apk` in them, 3.x those with a dot that exist), `manifest` those that
    name no package; -X is `[@TAG] DIR|URL [COMPONENT…]`, --repository-config lines of a repositories file."""
    roles = {role.value: role for role in Role}
    found: list[LocalPath] = []
    for item in reading.given:
        value = item.value or ""
        if item.name == "repository":
            found += _repository(value)
        elif item.name == "repository-config":
            found += [path for line in value.split("\n") for path in _repository(line, keywords=True)]
        elif item.name in roles and value:
            found.append(LocalPath(roles[item.name], value))
    marks = {"add": ".", "manifest": "./"}.get(reading.applet, "")
    files = [operand for operand in reading.operands if any(mark in operand for mark in marks)]
    return found + [LocalPath(Role.PACKAGE, operand) for operand in files]


def _repository(line: str, *, keywords: bool = False) -> list[LocalPath]:
    """The path of a repository line, if it has one; up to its first `${…}`, which only 3.x fills in. With 3.x's
    keywords a path must be absolute."""
    parts = line.replace("\t", " ").split()
    if keywords and parts and parts[0] in ("ndx", "v2", "v3"):
        del parts[0]
    if parts and parts[0][0] == "@":
        del parts[0]
    path = parts[0].removeprefix("file:") if parts else ""
    if path[:1] == "#" or "://" in path or (keywords and path[:1] != "/"):
        return []
    if "${" in path:
        path = path.partition("${")[0].rpartition("/")[0]
    return [LocalPath(Role.REPOSITORY, path)] if path else []


def repository_directories(text: str) -> list[str]:
    """The absolute directories among the repositories of a repositories file."""
    found = [path for line in text.splitlines() for path in _repository(line, keywords=True)]
    return [path.path for path in found]


def _number(text: str | None) -> int | None:
    """C's atoi. A negative number of seconds is for ever, as it is to the alarm(2) that apk passes it to."""
    if text is None:
        return None
    text = text.lstrip(" \t\n\v\f\r")
    sign, text = (text[0], text[1:]) if text[:1] in ("+", "-") else ("", text)
    digits = text[: len(text) - len(text.lstrip("0123456789"))].lstrip("0")[:10] or "0"
    number = min(int(digits), _C_INT_MAX)
    return _C_INT_MAX if sign == "-" and number else number
