"""Files of the caller's that an apk line names: which of them must be bound into the root of the change.

Pure but for looking at the paths themselves: nothing is opened, made or mounted here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from apk_atomic.chroot import Bind
from apk_atomic.errors import UsageError
from apk_atomic.mounts import Mount, covering

_FRESH = ("/tmp", "/run")  # empty in the root of the change, so mount points can be made there
_SHARED = ("/dev", "/proc", "/sys")


def binds(paths: Iterable[str], cwd: str, table: tuple[Mount, ...], inside: frozenset[str]) -> tuple[Bind, ...]:
    """What to bind so that each of `paths` (as typed, existing) means inside what it means to the caller.

    `inside` are the mount points that the root of the change has anyway. Raises UsageError for a file that cannot be
    shown there.
    """
    wanted: dict[str, Bind] = {}
    names = list(paths)
    if any(not os.path.isabs(name) for name in names):
        names.insert(0, cwd)
    for name in names:
        bind = _bind(os.path.normpath(os.path.join(cwd, name)), table, inside)
        if bind is not None and not any(_below(bind.target, known) for known in wanted):
            wanted[bind.target] = bind
    return tuple(wanted.values())


def _bind(path: str, table: tuple[Mount, ...], inside: frozenset[str]) -> Bind | None:
    real = os.path.realpath(path)
    mount = covering(real, table)
    point = mount.point if mount is not None else "/"
    if point in inside or any(_below(real, shared) for shared in _SHARED):
        return None
    target = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    if any(_below(target, fresh) for fresh in _FRESH):
        return None if target in _FRESH else Bind(real, target)
    if point == "/":
        return None  # in the booted root: the snapshot has it at the same place
    if path != real:
        raise UsageError(
            f"{path} is a link into {point}, which the new root does not have; nothing was changed",
            hint=f"name the file itself: {real}",
        )
    return Bind(point, point)


def _below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")
