"""The journal of a transaction: `staging/ID`, made before anything else and removed after everything else.

While `staging/ID` exists, `links/ID`, `next/current-ID` and `snapshots/ID` belong to that transaction. Recovery
removes them unless `current` reaches them, then the journal itself; it touches nothing else and may be repeated.
btrfs commits in the order of our calls, so a power cut never leaves a piece of a transaction without its journal.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from apk_atomic import btrfs, files, removal
from apk_atomic.errors import FULL, CheckFailed
from apk_atomic.faults import point
from apk_atomic.names import is_safe_name, new_id
from apk_atomic.volume import Volume, current_links, open_root, slot_links, subvolumes_of

STAGING, SNAPSHOTS, LINKS, NEXT = "staging", "snapshots", "links", "next"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


def begin(volume: Volume) -> str:
    """Makes the journal of a new transaction and returns its ID, which nothing on the volume bears yet."""
    _ensure_directory(volume.top, STAGING, 0o700)
    _ensure_directory(volume.top, NEXT, 0o755)
    while True:
        name = new_id(time.time(), os.urandom)
        if not any(_exists(volume.top, f"{parent}/{name}") for parent in (STAGING, SNAPSHOTS, LINKS)):
            break
    os.mkdir(f"{STAGING}/{name}", 0o700, dir_fd=volume.top)
    try:
        point("journal")
    except OSError:
        os.rmdir(f"{STAGING}/{name}", dir_fd=volume.top)  # nobody else knows the name yet
        raise
    return name


def stage(volume: Volume, name: str, base: str) -> None:
    """Snapshots every subvolume of `base`, writable, into the journal, and makes the directory for /tmp."""
    journal = files.open_beneath(volume.top, f"{STAGING}/{name}", _DIRECTORY)
    try:
        for subvolume in subvolumes_of(volume, base):
            source = open_root(volume, base, subvolume)
            try:
                btrfs.snapshot(source, journal, subvolume, readonly=False)
            finally:
                os.close(source)
        os.mkdir("tmp", 0o700, dir_fd=journal)
        os.chmod("tmp", 0o1777, dir_fd=journal)
    finally:
        os.close(journal)
    point("staged")


def seal(volume: Volume, name: str) -> None:
    """`snapshots/ID/@` as a read-only snapshot of the staged root, beside the record that is there already.

    When it returns, the data and metadata of the sealed root, and everything that was written to the volume's tree
    before, is on disk: a snapshot flushes its source and commits (facts: reliability, F2), which the ro property does
    not. Raises CheckFailed when the change made a subvolume, which a snapshot would leave out.
    """
    journal = files.open_beneath(volume.top, f"{STAGING}/{name}", _DIRECTORY)
    target = files.open_beneath(volume.top, f"{SNAPSHOTS}/{name}", _DIRECTORY)
    try:
        staged = [entry for entry in os.listdir(journal) if entry != "tmp"]
        for subvolume in sorted(staged, key=lambda entry: (entry == "@", entry)):
            source = files.open_beneath(journal, subvolume, _DIRECTORY)
            try:
                _refuse_nested(volume, source)
                btrfs.snapshot(source, target, subvolume, readonly=True)
            finally:
                os.close(source)
    finally:
        os.close(target)
        os.close(journal)
    point("sealed")


def _refuse_nested(volume: Volume, source: int) -> None:
    nested = btrfs.children(volume.top, btrfs.subvolume_id(source))
    if nested:
        raise CheckFailed(
            f"the change made the btrfs subvolume {nested[0].name!r} inside the root, which a generation cannot hold; "
            "nothing was changed",
            hint="put it on a commons subvolume of its own, named in the fstab template",
        )


def remove(volume: Volume, name: str) -> None:
    """Removes what the transaction made, but what `current` reaches, and last its journal. Idempotent.

    Nothing is flushed: after a power cut the journal is still there and the next transaction comes here again.
    """
    links = current_links(volume)
    reached = {*slot_links(volume, links), volume.booted}
    _remove_links(volume, name, links)
    if name not in reached:
        remove_directory(volume, SNAPSHOTS, name)
    remove_directory(volume, STAGING, name)
    point("unstaged")


def abandon(volume: Volume, name: str) -> None:
    """`remove` for a volume that is being made and has no `current` yet: nothing is reached."""
    remove_directory(volume, LINKS, name)
    _unlink_next(volume, name)
    remove_directory(volume, SNAPSHOTS, name)
    remove_directory(volume, STAGING, name)
    point("unstaged")


def left_over(volume: Volume) -> tuple[str, ...]:
    """The IDs in `staging/`: of transactions that did not end."""
    try:
        staging = open_place(volume.top, STAGING)
    except FileNotFoundError:
        return ()
    try:
        return tuple(sorted(name for name in os.listdir(staging) if _is_journal(staging, name)))
    finally:
        os.close(staging)


def _remove_links(volume: Volume, name: str, current: str) -> None:
    if current != name:
        remove_directory(volume, LINKS, name)
    _unlink_next(volume, name)


def recover(volume: Volume) -> tuple[str, ...]:
    """Finishes what a killed transaction or a power cut left in `staging/`; the IDs that were there.

    A transaction that was killed between its switch and the flush after it is durable when this returns: what this run
    says is built on it.
    """
    names = left_over(volume)
    for name in names:
        if current_links(volume) == name:
            files.syncfs(volume.top)
        remove(volume, name)
    return names


def _is_journal(staging: int, name: str) -> bool:
    """A file or link in staging/ is somebody's, and none of ours."""
    return is_safe_name(name) and stat.S_ISDIR(os.stat(name, dir_fd=staging, follow_symlinks=False).st_mode)


def remove_directory(volume: Volume, parent: str, name: str) -> None:
    """Removes `parent/NAME` and all subvolumes in it, however deep; one that is gone already is no error."""
    if not _exists(volume.top, f"{parent}/{name}"):
        return
    above = files.open_beneath(volume.top, parent, _DIRECTORY)
    try:
        _remove_entry(above, name)
    finally:
        os.close(above)


def _remove_entry(above: int, name: str) -> None:
    if _exists(above, name):
        removal.remove_tree(above, name, foreign=btrfs.destroy_tree)


def _ensure_directory(top: int, name: str, mode: int) -> None:
    try:
        os.mkdir(name, mode, dir_fd=top)
    except FileExistsError:
        os.close(open_place(top, name))


def open_place(top: int, name: str) -> int:
    """A descriptor of one of our directories at the top level; CheckFailed where it is a link or no directory."""
    try:
        return files.open_beneath(top, name, _DIRECTORY)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckFailed(
            f"{name} at the top level of the volume is not a plain directory ({error.strerror}); nothing was changed",
            hint=f"look at it and move it away; apk-atomic makes {name} itself",
        ) from error


def _exists(top: int, path: str) -> bool:
    try:
        os.stat(path, dir_fd=top, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _unlink_next(volume: Volume, name: str) -> None:
    try:
        scratch = open_place(volume.top, NEXT)
    except FileNotFoundError:
        return
    try:
        _unlink_scratch(scratch, name)
    finally:
        os.close(scratch)


def _unlink_scratch(scratch: int, name: str) -> None:
    try:
        os.unlink(f"current-{name}", dir_fd=scratch)
    except OSError as error:
        # ENAMETOOLONG: the generation of somebody's long name was being collected, which has no such link
        if error.errno not in (errno.ENOENT, errno.ENAMETOOLONG):
            raise


class Places(NamedTuple):
    """The directories at the top level, open: to look for each anew would double the price of a collection.

    `staging` and `next` are -1 where they are not there and the volume has no room for them.
    """

    snapshots: int
    staging: int
    links: int
    next: int


@contextmanager
def opened(volume: Volume) -> Iterator[Places]:
    """For what is done to many generations in a row."""
    with ExitStack() as stack:

        def place(name: str, mode: int = 0) -> int:
            try:
                if mode:
                    _ensure_directory(volume.top, name, mode)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                return -1
            fd = open_place(volume.top, name)
            stack.callback(os.close, fd)
            return fd

        yield Places(place(SNAPSHOTS), place(STAGING, 0o700), place(LINKS), place(NEXT, 0o755))


def adopt(places: Places, name: str) -> None:
    """Makes generation NAME the content of a journal by one rename: from here on it is no generation any more."""
    if places.staging < 0:
        raise files.error(errno.ENOSPC, STAGING)
    os.rename(name, name, src_dir_fd=places.snapshots, dst_dir_fd=places.staging)


def collect(volume: Volume, places: Places, name: str) -> None:
    """Removes generation NAME, which nothing may reach, through the journal: recovery ends what is interrupted.

    On a full volume btrfs has no room for a rename, but for deletions: it is removed where it is then, first what makes
    it a generation. Of one that is interrupted a directory without a root remains, for `gc`.
    """
    place = places.staging
    try:
        adopt(places, name)
    except OSError as error:
        if error.errno not in FULL:
            raise
        place = places.snapshots
        _destroy_root(place, name)
        point("uprooted")
    if _exists(places.links, name) and current_links(volume) != name:
        _remove_entry(places.links, name)
    if places.next >= 0:
        _unlink_scratch(places.next, name)
    _remove_entry(place, name)
    point("unstaged")


def _destroy_root(snapshots: int, name: str) -> None:
    generation = files.open_beneath(snapshots, name, _DIRECTORY)
    try:
        btrfs.destroy_tree(generation, "@", missing_ok=True)
    finally:
        os.close(generation)


def release(volume: Volume, name: str) -> None:
    """Removes the journal, and the links that were laid out, but leaves `snapshots/NAME` as a generation."""
    if current_links(volume) != name:
        remove_directory(volume, LINKS, name)
    _unlink_next(volume, name)
    remove_directory(volume, STAGING, name)
