"""What speaks against the commons that are wanted for an old system: their names, their places, what is mounted there.

Pure: facts and the template in, reasons out. A wrong common is a system that does not boot, or data that is not where
it was; so what is not sure is refused. It must not know how the facts were found.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterator, Mapping

from apk_atomic import fstab
from apk_atomic.config_schema import why_not_common
from apk_atomic.names import is_below
from apk_atomic.oldfstab import SWAP_COMMON, common_of

# Below these, too, nothing can be shared: a generation is made of it, or it is needed before the commons are mounted.
_WHOLE = ("bin", "boot", "dev", "lib", "lib32", "lib64", "libx32", "proc", "run", "sbin", "sys", "tmp", "usr")
_PARTS = ("/etc/apk", "/etc/apk-atomic", "/etc/conf.d", "/etc/init.d", "/etc/mkinitfs", "/etc/runlevels")
_OWN_PARTS = ("/usr/local",)
_NO_ROOT = ("/dev", "/proc", "/run", "/sys", "/tmp")  # sources there are no part of the root
_BINDS = ("bind", "rbind", "loop")
_DISKS = ("auto", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "ntfs3", "vfat", "xfs")  # of a loop device or disk


def bad_names(commons: tuple[str, ...], *, swap: bool) -> Iterator[str]:
    """Of the names alone; `swap`: with a common for a swap file."""
    names = (*commons, SWAP_COMMON) if swap else commons
    for number, name in enumerate(names):
        point = fstab.mountpoint(name)
        if why := why_not_common(name):
            yield f"common {name} {why}"
        elif _is_of_a_root(point):
            yield f"common {name}: {point} is what each generation has for itself, or is needed to boot"
        for other in (*names[:number], *names[number + 1 :]):
            if is_below(point, fstab.mountpoint(other)):
                yield f"common {name} is in common {other}, and one would hide the other: choose one"


def _is_of_a_root(point: str) -> bool:
    if is_below(point, *_OWN_PARTS):
        return False
    return point.split("/")[1] in _WHOLE or is_below(point, *_PARTS)


def bad_places(commons: tuple[str, ...], odd: Collection[str], nested: Mapping[str, bool]) -> Iterator[str]:
    """`odd` are mount points that are there but are no directories; `nested` the subvolumes in the root, of which its
    snapshot has empty directories, by path relative to it, and whether what is in them is left behind."""
    for name in commons:
        point = fstab.mountpoint(name)
        if point in odd:
            yield f"{point} is a link, or no directory, and cannot be a common: --common names others"
        for path, is_left in nested.items():
            if is_below(point, f"/{path}") and (is_left or point != f"/{path}"):
                yield (
                    f"common {name} is in subvolume /{path}, which the new system would not have: "
                    "write a line for it into etc/fstab"
                )


def bad_mounts(commons: tuple[str, ...], template: str, mounted: Collection[str]) -> Iterator[str]:
    """What is mounted at or above a common now, and not in the new system: the common would hold what lies under it."""
    known = kept_points(template)
    for point in map(fstab.mountpoint, commons):
        for other in sorted(set(mounted) - known - {"/"}):
            if is_below(point, other):
                yield (
                    f"something is mounted at {other} that etc/fstab does not name, so that what would be copied to "
                    f"{point} is not what is seen there: write a line for it, or unmount it"
                )


def hidden_mounts(commons: tuple[str, ...], template: str, mounted: Collection[str]) -> Iterator[str]:
    """Warnings: what is mounted inside a common and does not go along."""
    known, points = kept_points(template), [fstab.mountpoint(name) for name in commons]
    inside = [m for m in sorted(set(mounted) - known) if any(m != point and is_below(m, point) for point in points)]
    if inside:
        yield f"mounted now, but not by etc/fstab, and so not copied: {', '.join(inside)}"


def bad_sources(commons: tuple[str, ...], template: str) -> Iterator[str]:
    """Lines that mount a directory or an image of the root to be written to: in the new system nobody can."""
    writable = [*kept_points(template), *map(fstab.mountpoint, commons)]
    for entry in fstab.parse(template):
        source = posixpath.normpath(entry.device)
        if not _is_in_root(entry, source) or "ro" in entry.options:
            continue
        if not any(point != "/" and point != entry.mountpoint and is_below(source, point) for point in writable):
            place = source if set(entry.options) & {"bind", "rbind"} else posixpath.dirname(source)
            yield (
                f"etc/fstab mounts {source} at {entry.mountpoint}, and nothing can write there on a sealed root: "
                f"--common {common_of(place)} makes {place} a common, ro in that line goes without"
            )


def _is_in_root(entry: fstab.Entry, source: str) -> bool:
    """Whether the line mounts a directory or a file, and that is in the root."""
    if not source.startswith("/") or is_below(source, *_NO_ROOT):
        return False
    return entry.fstype in _DISKS or any(each.partition("=")[0] in _BINDS for each in entry.options)


def kept_points(template: str) -> frozenset[str]:
    """Mount points of the template, but for its commons."""
    own = [entry for entry in fstab.parse(template) if not (entry.value("subvol") or "").startswith("/commons/")]
    return frozenset("/" + posixpath.normpath(entry.mountpoint).strip("/") for entry in own)
