"""Moving the pointer to generations that exist: what rollback and discard do, with the protocol of a commit."""

from __future__ import annotations

from apk_atomic import files, journal, pointer, session
from apk_atomic.errors import AtomicError, NotDurable, plain, refusal
from apk_atomic.faults import point
from apk_atomic.model import State
from apk_atomic.session import Work


def point_at(work: Work, state: State, slots: tuple[str, ...], *, boot_paths: tuple[str, ...] = ()) -> None:
    """`current` names a links directory with these slots, durably, when this returns; else nothing changed.

    `state` is what `slots` were decided on. `boot_paths` are what the boot menu will look for in slot 0. Everything
    that the new pointer reaches is flushed before the rename, as the seal does in a transaction.
    """
    point("preflight")
    before = state.links
    try:
        name = journal.begin(work.volume)
    except OSError as error:
        raise refusal(error) from error
    try:
        pointer.lay_out(work.volume, name, slots)
        files.syncfs(work.volume.top)
        pointer.check(work.volume, name, before, boot_paths)
        work.signals.check()
        pointer.switch(work.volume, name, before)
    except NotDurable:
        raise
    except OSError as error:
        _discard(work, name)
        raise refusal(error) from error
    except BaseException:
        _discard(work, name)
        raise
    _tidy(work, state, name, before, slots)


def _discard(work: Work, name: str) -> None:
    try:
        journal.remove(work.volume, name)
    except (OSError, AtomicError) as failure:
        work.console.warn(f"staging/{name} could not be removed ({plain(failure)}); the next transaction will do it")


def _tidy(work: Work, state: State, name: str, before: str, slots: tuple[str, ...]) -> None:
    """After the switch: failures are warnings. With the booted generation next nothing is pending."""
    settle = pointer.clear_pending if slots[0] == state.booted else lambda: None
    session.after_switch(
        work,
        lambda: pointer.confirm(work.volume, name),
        settle,
        lambda: journal.remove(work.volume, name),
        lambda: journal.remove_directory(work.volume, journal.LINKS, before),
        lambda: session.announce(work),
    )
