"""Programs of this machine, copied into a tree with the shared libraries that they load."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path


def interpreter() -> Path:
    """The real binary of the Python that runs the tests, not the virtual environment's link to it."""
    return Path(getattr(sys, "_base_executable", sys.executable)).resolve()


def busybox() -> Path:
    """This machine's static busybox (package busybox-static on Debian and Alpine)."""
    for name in ("/bin/busybox.static", "/bin/busybox", "/usr/bin/busybox"):
        if os.access(name, os.X_OK) and not needed_libraries(Path(name)):
            return Path(name)
    raise FileNotFoundError("no static busybox: install the package busybox-static")


def add_binary(root: Path, source: Path, target: str) -> None:
    """Copy a program, shared object or script to `target` below `root`, and the libraries that it loads."""
    _copy(source, root / target)
    for library in needed_libraries(source):
        place = root / _library_place(library).lstrip("/")
        if not place.exists():
            _copy(library, place)


def needed_libraries(binary: Path) -> list[Path]:
    """The closure of shared libraries, the loader among them; empty for static programs and scripts."""
    done = subprocess.run(["ldd", binary], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        return []
    words = (word for line in done.stdout.splitlines() for word in line.split())
    return [Path(word) for word in words if word.startswith("/") and os.path.exists(word)]


def _library_place(library: Path) -> str:
    """The loader stays where programs name it; the rest goes beside libc, where it looks by default."""
    return str(library if library.name.startswith("ld-") else _libc_directory() / library.name)


@functools.cache
def _libc_directory() -> Path:
    for library in needed_libraries(interpreter()):
        if library.name.startswith(("libc.", "libc-", "ld-musl")):
            return library.parent
    raise FileNotFoundError(f"{interpreter()} loads no libc")


def _copy(source: Path, target: Path) -> None:
    """Copy file and mode; shared objects lose their debug information, which may be most of them."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source.resolve(), target)
    strip = shutil.which("strip")
    if strip and ".so" in target.name:
        subprocess.run([strip, "--strip-unneeded", target], check=True, stderr=subprocess.DEVNULL)
