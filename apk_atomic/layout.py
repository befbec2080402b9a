"""The layout of a new volume (design, section 3): file systems, directories, commons, and the fstab template.

Durable when `make` returns: all of it. There is no `current` yet; the first generation comes with it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from apk_atomic import btrfs, disks, files, fstab, mounts
from apk_atomic.errors import AtomicError
from apk_atomic.fstab import ESP_POINT as ESP_POINT
from apk_atomic.fstab import mountpoint as mountpoint
from apk_atomic.journal import LINKS, NEXT, SNAPSHOTS, STAGING
from apk_atomic.lock import make_run_directory
from apk_atomic.partition import must
from apk_atomic.signals import Signals
from apk_atomic.volume import TOP_LEVEL

COMMONS, STATE = "commons", "state"


def make_volume(device: str, label: str, signals: Signals) -> None:
    """A btrfs on the whole device."""
    must(["mkfs.btrfs", "--force", "--quiet", "--label", label, device], signals, hint="apk add btrfs-progs")


def make_esp(device: str, signals: Signals) -> None:
    """A FAT32 on the whole device: what every firmware reads."""
    must(["mkfs.vfat", "-F", "32", "-n", "ESP", device], signals, hint="apk add dosfstools")


def make_swap(device: str, signals: Signals) -> None:
    must(["mkswap", device], signals, hint="apk add util-linux-misc")


def set_label(device: str, label: str, signals: Signals) -> None:
    """The label of a volume that is not mounted; durable."""
    must(["btrfs", "filesystem", "label", device, label], signals, hint="apk add btrfs-progs")
    with open(device, "rb+") as disk:
        os.fsync(disk.fileno())


def fat_uuid(device: str) -> str:
    """The serial of a FAT as fstab has it, 1234-ABCD; "" where there is none."""
    return _uuid_of(device, "vfat")


def swap_uuid(device: str) -> str:
    """The UUID in the header of a swap area; "" where it has none."""
    return _uuid_of(device, "swap")


def _uuid_of(device: str, wanted: str) -> str:
    kind, uuid, _ = disks.identify(disks.head_of(device))
    return uuid if kind == wanted else ""


def template(fsid: str, commons: Sequence[str], esp: str, swap: str) -> str:
    """The fstab template; `esp` and `swap` are UUIDs, "" for none. The ESP is mounted by hand only: nothing that
    runs daily needs it, and a FAT that is not mounted cannot be damaged."""
    lines = [f"UUID={fsid} / btrfs ro,noatime,subvol={fstab.PLACEHOLDER}/@ 0 0"]
    shared = _ordered(commons)
    lines += [f"UUID={fsid} {mountpoint(name)} btrfs rw,noatime,subvol=/{COMMONS}/{name} 0 0" for name in shared]
    lines += [f"UUID={esp} {ESP_POINT} vfat noauto,noatime,umask=0077 0 0"] if esp else []
    lines += [f"UUID={swap} none swap sw 0 0"] if swap else []
    return "\n".join((*lines, "tmpfs /tmp tmpfs mode=1777,nosuid,nodev 0 0", ""))


def _ordered(commons: Sequence[str]) -> list[str]:
    """Those in which others are mounted come before these: @var before @var@log."""
    return sorted(commons, key=lambda name: name.count("@"))


def make(device: str, commons: Sequence[str], text: str) -> None:
    """Everything at the top level but the first generation; `text` is the fstab template.

    Mounts in the mount namespace of this process, which has to be private already.
    """
    make_run_directory()
    os.makedirs(TOP_LEVEL, mode=0o700, exist_ok=True)
    try:
        mounts.mount(device, TOP_LEVEL, "btrfs", mounts.NOATIME, "subvolid=5")
    except OSError as error:
        raise AtomicError(f"the new volume cannot be mounted: {error.strerror}", hint="dmesg says why") from error
    top = os.open(TOP_LEVEL, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name, mode in ((SNAPSHOTS, 0o755), (LINKS, 0o755), (NEXT, 0o755), (COMMONS, 0o755), (STATE, 0o755),
                           (STAGING, 0o700)):  # fmt: skip
            os.mkdir(name, mode, dir_fd=top)
        place = files.open_beneath(top, COMMONS, os.O_RDONLY | os.O_DIRECTORY)
        for name in _ordered(commons):
            btrfs.create_subvolume(place, name)
            above = max((each for each in commons if name.startswith(f"{each}@")), key=len, default="")
            if above:
                os.makedirs(f"{TOP_LEVEL}/{COMMONS}/{above}/{name.removeprefix(f'{above}@').replace('@', '/')}")
        os.close(place)
        files.write_atomic(top, "fstab", text.encode(), 0o644)
        files.syncfs(top)
    finally:
        os.close(top)
        mounts.unmount(TOP_LEVEL)
