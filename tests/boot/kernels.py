"""Two real kernels: Debian's, from its archive, as two versions of Alpine's package linux-lts.

apt downloads them when they are first needed, and checks what it fetches; they are kept beside the tests' images and
are never part of the project. A package holds the kernel image, its release, and the modules that a virtual machine
needs to find and mount its root.
"""

from __future__ import annotations

import gzip
import lzma
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.binaries import busybox
from tests.support.imagecache import cache_directory, locked
from tests.support.packages import Entry, File, Package

FLAVOR = "lts"
# the volume, the disk, the firmware's variables, the ESP
WANTED = ("btrfs", "virtio_blk", "virtio_pci", "efivarfs", "vfat", "nls_cp437", "nls_ascii")
COUNT = 2
_NAMES = r"^linux-image-[0-9]+\.[0-9]+\.[0-9]+.*-cloud-amd64$"
_APT = ("-qq", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3")
_NEEDS = re.compile(rb"\0depends=([^\0]*)\0")


class NoKernels(Exception):
    """They could not be downloaded; the text ends with what apt-get said."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel of Debian's, unpacked in `tree`; `release` is what `uname -r` says when it runs."""

    release: str
    tree: Path

    @property
    def version(self) -> str:
        """6.12.117+deb12-cloud-amd64 → 6.12.117-r0; 6.1.0-56-cloud-amd64 → 6.1.0-r56."""
        upstream, _, rest = self.release.partition("-")
        build = rest.partition("-")[0]
        return f"{upstream.partition('+')[0]}-r{build if build.isdigit() else 0}"

    def package(self) -> Package:
        """`linux-lts` with this kernel."""
        files: dict[str, Entry] = {
            f"boot/vmlinuz-{FLAVOR}": File((self.tree / f"boot/vmlinuz-{self.release}").read_bytes()),
            f"usr/share/kernel/{FLAVOR}/kernel.release": File(f"{self.release}\n".encode()),
            f"lib/modules/{self.release}/kernel-suffix": File(f"-{FLAVOR}\n".encode()),
        }
        for path in sorted((self.tree / "wanted").rglob("*")):
            if path.is_file():
                files[str(path.relative_to(self.tree / "wanted"))] = File(path.read_bytes())
        return Package(f"linux-{FLAVOR}", self.version, files=files, depends=("initramfs-generator",))


def debian_kernels() -> tuple[Kernel, Kernel]:
    """The second newest and the newest cloud kernel of Debian's archive, downloaded if they are not there yet."""
    place = cache_directory() / f"kernels-{'-'.join(WANTED)}"
    with locked(cache_directory() / "kernels.lock"):
        if not place.exists():
            part = place.with_name("kernels-part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            for order, archive in enumerate(_download(part)):
                _unpack(archive, part / str(order))
                archive.unlink()
            part.rename(place)
    newest, older = (_kernel_in(place / str(order)) for order in range(COUNT))
    return older, newest


def _download(place: Path) -> list[Path]:
    """The newest packages that the archive still has, newest first: apt's lists may be old, or none at all."""
    found, said = _try_download(place)
    if len(found) < COUNT:
        said = _apt(place, "update").stderr
        found, why = _try_download(place)
        said += why
    if len(found) < COUNT:
        names = ", ".join(path.name for path in found) or "none"
        raise NoKernels(f"{COUNT} packages {_NAMES} of Debian's are wanted, and apt-get brought {names}:\n{said}")
    return found


def _try_download(place: Path) -> tuple[list[Path], str]:
    """What could be had, and what apt-get said of the rest."""
    found: list[Path] = []
    said = ""
    for name in _available():
        if len(found) < COUNT:
            said += _apt(place, "download", name).stderr
            found += place.glob(f"{name}_*.deb")
    return found, said


def _apt(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    argv = ["apt-get", *_APT, *words]
    return subprocess.run(argv, cwd=place, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def _available() -> list[str]:
    """What apt's lists name, newest first."""
    listing = subprocess.check_output(["apt-cache", "pkgnames", "linux-image-"], text=True).split()
    numbers = re.compile(r"\d+")
    names = (name for name in listing if re.match(_NAMES, name))
    return sorted(names, key=lambda name: [int(number) for number in numbers.findall(name)], reverse=True)


def _unpack(archive: Path, target: Path) -> None:
    """Unpack a kernel's package; leave its image, and below wanted/ the modules as they will be installed."""
    whole = target / "whole"
    target.mkdir()
    subprocess.run(["dpkg-deb", "-x", archive, whole], check=True)
    (source,) = (*whole.glob("lib/modules/*"), *whole.glob("usr/lib/modules/*"))
    release = source.name
    (target / "boot").mkdir()
    image = f"boot/vmlinuz-{release}"
    (whole / image).rename(target / image)
    directory = target / "wanted/lib/modules" / release
    for path, content in _closure(source).items():
        place = directory / path.removesuffix(".xz")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.with_suffix(".ko.gz").write_bytes(gzip.compress(content, 6, mtime=0))
    shutil.copy(source / "modules.builtin", directory)
    subprocess.run([busybox(), "depmod", "-b", target / "wanted", release], check=True)
    shutil.rmtree(whole)


def _closure(directory: Path) -> dict[str, bytes]:
    """The wanted modules and all that they name as their needs, uncompressed, but for what is built in."""
    paths = {_module(path): path for path in directory.rglob("*.ko*")}
    builtin = {_module(Path(line)) for line in (directory / "modules.builtin").read_text().splitlines()}
    found: dict[str, bytes] = {}
    rest = set(WANTED)
    while rest := rest - builtin:
        path = paths[rest.pop()]
        name = str(path.relative_to(directory))
        if name not in found:
            found[name] = content = _read(path)
            needs = _NEEDS.search(content)
            rest |= {_module(Path(need)) for need in needs[1].decode().split(",") if need} if needs else set()
    return found


def _module(path: Path) -> str:
    return path.name.partition(".")[0].replace("-", "_")


def _read(path: Path) -> bytes:
    content = path.read_bytes()
    return lzma.decompress(content) if path.suffix == ".xz" else content


def _kernel_in(tree: Path) -> Kernel:
    (image,) = os.listdir(tree / "boot")
    return Kernel(image.removeprefix("vmlinuz-"), tree)
