"""Moving the pointer to generations that exist: what rollback and discard do, with the protocol of a commit."""

from __future__ import annotations

from apk_atomic import files, journal, pointer, session, volume
from apk_atomic.errors import CheckFailed, NotDurable
from apk_atomic.model import State
from apk_atomic.session import Work


def point_at(work: Work, state: State, slots: tuple[str, ...]) -> None:
    """`current` names a links directory with these slots, durably, when this returns; else nothing changed.

    Everything that the new pointer reaches is flushed before the rename, as the seal does in a transaction.
    """
    before = volume.current_links(work.volume)
    name = journal.begin(work.volume)
    try:
        pointer.lay_out(work.volume, name, slots)
        files.syncfs(work.volume.top)
        pointer.check(work.volume, name, before, ())
        work.signals.check()
        pointer.switch(work.volume, name, before)
    except NotDurable:
        raise
    except OSError as error:
        journal.remove(work.volume, name)
        raise CheckFailed(f"{error.filename or 'the volume'}: {error.strerror}; nothing was changed") from error
    except BaseException:
        journal.remove(work.volume, name)
        raise
    _tidy(work, state, name, before, slots)


def _tidy(work: Work, state: State, name: str, before: str, slots: tuple[str, ...]) -> None:
    """After the switch: failures are warnings."""
    try:
        pointer.confirm(work.volume, name)
        if slots[0] == state.booted:
            pointer.clear_pending()
        journal.remove(work.volume, name)
        journal.remove_directory(work.volume, journal.LINKS, before)
        session.announce(work)
    except OSError as error:
        work.console.warn(f"after the switch: {error}")
