"""The default end of a transaction: all that it made is removed, or kept to be looked at where the user wants that.

Nothing here raises: what cannot be removed now is left to the next recovery.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from apk_atomic import btrfs, files, hooks, journal, recording
from apk_atomic.errors import AtomicError, plain
from apk_atomic.model import Record
from apk_atomic.session import Work

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


def discard(work: Work, name: str, base: str, kept: Callable[[], Record] | None = None) -> None:
    """Removes transaction `name`, which began with `base`; or makes it a failed generation, whose record `kept` gives.

    Signals wait from here on.
    """
    work.signals.settle()
    if kept is not None and _keep(work, name, kept):
        return
    try:
        journal.remove(work.volume, name)
    except (OSError, AtomicError) as failure:
        what = f"staging/{name} could not be removed ({plain(failure)})"
        work.console.warn(f"{what}; the next transaction will do it")
    try:
        hooks.around(work, "post-discard.d", name, base, "")
    except (OSError, AtomicError, ImportError) as failure:
        work.console.warn(f"after the discard: {plain(failure)}")


def _keep(work: Work, name: str, kept: Callable[[], Record]) -> bool:
    """--atomic-keep-failed: the staged root becomes a failed generation, in no slot, to be looked at."""
    place = f"{journal.SNAPSHOTS}/{name}"
    try:
        with suppress(FileExistsError):
            os.mkdir(place, 0o755, dir_fd=work.volume.top)
        directory = files.open_beneath(work.volume.top, place, _DIRECTORY)
        try:
            files.write_durable(directory, "failed", b"", 0o644)
            recording.write_record(work, kept())
            if not btrfs.is_subvolume(directory, "@"):
                journal.seal(work.volume, name)
        finally:
            os.close(directory)
        journal.release(work.volume, name)
    except (OSError, AtomicError) as failure:
        work.console.warn(f"the failed generation could not be kept: {plain(failure)}")
        return False
    work.console.note(f"the failed generation is kept as {name} for a week; apk-atomic gc removes it sooner")
    return True
