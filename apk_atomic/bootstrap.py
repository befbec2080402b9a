"""The first generation of a new volume: packages into an empty root, configured, proved, sealed, pointed to.

The steps are those of a transaction (design, section 4) without a base: journal, change, proof, layout, seal, switch.
apk is one from outside, for there is none in the root yet, and stays it to the end: one database, one format, and
repositories in directories that the root does not see. Durable when `first_generation` returns: the generation.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from apk_atomic import (
    btrfs,
    chroot,
    decompress,
    files,
    firstrecord,
    fstab,
    installed,
    journal,
    kernel,
    lookup,
    namespace,
    newroot,
    pointer,
    process,
    proof,
    staged,
)
from apk_atomic.bootable import Bootable
from apk_atomic.chroot import RootPlan
from apk_atomic.config import Chroot, Config
from apk_atomic.errors import ChangeFailed, CheckFailed, refusal
from apk_atomic.faults import point
from apk_atomic.layout import ESP_POINT
from apk_atomic.model import Kind, Record
from apk_atomic.names import redact_argv
from apk_atomic.namespace import Command
from apk_atomic.newmenu import kernel_paths
from apk_atomic.newroot import Identity
from apk_atomic.proof import ProofInput
from apk_atomic.recording import Clock
from apk_atomic.session import Work

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_BASE = ("alpine-base", "btrfs-progs")
_SELF = "apk-atomic"
_KEYGEN = "usr/bin/ssh-keygen"


@dataclass(frozen=True, slots=True)
class Source:
    """Where packages come from: an apk of this system, lines for etc/apk/repositories, (name, key) for etc/apk/keys;
    `arch` "" is that apk's own."""

    apk: str
    repositories: tuple[str, ...]
    keys: tuple[tuple[str, bytes], ...]
    arch: str = ""
    allow_untrusted: bool = False


@dataclass(frozen=True, slots=True)
class System:
    """What is installed: `flavor` of the kernel, "" for none; `features` of mkinitfs beside its own and btrfs;
    `password` in the clear, or its hash; `compression` of all generations' files, as btrfs calls it."""

    flavor: str
    packages: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    identity: Identity = field(default_factory=Identity)
    password: bytes = b""
    compression: str = ""


@dataclass(frozen=True, slots=True)
class _New:
    """The root that is being made; `root` is a descriptor of it."""

    work: Work
    id: str
    root: int
    plan: RootPlan
    source: Source


def first_generation(work: Work, source: Source, system: System, argv: tuple[str, ...]) -> str:
    """Makes it and lets `current` point to it, in every slot; its ID.

    Whatever is raised, the volume has no generation and nothing is mounted.
    """
    name = journal.begin(work.volume)
    clock = Clock()
    try:
        with _opened(work, source, name, system.compression) as new:
            with clock.step("change"):
                _install(new, system)
                _configure(new, system)
            with clock.step("prove"):
                found = _prove(new, system.flavor)
            _lay_out(new, found, argv, clock)
        with clock.step("seal"):
            journal.seal(work.volume, name)
        pointer.check(work.volume, name, "", found.boot_paths)
        work.signals.check()
        pointer.switch(work.volume, name, "")
    except OSError as error:
        raise refusal(error) from error
    journal.remove(work.volume, name)
    for warning in found.warnings:
        work.console.warn(warning)
    return name


@contextmanager
def _opened(work: Work, source: Source, name: str, compression: str) -> Iterator[_New]:
    """An empty staged root with the directories to mount on, and the plan of what is mounted there."""
    place = files.open_beneath(work.volume.top, f"{journal.STAGING}/{name}", _DIRECTORY)
    try:
        btrfs.create_subvolume(place, "@")
        os.mkdir("tmp", 0o700, dir_fd=place)
        os.chmod("tmp", 0o1777, dir_fd=place)
        root = files.open_beneath(place, "@", _DIRECTORY)
    finally:
        os.close(place)
    try:
        if compression:
            os.setxattr(root, "btrfs.compression", compression.encode())  # what lies in here inherits it, for ever
        text = fstab.render(staged.read_template(work.volume) or "", f"/{journal.SNAPSHOTS}/{name}")
        points = tuple(entry.mountpoint for entry in fstab.parse(text) if entry.fstype == "btrfs")
        newroot.make_mount_points(root, (*points, ESP_POINT))
        newroot.write(root, staged.FSTAB, text)
        # all of them writable: packages fill them, too
        everything = Config(chroot=Chroot(commons=tuple((path, "rw") for path in points if path != "/")))
        yield _New(work, name, root, staged.plan_staged(work.volume, everything, name, text), source)
    finally:
        os.close(root)


# ---- packages --------------------------------------------------------------------------------------------


def _install(new: _New, system: System) -> None:
    """Base first; then the initramfs generator's features; then the kernel, whose trigger makes the image."""
    newroot.write_sources(new.root, new.source.repositories, new.source.keys)
    new.work.console.step("installing the base system")
    generator = ("mkinitfs",) if system.flavor else ()
    _apk(new, "add", "--initdb", *_BASE, *generator)
    _require_readable_database(new)
    if system.flavor:
        newroot.set_features(new.root, system.features)
    kernels = (f"linux-{system.flavor}",) if system.flavor else ()
    if kernels or system.packages:
        new.work.console.step(f"installing {', '.join((*kernels, *system.packages))}")
        _apk(new, "add", *kernels, *system.packages)
    _add_ourselves(new)
    point("changed")


def _apk(new: _New, *words: str) -> None:
    """Raises ChangeFailed when apk does not do all of it."""
    status = _run_apk(new, *words)
    broken = installed.broken(_database(new.root))
    if status or broken:
        what = f"the scripts of {', '.join(sorted(broken))} failed" if broken else f"apk failed with status {status}"
        raise ChangeFailed(f"{what}; the volume holds no system", status=status or 1, hint="what apk said stands above")


def _run_apk(new: _New, *words: str) -> int:
    source = new.source
    argv = [source.apk, "--root", chroot.ROOT, "--update-cache", *(["--arch", source.arch] if source.arch else []),
            *(["--allow-untrusted"] if source.allow_untrusted else []), *words]  # fmt: skip
    command = Command(argv[0], tuple(argv), chroot.environment(os.environ), silent=True)
    return _run(new, command, outside=True)


def _run(new: _New, command: Command, *, outside: bool = False) -> int:
    """Runs a command in the new root, or outside of it with the root at chroot.ROOT; all it started is dead then."""
    enter = (lambda: chroot.assemble(new.plan)) if outside else (lambda: chroot.enter(new.plan))
    status = namespace.run(command, enter, new.work.signals, held=(new.work.lock,))
    new.work.signals.check()
    return status


def _add_ourselves(new: _New) -> None:
    """Without apk-atomic the system could not change; but that is no reason to have none."""
    if installed.find(_database(new.root), _SELF):
        return
    before = _database(new.root)
    if _run_apk(new, "add", _SELF):
        if _database(new.root) != before:
            raise ChangeFailed(f"{_SELF} could not be installed; the volume holds no system", status=1)
        new.work.console.warn(f"the new system lacks {_SELF}, which is in none of the repositories")


def _require_readable_database(new: _New) -> None:
    """apk 2 does not see the scripts in a database that apk 3 wrote, and runs none (facts: boots-seen, 4)."""
    package = installed.find(_database(new.root), "apk-tools")
    inside = _major(package.version) if package else None
    outside = _major(process.run([new.source.apk, "--version"], new.work.signals).output.removeprefix("apk-tools "))
    if inside is not None and outside is not None and inside < outside:
        raise CheckFailed(
            f"{new.source.apk} is apk {outside}, and the new system has apk {inside}, which does not understand its "
            "database; the volume holds no system",
            hint=f"--apk with an apk {inside}: apk.static of the branch that is to be installed",
        )


def _major(version: str) -> int | None:
    text = version.partition(".")[0]
    return int(text) if text.isascii() and text.isdigit() else None


def _database(root: int) -> bytes:
    return lookup.read(root, installed.DATABASE, installed.LIMIT) or b""


# ---- configuration, proof --------------------------------------------------------------------------------


def _configure(new: _New, system: System) -> None:
    identity = system.identity
    hashed = _hashed(new, system.password)
    newroot.configure(new.root, replace(identity, password=hashed))
    if lookup.is_file(new.root, _KEYGEN):
        command = Command(f"/{_KEYGEN}", ("ssh-keygen", "-A"), chroot.environment(os.environ), silent=True)
        if _run(new, command):
            raise ChangeFailed("ssh-keygen made no host keys, and a sealed root cannot; nothing boots yet", status=1)
    if not (hashed or identity.authorized_keys):
        new.work.console.warn("root has no password and no key: see --root-password-file and --root-key")


def _hashed(new: _New, password: bytes) -> str:
    """The crypt(3) hash: what was given, or made by the new root's own busybox from its standard input."""
    text = password.decode("utf-8", "surrogateescape")
    if not text or newroot.is_hash(text):
        return text
    argv = ["chroot", files.fd_path(new.root), "/bin/busybox", "mkpasswd", "-m", "sha512", "-P", "0"]
    done = process.run(argv, new.work.signals, feed=password + b"\n")
    words = done.output.split()
    if done.status or not words or not words[-1].startswith("$6$"):
        raise ChangeFailed("busybox mkpasswd of the new system failed; give a hash instead ($6$…)", status=1)
    return words[-1]


def _prove(new: _New, flavor: str) -> Bootable:
    """The full proof. Raises CheckFailed where the system would not boot."""
    paths = kernel_paths(new.root, flavor, None) if flavor else ()
    verdict = proof.prove(
        new.root,
        ProofInput(
            generation_path=f"/{journal.SNAPSHOTS}/{new.id}",
            menu_paths=paths or None,
            base_boot_names=kernel.boot_names(new.root),
            decompress=decompress.by_program(new.plan, new.root, new.work.signals),
            volume_uuid=new.work.volume.fsid,
        ),
    )
    return firstrecord.proved(new.id, verdict, paths, "mkinitfs" if flavor else "", "the volume holds no system")


def _lay_out(new: _New, found: Bootable, argv: tuple[str, ...], clock: Clock) -> None:
    record = Record(
        id=new.id,
        kind=Kind.APK,
        argv=redact_argv(argv),
        message="made by init",
        changes=installed.compare({}, installed.packages(_database(new.root))),
        durations=tuple(clock.durations.items()),
    )
    firstrecord.lay_out(new.work, new.root, record, found, staged.read_template(new.work.volume) or "")
