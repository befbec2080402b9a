"""The block devices of this machine: what lies on them, by superblock, and which modules of the kernel drive them.

Read from sysfs and the devices themselves: busybox's mdev makes no /dev/disk, and blkid would be a process. Whatever
cannot be read is not there. Nothing is written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

SYSFS, DEV = "/sys/class/block", "/dev"
_HEAD = 0x11000  # bytes; the last superblock that we look for is btrfs's, at 64 KiB
_SLOW = ("sr", "fd", "zram", "ram", "mtd")  # drives that may have to spin up, and what holds no file system
_HIGHEST = 32  # directories of sysfs above a disk
_LINKS = {"PARTUUID": "by-partuuid", "PARTLABEL": "by-partlabel", "ID": "by-id"}
_UEVENT = {"PARTUUID": "PARTUUID", "PARTLABEL": "PARTNAME"}


class Area(NamedTuple):
    """A block device with something that has a UUID on it; `kind` as fstab's third field has it."""

    device: str
    kind: str
    uuid: str
    label: str


def areas(sysfs: str = SYSFS, dev: str = DEV) -> Iterator[Area]:
    """Every file system and swap area that is at hand, one by one."""
    for name in _names(sysfs):
        kind, uuid, label = identify(head_of(f"{dev}/{name}"))
        if kind:
            yield Area(f"{dev}/{name}", kind, uuid, label)


def is_missing(uuid: str, sysfs: str = SYSFS, dev: str = DEV) -> bool:
    """Whether no file system or swap area at hand has the UUID; False too where nothing at all could be read.

    The link that udev or Alpine's mdev makes saves reading every device, and is believed only where its device has it.
    """
    wanted = uuid.lower()
    if wanted and "/" not in wanted and identify(head_of(f"{dev}/disk/by-uuid/{uuid}"))[1].lower() == wanted:
        return False
    found = False
    for area in areas(sysfs, dev):
        if area.uuid.lower() == wanted:
            return False
        found = True
    return found


def find(spec: str, sysfs: str = SYSFS, dev: str = DEV) -> str:
    """The device that a path, UUID=, LABEL=, PARTUUID=, PARTLABEL= or MAJOR:MINOR means; "" where it is not here."""
    key, equals, value = spec.partition("=")
    value = value.strip('"')
    if not equals:
        return _by_number(spec, sysfs, dev) if ":" in spec else spec if os.path.exists(spec) else ""
    if key in ("UUID", "LABEL"):
        for area in areas(sysfs, dev):
            if value and (area.uuid.lower() == value.lower() if key == "UUID" else area.label == value):
                return area.device
        return ""
    link = f"{dev}/disk/{_LINKS.get(key, key.lower())}/{value}"
    return os.path.realpath(link) if os.path.exists(link) else _by_uevent(_UEVENT.get(key, ""), value, sysfs, dev)


def identify(head: bytes) -> tuple[str, str, str]:
    """Kind, UUID and label by the first bytes of a device; three times "" for what is not known."""
    if head[0x10040:0x10048] == b"_BHRfS_M":
        return "btrfs", _uuid(head[0x10020:0x10030]), _text(head[0x1012B:0x1022B])
    if head[0x438:0x43A] == b"\x53\xef":
        return "ext4", _uuid(head[0x468:0x478]), _text(head[0x478:0x488])
    if head[:4] == b"XFSB":
        return "xfs", _uuid(head[32:48]), _text(head[108:120])
    if head[510:512] == b"\x55\xaa" and (head[82:87] == b"FAT32" or head[54:57] == b"FAT"):
        at = 67 if head[82:87] == b"FAT32" else 39
        serial = head[at : at + 4][::-1].hex().upper()
        return "vfat", f"{serial[:4]}-{serial[4:]}", _text(head[at + 4 : at + 15]).rstrip()
    # the signature at the end of its page may be a hibernated system's now; version 1 stands before all UUIDs
    if head[1024:1028] == b"\1\0\0\0" and any(head[page - 10 : page] in _SWAP for page in (4096, 16384, 65536)):
        return "swap", _uuid(head[1036:1052]), _text(head[1052:1068])
    if head[:6] == b"LUKS\xba\xbe":
        return "crypto_LUKS", _text(head[168:208]), _text(head[24:72]) if head[6:8] == b"\0\2" else ""
    return "", "", ""


_SWAP = (b"SWAPSPACE2", b"S1SUSPEND\0", b"S2SUSPEND\0", b"LINHIB0001")


def modules_of(device: str, sysfs: str = SYSFS) -> tuple[str, ...]:
    """The modules that drive a block device and all that it stands on, down to the bus; a driver without a module is
    built in."""
    found: dict[str, None] = {}
    rest, seen = [os.path.basename(os.path.realpath(device))], set[str]()
    while rest:
        name = rest.pop()
        if name in seen:
            continue
        seen.add(name)
        place = os.path.realpath(f"{sysfs}/{name}")
        found |= dict.fromkeys((*_stacked(place, name), *_drivers(place)))
        for each in (place, os.path.dirname(place)):  # a partition lies below its disk
            with suppress(OSError):
                rest += os.listdir(f"{each}/slaves")
    return tuple(found)


def _stacked(place: str, name: str) -> Iterator[str]:
    """What sysfs names no driver for."""
    if name.startswith("dm-"):
        yield "dm_mod"
        if _line(f"{place}/dm/uuid").startswith("CRYPT-"):
            yield "dm_crypt"
    if name.startswith("md"):
        yield "md_mod"
        level = _line(f"{place}/md/level")
        if level.startswith("raid"):
            yield level
    if name.startswith("nvme"):  # with multipath it is a virtual device
        yield "nvme"


def _drivers(place: str) -> Iterator[str]:
    for _ in range(_HIGHEST):
        module = f"{place}/driver/module"
        if os.path.exists(module):
            yield os.path.basename(os.path.realpath(module))
        above = os.path.dirname(place)
        if above == place:
            return
        place = above


def _names(sysfs: str) -> list[str]:
    """Block devices that hold something and are quick to ask."""
    try:
        names = sorted(os.listdir(sysfs))
    except OSError:
        return []
    return [name for name in names if not name.startswith(_SLOW) and _line(f"{sysfs}/{name}/size") not in ("", "0")]


def head_of(path: str) -> bytes:
    """What `identify` needs of a device or image; nothing where it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.pread(fd, _HEAD, 0)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _by_number(spec: str, sysfs: str, dev: str) -> str:
    for name in _names(sysfs):
        if _line(f"{sysfs}/{name}/dev") == spec:
            return f"{dev}/{name}"
    return ""


def _by_uevent(key: str, value: str, sysfs: str, dev: str) -> str:
    """Kernels from 6.9 on say a partition's UUID, all of them its name."""
    for name in _names(sysfs) if key else []:
        with suppress(OSError), open(f"{sysfs}/{name}/uevent", encoding="utf-8", errors="replace") as file:
            if any(line.lower() == f"{key}={value}".lower() for line in file.read().splitlines()):
                return f"{dev}/{name}"
    return ""


def _line(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(256).strip()
    except OSError:
        return ""


def _uuid(raw: bytes) -> str:
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}" if any(raw) else ""


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "replace")
