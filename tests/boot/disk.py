"""Disk images that boot: one that `apk-atomic init` makes, and one that is made by hand as the wiki has it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.boot import distribution
from tests.boot.kernels import debian_kernels
from tests.support.apks import which_apk
from tests.support.blockdev import Loop
from tests.support.btrfsctl import fsid_of
from tests.support.imagecache import cached_image, scratch_directory
from tests.support.isolation import copy_sparse, private_mounts, session_key
from tests.support.packages import Repository

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]
PROGRAM = "import sys; from apk_atomic.cli import main; sys.exit(main(['apk-atomic', *sys.argv[1:]]))"
MIB = 1 << 20
ESP_START, ESP_SIZE = 1 * MIB, 64 * MIB
ROOT_START, ROOT_SIZE = ESP_START + ESP_SIZE, 768 * MIB
DISK_SIZE = ROOT_START + ROOT_SIZE + MIB
REFIND = Path("/usr/share/refind/refind")
LOADER_CONFIG = "::/EFI/BOOT/refind.conf"


def installed_disk(image: Path, *words: str) -> None:
    """Make the disk `image` by `apk-atomic init`, with `words` beside the necessary ones."""
    with scratch_directory("apk-atomic-disk-") as place:
        repository = _repository(place, "gzip")
        (place / "keys").mkdir()
        shutil.copy(session_key().public, place / "keys")
        where = ["--repository", repository.path, "--keys-dir", str(place / "keys"), "--apk", which_apk().path]
        boot = ["--refind", str(REFIND), "--timeout", "2", "--append", "console=ttyS0 quiet", "--no-nvram"]
        size = ["--size", str(DISK_SIZE), "--esp-size", str(ESP_SIZE)]
        command = [sys.executable, "-c", PROGRAM, "init", str(image), "--yes", *size, *where, *boot, *words]
        subprocess.run(command, check=True, cwd=PROJECT)


def wiki_disk(image: Path, options: str) -> None:
    """Make the disk `image` as the wiki has it made by hand; the volume is always mounted with `options`.

    Its initramfs is a plain archive: so the volume's compression, if there is any, has something to do.
    """

    def inputs() -> Iterator[str]:
        yield options
        for path in (HERE / "wiki.sh", HERE / "refind.conf", HERE / "disk.py", HERE / "kernels.py"):
            yield path.read_text()
        yield from (kernel.release for kernel in debian_kernels())
        yield from distribution.inputs()

    copy_sparse(cached_image(f"disk-{options.replace('=', '-')}", inputs, lambda path: _build(path, options)), image)


def loader_config(image: Path) -> bytes:
    """The boot loader's configuration on the ESP of a disk."""
    return subprocess.check_output(["mtype", "-i", f"{image}@@{ESP_START}", LOADER_CONFIG])


def _build(image: Path, options: str) -> None:
    private_mounts()
    with scratch_directory("apk-atomic-disk-") as place:
        root = place / "root"
        _make_root(root, place, options)
        esp = _make_esp(place, fsid_of(root), options)
        _partition(image)
        _copy_into(image, ESP_START, esp)
        _copy_into(image, ROOT_START, root)


def _repository(place: Path, compression: str) -> Repository:
    repository = Repository(place / "repo", key=session_key())
    repository.publish(*distribution.packages(compression), debian_kernels()[0].package())
    return repository


def _make_root(root: Path, place: Path, options: str) -> None:
    repository = _repository(place, "none")
    with root.open("xb") as file:
        file.truncate(ROOT_SIZE)
    loop = Loop(root)
    try:
        command = ["unshare", "--mount", str(HERE / "wiki.sh"), loop.path, repository.path, options]
        subprocess.run(command, check=True, env={**os.environ, "APK": which_apk().path})
    finally:
        loop.detach()


def _make_esp(place: Path, fsid: str, options: str) -> Path:
    esp = place / "esp"
    with esp.open("xb") as file:
        file.truncate(ESP_SIZE)
    subprocess.run(["mkfs.vfat", "-F32", "-n", "EFI", esp], check=True, stdout=subprocess.DEVNULL)
    config = place / "refind.conf"
    text = (HERE / "refind.conf").read_text()
    config.write_text(text.replace("@UUID@", fsid).replace("@OPTIONS@", options))
    boot = "::/EFI/BOOT"
    _mtools(esp, "mmd", "::/EFI", boot, f"{boot}/drivers_x64")
    _mtools(esp, "mcopy", REFIND / "refind_x64.efi", f"{boot}/BOOTX64.EFI")
    _mtools(esp, "mcopy", REFIND / "drivers_x64/btrfs_x64.efi", f"{boot}/drivers_x64/")
    _mtools(esp, "mcopy", config, LOADER_CONFIG)
    return esp


def _mtools(esp: Path, command: str, *arguments: str | Path) -> None:
    subprocess.run([command, "-i", esp, *arguments], check=True)


def _copy_into(image: Path, start: int, source: Path) -> None:
    command = ["dd", "status=none", "conv=notrunc,sparse", "bs=1M", f"seek={start // MIB}"]
    subprocess.run([*command, f"if={source}", f"of={image}"], check=True)


def _partition(image: Path) -> None:
    with image.open("xb") as file:
        file.truncate(DISK_SIZE)
    table = f"""label: gpt
start={ESP_START // 512}, size={ESP_SIZE // 512}, type=uefi, name=EFI
start={ROOT_START // 512}, size={ROOT_SIZE // 512}, type=linux, name=ROOT
"""
    subprocess.run(["sfdisk", "-q", image], input=table, text=True, check=True)
