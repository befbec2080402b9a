"""A small distribution in packages, from which a disk's first generation is installed as Alpine's would be.

`alpine-base` is the tree of `rootfs` (busybox, apk, python3), with a console for tests or a shell on the serial line;
`openrc` and `mkinitfs` really do, in little, what a boot needs of them. Where $MKINITFS_ROOT names a staged install,
that is the generator: mkinitfs, with the programs that it needs beyond busybox (a kmod that reads .ko.gz, lddtree,
install, GNU cpio and find, a shell that does not prefer busybox's applets). Knows nothing of disks or volumes.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.support import rootfs
from tests.support.binaries import add_binary
from tests.support.bootpackages import generator_package, system_package
from tests.support.packages import Directory, Entry, File, Package, Symlink

STAGED = "MKINITFS_ROOT"
GUEST = Path(__file__).parent / "guest"
CONSOLE, SHELL = "/sbin/console", "-/bin/sh"
INITTAB = """\
::sysinit:/sbin/openrc sysinit
::ctrlaltdel:/sbin/reboot
ttyS0::respawn:{terminal}
"""
MKINITFS_CONFIG = "etc/mkinitfs/mkinitfs.conf"
SHADOW = "root:*::0:::::\nnobody:!::0:::::\n"
# apk's own, and what is made where the packages are installed.
_NOT_PACKAGED = (
    "lib/apk/db", "lib/apk/exec", "etc/apk/world", "etc/apk/arch", "etc/apk/repositories", "etc/fstab",
)  # fmt: skip


def inputs() -> Iterator[str]:
    """What the packages are made of."""
    yield Path(__file__).read_text()
    yield os.environ.get(STAGED, "")
    for path in sorted(GUEST.iterdir()):
        yield path.read_text()
    yield from rootfs.base_inputs()
    yield from rootfs.project_inputs()


def packages(compression: str, terminal: str = CONSOLE) -> tuple[Package, ...]:
    """alpine-base, btrfs-progs, apk-atomic, openrc, mkinitfs: with a kernel, all that a disk needs to boot.

    `compression` is mkinitfs's `initfscomp`, "gzip" or "none"; `terminal` runs on the serial line.
    """
    with tempfile.TemporaryDirectory(prefix="distribution-") as place:
        root = Path(place)
        rootfs.fill_base(root)
        base = entries(root)
        rootfs.install_project(root)
        project = _without(entries(root), base)
        add_binary(root, Path(shutil.which("btrfs") or "btrfs"), "sbin/btrfs")
        tools = _without(entries(root), base, project)
        generator = _generator(root, base | project | tools)
    base |= {
        "etc/inittab": File(INITTAB.format(terminal=terminal).encode()),
        "etc/shadow": File(SHADOW.encode(), 0o640, (0, 42)),
        "sbin/console": _program("console"),
    }
    config = f'features="base btrfs virtio"\ninitfscomp="{compression}"\n'.encode()
    # A staged install may bring the shell.
    needs = ("openrc", "mkinitfs") if os.environ.get(STAGED) else ("openrc",)
    return (
        Package("alpine-base", "3.99.0-r0", files=_without(base, generator.files), depends=needs),
        Package("btrfs-progs", "6.12-r0", files=tools),
        Package("apk-atomic", "0.1.0-r0", files=project, depends=("alpine-base",)),
        _with(system_package(), {"sbin/openrc": _program("openrc")}),
        _with(generator, {MKINITFS_CONFIG: File(config)}),
    )


def _generator(root: Path, others: Mapping[str, Entry]) -> Package:
    """mkinitfs: the stand-in, with a nlplug-findfs that works; or what $MKINITFS_ROOT holds, with its libraries.

    Programs of the same name in `others` give way to the latter: the real mkinitfs needs a cpio with -p.
    """
    staged = os.environ.get(STAGED)
    if not staged:
        return _with(generator_package(), {"sbin/nlplug-findfs": _program("nlplug-findfs")})
    names = set(entries(Path(staged)))
    for name in names:
        source, target = Path(staged, name), root / name
        if not source.is_dir() or source.is_symlink():
            target.unlink(missing_ok=True)
        if source.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(os.readlink(source))
        elif source.is_file():
            add_binary(root, source, name)
    found = {name: entry for name, entry in entries(root).items() if name in names or name not in others}
    files = {name: entry for name, entry in found.items() if not isinstance(entry, Directory)}
    return dataclasses.replace(generator_package(), files=files)


def _without(entries: Mapping[str, Entry], *others: Mapping[str, Entry]) -> dict[str, Entry]:
    return {name: entry for name, entry in entries.items() if not any(name in other for other in others)}


def _with(package: Package, files: dict[str, Entry]) -> Package:
    """The package with files in the place of those that only look right."""
    return dataclasses.replace(package, files={**package.files, **files})


def _program(name: str) -> File:
    return File((GUEST / name).read_bytes(), 0o755)


def entries(root: Path) -> dict[str, Entry]:
    """Every file, link and directory of a tree that a package can own."""
    return {name: entry for name, entry in _walk(root) if not name.startswith(_NOT_PACKAGED)}


def _walk(root: Path) -> Iterator[tuple[str, Entry]]:
    for directory, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = Path(directory, name)
            place = str(path.relative_to(root))
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                yield place, Symlink(os.readlink(path))
            elif stat.S_ISDIR(status.st_mode):
                yield place, Directory(stat.S_IMODE(status.st_mode))
            elif stat.S_ISREG(status.st_mode):
                yield place, File(path.read_bytes(), stat.S_IMODE(status.st_mode))
