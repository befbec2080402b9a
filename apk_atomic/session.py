"""A volume that is locked, opened and recovered: what every changing verb works on.

    with locked(located, options) as work: …

Order (design, section 4): lock, private mount namespace, top level, recovery. Leaving it unmounts and unlocks; what the
disk holds then was made durable by whoever wrote it.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

from apk_atomic import btrfs, files, generations, journal, mounts, volume
from apk_atomic.config import Config
from apk_atomic.console import Console
from apk_atomic.errors import AtomicError, CheckFailed, plain, refusal
from apk_atomic.faults import point
from apk_atomic.journal import Places
from apk_atomic.locate import Located
from apk_atomic.lock import RUN, Lock
from apk_atomic.model import State
from apk_atomic.names import is_own_id
from apk_atomic.pointer import write_pending
from apk_atomic.retention import Keep, Victim, garbage
from apk_atomic.signals import Signals
from apk_atomic.volume import Volume

STATUS = "status.json"
REBOOT = "/run/reboot-required"
NEEDED = "/run/reboot-needed"  # transactional-update's word for it
_REBOOT_MARK = "apk-atomic:"
_NEEDED_MARK = f"{RUN}/reboot-needed"  # there: we made NEEDED, whose one word names nobody
_DAY = 86400.0
_AT_ONCE = 100  # generations; a descriptor for each, of the 1024 that a process may usually have


class Work(NamedTuple):
    """What a changing verb has at hand; `lock` is a descriptor that keeps the lock in whoever inherits it;
    `configured` is false where the configuration could not be read and `config` holds the defaults."""

    volume: Volume
    config: Config
    console: Console
    signals: Signals
    lock: int
    configured: bool = True


@contextmanager
def locked(
    located: Located, configure: Callable[[Volume], Config | None], console: Console, signals: Signals,
    *, command: str = "", wait: float = 0,
) -> Iterator[Work]:  # fmt: skip
    """Locks, opens and recovers the volume; `configure` reads the configuration that counts for it.

    Raises Locked, NotSuchRoot, NoSpace, CheckFailed, UsageError; nothing is changed then. Once the work is done its
    result stands: what fails on leaving is a warning, for it ends with this process anyway.
    """
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(Lock(located.fsid, command, wait=wait, signals=signals))
            point("locked")
            mounts.make_private()
            opened = stack.enter_context(volume.opened(located, writable=True))
            point("mounted")
            found = configure(_writable(opened))
            work = Work(opened, found or Config(), console, signals, lock.fd, configured=found is not None)
            recover(work)
        except OSError as error:
            raise refusal(error) from error
        yield work
        try:
            stack.close()
            point("unlocked")
        except OSError as error:
            console.warn(f"on leaving the volume: {plain(error)}")


def _writable(opened: Volume) -> Volume:
    if opened.read_only:
        raise CheckFailed(
            f"the volume on {opened.device} is mounted read-only; nothing was changed",
            hint="btrfs turns a volume read-only when the disk fails: dmesg says why",
        )
    return opened


def recover(work: Work) -> None:
    """Finishes what earlier transactions left, and forgets a pending mark that `current` no longer agrees with."""
    for name in journal.recover(work.volume):
        work.console.note(f"recovered: transaction {name} had not finished; it was {_fate(work.volume, name)}")
    marks = volume.pending_ids()
    if work.volume.running and marks:
        now = volume.current_links(work.volume)
        waits = now in marks and volume.slot_links(work.volume, now)[:1] != (work.volume.booted,)
        if marks != (now,) or not waits:
            write_pending((now,) if waits else ())
    point("recovered")


def _fate(opened: Volume, name: str) -> str:
    return "committed" if volume.current_links(opened) == name else "discarded"


def after_switch(work: Work, *steps: Callable[[], None]) -> None:
    """Takes each step; the pointer is switched already, so what fails is a warning and the next one is taken."""
    for step in steps:
        try:
            step()
        except (OSError, AtomicError, ImportError) as error:
            work.console.warn(f"afterwards: {plain(error)}")


# ---- garbage ---------------------------------------------------------------------------------------------


def plan_garbage(
    opened: Volume, config: Config, state: State, now: float, *, asked: bool = True
) -> tuple[Victim, ...]:
    """What would be collected now, but for what is mounted; the mount tables are read only when there is something to
    delete, and by `collect` once more.

    `asked`: by the user, who may want to know beforehand, not after a commit.
    """
    keep = Keep(config.generations.keep, config.generations.keep_days)
    nothing: frozenset[str] = frozenset()
    victims = garbage(state, keep, mounted=nothing, at_work=nothing, now=now, asked=asked)
    if not victims or not asked:
        return victims
    return garbage(state, keep, mounted=mounted_generations(opened), at_work=nothing, now=now, asked=asked)


def mounted_generations(opened: Volume) -> frozenset[str]:
    """IDs of the generations of this volume that are mounted in any mount namespace: btrfs would delete them."""
    device = os.stat(opened.device).st_rdev if os.path.exists(opened.device) else 0
    found = set()
    for table in mounts.mount_tables():
        for entry in table:
            parts = entry.root.split("/")
            is_ours = entry.fstype == "btrfs" and parts[1:2] == ["snapshots"] and len(parts) > 2
            if is_ours and _is_device(entry.source, opened.device, device):
                found.add(parts[2])
    return frozenset(found)


def _is_device(source: str, path: str, number: int) -> bool:
    """Whether a mount's source may be the volume; one that cannot be looked at may be."""
    if source == path:
        return True
    try:
        return os.stat(source).st_rdev == number
    except OSError:
        return True


class Collected(NamedTuple):
    """`gone`: those that were deleted; `failed`: the IDs of those that could not be, each of which was warned about."""

    gone: tuple[Victim, ...]
    failed: tuple[str, ...]


def collect(work: Work, victims: tuple[Victim, ...]) -> Collected:
    """Deletes generations, each through the journal, so that an interruption is finished by the next recovery."""
    gone, failed = [], []
    for start in range(0, len(victims), _AT_ONCE):
        few = victims[start : start + _AT_ONCE]
        with journal.opened(work.volume) as places, _claimed(places, few) as claimed:
            for victim in _unmounted(work.volume, claimed):
                try:
                    _collect(work, places, victim)
                    gone.append(victim)
                except OSError as error:
                    work.console.warn(f"{victim.id} could not be collected: {plain(error)}")
                    failed.append(victim.id)
    point("collected")
    return Collected(tuple(gone), tuple(failed))


@contextmanager
def _claimed(places: Places, victims: tuple[Victim, ...]) -> Iterator[tuple[Victim, ...]]:
    """Those that nobody has blessed, pinned or begun to read since they were looked at, and that are still there.

    Whoever wants to read one comes too late now.
    """
    with ExitStack() as stack:
        found = []
        for victim in victims:
            fd = generations.claim(places.snapshots, victim.id, good=victim.good)
            if fd is not None:
                stack.callback(os.close, fd)
                found.append(victim)
        yield tuple(found)


def _unmounted(opened: Volume, victims: tuple[Victim, ...]) -> tuple[Victim, ...]:
    """Whoever had begun to read one before it was claimed has mounted it by now."""
    mounted = mounted_generations(opened) if victims else frozenset()
    return tuple(victim for victim in victims if victim.id not in mounted)


def _collect(work: Work, places: Places, victim: Victim) -> None:
    if victim.unsealed:
        work.console.note(f"collecting {victim.id}: {victim.reason}")
    journal.collect(work.volume, places, victim.id)


def stale_links(opened: Volume, now: float) -> tuple[str, ...]:
    """Names in links/ that `current` does not lead to and that are older than a day.

    Only those that the wiki's scripts and we make: anything else was put there by somebody who wants it.
    """
    current = volume.current_links(opened)
    links = files.open_beneath(opened.top, journal.LINKS, os.O_RDONLY | os.O_DIRECTORY)
    try:
        names = [name for name in sorted(os.listdir(links)) if is_own_id(name) and name != current]
        found = {name: os.stat(name, dir_fd=links, follow_symlinks=False) for name in names}
    finally:
        os.close(links)
    old = (name for name, status in found.items() if stat.S_ISDIR(status.st_mode) and now - status.st_mtime > _DAY)
    return tuple(old)


def rootless(opened: Volume, now: float) -> tuple[str, ...]:
    """Directories in snapshots/ that bear the name of a generation, and hold no root for more than a day: what is left
    of a collection that was interrupted, or of one by hand. What is pinned, or holds any subvolume, is somebody's."""
    snapshots = files.open_beneath(opened.top, journal.SNAPSHOTS, os.O_RDONLY | os.O_DIRECTORY)
    try:
        names = [name for name in sorted(os.listdir(snapshots)) if is_own_id(name)]
        return tuple(name for name in names if _is_rootless(snapshots, name, now))
    finally:
        os.close(snapshots)


def _is_rootless(snapshots: int, name: str, now: float) -> bool:
    found = os.stat(name, dir_fd=snapshots, follow_symlinks=False)
    if not stat.S_ISDIR(found.st_mode) or now - found.st_mtime <= _DAY:
        return False
    directory = files.open_entry(snapshots, name, os.O_RDONLY | os.O_DIRECTORY)
    try:
        beside = os.listdir(directory)
        return not {"@", "pinned"} & {*beside} and not any(btrfs.is_subvolume(directory, each) for each in beside)
    finally:
        os.close(directory)


def collect_left_over(work: Work, links: tuple[str, ...], rootless: tuple[str, ...] = ()) -> None:
    """Removes links directories that nothing leads to, from `stale_links`, and what `rootless` found."""
    for parent, names in ((journal.LINKS, links), (journal.SNAPSHOTS, rootless)):
        for name in names:
            journal.remove_directory(work.volume, parent, name)


# ---- what others may read --------------------------------------------------------------------------------


def announce(work: Work) -> None:
    """`/run/apk-atomic/status.json`, `/run/reboot-required` and `/run/reboot-needed`, all 0644, as things are now."""
    if work.volume.running:
        state = volume.read_slots(work.volume)
        _publish_status(state)
        _require_reboot(state)
        _need_reboot(due=state.next not in ("", state.booted))


def _require_reboot(state: State) -> None:
    """What motd scripts and monitoring look for; somebody else's reason to reboot is left alone."""
    try:
        with open(REBOOT, encoding="utf-8", errors="replace") as file:
            ours = file.read(64).startswith(_REBOOT_MARK)
    except FileNotFoundError:
        ours = True
    if state.next not in ("", state.booted):
        if ours:
            text = f"{_REBOOT_MARK} generation {state.next} runs after the reboot\n"
            _publish(os.path.dirname(REBOOT), os.path.basename(REBOOT), text)
    elif ours:
        with suppress(FileNotFoundError):
            os.unlink(REBOOT)


def _need_reboot(*, due: bool) -> None:
    """The same for those who look for transactional-update's file; one that somebody else made is left alone."""
    if due and not os.path.lexists(NEEDED):
        _publish(RUN, os.path.basename(_NEEDED_MARK), "")
        _publish(os.path.dirname(NEEDED), os.path.basename(NEEDED), "reboot\n")
    elif not due and os.path.lexists(_NEEDED_MARK):
        for path in (NEEDED, _NEEDED_MARK):
            with suppress(FileNotFoundError):
                os.unlink(path)


def _publish_status(state: State) -> None:
    """The slots as ordinary users may see them; no command lines."""
    public = {
        "version": 1,
        "booted": state.booted,
        "next": state.next,
        "pending": state.pending,
        "slots": list(state.slots),
    }
    _publish(RUN, STATUS, json.dumps(public) + "\n")


def _publish(directory: str, name: str, text: str) -> None:
    """For everybody to read, whatever the caller's umask is."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        files.write_atomic(fd, name, text.encode(), 0o644)
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"{directory}/{name}") from error
    finally:
        os.close(fd)
