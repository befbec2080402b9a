"""`apk-atomic rollback` and `discard`: where they lead, and what of it can be taken back."""

from __future__ import annotations

import json
from pathlib import Path

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


def test_a_target_that_lacks_what_the_menu_names_is_refused() -> None:
    with make_volume(prepare=with_kernel) as volume:
        volume.add_generation(NO_KERNEL, without_kernel)
        (volume.top / "state").mkdir(exist_ok=True)
        (volume.top / "state/boot.json").write_text(json.dumps({"version": 1, "paths": ["boot/vmlinuz-lts"]}))
        result = volume.boot().run(["apk-atomic", "rollback", NO_KERNEL])
        assert (result.status, volume.slots()[0]) == (104, FIRST)
        assert "boot/vmlinuz-lts" in result.stderr
        assert list((volume.top / "staging").iterdir()) == []


def test_without_a_known_menu_it_is_only_warned_of() -> None:
    """It may be what somebody made for an emergency."""
    with make_volume(prepare=with_kernel) as volume:
        volume.add_generation(NO_KERNEL, without_kernel)
        result = volume.boot().run(["apk-atomic", "rollback", NO_KERNEL])
        assert (result.status, volume.slots()[0]) == (0, NO_KERNEL)
        assert f"warning: {NO_KERNEL} holds no kernel" in result.stderr


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
