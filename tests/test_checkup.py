"""`checkup`: a healthy system, and each single thing that is wrong with one. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from apk_atomic import checkup
from apk_atomic.bootmenu import Loader, Menu
from apk_atomic.btrfs_space import Space
from apk_atomic.checkup_types import EspFacts, Facts, Level, MenuFacts, ResumeFacts, RootFacts, VolumeFacts
from apk_atomic.hibernation import Resume
from apk_atomic.model import Generation, State

MIB = 1 << 20
FSID = "0123cafe-4567-89ab-cdef-0123456789ab"
A, B = Generation("a", order=1), Generation("b", order=2)
TEMPLATE = "UUID=x / btrfs ro,subvol=CURRENT_SNAPSHOTS_PATH/@ 0 0\nUUID=x /var/cache btrfs subvol=/commons/@var@cache\n"
FSTAB = TEMPLATE.replace("CURRENT_SNAPSHOTS_PATH", "/snapshots/b")
MENU = Menu(FSID, "root", "boot/vmlinuz-lts", "boot/initramfs-lts", slots=2)
VOLUME = VolumeFacts(
    FSID, 5, 0, Space(0, 0, 500 * MIB, 500 * MIB), (64 * MIB, 16 * MIB),
    State((A, B), ("b", "a"), "b"), template=TEMPLATE, fstab=FSTAB, commons={"/commons/@var@cache": True},
)  # fmt: skip
ROOT = RootFacts(
    sealed=True, writable=False, layer=False, efi=True, fstab=FSTAB, path_apk="/sbin/apk", ours=(),
    resolv="run/resolv.conf", resolv_there=True, jobs={}, services=frozenset(("devfs", "crond")),
)  # fmt: skip
ESP = EspFacts("/boot/efi", known=True, fallback=True, entry=True, free=10 * MIB, wanted=MIB)
HEALTHY = Facts(VOLUME, MenuFacts(True, MENU, ("guid", "root")), ESP, ROOT, ResumeFacts(None), "")

Change = Callable[[Facts], Facts]
N, W, P = Level.NOTE, Level.WARNING, Level.PROBLEM


def in_volume(**values: object) -> Change:
    return lambda facts: facts._replace(volume=VOLUME._replace(**values))  # type: ignore[arg-type]


def state(*generations: Generation, slots: tuple[str, ...] = ("b", "a"), **values: object) -> Change:
    found = State(generations or (A, B), slots, "b")._replace(**values)  # type: ignore[arg-type]
    return in_volume(state=found)


def in_menu(**values: object) -> Change:
    return lambda facts: facts._replace(menu=MenuFacts(True, MENU, ("guid", "root"))._replace(**values))  # type: ignore[arg-type]


def menu(**values: object) -> Change:
    return in_menu(menu=replace(MENU, **values))  # type: ignore[arg-type]


def in_esp(**values: object) -> Change:
    return lambda facts: facts._replace(esp=ESP._replace(**values))  # type: ignore[arg-type]


def in_root(**values: object) -> Change:
    return lambda facts: facts._replace(root=ROOT._replace(**values))  # type: ignore[arg-type]


def sleeping(spec: str, *, there: bool, waiting: bool) -> Change:
    return lambda facts: facts._replace(sleep=ResumeFacts(Resume(spec), there, waiting))


def room(data: int, metadata: int) -> Change:
    return in_volume(space=Space(0, 0, data * MIB, metadata * MIB))


def own_fstab(old: str, new: str) -> Change:
    return in_root(fstab=FSTAB.replace(old, new))


CASES: tuple[tuple[Change, Level, str], ...] = (
    (lambda facts: Facts(unreadable="current leads nowhere", way_out="ln"), P, "volume-unreadable"),
    (in_volume(default_subvolume=256), P, "default-subvolume"),
    (in_volume(missing_devices=1), P, "device-missing"),
    (state(slots=("b", "")), W, "slot-dangling"),
    (state(slots=("", "b"), booted=None), P, "slot-dangling"),
    (state(slots=(), booted=None), P, "slot-dangling"),
    (state(slots=("a", "b")), W, "fallback-booted"),
    (state(slots=("a", "b"), pending=True), N, "pending"),
    (state(A, B._replace(sealed=False)), P, "generation-unsealed"),
    (state(A, B, Generation("c", sealed=False)), W, "generation-unsealed"),
    (state(A, B._replace(failed=True)), W, "next-failed"),
    (state(A._replace(foreign=True), B), N, "foreign"),
    (in_volume(damaged=("a",)), W, "record-damaged"),
    (in_volume(at_work="pid 5, apk-atomic add x", staging=("c",)), N, "at-work"),
    (in_volume(staging=("c",)), N, "staging-left"),
    (in_volume(scratch=("current-c",)), N, "next-left"),
    (in_volume(links=("c", "d")), N, "links-left"),
    (in_volume(empty=("c",)), W, "snapshot-empty"),
    (room(63, 500), P, "space"),
    (room(500, 15), P, "space"),
    (room(127, 500), W, "space"),
    (in_volume(template=None), N, "template-missing"),
    (in_volume(template=FSTAB), P, "template-fixed"),
    (in_volume(commons={"/commons/@var@cache": False}), P, "common-missing"),
    (in_volume(unknown=("UUID=12345678",)), W, "template-uuid"),
    (in_volume(fstab="UUID=x / btrfs ro,subvol=/snapshots/b/@\n"), W, "cache-unshared"),
    (in_volume(held=("kernel linux-lts is held",)), N, "kernel-held"),
    (in_menu(there=False, menu=None), W, "menu-unknown"),
    (in_menu(menu=None), W, "menu-damaged"),
    (in_menu(lacking={"boot/vmlinuz-lts": (0, 2)}), P, "menu-path"),
    (in_menu(lacking={"boot/vmlinuz-lts": (1,)}), W, "menu-path"),
    (in_menu(unused=("boot/intel-ucode.img",)), N, "microcode-unused"),
    (menu(uuid="ffff"), P, "menu-volume"),
    (menu(volume="other"), P, "menu-volume"),
    (menu(slots=5), W, "menu-slots"),
    (in_esp(place=""), W, "esp-unknown"),
    (in_esp(trouble="no", known=False), P, "esp-unreadable"),
    (in_esp(unseen="no", known=False), W, "esp-unseen"),
    (in_esp(is_fat=False), W, "esp-no-fat"),
    (in_esp(missing=("EFI/apk-atomic/x.efi",)), P, "loader-missing"),
    (in_esp(differing=("EFI/apk-atomic/refind.conf",)), W, "menu-differs"),
    (in_esp(free=1000), W, "esp-space"),
    (in_esp(fallback=False), N, "loader-no-fallback"),
    (in_esp(fallback=False, entry=False), P, "loader-unreached"),
    (in_esp(fallback=False, entry=None), W, "loader-unreached"),
    (in_esp(entry=False), N, "loader-no-entry"),
    (in_root(sealed=False), P, "root-unsealed"),
    (in_root(writable=True), N, "root-writable"),
    (in_root(layer=True, writable=True), N, "root-overlay"),
    (own_fstab("ro,", ""), W, "root-remount"),
    (own_fstab("ro,", "ro,rw,"), W, "root-remount"),
    (own_fstab(" / ", " /x "), P, "root-fstab"),
    (in_root(efi=False), W, "bios"),
    (in_root(ours=("/usr/local/bin/apk",)), W, "drop-in-shadowed"),
    (in_root(jobs={"apk": "/etc/periodic/daily/apk"}), W, "apk-cron"),
    (in_root(jobs={"apk-atomic": "/etc/periodic/daily/apk-atomic"}, services=frozenset()), W, "crond-disabled"),
    (in_root(resolv=None), P, "resolv-missing"),
    (in_root(resolv="var/x", resolv_there=False), P, "resolv-missing"),
    (in_root(resolv_there=False), N, "resolv-empty"),
    (in_root(resolv="etc/resolv.conf"), N, "resolv-fixed"),
    (lambda facts: facts._replace(configuration="x.toml: wrong"), P, "configuration"),
    (sleeping("UUID=1", there=True, waiting=True), P, "hibernated"),
    (sleeping("UUID=1", there=False, waiting=False), W, "resume-missing"),
)


def test_nothing_is_wrong_with_a_healthy_system() -> None:
    found = checkup.judge(HEALTHY)
    assert [each.code for each in found] == [check.code for check in checkup.CHECKS]
    assert checkup.worst(found) is Level.OK


@pytest.mark.parametrize(("change", "level", "code"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_one_thing_is_wrong(change: Change, level: Level, code: str) -> None:
    found = [each for each in checkup.judge(change(HEALTHY)) if each.level is not Level.OK]
    assert [(each.level, each.code) for each in found] == [(level, code)]
    assert checkup.worst(tuple(found)) is level
    assert found[0].message and not found[0].message.endswith(".")


@pytest.mark.parametrize(
    "change",
    [
        in_root(ours=("/usr/local/bin/apk",), path_apk="/usr/local/bin/apk"),
        in_root(jobs={"apk-atomic": "/etc/periodic/daily/apk-atomic", "logrotate": "/etc/periodic/daily/logrotate"}),
        sleeping("UUID=1", there=True, waiting=False),
        in_root(resolv="etc/hosts"),
        in_menu(names=()),
        lambda facts: facts._replace(menu=MenuFacts(True, replace(MENU, loader=Loader.GRUB, volume="x"), ("guid",))),
        in_esp(free=None),
        in_esp(entry=None),
    ],
)
def test_what_is_all_right(change: Change) -> None:
    assert checkup.worst(checkup.judge(change(HEALTHY))) is Level.OK


@pytest.mark.parametrize("part", ["volume", "menu", "esp", "root", "sleep", "configuration"])
def test_what_was_not_looked_at_is_not_judged(part: str) -> None:
    found = checkup.judge(HEALTHY._replace(**{part: None}))  # type: ignore[arg-type]
    assert checkup.worst(found) is Level.OK
    assert len(found) < len(checkup.CHECKS)
    assert checkup.judge(Facts()) == ()


def test_an_esp_of_which_nothing_is_known_is_not_called_good() -> None:
    found = checkup.judge(HEALTHY._replace(esp=EspFacts("/boot/efi")))
    assert not {"esp", "way-in"} & {each.code for each in found}


def test_a_booted_generation_without_a_slot() -> None:
    found = checkup.judge(state(slots=("a", "a"), pending=True)(HEALTHY))
    assert [each.code for each in found if each.level is not Level.OK] == ["booted-without-slot", "pending"]


def test_long_lists_are_counted() -> None:
    (found,) = [each for each in checkup.judge(in_volume(links=tuple("abcdefg"))(HEALTHY)) if each.level is N]
    assert "links/a, links/b, links/c and 4 more" in found.message
