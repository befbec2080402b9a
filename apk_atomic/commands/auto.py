"""`apk-atomic auto`: the unattended upgrade and the reboot that it may lead to; quiet when nothing happened."""

from __future__ import annotations

import json
import os
import time
from typing import NamedTuple

from apk_atomic import hooks, machine, missed, notify, planning, report, restart, unattended
from apk_atomic.config import Config
from apk_atomic.context import Context, require_root, running_config
from apk_atomic.errors import AtomicError, Interrupted, Locked, NotDurable, NotSuchRoot, UsageError, refusal
from apk_atomic.lock import RUN, Lock
from apk_atomic.notify import Event
from apk_atomic.planning import Run
from apk_atomic.signals import Signals

PERIODIC = "APK_ATOMIC_PERIODIC"  # set by the daily job
_DAY = 86400.0
_DOCUMENTED = 4000  # bytes of apk's output that follow an error


class Wishes(NamedTuple):
    """`now`: whatever the time, the power supply and earlier failures say; `reboot`: only what is left to be done of an
    upgrade, the reboot."""

    now: bool = False
    dry_run: bool = False
    reboot: bool = False
    as_json: bool = False


def run(context: Context, wishes: Wishes) -> int:
    """0 also when it is not the time, or another run is at work that nobody has to know of; else what failed.

    Whatever is raised was told to syslog and notify.d, for crond's jobs have nobody who reads stderr; except for a
    wrong command line and for Interrupted.
    """
    require_root(context.argv)
    if wishes.reboot and (wishes.now or wishes.dry_run):
        raise UsageError("auto: --reboot goes with neither --now nor --dry-run; nothing was changed")
    signals = Signals()
    config = None
    try:
        config = running_config()
        return _as_configured(context, config, wishes, signals)
    except Interrupted:
        raise
    except Exception as error:
        if not wishes.dry_run:
            signals.settle()
            _tell_failure(context, config, error, signals)
        raise
    finally:
        signals.release()


def _as_configured(context: Context, config: Config, wishes: Wishes, signals: Signals) -> int:
    if config.auto.policy == "none" and not wishes.dry_run:
        event = Event("skipped", "the policy is none")
        _answer(context, config, wishes, event, event if wishes.reboot else None)
        return 0
    try:
        located = context.locate()
    except NotSuchRoot as error:
        if PERIODIC not in os.environ:
            raise
        context.console.aside(error.message)
        return 0
    machine.step_back(config.auto.nice, config.auto.io)
    try:
        this = Run(context, config, signals, held=-1, output=-1, now=wishes.now, dry_run=wishes.dry_run)
        why = "only the reboot was asked for" if wishes.reboot else unattended.wait(this)
        with Lock(f"{located.fsid}.auto", " ".join(context.argv), wait=0, signals=signals) as lock:
            return _run(this._replace(held=lock.fd), wishes, why)
    except Locked as error:
        if wishes.now or _is_stuck(f"{RUN}/{located.fsid}.auto.lock.holder"):
            raise Locked(error.message, hint="wait for it to end, or look what it waits for") from error
        _answer(context, config, wishes, Event("skipped", "another unattended run is at work"), None)
        return 0


def _tell_failure(context: Context, config: Config | None, error: Exception, signals: Signals) -> None:
    """`config`: None where it is what failed; then the defaults count."""
    if isinstance(error, OSError):
        error = refusal(error)
    if isinstance(error, AtomicError):
        event = Event("failed", error.message, status=error.exit_code)
    else:
        event = Event("failed", f"{type(error).__name__}: {error}", status=1)
    document = notify.document(event, config.auto.policy if config else "")
    seconds = (config or Config()).auto.notify_seconds
    notify.tell(event, document, hooks.listed(f"{hooks.HOOKS}/notify.d"), seconds, signals, context.console.warn)


def _is_stuck(holder: str) -> bool:
    """Whether the run that has the lock has had it for more than a day: then this is no news, but a failure."""
    try:
        return time.time() - os.stat(holder).st_mtime > _DAY
    except OSError:
        return False


def _run(this: Run, wishes: Wishes, why: str) -> int:
    """`why`: what speaks against the upgrade."""
    console = this.context.console
    watched = not wishes.as_json and os.isatty(2)
    this = this._replace(output=os.dup(2) if watched else os.memfd_create("apk", os.MFD_CLOEXEC))
    event, hint, rebooted = Event("skipped", why), "", None
    try:
        if not why:
            event, hint = _upgraded(this)
        if event.status and event.loud:
            said = "" if watched else planning.said_in(this.output, _DOCUMENTED)
            console.error(event.message, hint=hint)
            if said:
                console.note(f"apk said:\n{said}")
        elif event.status:
            console.aside(event.message)
        _tell(this, event)
        if not wishes.dry_run and event.status != NotDurable.exit_code:
            rebooted = _rebooted(this, event)
    finally:
        os.close(this.output)
    _answer(this.context, this.config, wishes, event, rebooted)
    return event.status or (rebooted.status if rebooted and not event.generation else 0)


def _upgraded(this: Run) -> tuple[Event, str]:
    """The event, also that of a failure, and the hint for it. In a job what fails again and again is no news."""
    periodic = PERIODIC in os.environ
    try:
        event = unattended.upgrade(this)
        if periodic and event.outcome != "skipped":
            missed.ended()
        return event, ""
    except Interrupted:
        raise
    except OSError as error:
        failure = refusal(error)
    except AtomicError as error:
        failure = error
    news = not periodic or missed.failed(time.time(), failure)
    return Event("failed", failure.message, status=failure.exit_code, loud=news), failure.hint


def _rebooted(this: Run, before: Event) -> Event:
    """The event, also that of a failure. Raises Interrupted only where nothing that counts was done `before`."""
    this.signals.unsettle()
    try:
        return restart.consider(this, lambda each: _tell(this, each))
    except Interrupted as error:
        if not (before.generation or before.status):
            raise
        event = Event("skipped", f"{error.message.partition(';')[0]}; no reboot")
        this.context.console.note(event.message)
        return event
    except AtomicError as error:
        failure = error
    finally:
        this.signals.settle()
    event = Event("failed", failure.message, status=failure.exit_code, loud=True)
    this.context.console.error(event.message)
    _tell(this, event)
    return event


def _tell(this: Run, event: Event) -> None:
    auto = this.config.auto
    if event.loud and not this.dry_run:
        document = notify.document(event, auto.policy)
        warn = this.context.console.warn
        notify.tell(event, document, hooks.listed(f"{hooks.HOOKS}/notify.d"), auto.notify_seconds, this.signals, warn)


def _answer(context: Context, config: Config, wishes: Wishes, event: Event, rebooted: Event | None) -> None:
    """What happened on stderr, what would happen on stdout; what did not happen only on a terminal."""
    if wishes.as_json:
        reboot = None if rebooted is None else {"outcome": rebooted.outcome, "message": rebooted.message}
        document = {**notify.document(event, config.auto.policy), "dry_run": wishes.dry_run, "reboot": reboot}
        context.console.answer(json.dumps(document))
        return
    asked = event.loud or wishes.now or wishes.dry_run
    if event.outcome == "planned" and asked:
        context.console.note(event.message)
        for line in report.lines(event.changes):
            context.console.answer(line)
    elif event.outcome == "held" and asked:
        context.console.warn(event.message)
    elif event.outcome == "committed":
        context.console.note(event.message)
    elif event.status == 0 and not (wishes.reboot and event.outcome == "skipped"):
        context.console.aside(f"{event.message}; nothing was changed")
    if rebooted is not None and (wishes.reboot or rebooted.outcome == "reboot"):
        (context.console.note if rebooted.outcome == "reboot" else context.console.aside)(rebooted.message)
