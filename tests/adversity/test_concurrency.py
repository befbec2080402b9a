"""Several at once: transactions of ours, others who move the pointer by hand, and the wiki's script."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from apk_atomic import faults
from tests.adversity.trial import Trial, publish_script
from tests.support import btrfsctl
from tests.support.packages import File, Package
from tests.support.world import FIRST, make_links

THEIRS = "20290101000000theirsxx"
WAITS = "touch /var/log/ready; while [ ! -e /var/log/go ]; do sleep 0.01; done"


def hold(trial: Trial) -> subprocess.Popen[bytes]:
    """A transaction that is at work until the flag "go" is there."""
    process = trial.start("apk-atomic", "run", "--", "sh", "-c", f"touch /etc/held; {WAITS}")
    trial.wait_for("ready")
    return process


def let_go(trial: Trial) -> None:
    trial.flag("go").touch()


# ---- ours ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--wait", "--atomic-wait"])
def test_eight_at_once_that_wait(trial: Trial, option: str) -> None:
    """Nothing is lost: each starts from what the one before it made."""
    names = [f"one{number}" for number in range(8)]
    trial.volume.repo.publish(*(Package(name, files={f"usr/share/{name}": File(b"x")}) for name in names))
    started = [trial.start("apk-atomic", "add", option, "120", name) for name in names]
    results = [trial.finish(process, clean=False) for process in started]
    assert [result.status for result in results] == [0] * 8, results
    trial.check_clean(results[-1])
    assert set((trial.volume.tree() / "etc/apk/world").read_text().split()) == set(names)
    assert all((trial.volume.tree() / "usr/share" / name).exists() for name in names)
    assert trial.volume.slots()[1:] == [FIRST] * 3
    assert len(trial.volume.generations()) == 2


def test_who_does_not_wait_is_refused_at_once(trial: Trial) -> None:
    holder = hold(trial)
    for argv in (("add", "x"), ("run", "true"), ("rollback",), ("gc",), ("discard",), ("add", "--wait", "0", "x")):
        result = trial.guest.run(["apk-atomic", *argv], start_new_session=True)
        assert result.status == 102, result
        assert f"pid {holder.pid}, apk-atomic run -- sh -c" in result.stderr
        assert "nothing was changed" in result.stderr
        assert "--atomic-wait" in result.stderr
    let_go(trial)
    trial.check_new(trial.finish(holder))
    trial.works()


def test_eight_at_once_that_do_not_wait(trial: Trial) -> None:
    """Each either succeeds or says who is at work; what succeeded is there."""
    names = [f"one{number}" for number in range(8)]
    trial.volume.repo.publish(*(Package(name, files={f"usr/share/{name}": File(b"x")}) for name in names))
    started = [trial.start("apk-atomic", "add", name) for name in names]
    results = [trial.finish(process, clean=False) for process in started]
    assert {result.status for result in results} <= {0, 102}, results
    there = {name for name, result in zip(names, results, strict=True) if result.status == 0}
    assert there
    assert set((trial.volume.tree() / "etc/apk/world").read_text().split()) == there
    trial.check_clean(results[-1])
    trial.works()


def test_readers_need_no_lock(trial: Trial) -> None:
    holder = hold(trial)
    for argv in (("status",), ("status", "--all"), ("diff", FIRST), ("gc", "--dry-run"), ("info",), ("add", "-s")):
        result = trial.guest.run(["apk-atomic", *argv], start_new_session=True)
        assert result.status == 0, result
    let_go(trial)
    trial.check_new(trial.finish(holder))


READERS = ("info -e three", "add -s two", "update", "del -s three")


def stopped_reader(trial: Trial, line: str, point: str) -> tuple[str, subprocess.Popen[bytes]]:
    """The pending generation, and a reader that goes by it and has stopped at `point`."""
    trial.volume.repo.publish(*(Package(name, files={f"usr/share/{name}": File(b"x")}) for name in ("two", "three")))
    old = trial.committed("apk-atomic", "add", "three")
    reader = trial.start("apk-atomic", *line.split(), env={faults.VARIABLE: f"{point}:stop"})
    trial.wait_stopped(reader)
    return old, reader


@pytest.mark.parametrize("line", READERS)
def test_generation_is_replaced_under_a_reader(trial: Trial, line: str) -> None:
    """It has chosen the pending generation, and a commit collects that before it is opened: then it chooses again."""
    old, reader = stopped_reader(trial, line, "chosen")
    trial.guest.run(["apk-atomic", "run", "--", "touch", "/etc/meanwhile"], check=True)
    assert old not in trial.volume.generations()
    trial.accept()
    trial.go_on(reader)
    trial.wait_stopped(reader)  # it has chosen again
    trial.go_on(reader)
    result = trial.finish(reader)
    assert (result.status, "apk-atomic: " in result.stderr) == (0, False), result
    trial.check_same()


@pytest.mark.parametrize("line", READERS)
def test_generation_stays_under_a_reader(trial: Trial, line: str) -> None:
    """What it relies on is collected by the first commit after it."""
    old, reader = stopped_reader(trial, line, "held")
    for number in range(2):
        trial.guest.run(["apk-atomic", "run", "--", "touch", f"/etc/meanwhile-{number}"], check=True)
        assert trial.guest.run(["apk-atomic", "gc"], check=True).stdout == ""
    assert old in trial.volume.generations() and old not in trial.volume.slots()
    trial.go_on(reader)
    result = trial.finish(reader)
    assert (result.status, "apk-atomic: " in result.stderr) == (0, False), result
    assert f"{old}  in no slot" in trial.run("apk-atomic", "gc").stdout
    assert old not in trial.volume.generations()


def test_reader_does_not_look_for_ever(trial: Trial) -> None:
    """Whoever finds the pointer moved each time gives up, and says what it found last."""
    trial.volume.repo.publish(Package("three", files={"usr/share/three": File(b"x")}))
    trial.committed("apk-atomic", "add", "three")
    reader = trial.start("apk-atomic", "info", "-e", "three", env={faults.VARIABLE: "chosen:stop"})
    for number in range(5):
        trial.wait_stopped(reader)
        trial.guest.run(["apk-atomic", "run", "--", "sh", "-c", f"echo {number} >/etc/meanwhile"], check=True)
        trial.go_on(reader)
    trial.accept()
    result = trial.finish(reader)
    assert result.status == 104, result
    assert "nothing was changed" in result.stderr


def test_waiting_can_be_interrupted(trial: Trial) -> None:
    holder = hold(trial)
    waiter = trial.start("apk-atomic", "add", "--wait", "100", "x")
    os.kill(waiter.pid, signal.SIGTERM)
    assert trial.finish(waiter, clean=False).status in (143, -signal.SIGTERM)
    let_go(trial)
    trial.check_new(trial.finish(holder))
    assert trial.volume.slots()[1] == FIRST


def test_two_volumes_from_one_machine(trial: Trial) -> None:
    """A transaction on another volume has a lock of its own."""
    from tests.support.world import make_volume

    with make_volume() as second:
        other = Trial(second, trial.guest)
        named = ("--atomic-volume", second.device)
        holder = hold(trial)
        argv = ["apk-atomic", "run", *named, "--", "touch", "/etc/other"]
        other.check_new(trial.guest.run(argv, start_new_session=True))
        script = f"touch /etc/more; {WAITS.replace('ready', 'other')}"
        both = trial.start("apk-atomic", "run", *named, "--", "sh", "-c", script)
        other.wait_for("other")
        refused = trial.guest.run(["apk-atomic", "run", *named, "true"], start_new_session=True)
        assert (refused.status, f"pid {both.pid}," in refused.stderr) == (102, True)
        let_go(trial)
        let_go(other)
        trial.check_new(trial.finish(holder, clean=False))
        other.check_new(other.finish(both))
        assert (trial.volume.tree() / "etc/held").exists()
        assert not (trial.volume.tree() / "etc/other").exists()
        assert (second.tree() / "etc/more").exists()


# ---- others ----------------------------------------------------------------------------------------------


def move_pointer(trial: Trial) -> None:
    """As the wiki's script does it: somebody else's generation becomes next."""
    trial.volume.add_generation(THEIRS)
    trial.volume.point(THEIRS, FIRST, name=THEIRS)


def is_theirs(trial: Trial) -> None:
    assert trial.volume.slots() == [THEIRS, FIRST, FIRST, FIRST]
    assert trial.volume.generations() == [FIRST, THEIRS]
    assert os.listdir(trial.volume.top / "staging") == []
    assert os.listdir(trial.volume.top / "next") == []


def test_pointer_is_moved_during_the_change(trial: Trial) -> None:
    publish_script(trial.volume, "slow", WAITS)
    process = trial.start("apk-atomic", "add", "slow")
    trial.wait_for("ready")
    move_pointer(trial)
    let_go(trial)
    result = trial.finish(process)
    assert (result.status, "moved by somebody else" in result.stderr) == (104, True), result
    is_theirs(trial)
    trial.reboot()
    trial.works()


@pytest.mark.parametrize(
    ("verb", "point"),
    [
        ("run", "preflight"), ("run", "staged"), ("run", "laid-out"), ("run", "sealed"),
        ("rollback", "preflight"), ("rollback", "laid-out"),
    ],
)
def test_pointer_is_moved_at_each_step(trial: Trial, verb: str, point: str) -> None:
    argv = ("run", "touch", "/etc/made") if verb == "run" else ("rollback", FIRST)
    if verb == "rollback":
        trial.works()
    process = trial.start("apk-atomic", *argv, env={"APK_ATOMIC_FAULT": f"{point}:stop"})
    trial.wait_stopped(process)
    before = set(trial.volume.generations())
    move_pointer(trial)
    trial.go_on(process)
    result = trial.finish(process)
    assert (result.status, "moved by somebody else" in result.stderr) == (104, True), result
    assert trial.volume.slots()[0] == THEIRS
    assert set(trial.volume.generations()) <= {*before, THEIRS}
    trial.reboot()
    trial.works()


def test_next_link_is_replaced_meanwhile(trial: Trial) -> None:
    process = trial.start("apk-atomic", "run", "touch", "/etc/made", env={"APK_ATOMIC_FAULT": "sealed:stop"})
    trial.wait_stopped(process)
    scratch = next((trial.volume.top / "next").iterdir())
    scratch.unlink()
    scratch.symlink_to("../commons")
    trial.go_on(process)
    result = trial.finish(process)
    trial.check_old(result, status=104, says="changed by somebody else")
    trial.works()


def test_wikis_script_works_meanwhile(trial: Trial) -> None:
    """Its snapshot, open or sealed, and its half-made links are left alone by commits and gc until it is done."""
    top = trial.volume.top
    tree = top / "snapshots" / THEIRS / "@"
    tree.parent.mkdir()
    btrfsctl.snapshot(trial.volume.tree(), tree, read_only=False)
    writer = (tree / "etc/theirs").open("w")
    trial.works()
    assert trial.run("apk-atomic", "gc").status == 0
    assert f"{THEIRS}  " in trial.run("apk-atomic", "status", "--all").stdout
    (top / "links" / THEIRS).mkdir()
    (top / "links" / THEIRS / "0").symlink_to(f"../../snapshots/{THEIRS}")
    (top / "next" / f"current-{THEIRS}").symlink_to(f"./links/{THEIRS}")
    result = trial.run("apk-atomic", "run", "touch", "/etc/made")
    assert result.status == 0
    assert trial.run("apk-atomic", "gc").status == 0
    writer.write("x")
    writer.close()
    (top / "links" / THEIRS / "0").unlink()
    (top / "links" / THEIRS).rmdir()
    trial.volume.finish(THEIRS)
    assert trial.run("apk-atomic", "run", "touch", "/etc/more").status == 0
    assert trial.run("apk-atomic", "gc").status == 0
    make_links(top, (THEIRS, FIRST), THEIRS)
    (top / "next" / f"current-{THEIRS}").rename(top / "current")
    assert (trial.volume.tree() / "etc/theirs").read_text() == "x"
    trial.reboot()
    trial.works()


def test_open_snapshot_is_no_base(trial: Trial) -> None:
    tree = trial.volume.top / "snapshots" / THEIRS / "@"
    tree.parent.mkdir()
    btrfsctl.snapshot(trial.volume.tree(), tree, read_only=False)
    trial.accept()
    trial.refused("apk-atomic", "run", f"--atomic-base={THEIRS}", "true", status=106, says="not sealed")
    trial.refused("apk-atomic", "rollback", THEIRS, status=106, says="not sealed")


# ---- the lock --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["a link", "a file", "writable", "somebody's"])
def test_run_directory_is_not_ours(shared: Trial, shape: str) -> None:
    place = Path(shared.guest.root, "run/apk-atomic")
    aside = place.with_name("aside")
    if place.exists():
        place.rename(aside)
    if shape == "a link":
        place.symlink_to("/tmp")
    elif shape == "a file":
        place.write_text("x")
    else:
        place.mkdir(mode=0o777 if shape == "writable" else 0o755)
        place.chmod(0o777 if shape == "writable" else 0o755)
        os.chown(place, 1000 if shape == "somebody's" else 0, 0)
    shared.accept()
    shared.refused("apk-atomic", "run", "true", status=100, says="not a directory that only root can write")
    if place.is_dir() and not place.is_symlink():
        place.rmdir()
    else:
        place.unlink()
    if aside.exists():
        aside.rename(place)
    shared.accept()


def test_lock_file_cannot_be_opened(trial: Trial) -> None:
    trial.works()
    lock = Path(trial.guest.root, "run/apk-atomic", f"{trial.volume.fsid}.lock")
    lock.unlink()
    lock.mkdir()
    result = trial.refused("apk-atomic", "run", "true", status=100, says="cannot lock")
    assert "nothing was changed" in result.stderr
    lock.rmdir()
    trial.works()
