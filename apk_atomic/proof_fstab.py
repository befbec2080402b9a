"""The boot proof's verdict on etc/fstab, and on files that still name the place where the root was staged.

Facts (alpine-boot 4): OpenRC remounts `/` with the options that fstab says, cannot make mount points on a
read-only root, and a subvolid= beside another subvol= makes the mount fail. Reads the root by `lookup` only,
and writes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from apk_atomic import fstab, lookup
from apk_atomic.initramfs import names_staging

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apk_atomic.fstab import Entry
    from apk_atomic.proof_types import Findings, ProofInput

FSTAB = "etc/fstab"
_MAX_TEXT = 1 << 20
# Written by boot-loader tools, and read by a boot loader at most when no static menu is used.
_LOADER_FILES = (
    "boot/grub/grub.cfg", "boot/grub/custom.cfg", "boot/extlinux.conf", "boot/syslinux/syslinux.cfg",
    "boot/refind_linux.conf", "boot/limine.conf",
)  # fmt: skip
_LOADER_DIRECTORIES = ("boot/loader/entries",)
# What a running system, or the next generator, boots by.
_BOOT_FILES = ("etc/inittab", "etc/crypttab", "etc/kernel/cmdline", "etc/default/grub", "etc/mkinitfs/mkinitfs.conf")
_BOOT_DIRECTORIES = ("etc/dracut.conf.d", "etc/cmdline.d", "etc/conf.d")


def check_fstab(findings: Findings, root: int, facts: ProofInput) -> None:
    """One root entry, of this generation and read-only, and mount points that exist."""
    findings.inputs.add(FSTAB)
    raw = lookup.read(root, FSTAB, _MAX_TEXT)
    if raw is None:
        findings.fail("fstab-missing", f"{FSTAB} is missing")
        return
    text = fstab.decode(raw)
    for line in fstab.garbage(text):
        findings.warn("fstab-line", f"{FSTAB}, {line}: not understood")
    if fstab.PLACEHOLDER in text:
        findings.fail("fstab-template", f"{FSTAB} still says {fstab.PLACEHOLDER}: it was not rendered")
    entries = fstab.parse(text)
    entry = fstab.root_entry(entries)
    if entry is None:
        findings.fail("fstab-root", f"{FSTAB} has no entry for /, or more than one")
    else:
        _check_root_entry(findings, entry, facts)
    for other in entries:
        _check_entry(findings, other, facts)
    _check_mount_points(findings, root, entries)


def check_staging(findings: Findings, root: int, menu: frozenset[str] | None) -> None:
    """No file that boots may name `staging/ID`, which is gone after the commit. A loader's own configuration in
    the root counts for as much only where `menu`, the paths that the boot menu uses, is unknown or names it."""
    for path in (FSTAB, *_BOOT_FILES, *_files_in(root, _BOOT_DIRECTORIES)):
        if names_staging(lookup.read(root, path, _MAX_TEXT) or b""):
            findings.fail("staging", f"{path} names the staging subvolume, which is gone at boot")
    for path in (*_LOADER_FILES, *_files_in(root, _LOADER_DIRECTORIES)):
        if names_staging(lookup.read(root, path, _MAX_TEXT) or b""):
            say = findings.fail if menu is None or path in menu else findings.warn
            text = f"{path} names the staging subvolume, which is gone at boot; keep its tool from writing it"
            say("staging-loader", text)


def check_resume(findings: Findings, facts: ProofInput) -> None:
    if facts.resume and facts.hibernated:
        text = f"the boot menu says resume={facts.resume}, which holds a hibernated system: it would come back"
        findings.warn("resume", f"{text} instead of this root, on a volume that changed under it")


def _files_in(root: int, directories: tuple[str, ...]) -> Iterator[str]:
    return (f"{directory}/{name}" for directory in directories for name in lookup.names(root, directory))


def _check_root_entry(findings: Findings, entry: Entry, facts: ProofInput) -> None:
    wanted, named = f"{facts.generation_path}/@", entry.value("subvol")
    if entry.fstype != "btrfs":
        findings.fail("fstab-root", f"{FSTAB} says that / is {entry.fstype}, not btrfs")
    if named is None or _path(named) != wanted:
        findings.fail("fstab-generation", f"{FSTAB} mounts {named or 'no subvolume'} at /, not {wanted}")
    if [option for option in entry.options if option in ("ro", "rw")][-1:] != ["ro"]:
        findings.fail("fstab-ro", f"{FSTAB} does not mount / read-only (ro)")
    if facts.volume_uuid and entry.uuid is not None and entry.uuid.lower() != facts.volume_uuid.lower():
        findings.fail("fstab-volume", f"{FSTAB} looks for / on {entry.device}, another volume")


def _check_entry(findings: Findings, entry: Entry, facts: ProofInput) -> None:
    """What no entry may say, `/` or not."""
    if entry.fstype == "btrfs":
        subvol = _path(entry.value("subvol") or "/")
        own = _path(entry.mountpoint) == "/" or subvol.startswith(f"{facts.generation_path}/")
        if entry.value("subvolid") is not None:
            say = findings.fail if own else findings.warn
            say("fstab-subvolid", f"{FSTAB} says subvolid= for {entry.mountpoint}: it differs in each generation")
        elif not own and subvol.split("/")[1] in ("snapshots", "staging"):
            findings.fail("fstab-generation", f"{FSTAB} mounts {subvol}, not of this generation, at {entry.mountpoint}")
        if entry.passno:
            findings.warn("fstab-passno", f"{FSTAB} wants {entry.mountpoint} checked by fsck; btrfs has 0 there")
    if "noauto" not in entry.options and _is_missing(entry, facts):
        findings.warn("fstab-uuid", f"{FSTAB}: there is no file system {entry.device} for {entry.mountpoint}")


def _is_missing(entry: Entry, facts: ProofInput) -> bool:
    """Whether the file system is named by a UUID, and not at hand; the volume itself is."""
    if facts.is_missing is None or entry.uuid is None or entry.uuid.lower() == facts.volume_uuid.lower():
        return False
    return facts.is_missing(entry.uuid)


def _check_mount_points(findings: Findings, root: int, entries: tuple[Entry, ...]) -> None:
    points = fstab.points_in_root(entries)
    for entry in entries:
        point = _path(entry.mountpoint)
        if point not in points or entry.fstype == "swap":
            continue
        findings.inputs.add(point.lstrip("/"))
        optional = "noauto" in entry.options or "nofail" in entry.options
        say = findings.warn if optional else findings.fail
        if lookup.status(root, point) is None:
            say("mount-point", f"{point}, where {FSTAB} mounts {entry.device}, does not exist in the read-only root")
        elif not lookup.is_directory(root, point) and not {"bind", "rbind"}.intersection(entry.options):
            say("mount-point", f"{point}, where {FSTAB} mounts {entry.device}, is no directory")


def _path(text: str) -> str:
    """`text` as an absolute path without doubled or trailing slashes."""
    return "/" + "/".join(part for part in text.split("/") if part not in ("", "."))
