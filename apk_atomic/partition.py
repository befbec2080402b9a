"""The disk, image file or partition that a system is made on: looked at, divided, and its parts as devices.

While it is being made it bears the name UNFINISHED (of the volume's partition, or of the volume itself), so that a run
that died can be told from a disk with something on it. Durable when `divide` and `finish` return: the table.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from apk_atomic import loop, mounts, process
from apk_atomic.console import size as for_people
from apk_atomic.errors import CannotRun, CheckFailed, NoSpace, Refused, UsageError
from apk_atomic.signals import Signals

UNFINISHED = "apk-atomic-unfinished"
MIB = 1 << 20
LEAST_ESP, LEAST_VOLUME = 36 * MIB, 256 * MIB  # FAT32 needs so many clusters; btrfs and a small system
_GETSIZE64, _SSZGET = 0x80081272, 0x1268  # BLKGETSIZE64, BLKSSZGET, <linux/fs.h>
_SECTOR = 512
_CHUNK, _ENDS = 1 << 20, 1 << 22  # bytes read at once, and at both ends of a device
_TYPES = {
    "ESP": "C12A7328-F81F-11D2-BA4B-00A0C93EC93B",
    "SWAP": "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F",
    "ROOT": "0FC63DAF-8483-4772-8E79-3D69D8477DE4",
}
_LABEL_AT, _LABEL_SIZE = 0x10000 + 0x12B, 256  # of btrfs's first superblock
_LARGER = "--size makes an image file larger"
_BLOCK = "/sys/class/block"
_WAIT, _POLL = 5.0, 0.02  # seconds until the kernel and mdev or udev have made the nodes


@dataclass(frozen=True, slots=True)
class Target:
    """`size` in bytes, `sector` the logical one; `is_image`: a file, else a block device."""

    path: str
    size: int
    sector: int
    is_image: bool


@dataclass(frozen=True, slots=True)
class Part:
    """A partition: `role` is ESP, SWAP or ROOT; `start` and `size` in bytes, `guid` in lower case."""

    role: str
    number: int
    start: int
    size: int
    guid: str


def look_at(path: str) -> Target:
    """What `path` is. Raises UsageError for what is neither a block device nor a file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; nothing was changed") from error
    try:
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode):
            return image(os.path.realpath(path), found.st_size)
        if not stat.S_ISBLK(found.st_mode):
            raise UsageError(f"{path} is neither a block device nor an image file; nothing was changed")
        size, sector = bytearray(8), bytearray(4)
        fcntl.ioctl(fd, _GETSIZE64, size)
        fcntl.ioctl(fd, _SSZGET, sector)
        real = os.path.realpath(path)
        return Target(real, struct.unpack("=Q", size)[0], struct.unpack("=I", sector)[0], is_image=False)
    finally:
        os.close(fd)


def image(path: str, size: int) -> Target:
    """An image file, which need not be there yet."""
    return Target(path, size, _SECTOR, is_image=True)


def has_data(target: Target) -> bool:
    """Whether anything but zeros is in an image file, whose holes are not read, or near the ends of a device: there
    it is where encryption without a header leaves no signature."""
    try:
        fd = os.open(target.path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return any(chunk.strip(b"\0") for chunk in (_data(fd) if target.is_image else _ends(fd, target.size)))
    except OSError as error:
        if error.errno != errno.ENXIO:  # nothing but a hole from here to the end
            raise UsageError(f"{target.path}: {error.strerror}; nothing was changed") from error
    finally:
        os.close(fd)
    return False


def _data(fd: int) -> Iterator[bytes]:
    """What is between the holes of a file; ENXIO in the end where that is a hole."""
    start = 0
    while chunk := os.pread(fd, _CHUNK, start := os.lseek(fd, start, os.SEEK_DATA)):
        yield chunk
        start += len(chunk)


def _ends(fd: int, size: int) -> Iterator[bytes]:
    """The first and the last bytes of a device, _ENDS each."""
    for start in (*range(0, _ENDS, _CHUNK), *range(max(size - _ENDS, 0), size, _CHUNK)):
        yield os.pread(fd, _CHUNK, start)


def is_partition(target: Target) -> bool:
    """Whether the kernel knows it as a part of a disk."""
    return not target.is_image and os.path.exists(f"{_BLOCK}/{os.path.basename(target.path)}/partition")


def require_unused(target: Target) -> None:
    """Raises Refused for what is mounted, swapped to, or part of something bigger: nothing may force that."""
    why = _user(target)
    if why:
        raise Refused(f"{target.path} is in use: {why}; nothing was changed", hint="unmount it, or detach it, first")


def _user(target: Target) -> str:
    if target.is_image:
        nodes = loop.over(target.path)
        return f"it is attached as {', '.join(nodes)}" if nodes else ""
    points = [mount.point for mount in mounts.mount_table() if _is_of(mount.source, target.path)]
    if points:
        return f"mounted at {', '.join(points)}"
    try:
        os.close(os.open(target.path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return "mounted in another namespace, swapped to, or held by LVM, RAID or encryption"
        raise UsageError(f"{target.path}: {error.strerror}; nothing was changed") from error
    return ""


def _is_of(device: str, disk: str) -> bool:
    """Whether `device` is `disk` or, as the kernel names them, a partition of it: sda1; nvme0n1p2 after a digit."""
    if not device.startswith(disk):
        return False
    rest = device[len(disk) :]
    number = rest.removeprefix("p") if disk[-1].isdigit() else rest
    return not rest or (number.isdigit() and (number != rest or not disk[-1].isdigit()))


def signatures(target: Target, signals: Signals) -> tuple[str, ...]:
    """What tools see on it: ("gpt",), ("ext4",) …; () for a blank one."""
    argv = ["wipefs", "--no-act", "--noheadings", "--output", "TYPE", target.path]
    done = must(argv, signals, hint="apk add wipefs")
    return tuple(dict.fromkeys(done.split()))


def is_unfinished(target: Target, signals: Signals) -> bool:
    """Whether an earlier init died on it: then there is nothing on it that anybody would miss."""
    done = process.run(["sfdisk", "--dump", target.path], signals)
    return f'name="{UNFINISHED}"' in done.output or _btrfs_label(target.path) == UNFINISHED


def _btrfs_label(path: str) -> str:
    with open(path, "rb") as disk:
        disk.seek(_LABEL_AT)
        return disk.read(_LABEL_SIZE).split(b"\0")[0].decode("utf-8", "replace")


def must(argv: list[str], signals: Signals, *, feed: bytes = b"", hint: str = "") -> str:
    """What a tool says; CheckFailed when it fails, and CannotRun when it is not there."""
    try:
        done = process.run(argv, signals, feed=feed)
    except CannotRun as error:
        raise CannotRun(error.message, hint=hint) from error
    signals.check()
    if done.status:
        raise CheckFailed(f"{argv[0]} failed with exit status {done.status}: {done.output.strip()}")
    return done.output


# ---- the table -------------------------------------------------------------------------------------------


def plan(target: Target, esp: int, swap: int) -> tuple[Part, ...]:
    """ESP, swap (0: none) and, last, so that it can grow, the volume; sizes in bytes. Raises NoSpace, UsageError."""
    if esp < LEAST_ESP:
        raise UsageError(f"an ESP needs {for_people(LEAST_ESP)} at least; nothing was changed")
    wanted = [("ESP", esp // MIB * MIB), *([("SWAP", swap // MIB * MIB)] if swap else [])]
    start = MIB
    parts: list[Part] = []
    for role, length in wanted:
        parts.append(Part(role, len(parts) + 1, start, length, str(uuid4())))
        start += length
    rest = (target.size - MIB - start) // MIB * MIB  # the table's copy lies at the end
    if rest < LEAST_VOLUME:
        raise NoSpace(
            f"{target.path} has {for_people(target.size)}, which leaves less than {for_people(LEAST_VOLUME)} for the "
            "volume; nothing was changed",
            hint=f"--esp-size and --swap say how much the other partitions take; {_LARGER}",
        )
    return (*parts, Part("ROOT", len(parts) + 1, start, rest, str(uuid4())))


def require_room(target: Target) -> None:
    """Raises NoSpace where the whole of the target is too small for a volume."""
    if target.size < LEAST_VOLUME:
        raise NoSpace(f"{target.path} has only {for_people(target.size)}; nothing was changed", hint=_LARGER)


def divide(target: Target, parts: tuple[Part, ...], signals: Signals) -> None:
    """Writes the table; whatever was on the disk is gone."""
    lines = ["label: gpt"]
    for part in parts:
        name = UNFINISHED if part.role == "ROOT" else part.role
        start, length = part.start // target.sector, part.size // target.sector
        lines.append(f'start={start}, size={length}, type={_TYPES[part.role]}, uuid={part.guid}, name="{name}"')
    script = "\n".join((*lines, "")).encode()
    argv = ["sfdisk", "--quiet", "--wipe", "always", "--wipe-partitions", "always", target.path]
    must(argv, signals, feed=script, hint="apk add sfdisk")


def finish(target: Target, parts: tuple[Part, ...], label: str, signals: Signals) -> None:
    """Gives the volume's partition its name: the disk is no longer one that may be taken for unfinished."""
    number = next(part.number for part in parts if part.role == "ROOT")
    must(["sfdisk", "--quiet", "--no-reread", "--part-label", target.path, str(number), label], signals)
    with open(target.path, "rb+") as disk:
        os.fsync(disk.fileno())


@contextmanager
def devices(target: Target, parts: tuple[Part, ...]) -> Iterator[Mapping[str, str]]:
    """The node of each part by its role: the kernel's own, else loop devices, which are gone afterwards."""
    with ExitStack() as stack:
        nodes = {} if target.is_image else _nodes(target, parts)
        found = {}
        for part in parts:
            node = nodes.get(part.role)
            found[part.role] = node or stack.enter_context(loop.attached(target.path, part.start, part.size))
        yield found


def _nodes(target: Target, parts: tuple[Part, ...], sysfs: str = _BLOCK) -> dict[str, str]:
    """The kernel's partition nodes, waited for; none where it makes none, as for a loop device without them."""
    base = Path(sysfs, os.path.basename(target.path))
    try:
        if (base / "loop/partscan").read_text().strip() == "0":
            return {}
    except OSError:
        pass  # no loop device
    deadline = time.monotonic() + _WAIT
    while time.monotonic() < deadline:
        there = {_start_of(entry): f"/dev/{entry.name}" for entry in base.iterdir() if (entry / "partition").exists()}
        found = {part.role: there.get(part.start // _SECTOR, "") for part in parts}
        if all(node and os.path.exists(node) for node in found.values()):
            return found
        time.sleep(_POLL)
    return {}


def _start_of(entry: Path) -> int:
    """The first sector of a partition, always in units of 512 bytes; -1 while it comes or goes."""
    try:
        return int((entry / "start").read_text())
    except (OSError, ValueError):
        return -1
