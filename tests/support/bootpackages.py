"""Packages for a root that boots, as far as the boot proof can tell: a kernel, and the generator of its initramfs.

The kernel's files are those of `bootfiles`; the generator is `standin/mkinitfs`, which really makes an image, started
by a trigger as Alpine's is. Knows nothing of volumes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tests.support import bootfiles
from tests.support.packages import Entry, File, Package, Symlink

GENERATOR = Path(__file__).parent / "standin/mkinitfs"
# The directories come as arguments; that of a kernel which was removed is named too.
TRIGGER = """\
#!/bin/sh
for directory; do
	[ -d "$directory" ] || continue
	mkinitfs -o "/boot/initramfs$(cat "$directory/kernel-suffix")" "${directory##*/}" || exit 1
done
"""
_OF_THE_SYSTEM = ("sbin/openrc", "etc/init.d/", "etc/runlevels/")


def kernel_package(version: str = "6.12.1-r0", flavor: str = "lts") -> Package:
    """`linux-FLAVOR` with the files of Alpine's kernel packages, for release `release_of(version)`."""
    files = _entries(bootfiles.kernel_files(flavor, release_of(version, flavor)))
    return Package(f"linux-{flavor}", version, files=dict(files), depends=("initramfs-generator",))


def release_of(version: str, flavor: str = "lts") -> str:
    """6.12.1-r0 → 6.12.1-0-lts, as Alpine's kernels call themselves."""
    return f"{version.replace('-r', '-')}-{flavor}"


def generator_package(version: str = "3.13.0-r0") -> Package:
    """`mkinitfs`: the generator, its configuration and its trigger."""
    files: dict[str, Entry] = {
        "sbin/mkinitfs": File(GENERATOR.read_bytes(), 0o755),
        "sbin/nlplug-findfs": File(bootfiles.elf(content=b"nlplug-findfs"), 0o755),
        "etc/mkinitfs/mkinitfs.conf": File(b'features="base btrfs"\n'),
    }
    return Package(
        "mkinitfs", version, files=files, provides=("initramfs-generator",), provider_priority=900,
        triggers=("/lib/modules/*",), scripts={"trigger": TRIGGER},
    )  # fmt: skip


def system_package() -> Package:
    """`openrc`: what init starts, and runlevels that are not empty."""
    files = {name: file for name, file in bootfiles.system_files().items() if name.startswith(_OF_THE_SYSTEM)}
    return Package("openrc", "0.63-r0", files=dict(_entries(files)))


def _entries(files: bootfiles.Files) -> Iterator[tuple[str, Entry]]:
    for name, (kind, content) in files.items():
        if isinstance(kind, str):
            yield name, Symlink(os.fsdecode(content))
        else:
            yield name, File(os.fsencode(content), kind)
