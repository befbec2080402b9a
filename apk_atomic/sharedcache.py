"""Where apk keeps packages and indexes in a sealed root, and whether that is the cache that generations share.

`update` and `cache` may change nothing else. What else `etc/apk/cache` leads to is read-only there, and apk would try
to make it writable.
"""

from __future__ import annotations

import os

from apk_atomic import cmdline, mounts, settings
from apk_atomic.chroot import RootPlan
from apk_atomic.cmdline import Kind, Line, Role
from apk_atomic.errors import Refused

_LINK, _DEFAULT = "/etc/apk/cache", "/var/cache/apk"


def require(plan: RootPlan, line: Line) -> None:
    """To be called in the root of `plan`, as PID 1 of it or as what becomes apk.

    Raises Refused where the line would change what is on no writable commons subvolume.
    """
    if line.kind is not Kind.CACHE:
        return
    named = _named(line)
    place = os.path.realpath(named)
    cover = mounts.covering(place, mounts.mount_table())
    shared = {common.point for common in plan.commons if common.writable}
    shared |= {bind.target for bind in plan.binds if bind.writable}
    if cover is not None and cover.point in shared and _is_writable(cover.point):
        return
    text = named if place == named else f"{named}, which is {place},"
    hint = "put a commons subvolume on /var/cache in the fstab template, or: apk-atomic run -- apk update"
    if named != _DEFAULT:
        hint = f"let {_LINK} lead to {_DEFAULT}, on a writable commons subvolume, or remove it"
    raise Refused(
        f"{text} is not shared by the generations, and the root is sealed; nothing was changed", hint=hint
    )


def _named(line: Line) -> str:
    """The directory that apk takes: the one that is asked for, else the configured one if it is there."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        read = cmdline.parse(line.words, settings.lines(root))
    finally:
        os.close(root)
    asked = [local.path for local in read.locals_ if local.role is Role.CACHE_DIR]
    if asked:
        return os.path.join("/", asked[-1])
    return _LINK if is_configured() else _DEFAULT


def is_configured() -> bool:
    """Whether apk in the root of this process has a directory for the packages that it downloads, and so keeps them."""
    return os.path.isdir(_LINK)


def _is_writable(path: str) -> bool:
    return not os.statvfs(path).f_flag & os.ST_RDONLY
