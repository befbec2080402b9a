"""Kernels that an upgrade cannot move, and what holds them: packages that need one exact version of theirs.

Facts (alpine-boot 1.2): prebuilt modules (zfs-lts …) depend on `linux-lts=VERSION`; while they lag, the solver keeps
the old kernel and says nothing. Pure: database, world and answers in, values out. It must not know how apk is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

WORLD = "/etc/apk/world"  # what holds a kernel that the user pinned
QUESTION = ("version", "-l", "<")  # and names behind it: which of these packages are older than what is to be had
_OWNS = b"\nF:usr/share/kernel/"  # only kernel packages have a directory below it
_UPPER_BOUNDS = ("=", "<", "~")  # `name>=version` holds nothing back


class Hold(NamedTuple):
    """`kernel` is a package, `by` the packages that need this version of it, or WORLD."""

    kernel: str
    version: str
    by: tuple[str, ...]


def find_holds(database: bytes, world: str) -> tuple[Hold, ...]:
    """The installed kernels that something installed, or the world, ties to a version."""
    found = []
    text = b"\n" + database  # so that every line begins with a newline
    for kernel in sorted(set(_kernels(text)) - {b""}):
        record = next(_records_with(text, b"\nP:" + kernel + b"\n"), b"")
        origin = _field(record, b"o")
        users = _records_with(text, kernel)
        by = sorted({_field(user, b"P").decode("utf-8", "replace") for user in users
                     if _is_tied(user, kernel) and (not origin or _field(user, b"o") != origin)})  # fmt: skip
        name = kernel.decode("utf-8", "replace")
        if any(_limits(word, name) for word in world.split()):
            by.append(WORLD)
        if by:
            found.append(Hold(name, _field(record, b"V").decode("utf-8", "replace"), tuple(by)))
    return tuple(found)


def newer(answer: str, hold: Hold) -> str:
    """The version that apk's answer to QUESTION has for a held kernel; "" for none."""
    for line in answer.splitlines():
        words = line.split()
        if len(words) == 3 and words[:2] == [f"{hold.kernel}-{hold.version}", "<"]:
            return words[2]
    return ""


def sentences(holds: Iterable[Hold], answer: str) -> tuple[str, ...]:
    """One for each kernel that would be newer if nothing held it."""
    return tuple(
        f"kernel {hold.kernel} is held at {hold.version} by {', '.join(hold.by)}; {version} is to be had"
        for hold in holds
        if (version := newer(answer, hold))
    )


def _kernels(text: bytes) -> Iterator[bytes]:
    """Names of the packages that have a directory in usr/share/kernel."""
    for record in _records_with(text, _OWNS):
        yield _field(record, b"P")


def _records_with(text: bytes, needle: bytes) -> Iterator[bytes]:
    """The records in which `needle` stands, each with a newline in front and behind."""
    at = text.find(needle)
    while at >= 0:
        start = max(text.rfind(b"\n\n", 0, at + 1) + 1, 0)
        end = text.find(b"\n\n", at + 1)
        end = end if end >= 0 else len(text)
        yield text[start:end] + b"\n"
        at = text.find(needle, end + 1)


def _field(record: bytes, key: bytes) -> bytes:
    """The value of the line `key:`, which stands before the package's files; b"" for none."""
    head = record.partition(b"\nF:")[0] + b"\n"
    at = head.find(b"\n" + key + b":")
    return head[at + 3 : head.find(b"\n", at + 3)] if at >= 0 else b""


def _is_tied(record: bytes, kernel: bytes) -> bool:
    return any(_limits(word.decode("utf-8", "replace"), kernel.decode("utf-8", "replace"))
               for word in _field(record, b"D").split())  # fmt: skip


def _limits(word: str, name: str) -> bool:
    """Whether a dependency such as `linux-lts=6.12.1-r0` or `linux-lts@edge<7` sets an upper bound to `name`."""
    rest = word.removeprefix(name)
    if rest == word or not rest:
        return False
    if rest.startswith("@"):
        rest = rest.lstrip("@abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
    return rest.startswith(_UPPER_BOUNDS)
