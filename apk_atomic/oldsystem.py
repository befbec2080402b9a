"""What the running system is, as `adoption` needs to know it: the facts found, nothing changed.

Facts come from the mount table, the volume's trees and /sys; etc/fstab counts where a file system is not mounted, as at
shutdown. The top level has to be open already. Raises NotSuchRoot where / is no btrfs.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress

from apk_atomic import (
    adoption,
    btrfs,
    esp,
    files,
    fstab,
    kernel,
    layout,
    loaders,
    locate,
    lookup,
    mounts,
    nvram,
    oldfstab,
)
from apk_atomic.adoption import Choices, OldSystem
from apk_atomic.errors import NotSuchRoot, UsageError
from apk_atomic.locate import Located
from apk_atomic.signals import Signals
from apk_atomic.staged import is_volume, label_of, read_fstab
from apk_atomic.volume import Volume

FIRMWARE = "/sys/firmware/efi"
_SECURE_BOOT = f"{FIRMWARE}/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
_BLOCK, _BTRFS = "/sys/class/block", "/sys/fs/btrfs"
_KINDS = {"CRYPT": "crypt", "LVM": "lvm"}  # first part of a device mapper uuid
_PROGRAM = "usr/bin/apk-atomic"
# Of var/lib: what is read only, or ours to know of
_KNOWN_STATE = ("apk", "misc", "udhcpd")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


def find() -> tuple[Located, str]:
    """The volume that / is on, and where / lies in it. Raises NotSuchRoot."""
    table = mounts.mount_table()
    roots = [entry for entry in table if entry.point == "/"]
    if not roots or roots[-1].fstype != "btrfs":
        kind = roots[-1].fstype if roots else "nothing"
        raise NotSuchRoot(
            f"/ is not on btrfs but on {kind}; nothing was changed",
            hint="boot without overlaytmpfs" if kind == "overlay" else "apk-atomic init makes a new system",
        )
    root = os.open("/", _DIRECTORY | os.O_CLOEXEC)
    try:
        device = roots[-1].source if os.path.exists(roots[-1].source) else btrfs.device_path(root)
        return Located(device, btrfs.fs_info(root).fsid, None), roots[-1].root
    finally:
        os.close(root)


def is_adopted(subvolume: str) -> bool:
    """Whether what runs is a generation already."""
    return locate.generation_of(subvolume) is not None


def open_root(opened: Volume, subvolume: str) -> int:
    """A descriptor of the old root as it lies in the volume, with nothing mounted on it."""
    return files.open_beneath(opened.top, subvolume.strip("/") or ".", _DIRECTORY)


def look(opened: Volume, subvolume: str, choices: Choices, signals: Signals, *, ours: bool) -> OldSystem:
    """The facts that count for `choices`; `ours`: an earlier `adopt` made what of the layout lies at the top level."""
    root = open_root(opened, subvolume)
    try:
        text = read_fstab(root) or ""
        table = mounts.mount_table()
        swaps, nested = _swap_files(text), tuple(sorted(_nested(root)))
        return OldSystem(
            device=opened.device,
            fsid=opened.fsid,
            subvolume=subvolume,
            is_subvolume=btrfs.is_subvolume(root),
            devices=btrfs.fs_info(root).num_devices,
            stack=stack_of(opened.device),
            default_subvolume=btrfs.default_subvolume(root),
            checksum=_line(f"{_BTRFS}/{opened.fsid}/checksum").partition(" ")[0],
            efi=os.path.isdir(FIRMWARE),
            secure_boot=_secure_boot(),
            machine_known=_machine_known(),
            fstab=text,
            names=_names(opened, text),
            mounted=frozenset(mount.point for mount in table),
            swap_files=swaps,
            swapping=frozenset(swaps) & set(swapping()),
            nested=nested,
            sealed=frozenset(path for path in nested if _is_sealed(root, path)),
            taken=() if ours else tuple(_taken(opened.top)),
            esp=lasting_name(choices.esp) or lasting_name(esp.usual_place(text, signals, running=True)),
            kernels=_kernels(root, text, table),
            state_directories=tuple(_state_directories(root)),
            cmdline=_line("/proc/cmdline"),
            volume_name=_volume_name(opened, signals),
            odd=frozenset(_odd(root, [fstab.mountpoint(name) for name in choices.commons])),
            options=next((mount.super_options for mount in reversed(table) if mount.point == "/"), ()),
            has_apk_atomic=lookup.is_file(root, _PROGRAM),
        )
    finally:
        os.close(root)


def _names(opened: Volume, text: str) -> frozenset[str]:
    lines = filter(oldfstab.is_btrfs, fstab.parse(text))
    return frozenset(entry.device for entry in lines if is_volume(opened, entry.device))


def lasting_name(place: str) -> str:
    """How the ESP at `place`, a directory or device, can be found again when nothing is mounted: UUID=… of its FAT.

    Raises UsageError for a directory that nothing is mounted at.
    """
    if not place or place.startswith("UUID="):
        return place
    if os.path.isdir(place):
        cover = mounts.covering(os.path.realpath(place), mounts.mount_table())
        if cover is None or cover.point == "/":
            raise UsageError(f"no file system is mounted at {place}; nothing was changed", hint=f"mount {place}")
        place = esp.mounted_at(place) or place
    serial = "" if os.path.isdir(place) else layout.fat_uuid(place)
    return f"UUID={serial}" if serial else place


def stack_of(device: str, sysfs: str = _BLOCK) -> str:
    """What a device is made of: "crypt", "lvm", "raid", "mapper"; "" for a disk, a partition, a loop device."""
    name = os.path.basename(os.path.realpath(device))
    if os.path.isdir(f"{sysfs}/{name}/md"):
        return "raid"
    if not os.path.isdir(f"{sysfs}/{name}/dm"):
        return ""
    return _KINDS.get(_line(f"{sysfs}/{name}/dm/uuid").partition("-")[0], "mapper")


def _line(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read(4096).strip()
    except OSError:
        return ""


def _secure_boot() -> bool:
    """Four bytes of attributes, then the value, <linux/efi.h>."""
    try:
        with open(_SECURE_BOOT, "rb") as file:
            return file.read(5)[4:] == b"\1"
    except OSError:
        return False


def _machine_known() -> bool:
    try:
        loaders.suffix()
    except UsageError:
        return False
    return True


def swapping() -> Iterator[str]:
    """Swap files in use, from /proc/swaps."""
    for line in _line("/proc/swaps").splitlines()[1:]:
        words = line.split()
        if words[1:2] == ["file"]:
            yield words[0].replace("\\040", " ")


def _swap_files(text: str) -> dict[str, int]:
    """Swap files in use, and those of etc/fstab, with their sizes."""
    paths = {entry.device for entry in fstab.parse(text) if entry.fstype == "swap" and entry.device.startswith("/")}
    found = {}
    for path in sorted({*paths, *swapping()}):
        with suppress(OSError):
            status = os.stat(path)
            if stat.S_ISREG(status.st_mode):
                found[path] = status.st_size
    return found


def _nested(root: int) -> Iterator[str]:
    """Subvolumes directly inside the root's, relative to it; those below the layout's own names are not the root's."""
    number = btrfs.subvolume_id(root)
    at_top = number == btrfs.TOP_LEVEL_ID
    for child in btrfs.children(root, number):
        path = btrfs.directory_path(root, child.dirid) + child.name
        if not (at_top and path.split("/")[0] in adoption.LAYOUT):
            yield path


def _odd(root: int, points: list[str]) -> Iterator[str]:
    """Those of the mount points that are there, but are no directories, or are behind a link."""
    for point in points:
        try:
            os.close(files.open_beneath(root, point.strip("/"), _DIRECTORY))
        except FileNotFoundError:
            continue
        except OSError:
            yield point


def _is_sealed(root: int, path: str) -> bool:
    try:
        fd = files.open_beneath(root, path, _DIRECTORY)
    except FileNotFoundError:
        return False  # deleted meanwhile
    try:
        return btrfs.get_readonly(fd)
    finally:
        os.close(fd)


def _taken(top: int) -> Iterator[str]:
    """Names of the layout that hold something: an empty directory may be anybody's, and ours from now on. A power cut
    may have left one with the beginning of a file of ours. A subvolume is not: nothing can be renamed into it."""
    for name in adoption.LAYOUT:
        try:
            status = os.stat(name, dir_fd=top, follow_symlinks=False)
        except FileNotFoundError:
            continue
        is_plain = stat.S_ISDIR(status.st_mode) and not btrfs.is_subvolume(top, name)
        if not is_plain or any(map(_is_lasting, files.list_names(top, name))):
            yield name


def _is_lasting(name: str) -> bool:
    return not name.startswith(files.TEMP_PREFIX)


def _kernels(root: int, text: str, table: tuple[mounts.Mount, ...]) -> tuple[str, ...] | None:
    """Flavors in boot/; where that is a file system of its own, in what is mounted there, None without."""
    separate = any(map(oldfstab.is_boot, fstab.parse(text)))
    if any(mount.point == "/boot" for mount in table):
        names = os.listdir("/boot")
    elif separate:
        return None
    else:
        names = list(kernel.boot_names(root))
    return tuple(sorted(name.removeprefix(kernel.KERNEL_PREFIX) for name in names if kernel.is_kernel(name)))


def _state_directories(root: int) -> Iterator[str]:
    """Directories of var/lib that are not empty: a service keeps something there."""
    for name in lookup.names(root, "var/lib"):
        if name not in _KNOWN_STATE and lookup.names(root, f"var/lib/{name}"):
            yield f"var/lib/{name}"


def _volume_name(opened: Volume, signals: Signals) -> str:
    found = nvram.partition(opened.device, signals)
    return (found.guid if found else "") or label_of(opened)
