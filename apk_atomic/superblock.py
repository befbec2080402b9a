"""The volume stays writable, whatever a change does to it.

All mounts of a btrfs volume share one superblock. A `mount -o remount,ro` inside the root of a change, be it of a
package's script or of apk for its cache, means that one: /home and /var/log of the running system are read-only then.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from apk_atomic import mounts
from apk_atomic.session import Work
from apk_atomic.volume import TOP_LEVEL


@contextmanager
def kept_writable(work: Work) -> Iterator[None]:
    """Makes the volume writable again where what runs inside has changed that, and says so.

    Outside of this the volume of `work` is writable: a session begins with nothing else.
    """
    try:
        yield
    finally:
        if os.fstatvfs(work.volume.top).f_flag & os.ST_RDONLY:
            _make_writable(work)


def _make_writable(work: Work) -> None:
    try:
        mounts.mount("", TOP_LEVEL, "", mounts.REMOUNT | mounts.NOATIME)
    except OSError as error:
        # btrfs may have done it itself, because of the disk; what is written next fails, and that is said
        work.console.warn(f"the whole volume is read-only now, and stays so: {error.strerror}")
        return
    work.console.warn(
        "the change made the whole volume read-only, for the running system too; it is writable again"
    )
