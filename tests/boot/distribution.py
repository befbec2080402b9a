"""A small distribution in packages, from which a disk's first generation is installed as Alpine's would be.

`alpine-base` is the tree of `rootfs` (busybox, apk, python3), with a console for tests on the serial line; `openrc`
and `mkinitfs` really do, in little, what a boot needs of them. Knows nothing of disks or volumes.
"""

from __future__ import annotations

import dataclasses
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support import rootfs
from tests.support.bootpackages import generator_package, system_package
from tests.support.packages import Directory, Entry, File, Package, Symlink

GUEST = Path(__file__).parent / "guest"
INITTAB = """\
::sysinit:/sbin/openrc sysinit
::ctrlaltdel:/sbin/reboot
ttyS0::respawn:/sbin/console
"""
# apk's own, and what is made where the packages are installed.
_NOT_PACKAGED = ("lib/apk/db", "lib/apk/exec", "etc/apk/world", "etc/apk/arch", "etc/fstab")


def inputs() -> Iterator[str]:
    """What the packages are made of."""
    yield Path(__file__).read_text()
    for path in sorted(GUEST.iterdir()):
        yield path.read_text()
    yield from rootfs.base_inputs()
    yield from rootfs.project_inputs()


def packages() -> tuple[Package, ...]:
    """alpine-base, apk-atomic, openrc, mkinitfs: with a kernel, all that a disk needs to boot."""
    with tempfile.TemporaryDirectory(prefix="distribution-") as place:
        root = Path(place)
        rootfs.fill_base(root)
        base = dict(_entries(root))
        rootfs.install_project(root)
        project = {name: entry for name, entry in _entries(root) if name not in base}
    base["etc/inittab"] = File(INITTAB.encode())
    base["sbin/console"] = _program("console")
    return (
        Package("alpine-base", "3.99.0-r0", files=base, depends=("openrc",)),
        Package("apk-atomic", "0.1.0-r0", files=project, depends=("alpine-base",)),
        _with(system_package(), "sbin/openrc", "openrc"),
        _with(generator_package(), "sbin/nlplug-findfs", "nlplug-findfs"),
    )


def _with(package: Package, path: str, name: str) -> Package:
    """The package with a program of the guest's in the place of one that only looks right."""
    return dataclasses.replace(package, files={**package.files, path: _program(name)})


def _program(name: str) -> File:
    return File((GUEST / name).read_bytes(), 0o755)


def _entries(root: Path) -> Iterator[tuple[str, Entry]]:
    """Every file, link and directory of a tree that a package can own."""
    for directory, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = Path(directory, name)
            place = str(path.relative_to(root))
            if place.startswith(_NOT_PACKAGED):
                continue
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                yield place, Symlink(os.readlink(path))
            elif stat.S_ISDIR(status.st_mode):
                yield place, Directory(stat.S_IMODE(status.st_mode))
            elif stat.S_ISREG(status.st_mode):
                yield place, File(path.read_bytes(), stat.S_IMODE(status.st_mode))
