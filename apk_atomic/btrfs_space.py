"""How much room a btrfs volume has for data and, what runs out first on full snapshots, for metadata. Sizes
in bytes."""

from __future__ import annotations

from typing import NamedTuple

from apk_atomic import btrfs_ioctl as raw

_DATA, _METADATA = 1 << 0, 1 << 2
_GLOBAL_RESERVE = 1 << 49  # kept by btrfs for its own needs; counted inside metadata
# flag bit of raid1, dup, raid10, raid5, raid6, raid1c3, raid1c4
_COPIES = {4: 2, 5: 2, 6: 2, 7: 2, 8: 3, 9: 3, 10: 4}


class Group(NamedTuple):
    """One kind of block group: what is allocated to it and used of that, in bytes of content, not of disk."""

    flags: int
    total: int
    used: int

    @property
    def copies(self) -> int:
        """Bytes of disk per byte of content, at most (raid5 and raid6 need less on many devices)."""
        return next((copies for bit, copies in _COPIES.items() if self.flags & 1 << bit), 1)


class Space(NamedTuple):
    """`unallocated` is raw disk, usable for either kind: `data_free` and `metadata_free` each count it whole,
    as an estimate of how much of that kind could still be written if the other grew no more."""

    total: int
    unallocated: int
    data_free: int
    metadata_free: int


def estimate(total: int, unallocated: int, groups: list[Group]) -> Space:
    """Pure: what is free, from sizes of the devices and of the block groups."""
    reserve = sum(group.total for group in groups if group.flags & _GLOBAL_RESERVE)
    plain = [group for group in groups if not group.flags & _GLOBAL_RESERVE]

    def free(kind: int) -> int:
        mine = [group for group in plain if group.flags & kind]
        copies = max((group.copies for group in mine), default=1)
        return sum(group.total - group.used for group in mine) + unallocated // copies

    return Space(total, unallocated, free(_DATA), max(0, free(_METADATA) - reserve))


def groups(fd: int) -> list[Group]:
    """SPACE_INFO: the block groups of the volume of `fd`, the global reserve among them."""
    count, label = 0, "btrfs space"
    while True:
        buffer = bytearray(raw.SPACE_ARGS.size + count * raw.SPACE_INFO.size)
        raw.SPACE_ARGS.pack_into(buffer, 0, count, 0)
        raw.call(fd, raw.IOC_SPACE_INFO, buffer, label)
        available = raw.SPACE_ARGS.unpack_from(buffer)[1]
        if count:
            end = raw.SPACE_ARGS.size + min(count, available) * raw.SPACE_INFO.size
            return [Group(*row) for row in raw.SPACE_INFO.iter_unpack(buffer[raw.SPACE_ARGS.size : end])]
        count = available
