"""What became of an unattended run, told to syslog and to the executables of hooks.d/notify.d.

An executable gets one line as its operand and a JSON document on stdin. Nobody who does not listen, fails or hangs
changes what happened. Nothing here is durable.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from apk_atomic import process
from apk_atomic.console import printable
from apk_atomic.errors import AtomicError, Interrupted
from apk_atomic.model import PackageChanges
from apk_atomic.names import iso_utc
from apk_atomic.signals import Signals

NAME = "apk-atomic"
LOG = "/dev/log"
_DAEMON, _ERROR, _INFO = 3 << 3, 3, 6  # <syslog.h>
_LONGEST = 1000  # bytes; RFC 3164 has 1024, and syslogds cut off there


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
    """One line to syslog. Where nobody listens at /dev/log, or whoever does takes nothing more, it is lost: syslog(3)
    would wait for him, for ever."""
    import socket

    text = f"<{_DAEMON + (_ERROR if bad else _INFO)}>{time.strftime('%b %e %H:%M:%S')} {NAME}[{os.getpid()}]: {line}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender, suppress(OSError):
        sender.connect(LOG)
        sender.send(text.encode(errors="replace")[:_LONGEST])
