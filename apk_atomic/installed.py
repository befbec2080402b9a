"""The installed database and world of a root, as bytes in and values out (facts: apk-cli, section 3).

The database of a large system is ten megabytes; a transaction changes a few records of it. So two databases are
compared as bytes first and only the part between their common ends is parsed. Neither need be held as a whole: a
`Source` gives a piece at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from apk_atomic.model import PackageChanges

DATABASE = "lib/apk/db/installed"
WORLD = "etc/apk/world"
TRIGGERS = "lib/apk/db/triggers"
SCRIPTS = ("lib/apk/db/scripts.tar", "lib/apk/db/scripts.tar.gz")
LIMIT = 1 << 28  # bytes; a database of 10,000 packages has 12 MB
_PIECE = 1 << 16  # bytes; two of them fit into the caches of any processor
_END = b"\n\n"  # of a record
_BAD_FLAGS = frozenset(b"fsx")  # broken files, script, xattr; `S` only names the kind of hash


class Source(NamedTuple):
    """A database of `size` bytes; `read(at, length)` gives those at an offset, fewer at the end.

    `piece` bytes are read at a time, at least 2.
    """

    size: int
    read: Callable[[int, int], bytes]
    piece: int = _PIECE


def source(database: bytes, piece: int = _PIECE) -> Source:
    """One that is in memory."""
    return Source(len(database), lambda at, length: database[at : at + length], piece)


class Package(NamedTuple):
    """A record of the database: `identity` is its `C:` value, `broken` the flags that say something failed."""

    name: str
    version: str
    identity: str
    broken: str


def _package(record: bytes) -> Package | None:
    fields = {b"P": b"", b"V": b"", b"C": b"", b"f": b""}
    for line in record.split(b"\n"):
        key = line[:1]
        if key == b"F":  # file entries follow to the end of the record
            break
        if line[1:2] == b":" and key in fields:
            fields[key] = line[2:]
    if not fields[b"P"]:
        return None
    name, version, identity = (fields[key].decode("utf-8", "replace") for key in (b"P", b"V", b"C"))
    broken = "".join(sorted(chr(flag) for flag in set(fields[b"f"]) & _BAD_FLAGS))
    return Package(name, version, identity, broken)


def packages(database: bytes) -> dict[str, Package]:
    """Every package of a database, or of a part of one that begins and ends between records."""
    found = (_package(record) for record in database.split(_END))
    return {package.name: package for package in found if package is not None}


def find(database: bytes, name: str) -> Package | None:
    """One package, found without parsing the others."""
    line = b"P:" + name.encode() + b"\n"
    at = database.rfind(b"\n" + line) + 1  # Python searches twice as fast from the end
    if at == 0 and not database.startswith(line):
        return None
    start = database.rfind(_END, 0, at)
    end = database.find(_END, at)
    return _package(database[max(start, 0) : end if end >= 0 else len(database)].strip(b"\n"))


def broken(database: bytes) -> frozenset[str]:
    """Names of the packages that apk has flagged: broken files, script or xattr."""
    names = set()
    at = database.rfind(b"\nf:")  # as in `find`
    while at >= 0:
        flags = database[at + 3 : database.find(b"\n", at + 3)]
        if set(flags) & _BAD_FLAGS:
            start = database.rfind(b"\nP:", 0, at) + 1  # 0: the first record, should it begin with its name
            if database[start : start + 2] == b"P:":
                name = database[start + 2 : database.find(b"\n", start)]
                names.add(name.decode("utf-8", "replace"))
        at = database.rfind(b"\nf:", 0, at + 2)
    return frozenset(names)


def with_trigger(found: Iterable[Package], triggers: bytes) -> frozenset[str]:
    """Names of those that have a trigger; `triggers` are lines `IDENTITY PATH…`."""
    identities = {line.partition(b" ")[0].decode("ascii", "replace") for line in triggers.split(b"\n") if line}
    return frozenset(package.name for package in found if package.identity in identities)


def blocks(database: Source) -> Iterator[bytes]:
    """The database in pieces of whole records, one after the other."""
    rest, at = b"", 0
    while piece := database.read(at, max(database.piece, len(rest))):
        at += len(piece)
        piece = rest + piece
        end = piece.rfind(_END) + len(_END)
        if end < len(_END):
            rest = piece
            continue
        yield piece[:end]
        rest = piece[end:]
    yield rest


def parts_apart(old: Source, new: Source) -> tuple[bytes, bytes]:
    """What lies between the whole records that both begin with and those that both end with."""
    start = _common_start(old, new)
    end = _common_end(old, new, start)
    return old.read(start, old.size - end - start), new.read(start, new.size - end - start)


def _common_start(old: Source, new: Source) -> int:
    """How many bytes of whole records both begin with."""
    at, limit = 0, min(old.size, new.size)
    while at < limit:
        left, right = old.read(at, old.piece), new.read(at, old.piece)
        if left != right or not left:
            at += _agreeing(left, right)
            break
        at += len(left)
    while at > 0:
        start = max(at - old.piece, 0)
        end = old.read(start, at - start).rfind(_END)
        if end >= 0:
            return start + end + len(_END)
        at = start + 1 if start else 0  # the two ends of line may lie in two pieces
    return 0


def _common_end(old: Source, new: Source, start: int) -> int:
    """How many bytes of whole records both end with, beyond `start`."""
    length, limit = 0, min(old.size, new.size) - start
    while length < limit:
        step = min(old.piece, limit - length)
        left, right = (each.read(each.size - length - step, step) for each in (old, new))
        if left != right or not left:
            length += _agreeing(left[::-1], right[::-1])
            break
        length += step
    at = old.size - length
    while at < old.size:
        end = old.read(at, old.piece).find(_END)
        if end >= 0:
            return old.size - (at + end + len(_END))
        at += old.piece - 1  # the two ends of line may lie in two pieces
    return 0


def _agreeing(left: bytes, right: bytes) -> int:
    """How many bytes both begin with."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def new_files(old: bytes, new: bytes) -> tuple[str, ...]:
    """Paths (no leading slash) of the files of every package that is in `new` and not, the same, in `old`."""
    known = set(old.split(_END))
    found = []
    for record in new.split(_END):
        if record not in known:
            found += _files(record)
    return tuple(found)


def _files(record: bytes) -> list[str]:
    directory, found = "", []
    for line in record.split(b"\n"):
        if line[:2] == b"F:":
            directory = line[2:].decode("utf-8", "surrogateescape")
        elif line[:2] == b"R:":
            name = line[2:].decode("utf-8", "surrogateescape")
            found.append(f"{directory}/{name}" if directory else name)
    return found


def difference(old: Source, new: Source) -> PackageChanges:
    """What was added, removed, upgraded (or downgraded) and rebuilt between two databases."""
    before, after = parts_apart(old, new)
    return compare(packages(before), packages(after))


def compare(before: dict[str, Package], after: dict[str, Package]) -> PackageChanges:
    """The same for two parsed sets."""
    both = sorted(before.keys() & after.keys())
    return PackageChanges(
        added=tuple((name, after[name].version) for name in sorted(after.keys() - before.keys())),
        removed=tuple((name, before[name].version) for name in sorted(before.keys() - after.keys())),
        upgraded=tuple(
            (name, before[name].version, after[name].version)
            for name in both
            if before[name].version != after[name].version
        ),
        rebuilt=tuple(
            name
            for name in both
            if before[name].version == after[name].version and before[name].identity != after[name].identity
        ),
    )
