"""What became of an unattended run, told to syslog and to the executables of hooks.d/notify.d.

An executable gets one line as its operand and a JSON document on stdin. Nobody who does not listen, fails or hangs
changes what happened. Nothing here is durable.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from apk_atomic import process
from apk_atomic.console import printable
from apk_atomic.errors import AtomicError, Interrupted
from apk_atomic.model import PackageChanges
from apk_atomic.names import iso_utc
from apk_atomic.signals import Signals

NAME = "apk-atomic"


class Event(NamedTuple):
    """`outcome`: skipped, nothing, planned, held, committed, failed, reboot; `message` is one line; `status` the exit
    status that goes with it. `loud`: it is to be told, not only to be answered."""

    outcome: str
    message: str = ""
    status: int = 0
    generation: str = ""
    base: str = ""
    changes: PackageChanges = PackageChanges()
    loud: bool = False


def document(event: Event, policy: str) -> dict[str, object]:
    """The event as `--json` answers it and as notify.d gets it."""
    changes = event.changes
    return {
        "version": 1,
        "time": iso_utc(time.time()),
        "host": os.uname().nodename,
        "policy": policy,
        "outcome": event.outcome,
        "message": event.message,
        "status": event.status,
        "base": event.base,
        "generation": event.generation,
        "added": [{"name": name, "version": version} for name, version in changes.added],
        "removed": [{"name": name, "version": version} for name, version in changes.removed],
        "upgraded": [{"name": name, "old": old, "new": new} for name, old, new in changes.upgraded],
        "rebuilt": list(changes.rebuilt),
    }


def tell(
    event: Event, told: Mapping[str, object], executables: Sequence[str], seconds: int, signals: Signals,
    complain: Callable[[str], None],
) -> None:  # fmt: skip
    """Tells syslog, then each of the executables; what goes wrong with one of those is `complain`ed of."""
    line = printable(event.message.replace("\n", " "))
    log(line, bad=event.status != 0)
    data = json.dumps(told).encode() + b"\n"
    for path in executables:
        try:
            extra = {"APK_ATOMIC_OUTCOME": event.outcome}
            done = process.run([path, line], signals, extra, seconds, feed=data, apart=True)
        except Interrupted:
            raise
        except AtomicError as error:
            problem = error.message
        else:
            problem = f"{path} ended with exit status {done.status}" if done.status else ""
        if problem:
            log(problem, bad=True)
            complain(problem)


def log(line: str, *, bad: bool = False) -> None:
    """One line to syslog; where nobody listens at /dev/log it is lost, as syslog(3) has it."""
    import syslog

    syslog.openlog(NAME, syslog.LOG_PID, syslog.LOG_DAEMON)
    syslog.syslog(syslog.LOG_ERR if bad else syslog.LOG_INFO, line)
    syslog.closelog()
