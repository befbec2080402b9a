"""`make disk`: a disk image to try apk-atomic on, made by its `init`; `python -m tests.boot.tryout IMAGE`.

The system is the small distribution of the tests, with root's shell on the serial line. Its repository lies in its
/var/cache, and holds what came out after the installation: another kernel, and a package `hello`.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from tests.boot import distribution
from tests.boot.disk import PROGRAM, PROJECT, REFIND
from tests.boot.kernels import debian_kernels
from tests.support.apks import which_apk
from tests.support.imagecache import scratch_directory
from tests.support.isolation import private_mounts, session_key
from tests.support.packages import File, Package, Repository

REPOSITORY = "/var/cache/repo"
HELLO = Package("hello", files={"usr/bin/hello": File(b"#!/bin/sh\necho hello from a new generation\n", 0o755)})


def make(image: Path) -> None:
    """Make the image; one that is there already is replaced."""
    image.unlink(missing_ok=True)
    private_mounts()
    with scratch_directory("apk-atomic-disk-") as place:
        repository = Repository(place / "cache/repo", key=session_key())
        older, newer = debian_kernels()
        repository.publish(*distribution.packages("gzip", distribution.SHELL), older.package())
        (place / "keys").mkdir()
        shutil.copy(session_key().public, place / "keys")
        # So the repository has the path here that it will have there.
        subprocess.run(["mount", "--bind", place / "cache", "/var/cache"], check=True)
        _install(image, place)
        repository.publish(newer.package(), HELLO)
        _fill_cache(image, place / "cache/repo", place / "top")
        subprocess.run(["umount", "/var/cache"], check=True)


def _install(image: Path, place: Path) -> None:
    words = [
        "init", str(image), "--yes", "--size", "1G", "--esp-size", "64M", "--hostname", "tryout", "--compress", "zstd",
        "--repository", REPOSITORY, "--keys-dir", str(place / "keys"), "--apk", which_apk().path,
        "--refind", str(REFIND), "--append", "console=ttyS0 quiet", "--no-nvram",
    ]  # fmt: skip
    print(f"# {shlex.join(['apk-atomic', *words])}", flush=True)
    subprocess.run([sys.executable, "-c", PROGRAM, *words], check=True, cwd=PROJECT)


def _fill_cache(image: Path, repository: Path, top: Path) -> None:
    offset = subprocess.check_output(["partx", "-go", "START", "--nr", "2", image], text=True)
    top.mkdir()
    options = f"loop,offset={int(offset) * 512},subvol=/commons/@var@cache"
    subprocess.run(["mount", "-t", "btrfs", "-o", options, image, top], check=True)
    try:
        shutil.copytree(repository, top / "repo")
    finally:
        subprocess.run(["umount", top], check=True)


if __name__ == "__main__":
    make(Path(sys.argv[1]).absolute())
