"""The administrator's executables around a transaction: what counts as one, what it is told, what its failure means."""

from __future__ import annotations

import os
from collections.abc import Mapping

from apk_atomic import process
from apk_atomic.errors import CannotRun, Refused
from apk_atomic.journal import STAGING
from apk_atomic.session import Work
from apk_atomic.signals import Signals
from apk_atomic.volume import TOP_LEVEL

HOOKS = "/etc/apk-atomic/hooks.d"
_SAID = 2000  # characters of a hook's output that a message repeats


def around(work: Work, directory: str, name: str, base: str, place: str = STAGING) -> None:
    """The hooks of `hooks.d/DIRECTORY` of the running system; another system's are not run here.

    They are told of generation `name`, made from `base`, and that it is in `place` now; "" when it is gone. Raises
    Refused as `run` does.
    """
    if work.volume.running and os.path.isdir(f"{HOOKS}/{directory}"):
        known = {"APK_ATOMIC_ID": name, "APK_ATOMIC_BASE": base}
        if place:
            known["APK_ATOMIC_ROOT"] = f"{TOP_LEVEL}/{place}/{name}/@"
        run(f"{HOOKS}/{directory}", known, work.signals)


def listed(directory: str) -> list[str]:
    """The executables of a hook directory, sorted by name; names with a dot (editor copies, .apk-new) are no hooks."""
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    paths = [f"{directory}/{name}" for name in names if "." not in name and not name.endswith("~")]
    return [path for path in paths if os.path.isfile(path) and os.access(path, os.X_OK)]


def run(directory: str, known: Mapping[str, str], signals: Signals) -> None:
    """Runs the hooks of a directory in order; `known` is what they are told, as environment.

    Refused names the first that fails or cannot be run, with the end of what it said.
    """
    for path in listed(directory):
        hint = f"nothing was changed; look into {path}"
        try:
            finished = process.run([path], signals, known)
        except CannotRun as error:
            raise Refused(error.message, hint=hint) from error
        signals.check()
        if finished.status:
            said = finished.output.strip()
            end = said if len(said) <= _SAID else f"…{said[-_SAID:]}"
            raise Refused(f"{path} refused with exit status {finished.status}" + (f": {end}" if end else ""), hint=hint)
