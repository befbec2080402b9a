"""Image files, fake loaders and a small distribution for the tests of init and boot-config. Nothing here is durable."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from apk_atomic import loaders
from tests.support import rootfs
from tests.support.binaries import busybox
from tests.support.bootpackages import generator_package, kernel_package, system_package
from tests.support.isolation import session_key
from tests.support.packages import Directory, Entry, File, Package, Repository, Symlink

MIB = 1 << 20
KERNEL = "6.12.1-r0"
_MADE = ("etc/apk", "etc/fstab")  # what apk and init make
NAME = loaders.suffix()
PROGRAM, DRIVER = f"refind_{NAME}.efi", f"btrfs_{NAME}.efi"


def make_refind(place: Path, *, drivers: str = f"drivers_{NAME}", version: str = "1") -> Path:
    """A folder as a package of rEFInd has it, with content that tells the version."""
    (place / drivers).mkdir(parents=True)
    (place / PROGRAM).write_text(f"refind {version}")
    (place / drivers / DRIVER).write_text(f"btrfs driver {version}")
    return place


def make_fat(path: Path, size: int = 40 * MIB) -> Path:
    """An empty FAT32 image, as an ESP is."""
    with path.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.vfat", "-F", "32", "-n", "ESP", path], check=True, capture_output=True)
    return path


def listing(place: Path) -> dict[str, bytes]:
    """Every file below a directory with its content."""
    found = {}
    for directory, _, names in os.walk(place):
        for name in names:
            path = Path(directory, name)
            found[str(path.relative_to(place))] = path.read_bytes()
    return found


# ---- a small distribution --------------------------------------------------------------------------------


def small_packages() -> tuple[Package, ...]:
    """What `init` installs, without python3 and apk: alpine-base is busybox and a few texts."""
    files: dict[str, Entry] = {name: Directory() for name in rootfs.DIRECTORIES if not name.startswith("lib/apk")}
    files |= {name: File(text.encode()) for name, text in rootfs.TEXTS.items() if not name.startswith(_MADE)}
    files["etc/shadow"] = File(b"root:*::0:::::\nnobody:!::0:::::\n", 0o640, (0, 42))
    files["bin/busybox"] = File(busybox().read_bytes(), 0o755)
    applets = subprocess.check_output([busybox(), "--list-full"], text=True).split()
    files |= {name: Symlink("/bin/busybox") for name in (*applets, "sbin/init") if name != "bin/busybox"}
    return (
        Package("alpine-base", "3.99.0-r0", files=files, depends=("openrc",)),
        Package("btrfs-progs", "6.12-r0", files={"sbin/btrfs": File(b"#!/bin/sh\n", 0o755)}),
        system_package(), generator_package(), kernel_package(KERNEL),
    )  # fmt: skip


def publish(place: Path, *packages: Package) -> Repository:
    """A signed repository of the small distribution, and `packages`; the keys that init needs lie in PLACE/keys."""
    repository = Repository(place / "repo", key=session_key())
    repository.publish(*small_packages(), *packages)
    (place / "keys").mkdir()
    shutil.copy(session_key().public, place / "keys")
    return repository
