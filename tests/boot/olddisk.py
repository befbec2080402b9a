"""A disk as setup-disk makes it on a machine with UEFI: ESP with GRUB, btrfs with the root at its top level."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.boot import distribution
from tests.boot.disk import ESP_SIZE, ESP_START, REFIND, ROOT_SIZE, ROOT_START, _copy_into, _mtools, _partition
from tests.boot.kernels import debian_kernels
from tests.support.apks import which_apk
from tests.support.binaries import add_binary
from tests.support.blockdev import Loop
from tests.support.imagecache import scratch_directory
from tests.support.isolation import private_mounts, session_key
from tests.support.packages import File, Package, Repository

HERE = Path(__file__).parent
ESP_UUID = "ABCD-1234"
_MODULES = ("part_gpt", "fat", "btrfs", "normal", "configfile", "search", "search_fs_uuid", "linux", "echo")
# What grub-install leaves on the ESP: the way to the real menu.
_STUB = "search --fs-uuid --set=root {uuid}\nset prefix=($root)/boot/grub\nconfigfile $prefix/grub.cfg\n"


def setup_disk(image: Path) -> None:
    """Make the disk `image`."""
    private_mounts()
    with scratch_directory("apk-atomic-disk-") as place:
        repository = Repository(place / "repo", key=session_key())
        packages = (*distribution.packages("gzip"), debian_kernels()[0].package(), _refind())
        repository.publish(*packages, _efibootmgr(packages))
        root, esp = place / "root", place / "esp"
        uuid = _make_root(root, repository.path)
        _make_esp(esp, place, uuid)
        _partition(image)
        _copy_into(image, ESP_START, esp)
        _copy_into(image, ROOT_START, root)


def _make_root(root: Path, repository: str) -> str:
    """The volume's UUID."""
    with root.open("xb") as file:
        file.truncate(ROOT_SIZE)
    loop = Loop(root)
    try:
        command = ["unshare", "--mount", str(HERE / "setup-disk.sh"), loop.path, repository, ESP_UUID]
        done = subprocess.run(
            command, check=True, env={**os.environ, "APK": which_apk().path}, stdout=subprocess.PIPE, text=True
        )
    finally:
        loop.detach()
    return done.stdout.split()[-1]


def _make_esp(esp: Path, place: Path, uuid: str) -> None:
    """GRUB under its own name and at the fallback path: setup-disk makes no entry of the firmware's."""
    with esp.open("xb") as file:
        file.truncate(ESP_SIZE)
    serial = ESP_UUID.replace("-", "")
    subprocess.run(["mkfs.vfat", "-F32", "-i", serial, "-n", "EFI", esp], check=True, stdout=subprocess.DEVNULL)
    program, stub = place / "grubx64.efi", place / "grub.cfg"
    prefix = ["--format", "x86_64-efi", "--prefix", "/EFI/alpine", "--output", str(program)]
    subprocess.run(["grub-mkimage", *prefix, *_MODULES], check=True)
    stub.write_text(_STUB.format(uuid=uuid))
    _mtools(esp, "mmd", "::/EFI", "::/EFI/alpine", "::/EFI/boot")
    _mtools(esp, "mcopy", program, "::/EFI/alpine/grubx64.efi")
    _mtools(esp, "mcopy", program, "::/EFI/boot/bootx64.efi")
    _mtools(esp, "mcopy", stub, "::/EFI/alpine/grub.cfg")


def _refind() -> Package:
    """Alpine's package `refind`, with Debian's files."""
    names = {"refind_x64.efi": "refind_x64.efi", "drivers_x86_64/btrfs_x64.efi": "drivers_x64/btrfs_x64.efi"}
    files = {f"usr/share/refind/{name}": File((REFIND / source).read_bytes()) for name, source in names.items()}
    return Package("refind", "0.14.2-r0", files=dict(files))


def _efibootmgr(others: Sequence[Package]) -> Package:
    """With sfdisk, which says what a partition's GUID is, and those libraries that nobody else brings."""
    owned = {name for package in others for name in package.files}
    with tempfile.TemporaryDirectory(prefix="efibootmgr-") as place:
        for name in ("efibootmgr", "sfdisk"):
            add_binary(Path(place), Path(shutil.which(name) or name), f"usr/sbin/{name}")
        found = distribution.entries(Path(place))
    return Package("efibootmgr", "18-r0", files={name: each for name, each in found.items() if name not in owned})
