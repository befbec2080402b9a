"""What can be refused before a byte is written: space, default subvolume, sleeping system, base (design, section 4).

Only reads; nothing here is durable.
"""

from __future__ import annotations

from apk_atomic import btrfs, hibernation, volume
from apk_atomic.errors import CheckFailed, NoSpace
from apk_atomic.faults import point
from apk_atomic.model import State
from apk_atomic.names import is_safe_name
from apk_atomic.retention import Base, choose_base
from apk_atomic.session import Work

_TOP_LEVEL_ID = 5
_ROOM = "apk-atomic gc collects old generations"


def base_of(work: Work, wanted: str | None) -> Base:
    """The base of a transaction, after everything that can be refused before a byte is written.

    Raises NoSpace, CheckFailed, Refused, UsageError.
    """
    state = _state_for_base(work, wanted)
    require_default_subvolume(work)
    require_space(work)
    require_awake(work)
    base = choose_base(state, wanted)
    if base.leaves_out:
        work.console.warn(f"pending {base.leaves_out} is not part of this generation, which starts from {base.id}")
    work.signals.check()
    point("preflight")
    return base


def require_default_subvolume(work: Work) -> None:
    """The boot loader starts at the default subvolume, so it has to be the top level. Raises CheckFailed."""
    default = btrfs.default_subvolume(work.volume.top)
    if default != _TOP_LEVEL_ID:
        raise CheckFailed(
            f"the default subvolume is {default}, not {_TOP_LEVEL_ID}: the boot loader would look for "
            "/current in the wrong place; nothing was changed",
            hint="mount the volume with -o subvolid=5 at /mnt, then: btrfs subvolume set-default 5 /mnt",
        )


def require_awake(work: Work) -> None:
    """Nothing is changed under a system that sleeps. Raises CheckFailed."""
    if text := sleeping(work):
        hint = "let it resume and shut it down, or drop it: mkswap, with the same UUID (-U), on that device"
        raise CheckFailed(f"{text}; nothing was changed", hint=hint)


def sleeping(work: Work) -> str:
    """What is to be said of a hibernated system that would come back on this volume; "" where none waits."""
    found = hibernation.waiting_in(work.volume.top, running=work.volume.running)
    if found is None:
        return ""
    return f"resume={found.spec} holds a hibernated system, which would come back on a volume that changed under it"


def require_space(work: Work, room: str = _ROOM) -> None:
    """Raises NoSpace, with the hint `room`, where the volume has less room than the configuration asks for."""
    free = btrfs.space(work.volume.top)
    least = work.config.volume
    for kind, has, needs in (
        ("data", free.data_free, least.min_free_data),
        ("metadata", free.metadata_free, least.min_free_metadata),
    ):
        if has < needs:
            raise NoSpace(
                f"only {has >> 20} MiB are free for {kind} on the volume, {needs >> 20} MiB are needed; "
                "nothing was changed",
                hint=f"{room}; [volume] min_free_* sets the limits",
            )


def _state_for_base(work: Work, wanted: str | None) -> State:
    """What a base is chosen by: the generations in the slots, the booted one, and the one that is wanted."""
    state = volume.read_slots(work.volume)
    return volume.read_again(work.volume, state, (wanted,)) if wanted and is_safe_name(wanted) else state
