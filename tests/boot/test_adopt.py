"""A machine as setup-disk made it, with GRUB, is adopted: it goes on booting the old system by the old loader until it
is told otherwise, then boots the new one by the new loader.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.boot.machine import Machine, System
from tests.boot.mirror import FETCH, make_mirror
from tests.boot.olddisk import setup_disk
from tests.support.imagecache import scratch_directory
from tests.support.packages import File, Package

pytestmark = [pytest.mark.boot, pytest.mark.timeout(1500)]

HELLO = Package("hello", files={"usr/bin/hello": File(b"#!/bin/sh\necho hello runs\n", 0o755)})
VARIABLES = "mount -t efivarfs efivarfs /sys/firmware/efi/efivars"
# Of the old root, but for what the layout adds beside it, and what Python itself writes where it may.
DIGEST = "cd / && find bin boot/vmlinuz-lts boot/initramfs-lts boot/grub etc home lib sbin usr -xdev -type f "
DIGEST += "-not -path '*/__pycache__/*' -print0 | sort -z | xargs -0 md5sum"


@pytest.fixture
def disk() -> Iterator[Path]:
    with scratch_directory("apk-atomic-boot-") as place:
        yield place / "disk"


def entries(system: System) -> dict[str, str]:
    """What efibootmgr says: BootOrder, BootCurrent, and what the entries start."""
    text = system.run("efibootmgr --verbose", check=True).text
    lines = (line.partition(": " if line.startswith(("BootOrder", "BootCurrent", "Timeout")) else " ")
             for line in text.splitlines())  # fmt: skip
    return {name.rstrip("*"): value for name, _, value in lines}


def test_the_old_loader_stays_until_it_is_told_otherwise(disk: Path, tmp_path: Path) -> None:
    setup_disk(disk)
    make_mirror(tmp_path / "mirror", HELLO)
    machine = Machine(disk, tmp_path, tmp_path / "mirror")

    with machine.booted() as system:
        assert (system.root, " rw," in system.mount) == ("/", True)
        system.run(f"{VARIABLES} && mkdir -p /home/me && echo mine >/home/me/file && {FETCH}", check=True)
        old = system.run(DIGEST, check=True).text
        before = entries(system)
        system.run("apk-atomic adopt --dry-run --append console=ttyS0", check=True)
        system.run("apk-atomic adopt --append console=ttyS0 --timeout 1", check=True)
        # as at shutdown: what localmount has mounted is gone by then
        system.run("umount /boot/efi", check=True)
        made = json.loads(system.run("apk-atomic adopt --finish --json 2>/tmp/said", check=True).text)
        after = entries(system)
        number = made["entry"]
        assert after["BootOrder"] == f"{before['BootOrder']},{number}", system.run("cat /tmp/said").text
        assert "apk-atomic" in after[f"Boot{number}"]
        assert system.run(DIGEST, check=True).text == old
        system.run("sync", check=True)
        system.power_off()

    with machine.booted() as system:
        assert system.root == "/"
        assert system.run(DIGEST, check=True).text == old
        system.run(f"{VARIABLES} && efibootmgr --bootnext {number} && sync", check=True)
        system.power_off()

    with machine.booted() as system:
        assert (system.generation, " ro," in system.mount) == (made["generation"], True)
        assert system.run("touch /etc/sealed").status != 0
        assert system.run("cat /home/me/file", check=True).text == "mine\n"
        system.run("apk-atomic prove && apk-atomic add hello", check=True)
        system.run(f"{VARIABLES} && efibootmgr --bootorder {number},{before['BootOrder']}", check=True)
        system.power_off()

    with machine.booted() as system:
        assert system.generation not in ("", made["generation"])
        assert system.run("hello", check=True).text == "hello runs\n"
