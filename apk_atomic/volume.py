"""The opened volume: its top level, the slots, and which generations there are, read as they are.

Nothing here changes a byte of the volume. Whatever is damaged (a record, a slot, a stray file in `snapshots/`) is
reported as such and never stops the reading of the rest; only a `current` that names no links directory is an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from apk_atomic import btrfs, files, generations, mounts
from apk_atomic.errors import CheckFailed, NotSuchRoot
from apk_atomic.locate import Located
from apk_atomic.lock import RUN, make_run_directory
from apk_atomic.model import Generation, State
from apk_atomic.names import is_safe_name

PENDING = f"{RUN}/next"
TOP_LEVEL = f"{RUN}/top"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_TOP_LEVEL_ONLY = "subvolid=5"


class Volume(NamedTuple):
    """A volume whose top level is open as `top`; `booted` as in Located."""

    device: str
    fsid: str
    booted: str | None
    top: int
    read_only: bool

    @property
    def running(self) -> bool:
        return self.booted is not None


@contextmanager
def opened(located: Located, *, writable: bool) -> Iterator[Volume]:
    """Mounts the top level (noatime) in this process's mount namespace, which must be private already.

    The mount goes with that namespace, that is with this process. What is only read is mounted read-only; a volume
    that cannot be written to is too, and says so. Raises NotSuchRoot when the device cannot be
    mounted as btrfs or does not have the layout.
    """
    make_run_directory()
    os.makedirs(TOP_LEVEL, mode=0o700, exist_ok=True)
    read_only = _mount_top(located.device, writable=writable)
    top = os.open(TOP_LEVEL, _DIRECTORY | os.O_CLOEXEC)
    try:
        _require_layout(top, located.device)
        yield Volume(located.device, located.fsid, located.booted, top, read_only)
    finally:
        os.close(top)
        # detached: the namespace is ours and ends with us, and what is still open here must not decide the exit status;
        # nor must it hide why a process that already moved into another root could not go on there
        with suppress(OSError):
            mounts.unmount(TOP_LEVEL, mounts.DETACH)


def _mount_top(device: str, *, writable: bool) -> bool:
    """Whether the mount is read-only."""
    if writable:
        with suppress(OSError):
            mounts.mount(device, TOP_LEVEL, "btrfs", mounts.NOATIME, _TOP_LEVEL_ONLY)
            return False
    try:
        mounts.mount(device, TOP_LEVEL, "btrfs", mounts.NOATIME | mounts.RDONLY, _TOP_LEVEL_ONLY)
    except OSError as error:
        raise NotSuchRoot(
            f"cannot mount the top level of {device}: {error.strerror}; nothing was changed", hint="dmesg says why"
        ) from error
    return True


def _require_layout(top: int, device: str) -> None:
    missing = [name for name in ("snapshots", "links") if not _is_directory(top, name)]
    if missing:
        raise NotSuchRoot(
            f"the top level of {device} has no {' and no '.join(missing)}; nothing was changed",
            hint="apk-atomic init makes the layout on a new volume",
        )


def _is_directory(top: int, name: str) -> bool:
    try:
        os.close(files.open_beneath(top, name, _DIRECTORY))
    except OSError:
        return False
    return True


# ---- the pointer and its slots ---------------------------------------------------------------------------


def current_links(volume: Volume) -> str:
    """The ID of the links directory that `current` names; CheckFailed when it is no such link."""
    hint = "mount the top level (subvolid=5) and point it at a directory of links/: ln -sfn ./links/ID current"
    try:
        target = os.readlink("current", dir_fd=volume.top)
    except FileNotFoundError:
        raise NotSuchRoot("the volume has no `current`; nothing was changed", hint=hint) from None
    except OSError as error:
        what = f"`current` is not a symbolic link ({error.strerror}); nothing was changed"
        raise CheckFailed(what, hint=hint) from None
    name = links_of(target)
    if name is None:
        raise CheckFailed(f"`current` points to {target!r}, not to ./links/ID; nothing was changed", hint=hint)
    if not _is_directory(volume.top, f"links/{name}"):
        raise CheckFailed(f"`current` points to links/{name}, which does not exist; nothing was changed", hint=hint)
    return name


def links_of(target: str) -> str | None:
    """The ID in a link text `./links/ID`, None for any other text."""
    name = target.removeprefix("./").rstrip("/")
    if not name.startswith("links/"):
        return None
    name = name.removeprefix("links/")
    return name if is_safe_name(name) else None


def slot_target(text: str) -> str | None:
    """The ID in a link text `../../snapshots/ID`, None for any other text: such a slot is not ours to follow."""
    name = text.rstrip("/")
    if not name.startswith("../../snapshots/"):
        return None
    name = name.removeprefix("../../snapshots/")
    return name if is_safe_name(name) else None


def slot_links(volume: Volume, links: str) -> tuple[str, ...]:
    """What slots 0… of a links directory name; '' for a link that is missing or leads not to `snapshots/ID`."""
    fd = files.open_beneath(volume.top, f"links/{links}", _DIRECTORY)
    try:
        numbers = [int(name) for name in os.listdir(fd) if name.isascii() and name.isdigit() and len(name) < 4]
        found = []
        for number in range(max(numbers, default=-1) + 1):
            try:
                found.append(slot_target(os.readlink(str(number), dir_fd=fd)) or "")
            except OSError:
                found.append("")
        return tuple(found)
    finally:
        os.close(fd)


def pending_ids() -> tuple[str, ...]:
    """The lines of /run/apk-atomic/next: links directories that this boot's commits moved `current` to.

    Usually one. During a commit there are two, the new one first: whichever side of the rename a power
    cut or a kill leaves us on, the pending generation stays known as pending.
    """
    try:
        with open(PENDING, encoding="utf-8", errors="surrogateescape") as file:
            return tuple(file.read(1024).split())
    except OSError:
        return ()


# ---- generations -----------------------------------------------------------------------------------------


def read_state(volume: Volume, *, records: bool = False) -> State:
    """All generations, the slots and what is booted; of the generations also their `records`, if asked for."""
    links = current_links(volume)
    return _state(volume, links, slot_links(volume, links), tuple(_generations(volume, records=records)))


def _state(volume: Volume, links: str, named: tuple[str, ...], found: tuple[Generation, ...]) -> State:
    known = {each.id for each in found}
    slots = tuple(name if name in known else "" for name in named)
    moved = volume.running and links in pending_ids()
    pending = moved and bool(slots) and slots[0] != volume.booted
    return State(
        generations=found,
        slots=slots,
        booted=volume.booted,
        pending=pending,
        chosen=pending and slots[0] != links,  # a commit gives both the same ID
        links=links,
    )


def read_slots(volume: Volume) -> State:
    """The same state, but of all generations only those in a slot and the booted one."""
    links = current_links(volume)
    named = slot_links(volume, links)
    snapshots = files.open_beneath(volume.top, "snapshots", _DIRECTORY)
    try:
        wanted = [name for name in dict.fromkeys([*named, volume.booted or ""]) if name]
        found = [generations.read(snapshots, name) for name in wanted]
    finally:
        os.close(snapshots)
    return _state(volume, links, named, tuple(each for each in found if each is not None))


def read_again(volume: Volume, known: State, names: Iterable[str]) -> State:
    """The state now, in which only the generations `names` are read anew; of the others it has what was `known`."""
    links = current_links(volume)
    wanted = dict.fromkeys(names)
    snapshots = files.open_beneath(volume.top, "snapshots", _DIRECTORY)
    try:
        found = [generations.read(snapshots, name) for name in wanted]
    finally:
        os.close(snapshots)
    kept = [each for each in known.generations if each.id not in wanted]
    return _state(volume, links, slot_links(volume, links), (*kept, *(each for each in found if each is not None)))


def count_generations(volume: Volume) -> int:
    """How many names `snapshots/` holds that may be generations."""
    return sum(is_safe_name(name) for name in files.list_names(volume.top, "snapshots"))


def _generations(volume: Volume, *, records: bool) -> Iterator[Generation]:
    snapshots = files.open_beneath(volume.top, "snapshots", _DIRECTORY)
    try:
        for name in sorted(os.listdir(snapshots)):
            if is_safe_name(name) and (found := generations.read(snapshots, name, records=records)):
                yield found
    finally:
        os.close(snapshots)


def open_root(volume: Volume, name: str, path: str = "@") -> int:
    """A descriptor of the generation's root; CheckFailed when it cannot be opened."""
    try:
        return files.open_beneath(volume.top, f"snapshots/{name}/{path}", _DIRECTORY)
    except OSError as error:
        raise CheckFailed(f"cannot open generation {name}: {error.strerror}; nothing was changed") from error


def kernel_releases(volume: Volume, name: str) -> tuple[str, ...]:
    """The releases that usr/share/kernel/FLAVOR/kernel.release of a generation name; () where it has none."""
    from apk_atomic import kernel  # of use to status and rollback only

    try:
        root = open_root(volume, name)
    except CheckFailed:
        return ()
    try:
        return tuple(each.release for each in kernel.kernels(root) if each.release)
    finally:
        os.close(root)


def subvolumes_of(volume: Volume, name: str) -> list[str]:
    """Names of the subvolumes in `snapshots/NAME`, `@` first."""
    directory = files.open_beneath(volume.top, f"snapshots/{name}", _DIRECTORY)
    try:
        found = [entry for entry in os.listdir(directory) if btrfs.is_subvolume(directory, entry)]
        return sorted(found, key=lambda entry: (entry != "@", entry))
    finally:
        os.close(directory)
