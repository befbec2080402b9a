"""Named points of a transaction at which a test can make it die, stop or fail.

`APK_ATOMIC_FAULT=NAME:ACTION` in the environment of the wrapper; actions: `kill` and `stop` (the signals, to
itself), `int`, `term`, `hup` (likewise), `fail` (an EIO) and `full` (an ENOSPC). Only root can run a
transaction, so this grants nothing that root does not have; the variable is not passed on to apk.
"""

from __future__ import annotations

import errno
import os
import signal

VARIABLE = "APK_ATOMIC_FAULT"

# Every name that `point` is called with, in the order of a transaction: the tests go through all of them.
POINTS = (
    "locked", "mounted", "recovered", "preflight", "journal", "staged", "fstab", "change-started", "changed",
    "built", "proved", "hooked", "record", "links", "laid-out", "sealed", "checked", "pending", "renamed",
    "synced", "unstaged", "collected", "unlocked",
)  # fmt: skip

# Those of an unattended upgrade, beside the ones of its transaction, in order.
AUTO_POINTS = ("started", "refreshed", "planned", "downloaded", "remembered")
# Those of `adopt` beside them, in its order: the layout's names are made, each common is copied, all are known to be
# ours, each is in its place, the generation is known to be that of the adoption, the boot menu is written.
ADOPTION = ("prepared", "copied", "known", "moved", "adopted", "menu")
# Those of `boot-config --install`: state/boot.json keeps what both menus name, the new one is on the ESP, the firmware
# was asked for an entry, state/boot.json keeps no more than what the new one names.
BOOT_MENU = ("announced", "installed", "registered", "confirmed")
# Where a generation that is collected has lost its root, on a volume that has no room for a journal.
COLLECTION = ("uprooted",)
# Where one that reads without a lock has chosen the generation, and where it can rely on it.
READING = ("chosen", "held")

_SIGNALS = {
    "kill": signal.SIGKILL,
    "stop": signal.SIGSTOP,
    "int": signal.SIGINT,
    "term": signal.SIGTERM,
    "hup": signal.SIGHUP,
}
_ERRORS = {"fail": errno.EIO, "full": errno.ENOSPC}


def point(name: str) -> None:
    """Does what the environment asks for at this point; without the variable, nothing."""
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return
    where, _, action = wanted.partition(":")
    if where != name:
        return
    if action in _ERRORS:
        raise OSError(_ERRORS[action], os.strerror(_ERRORS[action]), f"fault point {name}")
    os.kill(os.getpid(), _SIGNALS[action])
