"""A btrfs volume of its own for a test: a sparse image in memory, on a loop device, mounted somewhere new."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

HAVE_LOOP = os.geteuid() == 0 and os.path.exists("/dev/loop-control") and bool(shutil.which("mkfs.btrfs"))
MIB = 1 << 20


@contextlib.contextmanager
def btrfs_volume(size: int = 256 * MIB, *, options: str = "noatime") -> Iterator[Path]:
    """Yield the mount point of the top level of a new volume of `size` bytes; it is gone afterwards."""
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="btrfs-", dir="/dev/shm")))
        image, top = place / "image", place / "top"
        with image.open("wb") as file:
            file.truncate(size)
        _run("mkfs.btrfs", "--quiet", image)
        device = _run("losetup", "--find", "--show", image).strip()
        stack.callback(_run, "losetup", "--detach", device)
        top.mkdir()
        _run("mount", "-t", "btrfs", "-o", options, device, top)
        stack.callback(_run, "umount", "--recursive", top)
        yield top


def _run(*argv: str | Path) -> str:
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout
