"""What apk's exit status and its database say together, whichever apk it is: go on, or discard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.adversity.trial import Trial, publish_script
from tests.support.packages import File, Package

BROKEN = "a script or trigger of bad-1.0-r0 failed"


def world(trial: Trial) -> list[str]:
    return (trial.volume.tree() / "etc/apk/world").read_text().split()


FAILS = "#!/bin/sh\nexit 1\n"


def triggered(name: str, version: str = "1.0-r0", **scripts: str) -> Package:
    """A package whose trigger fails, at its own files too."""
    return Package(
        name, version, files={f"usr/share/{name}/x": File(version.encode())}, triggers=(f"/usr/share/{name}",),
        scripts={"trigger": FAILS, **{kind.replace("_", "-"): text for kind, text in scripts.items()}},
    )  # fmt: skip


def scripted(name: str, version: str = "1.0-r0") -> Package:
    """A package whose scripts fail, those of an upgrade too."""
    scripts = {"post-install": FAILS, "post-upgrade": FAILS}
    return Package(name, version, files={f"usr/share/{name}/x": File(version.encode())}, scripts=scripts)


def plain(name: str, version: str = "1.0-r0", **more: Any) -> Package:
    return Package(name, version, files={f"usr/share/{name}": File(version.encode())}, **more)


def lose(trial: Trial, *packages: Package) -> None:
    """The repository's index still has them."""
    trial.volume.repo.publish(*packages)
    for package in packages:
        Path(trial.volume.repo.file_of(package)).unlink()


def publish_trigger(trial: Trial) -> None:
    trial.volume.repo.publish(triggered("bad"))


def make_broken(trial: Trial) -> None:
    """A generation whose package bad is flagged broken is next."""
    publish_script(trial.volume, "bad", "exit 1")
    result = trial.run("apk-atomic", "add", "--atomic-accept", "bad", "bad")
    assert "flagged as broken: bad" in result.stderr
    trial.check_new(result)


def test_trigger_that_fails(trial: Trial) -> None:
    """2.14 exits with 0 then; it is discarded all the same."""
    publish_trigger(trial)
    result = trial.refused("apk-atomic", "add", "bad", status=1, says=BROKEN)
    assert "--atomic-accept bad" in result.stderr
    trial.committed("apk-atomic", "add", "--atomic-accept", "bad", "bad")


def test_accepted_by_the_configuration(trial: Trial) -> None:
    publish_script(trial.volume, "bad", "exit 1")
    with trial.etc() as etc:
        (etc / "apk-atomic.toml").write_text('[chroot]\naccept = ["bad"]\n')
        trial.committed("apk-atomic", "add", "bad")


def test_accepting_one_is_not_accepting_another(trial: Trial) -> None:
    publish_script(trial.volume, "worse", "exit 1")
    publish_script(trial.volume, "bad", "exit 1")
    result = trial.refused("apk-atomic", "add", "--atomic-accept", "worse", "bad", "worse", says=BROKEN)
    assert "--atomic-accept bad" in result.stderr
    trial.committed("apk-atomic", "add", "--atomic-accept", "worse,bad", "bad", "worse")


def test_package_that_was_broken_before(trial: Trial) -> None:
    """apk counts it as an error of every run from then on; ours goes on, says so, and exits with 0."""
    make_broken(trial)
    trial.volume.repo.publish(Package("good", files={"usr/share/good": File(b"x")}))
    result = trial.run("apk-atomic", "add", "good")
    assert "flagged as broken: bad" in result.stderr
    trial.check_new(result)
    trial.refused("apk-atomic", "add", "missing")
    publish_script(trial.volume, "another", "exit 1")
    trial.refused("apk-atomic", "add", "another", says="a script or trigger of another-1.0-r0 failed")
    trial.committed("apk-atomic", "del", "bad")
    assert trial.run("apk-atomic", "add", "good").stderr.count("broken") == 0


def test_nothing_to_do_with_a_broken_package(trial: Trial) -> None:
    make_broken(trial)
    trial.unchanged("apk-atomic", "add", "bad")


def test_upgrade_mends_a_broken_package(trial: Trial) -> None:
    make_broken(trial)
    scripts = {"post-install": "#!/bin/sh\nexit 0\n", "post-upgrade": "#!/bin/sh\nexit 0\n"}
    trial.volume.repo.publish(Package("bad", "1.1-r0", files={"usr/share/bad": File(b"x")}, scripts=scripts))
    trial.committed("apk-atomic", "upgrade")
    trial.volume.repo.publish(Package("good", files={"usr/share/good": File(b"x")}))
    assert "broken" not in trial.run("apk-atomic", "add", "good").stderr


def test_fix_repairs_a_deleted_file(trial: Trial) -> None:
    trial.volume.repo.publish(Package("tool", files={"usr/share/tool": File(b"tool\n")}))
    trial.committed("apk-atomic", "add", "tool")
    trial.committed("apk-atomic", "run", "rm", "/usr/share/tool")
    trial.unchanged("apk-atomic", "fix", "-s", "tool")
    trial.committed("apk-atomic", "fix", "tool")
    assert (trial.volume.tree() / "usr/share/tool").read_bytes() == b"tool\n"


def test_fix_with_nothing_to_fix(trial: Trial) -> None:
    assert "nothing changed" in trial.unchanged("apk-atomic", "fix").stderr


def test_package_that_the_repository_lost(trial: Trial) -> None:
    """apk leaves such a package in world; the discard does not."""
    package = Package("gone", files={"usr/share/gone": File(b"x")})
    trial.volume.repo.publish(package, Package("there", files={"usr/share/there": File(b"x")}))
    Path(trial.volume.repo.file_of(package)).unlink()
    trial.refused("apk-atomic", "add", "there", "gone")
    assert world(trial) == []
    trial.works()


# ---- the count of broken packages is not the count of what failed ------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "upgrade",
        "-q upgrade",
        pytest.param("upgrade --available", marks=pytest.mark.real_apk),
        "upgrade gone trig",
    ],
)
def test_upgrade_that_lost_a_package_beside_a_broken_trigger(trial: Trial, line: str) -> None:
    """2.14 does not count the trigger, so there the one error is the package's."""
    trial.volume.repo.publish(triggered("trig"), plain("gone"))
    trial.committed("apk-atomic", "add", "--atomic-accept", "trig", "trig", "gone")
    trial.volume.repo.publish(triggered("trig", "1.1-r0"))
    lose(trial, plain("gone", "1.1-r0"))
    trial.accept()
    says = "left undone: Upgrading gone (1.0-r0 -> 1.1-r0); nothing was changed"
    trial.refused("apk-atomic", *line.split(), says=says)


def test_upgrade_that_lost_the_broken_package_itself(trial: Trial) -> None:
    """3.x counts a package that was broken as it counts one that could not be fetched."""
    trial.volume.repo.publish(triggered("trig"), scripted("posty"), plain("two"))
    trial.committed("apk-atomic", "add", "--atomic-accept", "trig,posty", "trig", "posty", "two")
    trial.volume.repo.publish(triggered("trig", "1.1-r0"), plain("two", "1.1-r0"))
    lose(trial, scripted("posty", "1.1-r0"))
    trial.accept()
    trial.refused("apk-atomic", "upgrade", says="left undone: Upgrading posty (1.0-r0 -> 1.1-r0)")


def test_addition_that_lost_a_package_beside_an_accepted_one(trial: Trial) -> None:
    trial.volume.repo.publish(triggered("trig"))
    lose(trial, plain("gone"))
    trial.accept()
    trial.refused("apk-atomic", "add", "--atomic-accept", "trig", "trig", "gone", says="Installing gone (1.0-r0)")
    assert world(trial) == []


def test_trigger_is_accepted_beside_a_package_that_was_broken(trial: Trial) -> None:
    """2.14 counts one of the two."""
    make_broken(trial)
    trial.volume.repo.publish(triggered("trig"), plain("good"))
    result = trial.run("apk-atomic", "add", "--atomic-accept", "trig", "trig")
    assert "flagged as broken: bad, trig" in result.stderr
    trial.check_new(result)
    trial.committed("apk-atomic", "add", "good")
    trial.committed("apk-atomic", "del", "good")


@pytest.mark.real_apk
def test_virtual_package_beside_broken_ones(trial: Trial) -> None:
    make_broken(trial)
    trial.volume.repo.publish(triggered("trig"), plain("good"))
    trial.committed("apk-atomic", "add", "--atomic-accept", "trig", "trig", "good")
    trial.committed("apk-atomic", "add", "-t", ".group", "good")
    Path(trial.volume.repo.file_of(plain("good"))).unlink()
    trial.committed("apk-atomic", "del", ".group")
    trial.committed("apk-atomic", "del", "good")


def test_script_and_trigger_of_one_package_fail(trial: Trial) -> None:
    """3.x counts both."""
    trial.volume.repo.publish(triggered("bad", post_install=FAILS))
    trial.committed("apk-atomic", "add", "--atomic-accept", "bad", "bad")


def test_fix_that_mends_nothing(trial: Trial) -> None:
    trial.volume.repo.publish(scripted("bad"), plain("tool"))
    trial.committed("apk-atomic", "add", "--atomic-accept", "bad", "bad", "tool")
    trial.committed("apk-atomic", "run", "rm", "/usr/share/tool")
    trial.refused("apk-atomic", "fix", "bad", status=1)
    trial.refused("apk-atomic", "fix", status=1)
    result = trial.run("apk-atomic", "fix", "tool")
    assert "flagged as broken: bad" in result.stderr
    trial.check_new(result)
    assert (trial.volume.tree() / "usr/share/tool").is_file()


@pytest.mark.parametrize("damage", ["truncated", "garbage", "another"])
def test_package_that_is_damaged(trial: Trial, damage: str) -> None:
    package = Package("gone", files={"usr/share/gone": File(b"x" * 5000)})
    other = Package("there", files={"usr/share/there": File(b"y" * 5000)})
    trial.volume.repo.publish(package, other)
    path = Path(trial.volume.repo.file_of(package))
    whole = path.read_bytes()
    change = {"truncated": whole[: len(whole) // 2], "garbage": bytes(len(whole))}
    path.write_bytes(change.get(damage) or Path(trial.volume.repo.file_of(other)).read_bytes())
    trial.refused("apk-atomic", "add", "gone")
    assert world(trial) == []
    path.write_bytes(whole)
    trial.committed("apk-atomic", "add", "gone")


def test_world_only_change(trial: Trial) -> None:
    """An installed dependency is asked for by name: no package changes, but the world does."""
    trial.volume.repo.publish(
        Package("needed", files={"usr/share/needed": File(b"x")}),
        Package("needs", files={"usr/share/needs": File(b"x")}, depends=("needed",)),
    )
    trial.committed("apk-atomic", "add", "needs")
    assert world(trial) == ["needs"]
    trial.committed("apk-atomic", "add", "needed")
    assert sorted(world(trial)) == ["needed", "needs"]


def test_nothing_changed_is_said_and_exits_as_asked(trial: Trial) -> None:
    trial.works()
    name = world(trial)[0]
    for argv in (("add", name), ("upgrade",), ("run", "true")):
        trial.unchanged("apk-atomic", *argv)
        result = trial.unchanged("apk-atomic", argv[0], "--atomic-unchanged-77", *argv[1:], status=77)
        assert "nothing changed" in result.stderr


def test_file_conflict(trial: Trial) -> None:
    trial.volume.repo.publish(
        Package("one", files={"usr/share/same": File(b"1")}), Package("two", files={"usr/share/same": File(b"2")})
    )
    trial.committed("apk-atomic", "add", "one")
    trial.refused("apk-atomic", "add", "two", status=1)
    assert world(trial) == ["one"]


def test_simulations_change_nothing(trial: Trial) -> None:
    trial.volume.repo.publish(Package("hello", files={"usr/share/hello": File(b"x")}))
    for argv in (("add", "-s", "hello"), ("upgrade", "-s"), ("fix", "-s"), ("add", "--simulate", "missing")):
        trial.unchanged("apk-atomic", *argv, status=1 if "missing" in argv else 0)
