"""Where a loader's files are found, and the firmware's entry for it."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from apk_atomic import bootmenu, loaders, nvram
from apk_atomic.bootmenu import Loader, Menu
from apk_atomic.errors import UsageError
from apk_atomic.signals import Signals
from tests.install.disks import DRIVER, NAME, PROGRAM, make_refind

GUID = "5f2c8b9a-0000-4000-8000-1234567890ab"
LOADER = "EFI/apk-atomic/refind_x64.efi"


def test_refind_of_alpine(tmp_path: Path, signals: Signals) -> None:
    make_refind(tmp_path, drivers=f"drivers_{'x86_64' if NAME == 'x64' else 'aarch64'}")
    check(tmp_path, signals)


def test_refind_of_debian_or_unpacked(tmp_path: Path, signals: Signals) -> None:
    make_refind(tmp_path / "refind")
    check(tmp_path, signals)


def test_refind_of_the_official_archive(tmp_path: Path, signals: Signals) -> None:
    make_refind(tmp_path / "refind")
    with zipfile.ZipFile(tmp_path / "refind-bin-0.14.2.zip", "w") as archive:
        for path in (tmp_path / "refind").rglob("*.efi"):
            archive.write(path, f"refind-bin-0.14.2/{path.relative_to(tmp_path)}")
    check(tmp_path / "refind-bin-0.14.2.zip", signals)


def check(place: Path, signals: Signals) -> None:
    found = loaders.find(Loader.REFIND, ["/nowhere", str(place)], signals)
    assert (found.program, found.content) == (PROGRAM, b"refind 1")
    assert found.beside == ((f"drivers_{NAME}/{DRIVER}", b"btrfs driver 1"),)


def test_refind_without_its_btrfs_driver_is_of_no_use(tmp_path: Path, signals: Signals) -> None:
    make_refind(tmp_path)
    next(tmp_path.rglob(DRIVER)).unlink()
    with pytest.raises(UsageError, match="btrfs driver") as refused:
        loaders.find(Loader.REFIND, [str(tmp_path)], signals)
    assert "--refind" in refused.value.hint


def test_a_file_that_is_no_archive(tmp_path: Path, signals: Signals) -> None:
    (tmp_path / "refind.zip").write_text("not a zip")
    with pytest.raises(UsageError, match="neither a folder nor an archive"):
        loaders.find(Loader.REFIND, [str(tmp_path / "refind.zip")], signals)


def test_grub_makes_an_efi_program(signals: Signals) -> None:
    found = loaders.find(Loader.GRUB, [], signals)
    assert found.content[:2] == b"MZ" and b"/EFI/apk-atomic" in found.content
    assert (found.program, found.config, found.beside) == (f"grub{NAME}.efi", "grub.cfg", ())


def test_grub_understands_the_menu(tmp_path: Path) -> None:
    words = "a='b' c=\"d $e; {f}\""
    menu = Menu(GUID, "ROOT", "boot/vmlinuz-lts", "boot/initramfs-lts", append=words, loader=Loader.GRUB)
    (tmp_path / "grub.cfg").write_text(bootmenu.render(menu))
    subprocess.run(["grub-script-check", tmp_path / "grub.cfg"], check=True)


# ---- the firmware's entries ------------------------------------------------------------------------------


@pytest.fixture
def firmware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """sysfs with the partition sda1, efivars, and an efibootmgr that keeps its entries in a file."""
    partition = tmp_path / "sys/devices/sda/sda1"
    partition.mkdir(parents=True)
    (partition / "partition").write_text("1\n")
    (tmp_path / "sys/block").mkdir()
    (tmp_path / "sys/block/sda1").symlink_to(partition)
    (tmp_path / "efivars").mkdir()
    (tmp_path / "efivars/BootOrder-x").write_text("")
    (tmp_path / "entries").write_text("BootOrder: 0000\nBoot0000* Windows HD(1)/File(\\EFI\\Microsoft\\bootmgfw.efi)\n")
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "sfdisk").write_text(f"#!/bin/sh\necho {GUID.upper()}\n")
    (tools / "efibootmgr").write_text(
        f"#!/bin/sh\ncase $1 in\n--verbose) cat {tmp_path}/entries ;;\n"
        f'--create|--create-only) printf "%s " "$@" >> {tmp_path}/calls\n'
        f'printf \'%s\\n\' "Boot0001* Alpine HD(1,GPT,{GUID},0x800)/File($9)" >> {tmp_path}/entries ;;\n'
        f'--bootorder) printf "%s " "$@" >> {tmp_path}/calls\n'
        f'sed -i "s/^BootOrder.*/BootOrder: $2/" {tmp_path}/entries ;;\nesac\n'
    )
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/sbin:/usr/bin:/sbin:/bin")
    return tmp_path


def test_an_entry_is_made_once(firmware: Path, signals: Signals) -> None:
    for _ in range(2):
        assert register(firmware, signals) == ""
    assert (firmware / "calls").read_text() == (
        f"--create --disk /dev/sda --part 1 --label {nvram.LABEL} --loader \\EFI\\apk-atomic\\refind_x64.efi "
    )


def register(firmware: Path, signals: Signals, device: str = "/dev/sda1", *, first: bool = True) -> str:
    return nvram.register(
        device, LOADER, signals, str(firmware / "efivars"), str(firmware / "sys/block"), first=first
    )


def test_an_entry_behind_all_others(firmware: Path, signals: Signals) -> None:
    """What started this system stays the default, however often it is asked for."""
    give_order(firmware, "0000,0004", current="0000")
    for _ in range(2):
        assert register(firmware, signals, first=False) == ""
    assert (firmware / "calls").read_text().splitlines() == [
        f"--create-only --disk /dev/sda --part 1 --label {nvram.LABEL} --loader \\EFI\\apk-atomic\\refind_x64.efi "
        "--bootorder 0000,0004,0001 "
    ]
    found = nvram.entry("/dev/sda1", LOADER, signals, str(firmware / "efivars"), str(firmware / "sys/block"))
    assert (found, nvram.order_from(found, signals)) == ("0001", "0001,0000,0004")


@pytest.mark.parametrize(("order", "current"), [("", ""), ("0004", "0000"), ("0004", "")])
def test_an_entry_that_would_come_first_is_left_out_of_the_order(
    firmware: Path, signals: Signals, order: str, current: str
) -> None:
    """The old loader is started from the fallback path: firmware tries that after all entries."""
    give_order(firmware, order, current)
    assert "0001 is left out of the boot order" in register(firmware, signals, first=False)
    assert "--bootorder" not in (firmware / "calls").read_text()


def give_order(firmware: Path, order: str, current: str) -> None:
    entries = firmware / "entries"
    lines = [line for line in entries.read_text().splitlines() if not line.startswith("BootOrder")]
    head = [f"BootCurrent: {current}"] if current else []
    entries.write_text("\n".join((*head, f"BootOrder: {order}", *lines, "")))


def test_firmware_that_cannot_be_reached_is_said(firmware: Path, signals: Signals) -> None:
    assert "no partition" in register(firmware, signals, "/dev/loop0")
    assert "no partition" in register(firmware, signals, "")
    (firmware / "bin/efibootmgr").write_text("#!/bin/sh\necho no space in NVRAM\nexit 5\n")
    assert register(firmware, signals) == "efibootmgr failed: no space in NVRAM"
    (firmware / "efivars/BootOrder-x").unlink()
    assert "efivars" in register(firmware, signals)
    assert not (firmware / "calls").exists()


def test_a_partition_by_its_device(firmware: Path, signals: Signals) -> None:
    found = nvram.partition("/dev/sda1", signals, str(firmware / "sys/block"))
    assert found == nvram.Partition("/dev/sda", 1, GUID)
    (firmware / "bin/sfdisk").write_text("#!/bin/sh\nexit 1\n")
    assert nvram.partition("/dev/sda1", signals, str(firmware / "sys/block")) == nvram.Partition("/dev/sda", 1, "")
