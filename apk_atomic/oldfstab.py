"""The fstab template of an adopted system, made of the etc/fstab that it has: text in, text and findings out.

Pure. What a line says of anybody else's file systems is kept as it is; the root becomes ours, `subvolid=` goes, since
it would bind the template to one subvolume. It must not know how the facts that it is given were found.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from apk_atomic import fstab
from apk_atomic.fstab import ESP_POINT, Entry, mountpoint

SWAP_POINT = "/swap"
SWAP_COMMON = "@swap"
_ESP_POINTS = (ESP_POINT, "/efi")
# Of the root's options: what ours says itself, or what names a subvolume
_DROPPED = ("rw", "ro", "defaults", "atime", "noatime", "relatime", "strictatime", "lazytime", "auto", "noauto")
_TMP = "tmpfs /tmp tmpfs mode=1777,nosuid,nodev 0 0"
_ESCAPED = {"\\": "\\134", " ": "\\040", "\t": "\\011", "\n": "\\012"}


@dataclass(frozen=True, slots=True)
class Separate:
    """A /boot that is not in the root's subvolume: what to mount, as fstab has it."""

    device: str
    fstype: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Converted:
    """`text` is the template; `commons` those of the wanted ones that it mounts, `shared` what is on a file system or
    subvolume of its own already, by mount point; `problems` are reasons to refuse."""

    text: str
    commons: tuple[str, ...]
    shared: tuple[str, ...] = ()
    separate: Separate | None = None
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Volume:
    """What the text is about: the volume's `fsid`, and those first fields of the text that mean this volume;
    `swap_files` are the swap areas that are files, by path; `esp` the UUID= of the ESP, "" where it stays as it is."""

    fsid: str
    names: frozenset[str]
    swap_files: frozenset[str] = frozenset()
    esp: str = ""


@dataclass(slots=True)
class _Draft:
    """The lines of the template as they come, and what is to be said of them."""

    head: list[str] = field(default_factory=list)
    rest: list[str] = field(default_factory=list)
    points: set[str] = field(default_factory=set)
    roots: int = 0
    separate: Separate | None = None
    esp_seen: bool = False
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def common_of(point: str) -> str:
    """/var/log → @var@log."""
    return point.rstrip("/").replace("/", "@")


def is_boot(entry: Entry) -> bool:
    """Whether the line is that of a /boot of its own."""
    return entry.fstype != "swap" and _normal(entry.mountpoint) == "/boot"


def convert(text: str, volume: Volume, wanted: Sequence[str], *, swap: bool) -> Converted:
    """The template for the system whose etc/fstab is `text`; `swap`: with a swap file in a common of its own."""
    draft = _Draft()
    root = fstab.root_entry(fstab.parse(text))
    draft.head.append(_root_line(root, volume))
    for line in text.split("\n"):
        found = fstab.parse(line)
        _take(draft, line, found[0] if found else None, volume)
    if draft.roots > 1:
        draft.problems.append("etc/fstab has more than one line for /: leave one")
    draft.warnings += [f"etc/fstab, {line}: not understood, and kept" for line in fstab.garbage(text)]
    shared = tuple(sorted(draft.points & {mountpoint(name) for name in wanted}))
    commons = tuple(name for name in wanted if not _covered(mountpoint(name), draft.points))
    lines = [*draft.head, *(_common_line(volume, name) for name in commons), *draft.rest]
    if swap:
        _add_swap(draft, lines, volume)
    if "/tmp" not in draft.points:
        lines.append(_TMP)
    if volume.esp and not draft.esp_seen:
        lines.append(f"{volume.esp} {ESP_POINT} vfat noauto,noatime,umask=0077 0 0")
    return Converted(
        "\n".join((*(line for line in lines if line.strip()), "")), commons, shared, draft.separate,
        tuple(draft.problems), tuple(draft.warnings),
    )  # fmt: skip


def is_btrfs(entry: Entry) -> bool:
    """Whether the line mounts a btrfs, also where its options alone tell."""
    types = entry.fstype.split(",")
    return "btrfs" in types or ("auto" in types and any(each.startswith("subvol") for each in entry.options))


def subvolume_of(entry: Entry) -> str:
    """The path from the top level that subvol= means, "" without it."""
    named = entry.value("subvol")
    return posixpath.normpath(f"/{named.lstrip('/')}") if named else ""


def points_of_top(text: str, names: frozenset[str]) -> tuple[str, ...]:
    """Where the lines mount the top level of the volume that `names` mean; not where they name its root."""
    ours = (entry for entry in fstab.parse(text) if entry.device in names and entry.mountpoint.startswith("/"))
    wanted = (entry for entry in ours if entry.fstype != "swap" and _normal(entry.mountpoint) != "/")
    return tuple(entry.mountpoint for entry in wanted if subvolume_of(entry) in ("", "/"))


def line_of(entry: Entry) -> str:
    """The entry as a line, blanks in it escaped."""
    words = (entry.device, entry.mountpoint, entry.fstype, ",".join(entry.options) or "defaults")
    return " ".join((*map(_escape, words), str(entry.dump), str(entry.passno)))


def _escape(word: str) -> str:
    return "".join(_ESCAPED.get(char, char) for char in word)


def _root_line(root: Entry | None, volume: Volume) -> str:
    kept = [each for each in root.options if _is_kept(each)] if root else []
    options = ("ro", "noatime", *kept, f"subvol={fstab.PLACEHOLDER}/@")
    return f"UUID={volume.fsid} / btrfs {','.join(options)} 0 0"


def _is_kept(option: str) -> bool:
    return option not in _DROPPED and not option.startswith(("subvol=", "subvolid="))


def _common_line(volume: Volume, name: str) -> str:
    return f"UUID={volume.fsid} {mountpoint(name)} btrfs rw,noatime,subvol=/commons/{name} 0 0"


def _take(draft: _Draft, line: str, entry: Entry | None, volume: Volume) -> None:
    """One line of the old text, to its place in the new one."""
    if entry is None:
        draft.rest.append(line)
    elif _normal(entry.mountpoint) == "/":
        draft.roots += 1
    elif entry.fstype == "swap":
        _take_swap(draft, line, entry, volume)
    elif is_boot(entry):
        draft.separate = Separate(entry.device, entry.fstype, entry.options)
    else:
        draft.points.add(_normal(entry.mountpoint))
        draft.esp_seen |= _normal(entry.mountpoint) in _ESP_POINTS
        ours = is_btrfs(entry) and entry.device in volume.names
        draft.rest.append(_of_volume(draft, line, entry) if ours else line)


def _take_swap(draft: _Draft, line: str, entry: Entry, volume: Volume) -> None:
    if entry.device not in volume.swap_files:
        draft.rest.append(line)


def _of_volume(draft: _Draft, line: str, entry: Entry) -> str:
    """A line for another subvolume of the same volume: it is found by its path alone, and fsck is none of btrfs's."""
    number, named = entry.value("subvolid"), entry.value("subvol")
    if number is None and entry.passno == 0:
        return line
    if number not in (None, "5", "0") and named is None:
        draft.problems.append(f"etc/fstab names {entry.mountpoint} by subvolid={number} alone: write subvol=PATH there")
    options = [each for each in entry.options if not each.startswith("subvolid=")]
    if number is not None and named is None:
        options.append("subvol=/")
    return line_of(entry._replace(options=tuple(options), passno=0))


def _add_swap(draft: _Draft, lines: list[str], volume: Volume) -> None:
    if _covered(SWAP_POINT, draft.points):
        draft.problems.append(f"{SWAP_POINT}, where the swap file would be, is a mount point of etc/fstab already")
    lines.append(f"UUID={volume.fsid} {SWAP_POINT} btrfs rw,noatime,subvol=/commons/{SWAP_COMMON} 0 0")
    lines.append(f"{SWAP_POINT}/swapfile none swap sw 0 0")


def _covered(point: str, points: set[str]) -> bool:
    """Whether `point` is, or lies below, one of `points`."""
    return any(above in points for above in _upwards(point))


def _upwards(point: str) -> Iterator[str]:
    while point not in ("", "/"):
        yield point
        point = point.rpartition("/")[0]


def _normal(point: str) -> str:
    return "/" + posixpath.normpath(point).strip("/")
