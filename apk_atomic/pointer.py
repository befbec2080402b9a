"""The pointer `current`: laid out aside, checked, switched by one rename, and made durable by syncfs.

`current` and its directory are never fsync()ed: boot loaders do not replay the btrfs log tree, so after an fsync the
kernel sees the new link and the boot loader the old one (design, section 4).
"""

from __future__ import annotations

import os
from contextlib import suppress

from apk_atomic import files
from apk_atomic.errors import CheckFailed, NotDurable
from apk_atomic.faults import point
from apk_atomic.journal import LINKS, NEXT, SNAPSHOTS, open_place
from apk_atomic.lock import RUN
from apk_atomic.volume import PENDING, Volume, current_links, links_of, pending_ids, slot_links

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


def lay_out(volume: Volume, name: str, slots: tuple[str, ...]) -> None:
    """Makes `links/NAME/0…` and `next/current-NAME`; not durable before the seal or a syncfs."""
    os.mkdir(f"{LINKS}/{name}", 0o755, dir_fd=volume.top)
    links = files.open_beneath(volume.top, f"{LINKS}/{name}", _DIRECTORY)
    try:
        for number, generation in enumerate(slots):
            os.symlink(f"../../{SNAPSHOTS}/{generation}", str(number), dir_fd=links)
    finally:
        os.close(links)
    point("links")
    link_next(volume, name)
    point("laid-out")


def link_next(volume: Volume, name: str, links: str = "") -> None:
    """`next/current-NAME`, which leads to `links/LINKS`, by default `links/NAME`, once it has become `current`."""
    scratch = open_place(volume.top, NEXT)
    try:
        os.symlink(f"./{LINKS}/{links or name}", f"current-{name}", dir_fd=scratch)
    finally:
        os.close(scratch)


def check(volume: Volume, name: str, before: str, boot_paths: tuple[str, ...]) -> None:
    """Reads the new pointer as a boot loader will, and that nobody else has moved the old one meanwhile.

    Every slot must lead to a root; `boot_paths` are relative to that in slot 0, resolved inside it. `before` is "" on a
    volume that is being made and has no pointer yet. Raises CheckFailed; nothing is changed.
    """
    if links_of(os.readlink(f"{NEXT}/current-{name}", dir_fd=volume.top)) != name:
        raise CheckFailed(f"{NEXT}/current-{name} was changed by somebody else; nothing was changed")
    slots = slot_links(volume, name) or ("",)
    for number, generation in enumerate(slots):
        root = _open_slot(volume, number, generation)
        try:
            for path in boot_paths if number == 0 else ():
                _require(root, path)
        finally:
            os.close(root)
    if before and current_links(volume) != before:
        raise CheckFailed(
            "`current` was moved by somebody else while this transaction ran; it is discarded",
            hint="run the command again: it starts from what is current now",
        )
    point("checked")


def _open_slot(volume: Volume, number: int, generation: str) -> int:
    try:
        return files.open_beneath(volume.top, f"{SNAPSHOTS}/{generation}/@" if generation else "", _DIRECTORY)
    except OSError as error:
        raise CheckFailed(
            f"slot {number} of the new pointer leads to no generation: somebody has changed it meanwhile; "
            "nothing was changed",
            hint="run the command again: it starts from what is there now",
        ) from error


def _require(root: int, path: str) -> None:
    try:
        os.close(files.open_beneath(root, path, os.O_PATH, resolve=files.LOADER))
    except OSError as error:
        raise CheckFailed(
            f"the boot menu names {path}, which a boot loader cannot find in the new generation ({error.strerror}); "
            "nothing was changed",
            hint="a file there, or a relative link to one, is what it can read",
        ) from error


def switch(volume: Volume, name: str, before: str) -> None:
    """The commit: `current` becomes `links/NAME` by one rename, durable when this returns.

    Raises NotDurable when the disk does not confirm it; the rename has then been taken back as far as the disk lets us.
    """
    was_pending = before if before in pending_ids() else ""
    if volume.running:
        write_pending((name, was_pending))
    try:
        point("pending")
        os.rename(f"{NEXT}/current-{name}", "current", src_dir_fd=volume.top, dst_dir_fd=volume.top)
    except OSError:
        _unmark(volume, was_pending)
        raise
    try:
        point("renamed")
        files.syncfs(volume.top)
    except OSError as error:
        _take_back(volume, name, before, was_pending)
        raise NotDurable(
            f"the disk did not confirm the switch to {name} ({error.strerror}); the new generation may or may not boot",
            hint="dmesg says what is wrong with the disk; apk-atomic status shows what is next",
        ) from error


def confirm(volume: Volume, name: str) -> None:
    """After the switch: `name` alone counts as pending. What fails here leaves a mark that is right as well."""
    point("synced")
    if volume.running:
        write_pending((name,))


def _take_back(volume: Volume, name: str, before: str, was_pending: str) -> None:
    """The switch once more, to where `current` was; its scratch link is one that recovery knows."""
    try:
        if before:
            link_next(volume, name, before)
            os.rename(f"{NEXT}/current-{name}", "current", src_dir_fd=volume.top, dst_dir_fd=volume.top)
        else:
            os.unlink("current", dir_fd=volume.top)
        files.syncfs(volume.top)
    except OSError:
        return  # the disk is gone; NotDurable says that nobody knows
    _unmark(volume, was_pending)


def _unmark(volume: Volume, was_pending: str) -> None:
    """Nothing was switched: what was pending before is so again. The next recovery forgets a wrong mark."""
    if volume.running:
        with suppress(OSError):
            write_pending((was_pending,))


def write_pending(ids: tuple[str, ...]) -> None:
    """`/run/apk-atomic/next`: the links directories that count as moved during this boot; none: no file."""
    lines = [each for each in ids if each]
    if not lines:
        clear_pending()
        return
    run = os.open(RUN, _DIRECTORY | os.O_CLOEXEC)
    try:
        files.write_atomic(run, "next", "".join(f"{line}\n" for line in lines).encode(), 0o644)
    except OSError as error:
        raise OSError(error.errno, error.strerror, PENDING) from error
    finally:
        os.close(run)


def clear_pending() -> None:
    """Removes the file; without it nothing is pending."""
    try:
        os.unlink(PENDING)
    except FileNotFoundError:
        return
