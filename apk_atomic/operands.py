"""Files of the caller's that an apk line names: which of them must be bound into the root of the change.

Pure but for looking at the paths themselves: nothing is opened, made or mounted here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from apk_atomic.chroot import Bind
from apk_atomic.errors import UsageError
from apk_atomic.mounts import Mount, covering
from apk_atomic.names import is_below

FRESH = ("/tmp", "/run")  # empty in the root of the change, so mount points can be made there
_SHARED = ("/dev", "/proc", "/sys")


def binds(
    paths: Iterable[str], cwd: str, table: tuple[Mount, ...], inside: frozenset[str], writable: Iterable[str] = ()
) -> tuple[Bind, ...]:
    """What to bind so that each of `paths` (as typed, existing) means inside what it means to the caller.

    `inside` are the mount points that the root of the change has anyway; apk writes to those of the paths that are
    `writable` too. Raises UsageError for a file that cannot be shown there.
    """
    names, written = list(paths), set(writable)
    found = [bind for name in names for bind in _of_path(name, cwd, table, inside, name in written)]
    if any(not os.path.isabs(name) for name in names) and cwd not in FRESH:
        found += _of_path(cwd, "/", table, inside, False)
    wanted: dict[str, Bind] = {}
    for bind in sorted(found, key=lambda each: each.target):  # a directory before what lies in it
        above = next((known for known in wanted if is_below(bind.target, known)), None)
        if above is None or (bind.writable and not wanted[above].writable):
            wanted[bind.target] = bind
    return tuple(wanted.values())


def _of_path(
    name: str, cwd: str, table: tuple[Mount, ...], inside: frozenset[str], writable: bool
) -> Iterator[Bind]:
    """Both the place of a name and, where that is a link, the place that it leads to."""
    path = os.path.join(cwd, name)
    real = os.path.realpath(path)
    last = os.path.basename(path)
    place = real if last in ("", ".", "..") else os.path.join(os.path.realpath(os.path.dirname(path)), last)
    if place in FRESH or real in FRESH:
        raise UsageError(
            f"{real} as a whole cannot be shown in the new root, which has its own; nothing was changed",
            hint=f"put what apk is to read into a directory below {real}",
        )
    for each in dict.fromkeys((place, real)):
        bind = _bind(each, real, table, inside)
        if bind is not None:
            yield bind._replace(writable=writable)
        if _is_fresh(each):
            return  # bound where the link was


def _bind(place: str, real: str, table: tuple[Mount, ...], inside: frozenset[str]) -> Bind | None:
    """None: the new root has that place, as it has what is in the booted one, or shares it."""
    mount = covering(place, table)
    point = mount.point if mount is not None else "/"
    if point in inside:
        return None
    if _is_fresh(place):
        return Bind(real, place)
    return None if point == "/" or is_below(place, *_SHARED) else Bind(point, point)


def _is_fresh(place: str) -> bool:
    return is_below(place, *FRESH)
