"""Image files and fake loaders for the tests of init and boot-config. Nothing here is durable."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from apk_atomic import loaders

MIB = 1 << 20
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
