"""The first generation of an adopted system, as it is staged: the old root's snapshot, made one that boots sealed.

What the layout and the machine itself put into the old root is taken out again; kernel, fstab, mount points and name
servers are put in; an initramfs that would not boot is made anew; and the whole is proved. The old root is only read.
Nothing here is durable: the seal is.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from apk_atomic import (
    adoption,
    btrfs,
    chroot,
    decompress,
    files,
    firstrecord,
    fstab,
    generator,
    journal,
    kernel,
    lookup,
    namespace,
    newroot,
    oldboot,
    oldsystem,
    proof,
    rebuild,
    removal,
    staged,
)
from apk_atomic.adoption import Plan
from apk_atomic.bootable import Bootable, of_this_machine
from apk_atomic.chroot import RootPlan
from apk_atomic.errors import BuildFailed, CheckFailed, Refused
from apk_atomic.faults import point
from apk_atomic.fstab import ESP_POINT
from apk_atomic.namespace import Command
from apk_atomic.newmenu import kernel_paths
from apk_atomic.proof import Proof, ProofInput
from apk_atomic.session import Work

SERVICE = "apk-atomic-adopt"
_SWAP_SERVICE = 'rc_before="!localmount"\nrc_need="localmount"\n'
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


@dataclass(frozen=True, slots=True)
class First:
    """The staged root: `root` is a descriptor of it, `live` one of the old root."""

    work: Work
    plan: Plan
    id: str
    root: int
    live: int

    @property
    def text(self) -> str:
        """Its etc/fstab."""
        return fstab.render(self.plan.template, f"/{journal.SNAPSHOTS}/{self.id}")

    @property
    def place(self) -> RootPlan:
        """The root for programs that run in it: without the fstab's commons, of which there are none yet."""
        return staged.plan_staged(self.work.volume, self.work.config, self.id, "")


@contextmanager
def snapshotted(work: Work, plan: Plan, name: str) -> Iterator[First]:
    """`staging/NAME/@` as a writable snapshot of the old root. Raises Refused where a swap file forbids that."""
    live = oldsystem.open_root(work.volume, plan.subvolume)
    place = files.open_beneath(work.volume.top, f"{journal.STAGING}/{name}", _DIRECTORY)
    try:
        _snapshot(live, place)
        os.mkdir("tmp", 0o700, dir_fd=place)
        os.chmod("tmp", 0o1777, dir_fd=place)
        root = files.open_beneath(place, "@", _DIRECTORY)
        try:
            point("staged")
            yield First(work, plan, name, root, live)
        finally:
            os.close(root)
    finally:
        os.close(place)
        os.close(live)


def _snapshot(live: int, place: int) -> None:
    try:
        btrfs.snapshot(live, place, "@", readonly=False)
    except OSError as error:
        if error.errno != errno.ETXTBSY:
            raise
        raise Refused(
            "a swap file in the root is in use, which btrfs does not snapshot; nothing was changed",
            hint="swapoff -a, or apk-atomic adopt --swap move",
        ) from error


# ---- what is in it ---------------------------------------------------------------------------------------


def shape(first: First) -> None:
    """Everything but the commons: what does not belong into a sealed root goes, what it needs comes."""
    _take_out(first)
    if first.plan.separate is not None:
        oldboot.copy(first.work.volume, first.live, first.plan.separate, first.root)
    staged.write_fstab(first.root, first.text)
    point("fstab")
    _make_mount_points(first)
    if b"dhcp" in (lookup.read(first.root, "etc/network/interfaces", 1 << 20) or b""):
        newroot.link_resolv(first.root)
    if first.plan.swap_size:
        newroot.write(first.root, "etc/conf.d/swap", _SWAP_SERVICE)
    point("changed")


def _take_out(first: First) -> None:
    """The layout's own names, swap files, what lies in /tmp, and the service that finishes the adoption."""
    for name in adoption.LAYOUT if first.plan.at_top else ():
        _remove(first.root, name)
    for path in first.plan.swap_files:
        _remove(first.root, path.strip("/"))
    empty(first.root, "tmp")
    for level in lookup.names(first.root, "etc/runlevels"):
        _remove(first.root, f"etc/runlevels/{level}/{SERVICE}")


def _make_mount_points(first: First) -> None:
    """A sealed root cannot make them at boot. Those of the commons have to be plain directories for every change."""
    plain = {fstab.mountpoint(name) for name in first.plan.commons}
    points = {entry.mountpoint for entry in fstab.parse(first.text)} | {ESP_POINT}
    for path in sorted(each for each in points if each.startswith("/") and each != "/"):
        if path in plain or not lookup.is_directory(first.root, path):
            os.close(newroot.make_directory(first.root, path.strip("/")))


def _remove(root: int, path: str) -> None:
    """A path of the snapshot with all below it; one that is not there, or leads elsewhere, is none of ours."""
    with suppress(FileNotFoundError, NotADirectoryError):
        removal.remove_tree(root, path, foreign=_remove_placeholder)


def empty(root: int, path: str) -> None:
    """Removes what is in a directory of the snapshot, and keeps the directory."""
    try:
        directory = files.open_beneath(root, path, _DIRECTORY)
    except FileNotFoundError:
        return
    try:
        for name in os.listdir(directory):
            removal.remove_tree(directory, name, foreign=_remove_placeholder)
    finally:
        os.close(directory)


def _remove_placeholder(directory: int, name: str) -> None:
    """The empty directory that a snapshot has for a subvolume, and which shows a device of its own."""
    os.rmdir(name, dir_fd=directory)


# ---- whether it boots ------------------------------------------------------------------------------------


def make_bootable(first: First) -> Bootable:
    """Proves the root, after an initramfs was made anew where it needs that. Raises CheckFailed, BuildFailed."""
    flavor = _flavor(first)
    if not any(lookup.is_file(first.root, path) for path in kernel.image_names(flavor)):
        _build(first)
    paths = kernel_paths(first.root, flavor, None)
    verdict = _prove(first, paths)
    if any(finding.code.startswith("initramfs") for finding in verdict.failures):
        _build(first)
        verdict = _prove(first, paths)
    made_by = generator.find_generator(first.root)
    kind = str(made_by.kind) if made_by else ""
    return firstrecord.proved(first.id, verdict, paths, kind, "the old one is as it was")


def _flavor(first: First) -> str:
    """The one asked for, else the one that runs, else the only or usual one."""
    running = generator.flavor_of(os.uname().release)
    known = {each.flavor for each in kernel.kernels(first.root)}
    return first.plan.flavor or (running if running in known else _usual(known))


def _usual(known: set[str]) -> str:
    if not known:
        raise CheckFailed("the new system would not boot: there is no kernel in /boot; the old one is as it was")
    return next((each for each in ("lts", "stable", "virt") if each in known), min(known))


def _build(first: First) -> None:
    """An image for each kernel, by the root's own generator, which is told of btrfs."""
    made_by = generator.find_generator(first.root)
    if made_by is None:
        raise BuildFailed("nothing here can make an initramfs; the old system is as it was", hint="apk add mkinitfs")
    if made_by.kind is generator.GeneratorKind.MKINITFS:
        newroot.set_features(first.root, ())
    for each in kernel.kernels(first.root):
        if each.release:
            output = rebuild.image_path(first.root, first.root, made_by, each.flavor)
            first.work.console.step(f"building {output}: the old one would not boot from btrfs")
            _generate(first, rebuild.build_command(first.root, made_by, each.release, output))
    point("built")


def _generate(first: First, argv: list[str]) -> None:
    plan, signals = first.place, first.work.signals
    command = Command(argv[0], tuple(argv), chroot.environment(os.environ), silent=True)
    status = namespace.run(command, lambda: chroot.enter(plan), signals, held=(first.work.lock,))
    signals.check()
    if status:
        raise BuildFailed(
            f"{argv[0]} failed with exit status {status}; the old system is as it was", hint="what it said stands above"
        )


def _prove(first: First, paths: tuple[str, ...]) -> Proof:
    opened = first.work.volume
    facts = ProofInput(
        generation_path=f"/{journal.SNAPSHOTS}/{first.id}",
        menu_paths=paths,
        base_boot_names=kernel.boot_names(first.root),
        default_subvolume=btrfs.default_subvolume(opened.top),
        decompress=decompress.by_program(first.place, first.root, first.work.signals),
        volume_uuid=opened.fsid,
    )
    # no generation is booted, but this is the machine that will boot it
    return proof.prove(first.root, of_this_machine(opened._replace(booted=""), facts))
