"""Upgrades that fail: nothing is changed, it is said once, and the same packages are not tried again by themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.adversity.trial import Trial
from tests.support.packages import File
from tests.support.pythontree import site_packages
from tests.support.world import Volume
from tests.unattended.house import PERIODIC, House, furnish

FAILS = {"post-upgrade": "#!/bin/sh\necho this goes wrong\nexit 1\n"}


def test_set_that_failed_is_not_tried_again(house: House) -> None:
    house.release("hello", "2.0-r0", scripts=FAILS)
    result = house.trial.refused("apk-atomic", "auto", status=1, says="a script or trigger of hello-2.0-r0 failed")
    assert "Upgrading hello" in result.stderr and result.stdout == ""  # what apk said
    (denied,) = house.state("denied.json")["denied"]
    assert "hello-2.0-r0 failed" in denied["why"]
    result = house.trial.unchanged(PERIODIC)
    assert "the upgrade is held back: these packages failed on" in result.stderr
    result = house.trial.unchanged(PERIODIC)
    assert (result.stdout, result.stderr) == ("", "")  # said once
    house.nothing(outcome="held")
    house.trial.refused("apk-atomic", "auto", "--now", status=1)  # the user insists
    assert len(house.state("denied.json")["denied"]) == 1
    house.release("hello", "2.0-r1")
    house.committed()
    assert house.content("hello") == "2.0-r1"


def test_changed_set_is_tried_again(house: House) -> None:
    """Something else is new: perhaps it works with that."""
    house.release("hello", "2.0-r0", scripts=FAILS)
    house.release("other", "1.0-r0")
    house.trial.refused("apk-atomic", "auto", status=1)
    house.nothing(outcome="held")
    house.guest.run(["apk-atomic", "add", "other"], check=True)
    house.trial.accept()
    house.trial.refused("apk-atomic", "auto", status=1)
    assert len(house.state("denied.json")["denied"]) == 2


def test_what_somebody_went_back_from_does_not_come_back(house: House) -> None:
    house.release("hello", "2.0-r0")
    new = house.committed()
    house.trial.reboot()
    house.guest.run(["apk-atomic", "rollback"], check=True)
    house.trial.reboot()
    assert house.content("hello") == "1.0-r0"
    answer = house.nothing(outcome="held")
    assert f"generation {new} has these packages and was left for an older one" in answer["message"]
    house.release("hello", "2.0-r1")
    house.committed()


@pytest.mark.parametrize("back", ["rollback", "discard"])
def test_it_does_not_come_back_in_other_company(house: House, back: str) -> None:
    """Nor when something else is new, on top of other packages, or when the generation itself is long gone."""
    house.release("other", "1.0-r0")
    house.guest.run(["apk-atomic", "add", "other"], check=True)
    house.trial.reboot()
    house.release("hello", "2.0-r0")
    new = house.committed()
    house.guest.run(["apk-atomic", back], check=True)
    house.release("other", "1.1-r0")
    house.nothing(outcome="held")
    house.release("extra", "1.0-r0")
    house.guest.run(["apk-atomic", "add", "extra"], check=True)
    house.guest.run(["apk-atomic", "gc"], check=True)
    assert f"somebody went back from generation {new}" in house.nothing(outcome="held")["message"]
    house.release("hello", "2.0-r1")
    house.committed()
    assert (house.content("hello"), house.content("other")) == ("2.0-r1", "1.1-r0")


def test_what_failed_at_boot_does_not_come_back(house: House) -> None:
    """Boot health marks a generation as failed and puts the old one in slot 0: the mark is enough."""
    house.release("hello", "2.0-r0")
    new = house.committed()
    house.guest.run(["apk-atomic", "rollback", "1"], check=True)
    (house.volume.top / "snapshots" / new / "failed").touch()
    assert f"generation {new} has these packages and failed" in house.nothing(outcome="held")["message"]
    house.committed("--now")


def test_hook_that_refuses_says_nothing_about_the_packages(house: House) -> None:
    house.release("hello", "2.0-r0")
    with house.trial.etc() as etc:
        hook = etc / "hooks.d/pre-commit.d/no"
        hook.parent.mkdir(parents=True)
        hook.write_text("#!/bin/sh\nexit 1\n")
        hook.chmod(0o755)
        (etc / "apk-atomic.toml").write_text("[auto]\ndelay_minutes = 0\nevery_hours = 0\nmin_free = '16M'\n")
        house.trial.refused("apk-atomic", "auto", status=106)
    assert not (house.volume.top / "state/denied.json").exists()
    house.committed()


def test_wrong_configuration(house: House) -> None:
    house.configure(policy="sometimes")
    house.trial.refused("apk-atomic", "auto", status=100, says="auto.policy")


# ---- apk-atomic itself -----------------------------------------------------------------------------------


def place(house: House) -> str:
    tree = house.volume.tree()
    return str(site_packages(tree).relative_to(tree))


@pytest.mark.parametrize("broken", ["transaction", "commands/rollback", "usr/bin/apk-atomic"])
def test_new_apk_atomic_is_broken(house: House, broken: str) -> None:
    """The way back must not be lost in a night: such an upgrade is discarded. One that works is taken."""
    path = broken if broken.startswith("usr/") else f"{place(house)}/apk_atomic/{broken}.py"
    good = (house.volume.tree() / path).read_bytes()
    interpreter = good.partition(b"\n")[0] if broken.startswith("usr/") else b""
    house.release("hello", "2.0-r0", files={path: File(interpreter + b"\nimport nothing_of_the_kind\n", 0o755)})
    said = "the new generation's own apk-atomic does not run (ModuleNotFoundError"
    house.trial.refused("apk-atomic", "auto", status=104, says=said)
    house.nothing(outcome="held")
    house.release("hello", "2.0-r1", files={path: File(good + b"# more\n", 0o755)})
    house.committed()
    assert not list((house.volume.tree() / place(house)).glob("apk_atomic/**/*.tmp"))


def test_apk_atomic_is_replaced_by_something_else(house: House) -> None:
    house.release("hello", "2.0-r0", files={"usr/bin/apk-atomic": File(b"\x7fELF", 0o755)})
    house.trial.refused("apk-atomic", "auto", status=104, says="leaves no /usr/bin/apk-atomic that could be run")


def test_check_of_itself_leaves_no_trace(house: House) -> None:
    house.release("hello", "2.0-r0")
    old = {path.relative_to(house.volume.tree()) for path in Path(house.volume.tree(), "usr").rglob("*")}
    house.committed()
    assert {path.relative_to(house.volume.tree()) for path in Path(house.volume.tree(), "usr").rglob("*")} == old


def test_apk_finds_no_way(house: House) -> None:
    house.release("hello", "2.0-r0", depends=("nowhere-to-be-found",))
    said = house.trial.refused("apk-atomic", "auto", says="apk finds no way to upgrade").stderr
    assert "nowhere-to-be-found" in said  # apk's own words
    house.release("nowhere-to-be-found", "1.0-r0")
    house.committed()


def test_cache_that_is_not_shared(volume: Volume) -> None:
    """The sealed root has no place for a new index; the way out is said, and nothing is denied."""
    text = (volume.top / "fstab").read_text()
    (volume.top / "fstab").write_text("".join(line for line in text.splitlines(True) if "/var/cache" not in line))
    name = "20240102030406abcdefgh"
    volume.add_generation(name, lambda tree: furnish(tree, {}))
    volume.point(name, name=name)
    trial = Trial(volume)
    trial.refused("apk-atomic", "auto", says="/var/cache/apk is not shared by the generations")
    assert not (volume.top / "state").exists()
