"""Directory entries of a FAT that nothing mounts: one file takes another's place by a write within one sector.

A rename over a file frees the old one's clusters in the FAT, and a power cut may keep that and lose the rename: then
the name leads to clusters that nobody owns. So entries trade their content here, and the old content is freed by
whoever deletes what it is called then. Format: Microsoft, "FAT32 File System Specification", 1.03.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

_ENTRY, _LAST_NAME = 32, 0x40
_LONG, _DIRECTORY, _LABEL = 0x0F, 0x10, 0x08
_DELETED, _END = 0xE5, 0x00
_LONGEST = 1 << 16  # clusters of a directory, entries of one


class NoFat(Exception):
    """What lies on the device is no FAT, or one that leads nowhere; the text says what, as the end of a sentence."""


class Entry(NamedTuple):
    """Where the short entry of a name lies on the device, in bytes, and what it says."""

    offset: int
    cluster: int
    size: int
    is_directory: bool


class _Volume(NamedTuple):
    """In bytes, but `root`: the first cluster of the root directory, 0 where it has a place of its own."""

    bits: int
    cluster: int
    fat: int
    root_at: int
    root_size: int
    root: int
    data: int


def find(fd: int, path: str) -> Entry | None:
    """The entry of a file or directory, by its names from the root; case does not count. None where there is none."""
    volume = _volume(fd)
    found = Entry(-1, volume.root, 0, is_directory=True)
    for part in path.split("/"):
        if not found.is_directory:
            return None
        entries = _entries(fd, volume, found.cluster)
        match = next((entry for names, entry in entries if part.lower() in names), None)
        if match is None:
            return None
        found = match
    return found


def trade(fd: int, path: str, other: str) -> None:
    """The two files trade their content. A power cut leaves `path` with the one or with the other, whole."""
    one, two = _both(fd, path, other)
    _point(fd, one.offset, two)
    _point(fd, two.offset, one)


def settle(fd: int, path: str, other: str) -> None:
    """Makes it safe to delete `other`, whatever a power cut left: it owns nothing that is free, or that `path` owns."""
    two = find(fd, other)
    if two is None or two.is_directory or two.cluster == 0:
        return
    one = find(fd, path)
    if (one is not None and one.cluster == two.cluster) or _next(fd, _volume(fd), two.cluster) == 0:
        _point(fd, two.offset, two._replace(cluster=0, size=0))


def _both(fd: int, path: str, other: str) -> tuple[Entry, Entry]:
    one, two = find(fd, path), find(fd, other)
    if one is None or two is None or one.is_directory or two.is_directory:
        raise NoFat(f"has no files {path} and {other}")
    return one, two


def _point(fd: int, offset: int, content: Entry) -> None:
    """Lets the entry at `offset` have this content; durable when this returns."""
    raw = bytearray(_read(fd, offset, _ENTRY))
    struct.pack_into("<H", raw, 20, content.cluster >> 16)
    struct.pack_into("<HI", raw, 26, content.cluster & 0xFFFF, content.size)
    os.pwrite(fd, raw, offset)
    os.fsync(fd)


def _volume(fd: int) -> _Volume:
    head = _read(fd, 0, 512)
    sector, per_cluster, reserved, fats, entries = struct.unpack_from("<HBHBH", head, 11)
    short, _, small = struct.unpack_from("<HBH", head, 19)
    long, large, _, _, root = struct.unpack_from("<IIHHI", head, 32)
    if head[510:] != b"\x55\xaa" or sector not in (512, 1024, 2048, 4096) or per_cluster == 0 or fats == 0:
        raise NoFat("is no FAT")
    root_at = (reserved + fats * (small or large)) * sector
    data = root_at + -(-entries * _ENTRY // sector) * sector
    clusters = ((short or long) - data // sector) // per_cluster
    bits = 32 if not small else 16 if clusters >= 4085 else 12
    first = root if bits == 32 else 0
    return _Volume(bits, per_cluster * sector, reserved * sector, root_at, data - root_at, first, data)


def _entries(fd: int, volume: _Volume, cluster: int) -> Iterator[tuple[tuple[str, ...], Entry]]:
    """The names of each entry of a directory, in lower case, and the entry."""
    long: dict[int, str] = {}
    for count, (offset, raw) in enumerate(_raw_entries(fd, volume, cluster)):
        if raw[0] == _END or count > _LONGEST:
            return
        if raw[0] == _DELETED:
            long = {}
        elif raw[11] & 0x3F == _LONG:
            long[raw[0] & ~_LAST_NAME] = (raw[1:11] + raw[14:26] + raw[28:32]).decode("utf-16-le", "replace")
        else:
            if not raw[11] & _LABEL:
                yield _names(raw, long), _entry(offset, raw)
            long = {}


def _names(raw: bytes, long: dict[int, str]) -> tuple[str, ...]:
    base, suffix = raw[:8].decode("latin-1").rstrip(), raw[8:11].decode("latin-1").rstrip()
    name = "".join(long[number] for number in sorted(long)).partition("\0")[0]
    short = f"{base}.{suffix}" if suffix else base
    return tuple(each.lower() for each in (short, name) if each)


def _entry(offset: int, raw: bytes) -> Entry:
    high, (low, size) = struct.unpack_from("<H", raw, 20)[0], struct.unpack_from("<HI", raw, 26)
    return Entry(offset, high << 16 | low, size, bool(raw[11] & _DIRECTORY))


def _raw_entries(fd: int, volume: _Volume, cluster: int) -> Iterator[tuple[int, bytes]]:
    for start, size in _pieces(fd, volume, cluster):
        data = _read(fd, start, size)
        for at in range(0, size, _ENTRY):
            yield start + at, data[at : at + _ENTRY]


def _pieces(fd: int, volume: _Volume, cluster: int) -> Iterator[tuple[int, int]]:
    """Offset and size of each piece of a directory; cluster 0 is the root that has a place of its own."""
    if cluster == 0 and volume.bits != 32:
        yield volume.root_at, volume.root_size
        return
    cluster = cluster or volume.root
    for _ in range(_LONGEST):
        if cluster < 2 or cluster >= (1 << min(volume.bits, 28)) - 9:
            return
        yield volume.data + (cluster - 2) * volume.cluster, volume.cluster
        cluster = _next(fd, volume, cluster)
    raise NoFat("has a directory without end")


def _next(fd: int, volume: _Volume, cluster: int) -> int:
    """What the FAT says of a cluster: the next one, 0 for free."""
    if volume.bits == 12:
        pair = int.from_bytes(_read(fd, volume.fat + cluster * 3 // 2, 2), "little")
        return pair >> 4 if cluster & 1 else pair & 0xFFF
    size = volume.bits // 8
    return int.from_bytes(_read(fd, volume.fat + cluster * size, size), "little") & 0x0FFFFFFF


def _read(fd: int, offset: int, size: int) -> bytes:
    data = os.pread(fd, size, offset)
    if len(data) < size:
        raise NoFat("ends too early")
    return data
