"""Kernels that an upgrade cannot move, and what holds them: packages that need one exact version of theirs.

Facts (alpine-boot 1.2): prebuilt modules (zfs-lts …) depend on `linux-lts=VERSION`; while they lag, the solver keeps
the old kernel and says nothing. Pure: database, world and answers in, values out. It must not know how apk is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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


Blocks = Callable[[], Iterable[bytes]]  # the installed database from its start, in pieces of whole records


def find_holds(database: Blocks, world: str) -> tuple[Hold, ...]:
    """The installed kernels that something installed, or the world, ties to a version."""
    kernels = {_field(record, b"P"): record for text in _texts(database) for record in _records_with(text, _OWNS)}
    kernels.pop(b"", None)
    users: dict[bytes, set[str]] = {kernel: set() for kernel in kernels}
    for text in _texts(database) if kernels else ():
        for kernel, record in kernels.items():
            users[kernel].update(_users(text, kernel, _field(record, b"o")))
    found = []
    for kernel in sorted(kernels):
        name = kernel.decode("utf-8", "replace")
        by = sorted(users[kernel]) + [WORLD] * any(_limits(word, name) for word in world.split())
        if by:
            found.append(Hold(name, _field(kernels[kernel], b"V").decode("utf-8", "replace"), tuple(by)))
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


def _texts(database: Blocks) -> Iterator[bytes]:
    """Each piece with a newline in front, so that every line begins with one."""
    return (b"\n" + block for block in database())


def _users(text: bytes, kernel: bytes, origin: bytes) -> Iterator[str]:
    """Names of the packages that a version of the kernel is all that they work with, but for those of its origin."""
    for user in _records_with(text, kernel):
        if _is_tied(user, kernel) and (not origin or _field(user, b"o") != origin):
            yield _field(user, b"P").decode("utf-8", "replace")


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
