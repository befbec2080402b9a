"""`apk-atomic doctor` on real volumes: everything that can be wrong with one is made wrong, and named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from apk_atomic import bootinstall, bootmenu, btrfs, checkup, examine, faults, loaders, loop
from apk_atomic import esp as esps
from apk_atomic.bootmenu import Loader, Menu
from apk_atomic.checkup_types import EspFacts, Facts, Level
from apk_atomic.config import Config
from apk_atomic.loaders import LoaderFiles
from apk_atomic.volume import Volume as OpenVolume
from tests.adversity.trial import Trial
from tests.install.disks import MIB, NAME, PROGRAM, make_fat, make_refind
from tests.install.lab import SMALL, Lab
from tests.support import bootfiles, btrfsctl, engine
from tests.support.bootworld import KERNEL, install_system
from tests.support.guest import USER_ID
from tests.support.packages import File, Package
from tests.support.powercut import mounted
from tests.support.world import FIRST, Guest, Volume, make_volume

REFIND, ESP = "/var/cache/refind", "/var/cache/esp"  # commons: what lies there, the test sees as well
INSTALL = ("boot-config", "--install", "--esp", ESP, "--refind", REFIND, "--no-nvram")
SECOND = "20250101000000abcdefgh"
HELLO = Package("hello", files={"usr/bin/hello": File(b"#!/bin/sh\n", 0o755)})
UUID = "0123cafe-4567-89ab-cdef-0123456789ab"
# What every guest of the tests has: a foreign first generation, a directory for an ESP, no UEFI, a fixed resolv.conf
USUAL = {"foreign", "esp-no-fat", "bios", "resolv-fixed"}


class Patient:
    """A booted volume with a boot menu, and what doctor says of it."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        install_system(volume, HELLO)
        self.esp = volume.top / "commons/@var@cache/esp"
        self.esp.mkdir()
        make_refind(volume.top / "commons/@var@cache/refind")
        self.guest: Guest = volume.boot()
        self.ours(*INSTALL)

    def ours(self, *words: str) -> None:
        self.guest.run(["apk-atomic", *words], check=True)

    def shell(self, script: str) -> None:
        self.guest.run(["/bin/sh", "-ec", script], check=True)

    def examined(self, *words: str, **how: Any) -> tuple[int, list[dict[str, str]]]:
        result = self.guest.run(["apk-atomic", "doctor", "--esp", ESP, "--json", *words], **how)
        document = json.loads(result.stdout)
        assert set(document) == {"version", "level", "findings"} and document["version"] == 1
        assert all(set(row) == {"level", "code", "message", "hint"} for row in document["findings"])
        return result.status, document["findings"]

    def new(self, **how: Any) -> dict[str, str]:
        """Level by code, of what a guest does not always have."""
        status, found = self.examined(**how)
        levels = {row["code"]: row["level"] for row in found if row["level"] != "ok" and row["code"] not in USUAL}
        assert status == (104 if "problem" in levels.values() else 0)
        return levels

    def state(self, **values: object) -> None:
        """state/boot.json with other values."""
        path = self.volume.top / "state/boot.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    def template(self, old: str, new: str) -> None:
        path = self.volume.top / "fstab"
        path.write_text(path.read_text().replace(old, new))

    def point(self, *slots: str) -> None:
        """`current` leads to these, and the links directory that it led to is gone."""
        old = self.volume.current()
        self.volume.point(*slots, name="20250101000001abcdefgh")
        shutil.rmtree(self.volume.top / "links" / old)

    def configure(self, text: str) -> None:
        self.shell(f"echo '{text}' >/tmp/toml; mount --bind /tmp/toml /etc/apk-atomic/apk-atomic.toml")


@pytest.fixture
def patient() -> Iterator[Patient]:
    with make_volume() as volume:
        yield Patient(volume)


@pytest.fixture(scope="module")
def steady() -> Iterator[Patient]:
    """One for tests that leave it as it was."""
    with make_volume() as volume:
        yield Patient(volume)


def test_a_healthy_system(steady: Patient) -> None:
    status, found = steady.examined()
    assert (status, {row["code"] for row in found if row["level"] not in ("ok", "note")}) == (0, {"esp-no-fat", "bios"})
    assert {row["code"] for row in found if row["level"] == "note"} == {"foreign", "resolv-fixed"}
    assert sum(row["level"] == "ok" for row in found) == 13
    told = steady.guest.run(["apk-atomic", "doctor", "--esp", ESP], check=True)
    assert told.stdout.splitlines()[0].startswith("ok       volume: ")
    assert told.stderr == "apk-atomic: 2 warnings, 2 notes\n"
    text = steady.guest.run(["apk-atomic", "doctor"], check=True).stdout
    assert "warning  esp-unknown: " in text and "\n         -> apk-atomic doctor --esp DIRECTORY|DEVICE\n" in text


def committed(volume: Volume) -> int:
    """The number of the volume's last transaction, all flushed."""
    os.sync()
    top = os.open(volume.top, os.O_RDONLY)
    try:
        return btrfs.fs_info(top).generation
    finally:
        os.close(top)


def test_it_changes_nothing_and_takes_no_lock(steady: Patient) -> None:
    run = Path(steady.guest.root) / "run/apk-atomic"
    for left in run.glob("*.lock*"):
        left.unlink()
    before = committed(steady.volume), sorted(os.listdir(steady.esp))
    steady.examined()
    assert (committed(steady.volume), sorted(os.listdir(steady.esp))) == before
    assert not list(run.glob("*.lock*"))


@pytest.mark.parametrize("words", [("doctor", "--esp", ESP), ("boot-config",)], ids=["doctor", "boot-config"])
def test_generation_is_collected_under_a_reader(patient: Patient, words: tuple[str, ...]) -> None:
    """A commit drops the pending generation that it has just looked up: then it looks again."""
    patient.ours("run", "--", "touch", "/etc/pending")
    old = patient.volume.slots()[0]
    trial = Trial(patient.volume, patient.guest)
    reader = trial.start("apk-atomic", *words, env={faults.VARIABLE: "chosen:stop"})
    trial.wait_stopped(reader)
    patient.ours("run", "--", "touch", "/etc/meanwhile")
    assert old not in patient.volume.generations()
    trial.go_on(reader)
    trial.wait_stopped(reader)
    trial.go_on(reader)
    result, now = trial.finish(reader), patient.guest.run(["apk-atomic", *words])
    assert (result.status, result.stdout, result.stderr) == (now.status, now.stdout, now.stderr)


def test_an_ordinary_user(steady: Patient) -> None:
    done = steady.guest.run(["apk-atomic", "doctor", "--json"], uid=USER_ID, check=True)
    codes = {row["code"] for row in json.loads(done.stdout)["findings"]}
    assert {"root", "bios", "drop-in", "jobs", "resolv-fixed", "configuration"} == codes
    assert "only root can look at the volume" in done.stderr


def test_a_machine_with_uefi(steady: Patient) -> None:
    script = "mkdir -p /tmp/firmware/efi/efivars; mount --bind /tmp/firmware /sys/firmware"
    steady.shell(script)
    _, found = steady.examined()
    steady.shell("umount /sys/firmware")
    assert "bios" not in {row["code"] for row in found}


@pytest.mark.parametrize("words", [("--nonsense",), ("operand",), ("--esp", "")])
def test_words_that_are_wrong(steady: Patient, words: tuple[str, ...]) -> None:
    assert steady.guest.run(["apk-atomic", "doctor", *words]).status == 100


def test_another_volume(steady: Patient) -> None:
    with make_volume() as other:
        words = ["apk-atomic", "--atomic-volume", other.device, "doctor", "--json"]
        found = json.loads(steady.guest.run(words, check=True).stdout)["findings"]
    codes = {row["code"] for row in found}
    assert {"volume", "slots", "menu-unknown", "esp-unknown"} <= codes
    assert not {"root", "bios", "resolv-fixed"} & codes


# ---- one thing after the other -----------------------------------------------------------------------------

Spoil = Callable[[Patient], object]


def set_default(patient: Patient) -> None:
    subprocess.run(["btrfs", "subvolume", "set-default", patient.volume.tree()], check=True)


def dangling(*slots: str) -> Spoil:
    return lambda patient: patient.point(*slots)


def unseal(patient: Patient) -> None:
    btrfsctl.set_read_only(patient.volume.tree(), False)


def loose(patient: Patient) -> None:
    patient.volume.add_generation(SECOND)
    btrfsctl.set_read_only(patient.volume.top / "snapshots" / SECOND / "@", False)


def beside(name: str, text: str) -> Spoil:
    def spoil(patient: Patient) -> None:
        (patient.volume.top / "snapshots" / FIRST / name).write_text(text)

    return spoil


def make(path: str) -> Spoil:
    return lambda patient: (patient.volume.top / path).mkdir(parents=True)


def link(path: str) -> Spoil:
    return lambda patient: (patient.volume.top / path).symlink_to("./links/gone")


def state(**values: object) -> Spoil:
    return lambda patient: patient.state(**values)


def write(path: str, text: str) -> Spoil:
    return lambda patient: (patient.volume.top / path).write_text(text)


def template(old: str, new: str) -> Spoil:
    return lambda patient: patient.template(old, new)


def on_esp(path: str, text: str | None) -> Spoil:
    def spoil(patient: Patient) -> None:
        if text is None:
            (patient.esp / path).unlink()
        else:
            (patient.esp / path).write_text(text)

    return spoil


def void(_: object) -> None:
    """For what wants a function that returns nothing."""


def next_root(prepare: Callable[[Path], object]) -> Spoil:
    """A generation that was changed by `prepare`, in all slots, and booted."""

    def spoil(patient: Patient) -> None:
        patient.volume.add_generation(SECOND, lambda root: void(prepare(root)))
        patient.point(SECOND)
        patient.guest.reboot()

    return spoil


def put(path: str, text: str = "") -> Spoil:
    def prepare(root: Path) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)

    return next_root(prepare)


def edit(path: str, old: str, new: str) -> Spoil:
    return next_root(lambda root: (root / path).write_text((root / path).read_text().replace(old, new)))


def resolv(target: str | None) -> Spoil:
    def prepare(root: Path) -> None:
        (root / "etc/resolv.conf").unlink()
        if target:
            (root / "etc/resolv.conf").symlink_to(target)

    return next_root(prepare)


def commit(patient: Patient) -> None:
    patient.ours("add", "hello")


def fall_back(patient: Patient) -> None:
    commit(patient)
    patient.guest.reboot(1)


def boot_writable(patient: Patient) -> None:
    patient.guest = patient.volume.boot(options="rw,noatime")


def broken_pointer(patient: Patient) -> None:
    (patient.volume.top / "current").unlink()
    (patient.volume.top / "current").symlink_to("./links/nowhere")


OURS = loaders.DIRECTORY
CACHE_LINE = "/var/cache btrfs rw,noatime,subvol=/commons/@var@cache"
SPOILED: dict[str, tuple[Spoil, dict[str, str]]] = {
    "pointer": (broken_pointer, {"volume-unreadable": "problem"}),
    "default subvolume": (set_default, {"default-subvolume": "problem"}),
    "dangling fallback": (dangling(FIRST, "gone"), {"slot-dangling": "warning"}),
    "dangling slot 0": (dangling("gone", FIRST), {"slot-dangling": "problem", "fallback-booted": "warning"}),
    "fewer slots than the menu has": (state(slots=9), {"menu-slots": "warning", "menu-differs": "warning"}),
    "pending": (commit, {"pending": "note"}),
    "fallback": (fall_back, {"fallback-booted": "warning"}),
    "unsealed": (unseal, {"generation-unsealed": "problem", "root-unsealed": "problem"}),
    "unsealed in no slot": (loose, {"generation-unsealed": "warning"}),
    "failed": (beside("failed", ""), {"next-failed": "warning"}),
    "record": (beside("generation.json", "{"), {"record-damaged": "warning"}),
    "staging": (make(f"staging/{SECOND}"), {"staging-left": "note"}),
    "links": (make("links/old"), {"links-left": "note"}),
    "next": (link("next/current-old"), {"next-left": "note"}),
    "empty snapshot": (make("snapshots/empty"), {"snapshot-empty": "warning"}),
    "no room": (lambda patient: patient.configure('[volume]\nmin_free_data = "100G"'), {"space": "problem"}),
    "wrong configuration": (lambda patient: patient.configure("[nonsense]"), {"configuration": "problem"}),
    "no template": (lambda patient: (patient.volume.top / "fstab").unlink(), {"template-missing": "note"}),
    "rendered template": (template("CURRENT_SNAPSHOTS_PATH", f"/snapshots/{FIRST}"), {"template-fixed": "problem"}),
    "missing common": (template(" / btrfs", " /srv btrfs subvol=/commons/@srv 0 0\nx / btrfs"),
                       {"common-missing": "problem"}),
    "cache not shared": (edit("etc/fstab", CACHE_LINE, "/nowhere btrfs noauto"), {"cache-unshared": "warning",
                                                                                 "esp-unreadable": "problem"}),
    "no menu known": (lambda patient: (patient.volume.top / "state/boot.json").unlink(), {"menu-unknown": "warning"}),
    "menu damaged": (write("state/boot.json", "{"), {"menu-damaged": "warning"}),
    "menu of another volume": (state(uuid=UUID), {"menu-volume": "problem", "menu-differs": "warning"}),
    "menu with a path that is gone": (state(initramfs="boot/initramfs-virt"), {"menu-path": "problem",
                                                                               "menu-differs": "warning"}),
    "microcode": (next_root(lambda root: (root / "boot/amd-ucode.img").write_bytes(bootfiles.microcode())),
                  {"microcode-unused": "note"}),
    "loader": (on_esp(f"{OURS}/{PROGRAM}", None), {"loader-missing": "problem", "loader-unreached": "warning"}),
    "driver": (on_esp(f"{OURS}/drivers_{NAME}/btrfs_{NAME}.efi", None), {"loader-missing": "problem"}),
    "empty menu": (on_esp(f"{OURS}/refind.conf", ""), {"loader-missing": "problem"}),
    "edited menu": (on_esp(f"{OURS}/refind.conf", "timeout 0"), {"menu-differs": "warning"}),
    "edited fallback menu": (on_esp("EFI/BOOT/refind.conf", "timeout 0"), {"menu-differs": "warning"}),
    "another system's fallback": (on_esp(loaders.fallback_program(), "theirs"), {"loader-unreached": "warning"}),
    "mounted writable": (boot_writable, {"root-writable": "note"}),
    "fstab says rw": (edit("etc/fstab", "btrfs ro,", "btrfs rw,"), {"root-remount": "warning"}),
    "fstab without /": (edit("etc/fstab", " / ", " /mnt "), {"root-fstab": "problem"}),
    "apk-cron": (put("etc/periodic/daily/apk"), {"apk-cron": "warning"}),
    "job without crond": (put("etc/periodic/daily/apk-atomic"), {"crond-disabled": "warning"}),
    "no resolv.conf": (resolv(None), {"resolv-missing": "problem"}),
    "resolv.conf that leads nowhere": (resolv("/var/lib/resolv.conf"), {"resolv-missing": "problem"}),
    "resolv.conf not there yet": (resolv("/run/resolv.conf"), {"resolv-empty": "note"}),
    "resume from nothing": (state(resume=f"UUID={UUID}"), {"resume-missing": "warning", "menu-differs": "warning"}),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILED)
def test_what_is_wrong_is_named(patient: Patient, case: str) -> None:
    spoil, expected = SPOILED[case]
    spoil(patient)
    assert patient.new() == {code: level for code, level in expected.items() if code not in USUAL}


def test_the_way_out_of_a_fallback_path_that_is_not_ours(patient: Patient) -> None:
    (patient.esp / loaders.fallback_program()).write_text("theirs")
    _, found = patient.examined()
    (hint,) = (row["hint"] for row in found if row["code"] == "loader-unreached")
    assert hint == "apk-atomic boot-config --install --fallback"
    patient.ours(*INSTALL, "--fallback")
    assert patient.new() == {}


def test_a_transaction_at_work_is_no_leftover(patient: Patient) -> None:
    with patient.guest.popen(["apk-atomic", "add", "hello"], env={"APK_ATOMIC_FAULT": "changed:stop"}) as process:
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        found = patient.new()
        process.kill()
    assert found == {"at-work": "note"}
    assert patient.new() == {"staging-left": "note"}
    patient.ours("gc")
    assert patient.new() == {}


def test_a_kernel_that_is_held_back(patient: Patient) -> None:
    from tests.support.bootpackages import kernel_package

    patient.volume.repo.publish(Package("zfs-lts", depends=(f"linux-lts={KERNEL}",), files={"usr/zfs": File(b"zfs")}))
    patient.ours("add", "zfs-lts")
    patient.guest.reboot()
    assert patient.new() == {}
    patient.volume.repo.publish(kernel_package("6.12.2-r0"))
    assert patient.new() == {"kernel-held": "note"}


OVERLAY = """\
mkdir -p /run/o/low /run/o/up /run/o/work /run/o/new
mount --bind / /run/o/low
mount -t tmpfs tmpfs /run/o/up
mkdir /run/o/up/up /run/o/up/work
mount -t overlay -o lowerdir=/run/o/low,upperdir=/run/o/up/up,workdir=/run/o/up/work overlay /run/o/new
mount -t tmpfs tmpfs /run/o/new/run
mkdir -p /run/o/new/run/o/low
mount --bind /run/o/low /run/o/new/run/o/low
for each in proc sys dev var/cache; do mount --rbind /$each /run/o/new/$each; done
exec chroot /run/o/new apk-atomic doctor --json --esp /var/cache/esp
"""


def test_an_overlay_above_the_root(steady: Patient) -> None:
    """As mkinitfs's overlaytmpfs= makes it, in a mount namespace of its own."""
    done = steady.guest.run(["unshare", "--mount", "/bin/sh", "-euc", OVERLAY], check=True)
    levels = {row["code"]: row["level"] for row in json.loads(done.stdout)["findings"]}
    assert levels["root-overlay"] == "note"
    assert "root-unsealed" not in levels and levels["volume"] == "ok"


def test_a_drop_in_that_comes_too_late(steady: Patient) -> None:
    steady.shell("mkdir -p /tmp/bin; ln -sf /usr/bin/apk-atomic /tmp/bin/apk")
    usual = "/usr/sbin:/usr/bin:/sbin:/bin"
    assert steady.new(env={"PATH": f"/tmp/bin:{usual}"}) == {}
    assert steady.new(env={"PATH": f"{usual}:/tmp/bin"}) == {"drop-in-shadowed": "warning"}


def test_a_system_that_sleeps(patient: Patient, tmp_path: Path) -> None:
    with (tmp_path / "swap").open("wb") as file:
        file.truncate(16 * MIB)
    subprocess.run(["mkswap", "--uuid", UUID, tmp_path / "swap"], check=True, capture_output=True)
    patient.state(resume=f"UUID={UUID}")
    with loop.attached(str(tmp_path / "swap")) as device:
        assert patient.new() == {"menu-differs": "warning"}
        disk = os.open(device, os.O_RDWR)
        os.pwrite(disk, b"S1SUSPEND\0", os.sysconf("SC_PAGE_SIZE") - 10)
        os.close(disk)
        assert patient.new() == {"menu-differs": "warning", "hibernated": "problem"}


# ---- an ESP on a FAT ---------------------------------------------------------------------------------------

MENU = Menu(UUID, "root", "boot/vmlinuz-lts", "boot/initramfs-lts")
GRUB = LoaderFiles(f"grub{NAME}.efi", bytes(2 * MIB), (), "grub.cfg", own_directory=False)


@contextmanager
def fat(tmp_path: Path, size: int) -> Iterator[Callable[[Menu | None], EspFacts]]:
    """A function that looks at a real FAT, on which GRUB and its menu are."""
    grub = Menu(UUID, "root", "boot/vmlinuz-lts", "boot/initramfs-lts", loader=Loader.GRUB)
    image = str(make_fat(tmp_path / "esp.img", size))
    with engine.own_run(), engine.held_signals() as signals, loop.attached(image) as device:
        with esps.opened(device, signals) as place:
            bootinstall.put(place, GRUB, bootmenu.render(grub))
        other = OpenVolume(device, UUID, None, -1, True)
        yield lambda menu: examine.look_at_esp(other, "", menu and grub, device, signals)


def test_the_esp_on_a_fat(tmp_path: Path) -> None:
    with fat(tmp_path, 40 * MIB) as look:
        found = look(MENU)
        assert (found.known, found.is_fat, found.missing, found.differing, found.fallback) == (True, True, (), (), True)
        assert found.free is not None and 30 * MIB < found.free < 38 * MIB and found.wanted == 2 * MIB
        assert not look(None).known
        image = (tmp_path / "esp.img").read_bytes()
        look(MENU)
        assert (tmp_path / "esp.img").read_bytes() == image


def test_an_esp_that_is_full_or_none(tmp_path: Path) -> None:
    with fat(tmp_path, 34 * MIB) as look, engine.held_signals() as signals:
        full = look(MENU)
        assert full.free is not None
        with esps.opened(full.place, signals) as place:
            place.write("big", bytes(full.free - MIB))
        full = look(MENU)
        assert full.free is not None and full.free < full.wanted
        with open(full.place, "rb+") as device:
            device.write(bytes(MIB))
        assert look(MENU).trouble


# ---- volumes of other kinds --------------------------------------------------------------------------------


def test_nothing_is_wrong_with_what_init_made(lab: Lab) -> None:
    """With its ESP on a FAT beside it; then the loader's own driver is gone."""
    assert lab.init(*SMALL).status == 0
    (root, size), (fat_at, fat_size) = lab.part("ROOT"), lab.part("ESP")
    with loop.attached(str(lab.image), root, size) as volume, loop.attached(str(lab.image), fat_at, fat_size) as place:
        words = ["--atomic-volume", volume, "doctor", "--json"]
        found = lab.run([*words, "--esp", place])
        rows = {row["code"]: row["level"] for row in found.document["findings"]}  # type: ignore[attr-defined]
        assert found.status == 0
        assert {code: level for code, level in rows.items() if level != "ok"} == {}
        assert {"volume", "slots", "fstab", "menu", "esp", "way-in"} <= set(rows)
        subprocess.run(["mdel", "-i", place, f"::/{OURS}/drivers_{NAME}/btrfs_{NAME}.efi"], check=True)
        found = lab.run([*words, "--esp", place])
        assert found.status == 104
        assert ("loader-missing", "problem") in {
            (row["code"], row["level"]) for row in found.document["findings"]  # type: ignore[attr-defined]
        }


def test_an_esp_that_nothing_here_can_read_is_not_judged(lab: Lab) -> None:
    """mtools is not in PATH, and the kernel has no vfat."""
    assert lab.init(*SMALL).status == 0
    (lab.place / "no-tools").mkdir()
    (root, size), (fat_at, fat_size) = lab.part("ROOT"), lab.part("ESP")
    with loop.attached(str(lab.image), root, size) as volume, loop.attached(str(lab.image), fat_at, fat_size) as place:
        if can_mount(place):
            pytest.skip("this kernel reads it")
        words = ["--atomic-volume", volume, "doctor", "--esp", place]
        told = lab.run(words, PATH=f"{lab.place}/no-tools")
        assert told.status == 0, told
        assert f"warning  esp-unseen: {place} was not looked at: this kernel cannot mount a FAT" in told.stdout
        assert "\n         -> modprobe vfat, or apk add mtools\n" in told.stdout and "problem" not in told.stdout


def can_mount(device: str) -> bool:
    argv = ["unshare", "--mount", "mount", "-t", "vfat", "-o", "ro", device, "/mnt"]
    return subprocess.run(argv, check=False, capture_output=True).returncode == 0


def test_a_volume_that_lost_a_device(tmp_path: Path) -> None:
    """A mirror of two, of which one is no longer attached."""
    images = [tmp_path / name for name in ("one", "two")]
    for image in images:
        with image.open("wb") as file:
            file.truncate(300 * MIB)
    with loop.attached(str(images[0])) as kept:
        with loop.attached(str(images[1])) as lost:
            argv = ["mkfs.btrfs", "--quiet", "--metadata", "raid1", "--data", "raid1", kept, lost]
            subprocess.run(argv, check=True, capture_output=True)
            for device in (kept, lost):
                forget(device)
        with attached_top(kept) as top:
            made = OpenVolume(kept, UUID, None, top, True)
            found = examine.look_at_volume(made, Config())
        forget(kept)
    assert found.missing_devices == 1
    codes = {each.code: each.level for each in checkup.judge(Facts(volume=found))}
    assert codes["device-missing"] is Level.PROBLEM


def forget(device: str) -> None:
    """The kernel remembers devices of btrfs that it has seen."""
    subprocess.run(["btrfs", "device", "scan", "--forget", device], check=True, capture_output=True)


@contextmanager
def attached_top(device: str) -> Iterator[int]:
    """The top level of a degraded volume with the smallest layout there is."""
    with mounted(device, "degraded,subvolid=5") as top:
        for name in ("snapshots", "links/x"):
            (top / name).mkdir(parents=True)
        (top / "current").symlink_to("./links/x")
        fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
        yield fd
        os.close(fd)
