"""The installed database and world of a root, as bytes in and values out (facts: apk-cli, section 3).

The database of a large system is ten megabytes; a transaction changes a few records of it. So two databases are
compared as bytes first and only the part between their common ends is parsed.
"""

from __future__ import annotations

from typing import NamedTuple

from apk_atomic.model import PackageChanges

DATABASE = "lib/apk/db/installed"
WORLD = "etc/apk/world"
TRIGGERS = "lib/apk/db/triggers"
SCRIPTS = ("lib/apk/db/scripts.tar", "lib/apk/db/scripts.tar.gz")
LIMIT = 1 << 28  # bytes; a database of 10,000 packages has 12 MB
_CHUNK = 1 << 16
_BAD_FLAGS = frozenset(b"fsx")  # broken files, script, xattr; `S` only names the kind of hash


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
    found = (_package(record) for record in database.split(b"\n\n"))
    return {package.name: package for package in found if package is not None}


def find(database: bytes, name: str) -> Package | None:
    """One package, found without parsing the others."""
    line = b"P:" + name.encode() + b"\n"
    at = 0 if database.startswith(line) else database.find(b"\n" + line) + 1
    if at == 0 and not database.startswith(line):
        return None
    start = database.rfind(b"\n\n", 0, at)
    end = database.find(b"\n\n", at)
    return _package(database[max(start, 0) : end if end >= 0 else len(database)].strip(b"\n"))


def broken(database: bytes) -> frozenset[str]:
    """Names of the packages that apk has flagged: broken files, script or xattr."""
    names = set()
    at = database.find(b"\nf:")
    while at >= 0:
        flags = database[at + 3 : database.find(b"\n", at + 3)]
        if set(flags) & _BAD_FLAGS:
            start = database.rfind(b"\nP:", 0, at) + 1  # 0: the first record, should it begin with its name
            if database[start : start + 2] == b"P:":
                name = database[start + 2 : database.find(b"\n", start)]
                names.add(name.decode("utf-8", "replace"))
        at = database.find(b"\nf:", at + 3)
    return frozenset(names)


def with_trigger(database: bytes, triggers: bytes, names: frozenset[str]) -> frozenset[str]:
    """Those of the packages `names` that have a trigger; `triggers` are lines `IDENTITY PATH…`."""
    identities = {line.partition(b" ")[0].decode("ascii", "replace") for line in triggers.split(b"\n") if line}
    return frozenset(name for name in names if (package := find(database, name)) and package.identity in identities)


def _common_start(old: bytes, new: bytes) -> int:
    """How many bytes of whole records both begin with."""
    at, limit = 0, min(len(old), len(new))
    while at < limit and old[at : at + _CHUNK] == new[at : at + _CHUNK]:
        at += _CHUNK
    at = min(at, limit)
    while at < limit and old[at : at + 64] == new[at : at + 64]:
        at += 64
    end = old.rfind(b"\n\n", 0, min(at, limit))
    same = end + 2
    return same if end >= 0 and old[:same] == new[:same] else 0


def _common_end(old: bytes, new: bytes, start: int) -> int:
    """How many bytes of whole records both end with, beyond `start`."""
    limit = min(len(old), len(new)) - start
    length = 0
    for step in (_CHUNK, 64):
        while length + step <= limit and _same_before(old, new, length, step):
            length += step
    at = old.find(b"\n\n", len(old) - length)
    return len(old) - at - 2 if 0 <= at < len(old) else 0


def _same_before(old: bytes, new: bytes, length: int, step: int) -> bool:
    """Whether the `step` bytes before the last `length` are the same in both."""
    left, right = len(old) - length, len(new) - length
    return old[left - step : left] == new[right - step : right]


def new_files(old: bytes, new: bytes) -> tuple[str, ...]:
    """Paths (no leading slash) of the files of every package that is in `new` and not, the same, in `old`."""
    start = _common_start(old, new)
    end = _common_end(old, new, start)
    known = set(old[start : len(old) - end].split(b"\n\n"))
    found = []
    for record in new[start : len(new) - end].split(b"\n\n"):
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


def difference(old: bytes, new: bytes) -> PackageChanges:
    """What was added, removed, upgraded (or downgraded) and rebuilt between two databases."""
    if old == new:
        return PackageChanges()
    start = _common_start(old, new)
    end = _common_end(old, new, start)
    return compare(packages(old[start : len(old) - end]), packages(new[start : len(new) - end]))


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
