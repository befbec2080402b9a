"""A small root tree that runs by itself: busybox, python3, apk and the installed apk-atomic.

Copied from this machine or made on the spot, it looks like Alpine where apk-atomic looks. It knows nothing
of volumes or generations: it fills a directory. `base_inputs` and `project_inputs` name all that goes in.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.apks import which_apk
from tests.support.binaries import add_binary, busybox
from tests.support.isolation import session_key
from tests.support.packages import machine_arch
from tests.support.pythontree import add_python, compile_modules, python_inputs, site_packages

PROJECT = Path(__file__).resolve().parents[2]
REPOSITORY = "/var/cache/repo"
CLEAN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}

DIRECTORIES = (
    "bin", "sbin", "lib/apk/db", "lib/apk/exec", "lib/modules", "usr/bin", "usr/sbin", "usr/lib", "usr/share",
    "usr/local/bin", "etc/apk/keys", "etc/apk/protected_paths.d", "etc/init.d", "etc/runlevels/sysinit",
    "etc/runlevels/default", "home", "root", "boot", "mnt", "media", "proc", "sys", "dev", "run", "tmp",
    "opt", "srv", "var/cache", "var/log", "var/lib", "var/tmp", "var/empty",
)  # fmt: skip
TEXTS = {
    "etc/passwd": (
        "root:x:0:0:root:/root:/bin/sh\n"
        "user:x:1000:1000:user:/home/user:/bin/sh\n"
        "nobody:x:65534:65534:nobody:/:/sbin/nologin\n"
    ),
    "etc/group": "root:x:0:root\ntty:x:5:\nwheel:x:10:root\nuser:x:1000:\nnogroup:x:65533:\n",
    "etc/inittab": "::sysinit:/sbin/openrc sysinit\n::ctrlaltdel:/sbin/reboot\n",
    "etc/hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost\n",
    "etc/hostname": "world\n",
    "etc/resolv.conf": "nameserver 127.0.0.1\n",
    "etc/profile": f"export PATH={CLEAN['PATH']}\n",
    "etc/shells": "/bin/sh\n/bin/ash\n",
    "etc/os-release": "NAME=Alpine\nID=alpine\nVERSION_ID=3.99.0\n",
    "etc/apk/world": "",
    "etc/apk/arch": f"{machine_arch()}\n",
    "etc/fstab": "",
}


def base_inputs() -> Iterator[str]:
    """What the tree without apk-atomic is made of."""
    yield Path(__file__).read_text()
    yield from python_inputs()
    for path in (busybox(), Path(which_apk().path)):
        status = path.stat()
        yield f"{path} {status.st_size} {status.st_mtime_ns}"
    yield Path(session_key().public).read_text()


def project_inputs() -> Iterator[str]:
    """What is installed of the project."""
    sources = sorted([*(PROJECT / "apk_atomic").rglob("*.py"), *(PROJECT / "tools").glob("completions.*")])
    hooks = sorted((PROJECT / "hooks").iterdir())
    for path in (*sources, *hooks, PROJECT / "Makefile", PROJECT / "config/apk-atomic.toml"):
        yield str(path.relative_to(PROJECT))
        yield path.read_text()


def fill_base(root: Path) -> None:
    """Fill the empty directory `root` with everything but the project."""
    for name in DIRECTORIES:
        (root / name).mkdir(parents=True, exist_ok=True)
    for name, mode in (("tmp", 0o1777), ("var/tmp", 0o1777), ("root", 0o700)):
        (root / name).chmod(mode)
    for name, text in TEXTS.items():
        (root / name).write_text(text)
    session_key().trust(root)
    _add_busybox(root)
    add_python(root)
    _add_apk(root)


def install_project(root: Path) -> None:
    """Install apk-atomic into a tree that `fill_base` made, as the project installs itself."""
    site = site_packages(root)
    place = [f"DESTDIR={root}", "PREFIX=/usr", f"SITE=/{site.relative_to(root)}"]
    subprocess.run(["make", "--silent", "-C", PROJECT, "install", *place], check=True, stdout=subprocess.DEVNULL)
    compile_modules(site / "apk_atomic", root)


def install_drop_in(root: Path) -> None:
    """What the package apk-atomic-drop-in holds, into a tree or an empty directory."""
    place = [f"DESTDIR={root}", "PREFIX=/usr"]
    command = ["make", "--silent", "-C", str(PROJECT), "install-drop-in", *place]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _add_busybox(root: Path) -> None:
    """The binary and a link for each of its applets, where `busybox --install -s` puts them."""
    add_binary(root, busybox(), "bin/busybox")
    listing = subprocess.check_output([busybox(), "--list-full"], text=True)
    for name in {*listing.split(), "sbin/init"}:
        link = root / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(link):
            link.symlink_to("/bin/busybox")


def _add_apk(root: Path) -> None:
    """Put the apk of this session into the tree and let it make the empty database."""
    add_binary(root, Path(which_apk().path), "sbin/apk")
    command = ["chroot", str(root), "/sbin/apk", "add", "--initdb", "--no-network"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=CLEAN)
    # Not before: apk would warn that the index is not there yet.
    (root / "etc/apk/repositories").write_text(f"{REPOSITORY}\n")
