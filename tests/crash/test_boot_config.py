"""`boot-config --install` struck at each of its points, and cut off by the power: whatever menu the machine may boot
by, state/boot.json keeps the next transactions from taking away what that names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apk_atomic import loaders
from apk_atomic.faults import BOOT_MENU
from tests.crash.machine import Machine, Scene, each, scenes, stopped
from tests.crash.test_powercut_atomic import PLAN, VIEW, machine_on
from tests.install.disks import KERNEL, make_refind
from tests.support import powercut
from tests.support.bootpackages import generator_package, kernel_package, system_package
from tests.support.powercut import attach, flush, recorded, states
from tests.support.world import Guest, Volume

CACHE, REFIND, ESP = "commons/@var@cache", "/var/cache/refind", "/var/cache/esp"
LOG = "commons/@var@log"
INSTALL = ("boot-config", "--install", "--esp", ESP, "--refind", REFIND)
GUID = "0b5c0de0-1111-2222-3333-444455556666"
DIRECTORIES = (loaders.DIRECTORY, "EFI/BOOT")
ACTIONS = {"kill": -9, "fail": 104, "full": 104}
WITHOUT_NVRAM = ("announced", "installed", "confirmed")
# A firmware with a list of entries, of which the ESP is a partition. It may refuse a new one, or forget it at once.
FIRMWARE = f"""
mount -t tmpfs tmpfs /sys/firmware
mkdir -p /sys/firmware/efi/efivars
touch /sys/firmware/efi/efivars/BootOrder-x
mount -t tmpfs tmpfs /sys/class/block
mkdir -p /sys/class/block/disk/@NODE@
echo 1 >/sys/class/block/disk/@NODE@/partition
ln -s disk/@NODE@ /sys/class/block/@NODE@
mount -t tmpfs tmpfs /usr/local/bin
cat >/usr/local/bin/sfdisk <<END
#!/bin/sh
echo {GUID.upper()}
END
cat >/usr/local/bin/efibootmgr <<'END'
#!/bin/sh
case $1 in
--verbose) cat /var/log/entries ;;
--create)
	[ ! -e /var/log/refuses ] || {{ echo no space in NVRAM; exit 5; }}
	[ -e /var/log/forgets ] || echo "Boot0001* Alpine HD(1,GPT,{GUID},0x800)/File($9)" >>/var/log/entries ;;
esac
END
chmod 755 /usr/local/bin/*
[ -e /var/log/entries ] || echo "Boot0000* Other HD(1,GPT,{GUID},0x800)/File(other.efi)" >/var/log/entries
"""


def files_of(flavor: str) -> set[str]:
    return {f"boot/vmlinuz-{flavor}", f"boot/initramfs-{flavor}"}


BOTH = files_of("lts") | files_of("virt")


def two_kernels(volume: Volume, guest: Guest) -> None:
    """Both in what boots next, and all that boot-config needs."""
    packages = (kernel_package(KERNEL), kernel_package(KERNEL, "virt"), generator_package(), system_package())
    volume.repo.publish(*packages)
    guest.run(["apk-atomic", "add", "openrc", "linux-lts", "linux-virt"], check=True)
    make_refind(volume.top / CACHE / "refind")
    (volume.top / CACHE / "esp/EFI/BOOT").mkdir(parents=True)


def reached(volume: Volume, guest: Guest) -> None:
    """The menu names the first of them, and firmware starts it by the fallback path."""
    two_kernels(volume, guest)
    guest.run(["apk-atomic", *INSTALL, "--no-nvram", "--kernel", "lts"], check=True)


def beside_another(volume: Volume, guest: Guest) -> None:
    """The same, but it is another loader that the fallback path starts, with whatever menu."""
    two_kernels(volume, guest)
    (volume.top / CACHE / "esp" / loaders.fallback_program()).write_text("another loader")
    guest.run(["apk-atomic", *INSTALL, "--no-nvram", "--kernel", "lts"], check=True)


def kept(top: Path) -> set[str]:
    """What state/boot.json keeps; it is whole."""
    document = json.loads((top / "state/boot.json").read_text())
    assert document["version"] == 1
    return set(document["paths"])


def named(top: Path) -> set[str]:
    """What any of our menus on the ESP names."""
    places = [top / CACHE / "esp" / directory / "refind.conf" for directory in DIRECTORIES]
    texts = [path.read_text() for path in places if path.exists()]
    return {path for path in BOTH if any(f"/{path}\n" in text for text in texts)}


@pytest.fixture(scope="module")
def places() -> Iterator[list[Scene]]:
    with scenes(reached) as made:
        yield made


@pytest.fixture(scope="module")
def others() -> Iterator[list[Scene]]:
    with scenes(beside_another) as made:
        yield made


@pytest.mark.parametrize("action", ACTIONS)
def test_struck_at_each_point(places: list[Scene], action: str) -> None:
    """Both menus may be on the ESP, one in each directory: both kernels stay. The next run comes to the end."""

    def trial(scene: Scene, point: str) -> None:
        with scene.resume() as machine:
            words = (*INSTALL, "--no-nvram", "--kernel", "virt")
            result = machine.run(*words, fault=f"{point}:{action}")
            machine.expect_nothing_left()
            assert result.status == ACTIONS[action], result
            if action != "kill":
                assert ("the boot menu is written, but" in result.stderr) is (point != "announced"), result.stderr
            assert named(machine.top) == files_of("lts" if point == "announced" else "virt")
            assert named(machine.top) <= kept(machine.top)
            assert kept(machine.top) == (files_of("virt") if point == "confirmed" else BOTH)
            machine.done(*words)
            assert kept(machine.top) == named(machine.top) == files_of("virt")
            machine.done("del", "linux-lts")

    each(places, WITHOUT_NVRAM, trial)


def with_firmware(machine: Machine) -> Path:
    """The list of its entries."""
    script = FIRMWARE.replace("@NODE@", Path(machine.guest.device).name)
    machine.guest.run(["sh", "-ec", script], check=True)
    return machine.top / LOG / "entries"


@pytest.mark.parametrize("action", ACTIONS)
def test_struck_beside_another_loader(others: list[Scene], action: str) -> None:
    """As long as firmware has no entry of ours, all of boot/ stays: who knows what boots."""

    def trial(scene: Scene, point: str) -> None:
        with scene.resume() as machine:
            entries = with_firmware(machine)
            words = (*INSTALL, "--kernel", "virt")
            result = machine.run(*words, fault=f"{point}:{action}")
            assert result.status == ACTIONS[action], result
            assert ("Boot0001*" in entries.read_text()) is (point in ("registered", "confirmed"))
            assert kept(machine.top) == (files_of("virt") if point == "confirmed" else BOTH)
            machine.done(*words)
            assert entries.read_text().count("apk-atomic") == 1
            assert kept(machine.top) == files_of("virt")
            machine.done("del", "linux-lts")

    each(others, BOOT_MENU, trial)


@pytest.mark.parametrize("flaw", ["refuses", "forgets"])
def test_firmware_that_has_no_entry_in_the_end(others: list[Scene], flaw: str) -> None:
    with others[0].resume() as machine:
        entries = with_firmware(machine)
        (machine.top / LOG / flaw).touch()
        before = entries.read_text()
        said = machine.done(*INSTALL, "--kernel", "virt").stderr
        assert ("no space in NVRAM" in said) is (flaw == "refuses")
        assert (entries.read_text(), kept(machine.top)) == (before, BOTH)
        assert "boot/vmlinuz-lts" in machine.run("del", "linux-lts").stderr
        (machine.top / LOG / flaw).unlink()
        machine.done(*INSTALL, "--kernel", "virt")
        assert kept(machine.top) == files_of("virt")


@pytest.mark.skipif(bool(powercut.unavailable()), reason=str(powercut.unavailable()))
@pytest.mark.parametrize("story", ["fallback", "firmware"])
def test_every_cut_keeps_what_boots(story: str, say: Callable[[str], None]) -> None:
    """The document is the old one, one that keeps both, or the new one, never torn, and never behind the menu."""
    begin = reached if story == "fallback" else beside_another
    with stopped(begin) as scene, scene.disk() as image:
        place = image.parent
        with recorded(image, place) as recorder, machine_on(recorder.device, place, scene.slot) as machine:
            scene.restore(machine.guest)
            nvram = () if story == "firmware" else ("--no-nvram",)
            if story == "firmware":
                with_firmware(machine)
            flush(machine.top)
            recorder.mark("begin")
            machine.done(*INSTALL, *nvram, "--kernel", "virt")
            recorder.mark("success")
        seen: list[tuple[str, ...]] = []
        for state in states(recorder.log, recorder.base, place, PLAN):
            with attach(state.image, VIEW) as top:
                there, menu = kept(top), named(top)
            if story == "fallback":
                assert menu <= there, f"{state.label}: a menu names {menu}, and only {there} is kept"
            if state.passed("success"):
                assert (there, menu) == (files_of("virt"), files_of("virt")), state.label
            seen.append((*sorted(there), "|", *sorted(menu)))
    say(f"{story}: {len(seen)} states, {len(set(seen))} kinds")
    assert len(set(seen)) >= 3
