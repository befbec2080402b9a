"""What to do with an old system, decided from facts: whether it can be adopted at all, and the plan if so.

Pure: facts in, plan out. Every reason against it is given at once, each with a way out where there is one. It must not
know how facts are found (`oldsystem`) nor how the plan is carried out (`takeover`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from apk_atomic import fstab, oldcommons, oldfstab
from apk_atomic.bootmenu import Loader
from apk_atomic.names import is_below
from apk_atomic.oldfstab import SWAP_COMMON, Separate

LAYOUT = ("commons", "current", "fstab", "links", "next", "snapshots", "staging", "state")
TOP = "/"
_OWN_WORDS = ("BOOT_IMAGE=", "root=", "rootfstype=", "rootflags=", "initrd=", "panic=", "resume=", "subvol=")
_OWN_FLAGS = ("ro", "rw")
# What somebody typed at the old menu for one boot, to repair something
_ONCE = frozenset(("1", "S", "s", "single", "emergency", "rescue", "break", "overlaytmpfs"))
_ONCE_WORDS = ("init=", "rdinit=", "break=", "overlaytmpfs=")
_STACKS = {"crypt": "encrypted (LUKS)", "lvm": "on LVM", "raid": "on RAID", "mapper": "on a device mapper device"}


@dataclass(frozen=True, slots=True)
class OldSystem:
    """The facts.

    `subvolume` is where / lies in the volume, "/" for the top level. `stack` says what the volume's device is made of,
    "" for a disk or partition, else a key of _STACKS. `names`: first fields of the fstab that mean this volume.
    `swap_files`: sizes by path, in the root or elsewhere; `swapping`: those in use. `nested`: paths, relative to the
    root, of the subvolumes in it; those of them that are read-only are `sealed`, and snapshots of something. `taken`:
    names of the layout at the top level that hold something of others. `esp` is how the ESP is named for good, "" for
    none. `kernels`: flavors; None where the kernel's file system is not mounted now. `state_directories`: what in
    var/lib holds files. `volume_name`: the GUID of the volume's partition or the volume's label. `odd`: mount
    points of wanted commons that are there, but are no directories. `options`: what the volume is mounted with.
    """

    device: str
    fsid: str
    subvolume: str = TOP
    is_subvolume: bool = True
    devices: int = 1
    stack: str = ""
    default_subvolume: int = 5
    checksum: str = ""
    efi: bool = True
    secure_boot: bool = False
    machine_known: bool = True
    fstab: str = ""
    names: frozenset[str] = frozenset()
    mounted: frozenset[str] = frozenset()
    swap_files: Mapping[str, int] = field(default_factory=dict)
    swapping: frozenset[str] = frozenset()
    nested: tuple[str, ...] = ()
    sealed: frozenset[str] = frozenset()
    taken: tuple[str, ...] = ()
    esp: str = ""
    kernels: tuple[str, ...] | None = ()
    state_directories: tuple[str, ...] = ()
    cmdline: str = ""
    volume_name: str = "ROOT"
    odd: frozenset[str] = frozenset()
    options: tuple[str, ...] = ()
    has_apk_atomic: bool = True


@dataclass(frozen=True, slots=True)
class Choices:
    """What the user asked for; kept between `adopt` and `adopt --finish`. None and "" are defaults."""

    commons: tuple[str, ...] = ()
    swap: str = ""
    esp: str = ""
    refind: str = ""
    loader: Loader = Loader.REFIND
    flavor: str | None = None
    append: str | None = None
    timeout: int | None = None
    nvram: bool = True


@dataclass(frozen=True, slots=True)
class Nested:
    """A subvolume inside the old root: `fate` is copied, mounted or left."""

    path: str
    fate: str


@dataclass(frozen=True, slots=True)
class Plan:
    """`blockers` are the reasons against it; without any, the rest counts. `template` is the fstab template,
    `commons` are the subvolumes to be filled, `shared` mount points that stay as they are, `swap_size` the bytes of a
    swap file to be made, 0 for none; `append` and `resume` go into the boot menu. `used` are the subvolumes that the
    template mounts, but for ours; `whole` where it mounts the top level, from which anything may be used."""

    subvolume: str
    blockers: tuple[str, ...]
    warnings: tuple[str, ...]
    template: str
    commons: tuple[str, ...]
    shared: tuple[str, ...]
    separate: Separate | None
    esp: str
    flavor: str | None
    append: str
    resume: str
    swap_files: tuple[str, ...]
    swap_size: int
    nested: tuple[Nested, ...]
    used: tuple[str, ...]
    whole: tuple[str, ...]

    @property
    def at_top(self) -> bool:
        """Whether the layout's own names lie in the old root itself."""
        return self.subvolume == TOP


def decide(old: OldSystem, choices: Choices) -> Plan:
    """The plan; it is to be carried out only if it has no blockers."""
    old = _without_kept_swap(old)
    move = choices.swap == "move" and bool(old.swap_files)
    volume = oldfstab.Volume(old.fsid, old.names, frozenset(old.swap_files), _esp_line(old.esp))
    converted = oldfstab.convert(old.fstab, volume, choices.commons, swap=move)
    append, resume = _menu_words(old, choices)
    nested = tuple(_nested(old, converted))
    return Plan(
        subvolume=old.subvolume,
        blockers=(
            *_blockers(old, choices),
            *_boot_blockers(old, converted.separate),
            *converted.problems,
            *_common_blockers(old, converted, nested, swap=move),
        ),
        warnings=(*_warnings(old, converted), *converted.warnings),
        template=converted.text,
        commons=converted.commons,
        shared=converted.shared,
        separate=converted.separate,
        esp=old.esp,
        flavor=choices.flavor,
        append=append,
        resume=resume,
        swap_files=tuple(sorted(old.swap_files)),
        swap_size=max(old.swap_files.values()) if move else 0,
        nested=nested,
        used=tuple(sorted(_used(converted.text))),
        whole=oldfstab.points_of_top(converted.text, old.names),
    )


def _without_kept_swap(old: OldSystem) -> OldSystem:
    """Swap files of file systems and subvolumes that stay mounted as they are go on being used."""
    points = oldcommons.kept_points(old.fstab) - {"/", "/boot"}
    moving = {
        path: size for path, size in old.swap_files.items() if not is_below(path, *points)
    }
    return replace(old, swap_files=moving, swapping=old.swapping & frozenset(moving))


def _esp_line(esp: str) -> str:
    return esp if esp.startswith("UUID=") else ""


# ---- what speaks against it ------------------------------------------------------------------------------


def _blockers(old: OldSystem, choices: Choices) -> Iterator[str]:
    if not old.is_subvolume:
        yield f"/ is {old.subvolume} of its volume, which is no subvolume and so cannot be snapshotted"
    if not old.efi:
        yield "this machine was started by BIOS, and the boot menu needs UEFI"
    if not old.machine_known:
        yield "no UEFI boot loader is known for this machine"
    if old.devices > 1:
        yield f"the volume has {old.devices} devices, and it is not sure that a boot loader reads all of them"
    if old.stack:
        yield (
            f"the volume is {_STACKS[old.stack]}: neither rEFInd nor the menu that this version writes for GRUB "
            "can read it"
        )
    if old.default_subvolume != 5:
        yield (
            f"the default subvolume is {old.default_subvolume}, where boot loaders would start: put "
            "rootflags=subvol=… into the old loader's menu, then: btrfs subvolume set-default 5 /"
        )
    if choices.loader is Loader.REFIND:
        yield from _refind_blockers(old)
    for name in old.taken:
        yield f"{name} at the top level of the volume holds something else: the layout needs that name"
    if old.swapping and not choices.swap:
        yield (
            f"swap file {', '.join(sorted(old.swapping))} is in use: --swap move makes one in commons/{SWAP_COMMON}, "
            "--swap drop goes without"
        )


def _refind_blockers(old: OldSystem) -> Iterator[str]:
    if old.checksum.startswith("blake2"):
        yield f"the volume has {old.checksum} checksums, which mkinitfs cannot mount"
    if any(option.startswith(("compress=lzo", "compress-force=lzo")) for option in _mount_options(old)):
        yield (
            "the volume is mounted with compress=lzo, by etc/fstab, by rootflags= or now, which rEFInd cannot read: "
            "say zstd there, reboot, then: btrfs filesystem defragment -r -czstd /boot"
        )
    if not old.volume_name:
        yield "rEFInd finds a volume by its partition or label, and this has neither: btrfs filesystem label / ROOT"


def _mount_options(old: OldSystem) -> Iterator[str]:
    """Of the volume: as it is mounted, by the command line, by etc/fstab."""
    yield from old.options
    for word in old.cmdline.split():
        if word.startswith("rootflags="):
            yield from word.removeprefix("rootflags=").split(",")
    for entry in fstab.parse(old.fstab):
        if entry.mountpoint == "/" or entry.device in old.names:
            yield from entry.options


def _boot_blockers(old: OldSystem, separate: Separate | None) -> Iterator[str]:
    if not old.esp:
        yield "the EFI system partition is neither mounted nor in etc/fstab: --esp DEVICE names it"
    if "/boot" in old.mounted and separate is None:
        yield "/boot is a file system of its own that etc/fstab does not name: write a line for it"
    if old.kernels == ():
        yield "there is no kernel in /boot"


def _common_blockers(
    old: OldSystem, converted: oldfstab.Converted, nested: tuple[Nested, ...], *, swap: bool
) -> Iterator[str]:
    commons, template = converted.commons, converted.text
    yield from oldcommons.bad_names(commons, swap=swap)
    yield from oldcommons.bad_places(commons, old.odd, {each.path: each.fate == "left" for each in nested})
    yield from oldcommons.bad_mounts(commons, template, old.mounted)
    yield from oldcommons.bad_sources(commons, template)


# ---- what else there is to say ---------------------------------------------------------------------------


def _warnings(old: OldSystem, converted: oldfstab.Converted) -> Iterator[str]:
    if old.secure_boot:
        yield "Secure Boot is on: the firmware starts only a loader that is signed by a key it knows"
    if not old.has_apk_atomic:
        yield "apk-atomic is not installed as /usr/bin/apk-atomic: the new system would not have it"
    once = [word for word in old.cmdline.split() if _is_for_once(word)]
    if once:
        yield f"left out of the new command line: {' '.join(once)}; --append says what it has"
    yield from oldcommons.hidden_mounts(converted.commons, converted.text, old.mounted)
    points = [fstab.mountpoint(name) for name in converted.commons]
    sealed = [name for name in old.state_directories if not is_below(f"/{name}", *points)]
    if sealed:
        shown = ", ".join(f"/{name}" for name in sealed)
        example = oldfstab.common_of(f"/{sealed[0]}")
        yield f"nothing can write there on a sealed root, unless it is a common (--common {example}): {shown}"


def _nested(old: OldSystem, converted: oldfstab.Converted) -> Iterator[Nested]:
    """What becomes of the subvolumes in the old root: a snapshot has empty directories in their places."""
    points = [fstab.mountpoint(name) for name in converted.commons]
    used = _used(converted.text)
    base = "" if old.subvolume == TOP else old.subvolume
    for path in old.nested:
        if any(is_below(each, f"{base}/{path}") for each in used):
            yield Nested(path, "mounted")
        elif path not in old.sealed and is_below(f"/{path}", *points):
            yield Nested(path, "copied")
        else:
            yield Nested(path, "left")


def _used(template: str) -> frozenset[str]:
    """Subvolumes of the old system, as paths from the top level, that the new one still mounts.

    A line counts whatever it calls the volume: what it may mount is not to be deleted.
    """
    paths = {oldfstab.subvolume_of(entry) for entry in fstab.parse(template)} - {""}
    return frozenset(path for path in paths if path != "/" and path.split("/")[1] not in ("commons", fstab.PLACEHOLDER))


def _menu_words(old: OldSystem, choices: Choices) -> tuple[str, str]:
    """What of the old command line goes on to the new one, and resume= of it."""
    words = old.cmdline.split()
    resume = next((word.partition("=")[2] for word in reversed(words) if word.startswith("resume=")), "")
    if old.swap_files and any(word.startswith("resume_offset=") for word in words):
        resume, words = "", [word for word in words if not word.startswith("resume_offset=")]
    ours = [word for word in words if word in _OWN_FLAGS or word.startswith(_OWN_WORDS)]
    kept = [word for word in words if word not in ours and not _is_for_once(word)]
    return (" ".join(kept) if choices.append is None else choices.append), resume


def _is_for_once(word: str) -> bool:
    return word in _ONCE or word.startswith(_ONCE_WORDS)
