"""The commons of an adopted system: copied aside, remembered, moved into place; and whether anybody has used them.

The copies lie in a journal of their own, so that recovery removes what is not in its place yet. Until the new system is
used they may be thrown away and made anew; that they were is told by the transaction and the time of their making. An
earlier copy is exchanged for the new one, so that the generation that mounts it never misses it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from apk_atomic import adoptstate, btrfs, exchange, files, firstroot, fstab, journal, process, treecopy
from apk_atomic.adoption import Plan
from apk_atomic.adoptstate import Adoption, Copied
from apk_atomic.errors import CheckFailed
from apk_atomic.faults import point
from apk_atomic.firstroot import First
from apk_atomic.oldfstab import SWAP_COMMON
from apk_atomic.session import Work
from apk_atomic.volume import Volume

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_ROUNDING = 1e-3  # seconds


def used(opened: Volume, known: Adoption, plan: Plan) -> Iterator[str]:
    """Names of commons that hold what the adoption has not put there."""
    files.syncfs(opened.top)  # tree searches see what is committed
    try:
        commons = files.open_beneath(opened.top, "commons", _DIRECTORY)
    except FileNotFoundError:
        return  # the first step was killed
    try:
        for name in sorted(os.listdir(commons)):
            if _is_used(commons, name, known, needed=name in (*plan.commons, SWAP_COMMON)):
                yield name
    finally:
        os.close(commons)


def _is_used(commons: int, name: str, known: Adoption, *, needed: bool) -> bool:
    """Whether a common is not as it was when it was filled; one that was not filled at all, if it is in the way."""
    if not btrfs.is_subvolume(commons, name):
        return needed
    common = files.open_beneath(commons, name, _DIRECTORY)
    try:
        info = btrfs.subvolume_info(common)
        copied = known.copied.get(info.uuid)
        if copied is None:
            return needed
        if btrfs.children(common, info.id) or _top(common) != copied.top:  # a copy has no subvolume in it
            return True
        return any(_is_newer(common, inode, copied) for inode in _since(common, copied))
    finally:
        os.close(common)


def _top(common: int) -> tuple[int, ...]:
    """What changes with any name in the common's own directory; a move of that changes its ctime, and no more."""
    status = os.fstat(common)
    return status.st_mtime_ns, status.st_mode, status.st_uid, status.st_gid


def _since(common: int, copied: Copied) -> list[btrfs.ChangedInode]:
    """Not the common's own directory, which was moved."""
    found = btrfs.changed_inodes(common, copied.transid)
    return [inode for inode in found if inode.ino != btrfs.SUBVOLUME_INODE]


def _is_newer(common: int, inode: btrfs.ChangedInode, copied: Copied) -> bool:
    """Whether it is a new file or was written to; that it was read, which sets its access time, does not count."""
    if inode.created > copied.transid:
        return True
    for path in btrfs.inode_paths(common, inode.ino):
        with suppress(OSError):
            changed = os.stat(path, dir_fd=common, follow_symlinks=False).st_ctime
            return not copied.start - _ROUNDING <= changed <= copied.moment
    return True  # it has no name any more


def copy(first: First, aside: str) -> None:
    """A subvolume for each common in the journal ASIDE, filled from the snapshot, in which the directory is emptied."""
    work = first.work
    place = files.open_beneath(work.volume.top, f"{journal.STAGING}/{aside}", _DIRECTORY)
    try:
        for name in first.plan.commons:
            path = fstab.mountpoint(name).strip("/")
            btrfs.create_subvolume(place, name)
            work.console.step(f"copying /{path} to commons/{name}")
            _copy_common(first, place, name, path)
            firstroot.empty(first.root, path)
            point("copied")
        if first.plan.swap_size:
            btrfs.create_subvolume(place, SWAP_COMMON)
            _make_swap_file(work, place, first.plan.swap_size)
    finally:
        os.close(place)


def _copy_common(first: First, place: int, name: str, path: str) -> None:
    source = files.open_beneath(first.root, path, _DIRECTORY)
    target = files.open_beneath(place, name, _DIRECTORY)
    try:
        live = _open_live(first, path)
        try:
            treecopy.copy_content(source, target, live, first.work.signals.check)
        finally:
            os.close(live)
    finally:
        os.close(target)
        os.close(source)


def _open_live(first: First, path: str) -> int:
    """The directory in the old root; one that is not there yet has no subvolumes in it either."""
    try:
        return files.open_beneath(first.live, path, _DIRECTORY)
    except FileNotFoundError:
        return files.open_beneath(first.root, path, _DIRECTORY)


def _make_swap_file(work: Work, place: int, size: int) -> None:
    """Data in place and no holes: what btrfs wants of a swap file."""
    fd = files.open_beneath(place, f"{SWAP_COMMON}/swapfile", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        treecopy.set_nocow(fd)
        os.posix_fallocate(fd, 0, size)
        done = process.run(["mkswap", files.fd_path(fd)], work.signals)
        if done.status:
            hint = "apk add util-linux-misc"
            raise CheckFailed(f"mkswap failed: {done.output.strip()}; nothing was changed", hint=hint)
    finally:
        os.close(fd)


def _names(plan: Plan) -> tuple[str, ...]:
    return (*plan.commons, *((SWAP_COMMON,) if plan.swap_size else ()))


def remember(work: Work, plan: Plan, known: Adoption, name: str, aside: str) -> Adoption:
    """Which generation and copies are ours, these as old as now; on disk before the first of them is in its place."""
    files.syncfs(work.volume.top)
    transid, moment = btrfs.fs_info(work.volume.top).generation, time.time()
    copied = dict(known.copied)
    for common in _names(plan):
        fd = files.open_beneath(work.volume.top, f"{journal.STAGING}/{aside}/{common}", _DIRECTORY)
        try:
            info = btrfs.subvolume_info(fd)
            copied[info.uuid] = Copied(transid, moment, info.otime, _top(fd))
        finally:
            os.close(fd)
    known = replace(known, generations=(*known.generations, name), copied=copied)
    adoptstate.write(work.volume, known)
    point("known")
    return known


def move(work: Work, plan: Plan, aside: str) -> None:
    """Each copy takes the place of an earlier one, which lies in the journal then: it goes when `current` has moved."""
    commons = files.open_beneath(work.volume.top, "commons", _DIRECTORY)
    place = files.open_beneath(work.volume.top, f"{journal.STAGING}/{aside}", _DIRECTORY)
    try:
        for name in _names(plan):
            if btrfs.is_subvolume(commons, name):
                exchange.exchange(place, name, commons, name)
            else:
                os.rename(name, name, src_dir_fd=place, dst_dir_fd=commons)
            point("moved")
    finally:
        os.close(place)
        os.close(commons)
