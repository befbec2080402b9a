"""Bugs that others have shipped, each replayed: what a user does in a row, and what must hold after it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.adversity.trial import Trial
from tests.support import btrfsctl
from tests.support.packages import File, Package
from tests.support.world import FIRST


def publish(trial: Trial, *names: str, version: str = "1.0-r0") -> None:
    files = {name: {f"usr/share/{name}": File(version.encode())} for name in names}
    trial.volume.repo.publish(*(Package(name, version, files=files[name]) for name in names))


def installed(trial: Trial, slot: int = 0) -> set[str]:
    return set((trial.volume.tree(slot) / "etc/apk/world").read_text().split())


def test_running_root_survives_many_upgrades_and_gc(trial: Trial) -> None:
    """Six nights without a reboot: what runs keeps slot 1, one generation is pending, the rest is gone."""
    publish(trial, "tool")
    new = trial.committed("apk-atomic", "add", "tool")
    for night in range(2, 8):
        publish(trial, "tool", version=f"{night}.0-r0")
        new = trial.committed("apk-atomic", "upgrade")
        assert trial.volume.slots() == [new, FIRST, FIRST, FIRST]
        assert trial.volume.generations() == sorted([FIRST, new])
    assert trial.run("apk-atomic", "gc").status == 0
    assert trial.guest.run(["ls", "/etc/passwd"]).status == 0
    trial.reboot()
    assert trial.guest.booted == new
    assert (trial.volume.tree() / "usr/share/tool").read_text() == "7.0-r0"


def test_second_command_does_not_throw_away_the_first(trial: Trial) -> None:
    publish(trial, "a", "b", "c")
    for name in ("a", "b"):
        trial.committed("apk-atomic", "add", name)
    trial.reboot()
    assert trial.guest.run(["apk", "info", "-e", "a", "b"], check=True).stdout.split() == ["a", "b"]
    trial.committed("apk-atomic", "add", "c")
    assert installed(trial) == {"a", "b", "c"}


def test_rollback_is_what_the_next_change_starts_from(trial: Trial) -> None:
    publish(trial, "a", "b")
    first = trial.committed("apk-atomic", "add", "a")
    trial.reboot()
    assert trial.run("apk-atomic", "rollback").status == 0
    assert trial.volume.slots()[:2] == [FIRST, first]
    trial.accept()
    trial.committed("apk-atomic", "add", "b")
    assert installed(trial) == {"b"}
    assert first in trial.volume.slots()


def test_booted_fallback_is_no_guess(trial: Trial) -> None:
    """The user chose the fallback because slot 0 is broken, or by chance: he is asked."""
    publish(trial, "a", "b", "c")
    broken = trial.committed("apk-atomic", "add", "a")
    trial.reboot(slot=1)
    assert trial.guest.booted == FIRST
    result = trial.refused("apk-atomic", "add", "b", status=106, says="fallback")
    assert "--atomic-base booted|next|ID" in result.stderr
    assert "booted as a fallback" in trial.run("apk-atomic", "status").stdout
    trial.committed("apk-atomic", "add", "--atomic-base", "booted", "b")
    assert installed(trial) == {"b"}
    assert FIRST in trial.volume.slots()
    trial.reboot(slot=trial.volume.slots().index(FIRST))
    trial.committed("apk-atomic", "add", "--atomic-base", "next", "c")
    assert installed(trial) == {"b", "c"}
    assert broken not in trial.volume.slots()[:1]


def test_upgrade_with_nothing_to_do_makes_nothing(trial: Trial) -> None:
    trial.works()
    for _ in range(2):
        trial.unchanged("apk-atomic", "upgrade")


def test_failed_generation_is_no_base(trial: Trial) -> None:
    new = trial.works()
    (trial.volume.top / "snapshots" / new / "failed").touch()
    trial.accept()
    result = trial.refused("apk-atomic", "run", "touch", "/etc/made", status=106, says="marked as failed")
    assert "apk-atomic rollback" in result.stderr
    assert trial.run("apk-atomic", "rollback").status == 0
    assert trial.volume.slots()[0] == FIRST
    trial.accept()
    trial.works()


def test_good_and_pinned_ones_stay(trial: Trial) -> None:
    kept = []
    for mark in ("good", "pinned"):
        kept.append(trial.works())
        (trial.volume.top / "snapshots" / kept[-1] / mark).touch()
        trial.reboot()
    for number in range(3):
        trial.committed("apk-atomic", "run", "touch", f"/etc/made{number}")
        trial.reboot()
    assert trial.run("apk-atomic", "gc").status == 0
    assert set(kept) <= set(trial.volume.slots())


def test_one_damaged_generation_stops_nothing(trial: Trial) -> None:
    """A database, an fstab and a record that are garbage in a fallback: list, diff, commit and gc go on."""

    def prepare(tree: Path) -> None:
        (tree / "lib/apk/db/installed").write_bytes(os.urandom(5000))
        (tree / "etc/fstab").write_bytes(os.urandom(5000))

    name = "20240301000000damagedx"
    trial.volume.add_generation(name, prepare)
    trial.volume.point(FIRST, name, name=name)
    trial.accept()
    assert trial.run("apk-atomic", "status", "--all").status == 0
    assert trial.run("apk-atomic", "diff", name, FIRST).status == 0
    trial.works()
    assert name in trial.volume.slots()
    assert trial.run("apk-atomic", "gc").status == 0


def test_files_under_a_mount_point_are_named(trial: Trial) -> None:
    """They land in commons, not in the generation, and a discard would not take them back."""
    trial.volume.repo.publish(Package("logs", files={"var/log/logs/first": File(b"x"), "usr/share/logs": File(b"x")}))
    result = trial.run("apk-atomic", "add", "logs")
    assert "var/log/logs" in result.stderr
    trial.check_new(result)
    assert (trial.volume.top / "commons/@var@log/logs/first").exists()
    assert not (trial.volume.tree() / "var/log/logs").exists()


NAMES = "a\nb", "-rf", "**", " ", "\\", "$(id)", "'\"", "\x1b[2J", "caf\u00e9", "x" * 255


def test_file_names_that_break_scripts(trial: Trial) -> None:
    """Made, changed, renamed and removed in a change: each is there, and nothing of ours stumbles over one."""
    program = (
        f"import os\nnames = {NAMES!r}\nos.makedirs('/etc/odd', exist_ok=True)\n"
        "for name in (*map(os.fsencode, names), b'\\xff\\xfe'):\n"
        "    with open(b'/etc/odd/' + name, 'ab') as out: out.write(b'x')\n"
    )
    argv = ("apk-atomic", "run", "--", "python3", "-I", "-c", program)
    for size in (1, 2):
        trial.committed(*argv)
        odd = os.fsencode(trial.volume.tree() / "etc/odd")
        assert {os.path.getsize(os.path.join(odd, name)) for name in os.listdir(odd)} == {size}
        assert len(os.listdir(odd)) == len(NAMES) + 1
    trial.committed("apk-atomic", "run", "--", "sh", "-c", "cd /etc/odd && rm -- ./*")
    assert os.listdir(trial.volume.tree() / "etc/odd") == []


def test_apk_of_the_running_system_holds_its_lock(trial: Trial) -> None:
    """The lock is that of the booted root; the snapshot's is another."""
    trial.works()
    trial.reboot()
    trial.guest.popen(["flock", "/lib/apk/db/lock", "sleep", "100"], start_new_session=True)
    trial.works()


def test_calls_from_inside(trial: Trial) -> None:
    """apk's words are apk's there; a transaction in a transaction is refused, and the outer one goes on."""
    publish(trial, "a", "b")
    script = "apk-atomic add a && apk-atomic info -e a && ! apk-atomic run true && ! apk-atomic gc && apk add b"
    result = trial.run("apk-atomic", "run", "--", "sh", "-c", script)
    assert "a change is at work here already" in result.stderr
    trial.check_new(result)
    assert installed(trial) == {"a", "b"}


def test_template_and_base_are_both_edited(trial: Trial) -> None:
    template = trial.volume.top / "fstab"
    result = trial.run("apk-atomic", "run", "--", "sh", "-c", "echo '# by hand' >>/etc/fstab")
    assert "altered etc/fstab" in result.stderr
    trial.check_new(result)
    trial.works()
    assert "# by hand" in (trial.volume.tree() / "etc/fstab").read_text()
    before = template.read_text()
    template.write_text(before + "tmpfs /mnt tmpfs rw 0 0\n")
    result = trial.refused("apk-atomic", "run", "touch", "/etc/made", status=106, says="both edited")
    assert "-tmpfs /mnt tmpfs rw 0 0" in result.stderr
    assert "+# by hand" in result.stderr
    template.write_text(before)
    trial.works()


def test_every_generation_says_where_it_is(trial: Trial) -> None:
    """The fstab of a new generation names itself, also when base was foreign and is a snapshot of a snapshot."""
    for _ in range(2):
        new = trial.works()
        assert f"subvol=/snapshots/{new}/@ " in (trial.volume.tree() / "etc/fstab").read_text()
        assert FIRST not in (trial.volume.tree() / "etc/fstab").read_text()
        trial.reboot()
        assert trial.guest.booted == new


@pytest.mark.parametrize("name", ["@usr", "data"])
def test_generation_of_several_subvolumes(trial: Trial, name: str) -> None:
    """All are snapshotted, sealed and collected together."""
    older = "20240301000000severalx"
    trial.volume.add_generation(older, ours=True)
    beside = trial.volume.top / "snapshots" / older / name
    btrfsctl.create_subvolume(beside)
    (beside / "mine").write_text("x")
    btrfsctl.set_read_only(beside, True)
    trial.accept()
    new = trial.committed("apk-atomic", "run", f"--atomic-base={older}", "touch", "/etc/made")
    twin = trial.volume.top / "snapshots" / new / name
    assert btrfsctl.is_read_only(twin)
    assert (twin / "mine").read_text() == "x"
    assert trial.run("apk-atomic", "discard").status == 0
    assert trial.run("apk-atomic", "gc").status == 0
    assert trial.volume.generations() == [FIRST]
