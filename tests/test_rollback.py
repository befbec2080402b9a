"""`apk-atomic rollback` and `discard`: where they lead, and what of it can be taken back."""

from __future__ import annotations

from tests.support.world import FIRST, Guest, Volume


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
