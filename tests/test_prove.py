"""`apk-atomic prove` on generations of a real volume."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.support import bootfiles
from tests.support.world import Guest, Volume, make_volume

RELEASE, OTHER = "6.18.44-0-lts", "6.18.44-0-virt"


def bootable(tree: Path) -> None:
    """A kernel, its modules and initramfs, and a userland that starts."""
    bootfiles.write_files(tree, bootfiles.kernel_files("lts", RELEASE))
    (tree / "boot/initramfs-lts").write_bytes(bootfiles.initramfs_image(RELEASE))
    wanted = ("sbin/openrc", "etc/init.d/", "etc/runlevels/", "etc/inittab")
    system = {name: file for name, file in bootfiles.system_files().items() if name.startswith(wanted)}
    (tree / "etc/inittab").unlink(missing_ok=True)
    bootfiles.write_files(tree, system)


def proved(guest: Guest, *words: str) -> tuple[int, dict[str, object]]:
    result = guest.run(["apk-atomic", "prove", "--json", *words])
    return result.status, json.loads(result.stdout)


def codes(document: dict[str, object], key: str) -> list[str]:
    rows = document[key]
    assert isinstance(rows, list)
    return [row["code"] for row in rows]


def test_a_generation_that_boots() -> None:
    with make_volume(prepare=bootable) as volume:
        status, document = proved(volume.boot())
    assert (status, document["passed"], document["failures"]) == (0, True, [])
    assert document["kernels"] == {"lts": RELEASE}


def test_a_truncated_initramfs_is_named() -> None:
    def damaged(tree: Path) -> None:
        bootable(tree)
        image = tree / "boot/initramfs-lts"
        os.truncate(image, image.stat().st_size // 2)

    with make_volume(prepare=damaged) as volume:
        guest = volume.boot()
        status, document = proved(guest, "0")
        told = guest.run(["apk-atomic", "prove"])
    assert (status, document["passed"]) == (104, False)
    assert "initramfs-damaged" in codes(document, "failures")
    assert "boot/initramfs-lts" in told.stdout
    assert "would not boot" in told.stderr


def test_a_kernel_is_removed_where_the_configuration_lets_it() -> None:
    def two_kernels(tree: Path) -> None:
        bootable(tree)
        bootfiles.write_files(tree, bootfiles.kernel_files("virt", OTHER))
        (tree / "boot/initramfs-virt").write_bytes(bootfiles.initramfs_image(OTHER))

    remove = ["apk-atomic", "run", "--", "sh", "-c", f"rm -r /boot/*-virt /lib/modules/{OTHER} /usr/share/kernel/virt"]
    allow = 'mkdir -p /etc/apk-atomic; printf "[proof]\nallow_removed_kernel = true\n" >/etc/apk-atomic/apk-atomic.toml'
    with make_volume(prepare=two_kernels) as volume:
        guest = volume.boot()
        refused = guest.run(remove)
        guest.run(["apk-atomic", "run", "--", "sh", "-c", allow], check=True)
        guest.reboot()
        allowed = guest.run(remove)
        names = os.listdir(volume.tree() / "boot")
    assert (refused.status, "vmlinuz-virt is gone" in refused.stderr) == (104, True)
    assert (allowed.status, "warning: boot/vmlinuz-virt is gone" in allowed.stderr) == (0, True), allowed
    assert sorted(name for name in names if "-" in name and not name.startswith(("System", "config"))) == [
        "initramfs-lts", "vmlinuz-lts",
    ]  # fmt: skip


def test_without_a_kernel_it_says_so(guest: Guest) -> None:
    status, document = proved(guest, "booted")
    assert (status, codes(document, "warnings")) == (0, ["no-kernel"])


def test_an_unknown_generation_is_refused(volume: Volume) -> None:
    result = volume.boot().run(["apk-atomic", "prove", "20990101000000zzzzzzzz"])
    assert (result.status, result.stdout) == (100, "")
    assert "there is no such generation" in result.stderr
