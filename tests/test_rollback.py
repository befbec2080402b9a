"""`apk-atomic rollback` and `discard`: where they lead, and what of it can be taken back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.bootworld import install_system
from tests.support.world import FIRST, Guest, Volume, make_volume

NO_KERNEL = "20250101000000nokernel"


def changed(guest: Guest, name: str) -> None:
    guest.run(["apk-atomic", "run", "--", "touch", f"/etc/{name}"], check=True)


def test_a_discard_takes_a_rollback_back_and_nothing_else(volume: Volume) -> None:
    guest = volume.boot()
    changed(guest, "one")
    guest.reboot()
    before = volume.generations()
    guest.run(["apk-atomic", "rollback", "1"], check=True)
    assert volume.slots()[0] == FIRST
    told = guest.run(["apk-atomic", "discard"], check=True).stderr
    assert (volume.slots()[:2], volume.generations()) == ([guest.booted, FIRST], before)
    assert f"generation {FIRST} is no longer next; {guest.booted} is next" in told


def test_a_discard_deletes_what_a_commit_made(volume: Volume) -> None:
    guest = volume.boot()
    changed(guest, "one")
    new = volume.slots()[0]
    told = guest.run(["apk-atomic", "discard"], check=True).stderr
    assert (volume.slots(), volume.generations()) == ([FIRST] * 4, [FIRST])
    assert f"generation {new} is discarded; {FIRST} is next" in told


def test_a_change_after_a_rollback_keeps_what_it_starts_from(volume: Volume) -> None:
    """It worked before, unlike a generation that only another change was built on."""
    guest = volume.boot()
    changed(guest, "one")
    guest.reboot()
    guest.run(["apk-atomic", "rollback"], check=True)
    changed(guest, "two")
    assert (volume.tree() / "etc/two").exists() and not (volume.tree() / "etc/one").exists()
    assert volume.slots()[1:3] == [guest.booted, FIRST]
    superseded = volume.slots()[0]
    changed(guest, "three")
    assert superseded not in volume.generations()
    assert volume.slots()[1:3] == [guest.booted, FIRST]


def with_kernel(tree: Path) -> None:
    (tree / "boot/vmlinuz-lts").write_bytes(b"kernel")


def without_kernel(tree: Path) -> None:
    (tree / "boot/vmlinuz-lts").unlink()


def refused(volume: Volume, target: str, says: str, status: int = 104) -> None:
    """The rollback is refused with a way out, and nothing is left of it."""
    before = volume.current(), volume.slots(), volume.generations()
    result = volume.boot().run(["apk-atomic", "rollback", target])
    assert result.status == status and says in result.stderr and "nothing was changed" in result.stderr, result
    assert "--force" in result.stderr
    assert (volume.current(), volume.slots(), volume.generations()) == before
    assert not (volume.top / "staging").exists() or list((volume.top / "staging").iterdir()) == []


def forced(volume: Volume, target: str, says: str) -> None:
    result = volume.boot().run(["apk-atomic", "rollback", "--force", target], check=True)
    assert volume.slots()[0] == target and f"warning: {target} would not boot: " in result.stderr
    assert says in result.stderr


def test_a_target_that_lacks_what_the_menu_names_is_refused() -> None:
    with make_volume(prepare=with_kernel) as volume:
        volume.add_generation(NO_KERNEL, without_kernel)
        (volume.top / "state").mkdir(exist_ok=True)
        (volume.top / "state/boot.json").write_text(json.dumps({"version": 1, "paths": ["boot/vmlinuz-lts"]}))
        refused(volume, NO_KERNEL, "boot/vmlinuz-lts is gone, which the boot menu names")
        forced(volume, NO_KERNEL, "boot/vmlinuz-lts is gone, which the boot menu names")


def test_a_target_without_a_kernel_is_refused_where_there_is_one() -> None:
    def undeclared(tree: Path) -> None:
        shutil.rmtree(tree / "usr/share/kernel")
        for path in (tree / "boot").iterdir():
            path.unlink()

    with make_volume() as volume:
        install_system(volume)
        volume.add_generation(NO_KERNEL, undeclared)
        refused(volume, NO_KERNEL, "it holds no kernel")
        forced(volume, NO_KERNEL, "it holds no kernel")


def damaged(tree: Path) -> None:
    (tree / "boot/initramfs-lts").write_bytes(b"bad")


@pytest.mark.parametrize("menu_is_known", [False, True])
def test_a_target_that_would_not_boot_is_refused(*, menu_is_known: bool) -> None:
    with make_volume() as volume:
        install_system(volume)
        volume.add_generation(NO_KERNEL, damaged)
        if menu_is_known:
            (volume.top / "state").mkdir(exist_ok=True)
            menu = {"version": 1, "paths": ["boot/vmlinuz-lts", "boot/initramfs-lts"]}
            (volume.top / "state/boot.json").write_text(json.dumps(menu))
        refused(volume, NO_KERNEL, "boot/initramfs-lts")
        forced(volume, NO_KERNEL, "boot/initramfs-lts")


def test_the_one_that_runs_is_never_refused() -> None:
    """Whatever the proof says of it: to go back to it has to work."""
    with make_volume() as volume:
        install_system(volume)
        volume.add_generation(NO_KERNEL, damaged)
        volume.point(NO_KERNEL, FIRST, name=NO_KERNEL)
        guest = volume.boot()
        changed_base = guest.run(["apk-atomic", "rollback", FIRST], check=True)
        assert volume.slots()[0] == FIRST, changed_base
        result = guest.run(["apk-atomic", "rollback"], check=True)
        assert volume.slots()[0] == NO_KERNEL and "would not boot" in result.stderr


def test_a_failed_target_is_refused(volume: Volume) -> None:
    place = volume.add_generation("20250101000000failedxx").parent
    (place / "failed").touch()
    refused(volume, place.name, "is marked as failed", status=106)
    volume.boot().run(["apk-atomic", "rollback", "--force", place.name], check=True)
    assert volume.slots()[0] == place.name


def test_a_number_is_a_slot_and_words_are_understood(volume: Volume) -> None:
    volume.add_generation("1")
    guest = volume.boot()
    changed(guest, "one")
    guest.reboot()
    guest.run(["apk-atomic", "rollback", "1"], check=True)
    assert volume.slots()[0] == FIRST
    guest.run(["apk-atomic", "rollback", "booted"], check=True)
    assert volume.slots()[0] == guest.booted


def broken_configuration(tree: Path) -> None:
    (tree / "etc/apk-atomic/apk-atomic.toml").write_text("[generations]\nslots = 99\n")


def test_an_emergency_does_not_wait_for_the_configuration() -> None:
    with make_volume(prepare=broken_configuration) as volume:
        volume.add_generation("20250101000000otherone")
        guest = volume.boot()
        assert guest.run(["apk-atomic", "add", "x"]).status == 100
        back = guest.run(["apk-atomic", "rollback", "20250101000000otherone"])
        assert (back.status, volume.slots()[0]) == (0, "20250101000000otherone")
        assert "generations.slots" in back.stderr and "going on with the defaults" in back.stderr
        assert guest.run(["apk-atomic", "discard"]).status == 0
        assert len(volume.slots()) == 4 and volume.slots()[0] == FIRST
