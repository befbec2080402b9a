"""The world itself: if these fail, nothing that the other tests say counts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import btrfsctl
from tests.support.guest import processes_on
from tests.support.packages import File, Package
from tests.support.waiting import until
from tests.support.world import FIRST, MIB, SLOTS, Guest, Volume, make_volume

SECOND = "20240102030406abcdefgh"
HELLO = Package("hello", files={"usr/bin/hello": File(b"#!/bin/sh\necho hello\n", 0o755)})


def test_the_layout_is_that_of_the_design(volume: Volume) -> None:
    assert os.readlink(volume.top / "current") == f"./links/{FIRST}"
    assert volume.slots() == [FIRST] * SLOTS
    assert volume.generations() == [FIRST]
    assert btrfsctl.is_read_only(volume.tree())
    assert all(btrfsctl.is_subvolume(path) for path in (volume.top / "commons").iterdir())
    assert f"subvol=/snapshots/{FIRST}/@" in (volume.tree() / "etc/fstab").read_text()


def test_booted_generation_is_named_by_mountinfo(guest: Guest) -> None:
    assert guest.booted == FIRST
    fields = guest.run(["grep", " / / ", "/proc/self/mountinfo"]).stdout.split()
    assert fields == []  # a generation is never mounted by the top level of its file system
    lines = guest.run(["cat", "/proc/self/mountinfo"], check=True).stdout.splitlines()
    roots = [line.split()[3] for line in lines if line.split()[4] == "/"]
    assert roots == [f"/snapshots/{FIRST}/@"]


def test_guest_sees_nothing_of_the_host(guest: Guest, volume: Volume) -> None:
    mountinfo = guest.run(["cat", "/proc/self/mountinfo"], check=True).stdout
    assert str(volume.top) not in mountinfo
    assert guest.run(["test", "-e", str(Path(__file__))]).status == 1
    assert guest.run(["ls", "/run", "/tmp", "/dev/shm"], check=True).stdout.split() == [
        "/dev/shm:", "/run:", "/tmp:",
    ]  # fmt: skip


def test_root_is_sealed_and_commons_are_not(guest: Guest, volume: Volume) -> None:
    assert guest.run(["touch", "/etc/x"]).status != 0
    guest.run(["touch", "/var/log/x", "/home/x", "/var/cache/x"], check=True)
    assert (volume.top / "commons/@var@log/x").exists()


def test_programs_run(guest: Guest) -> None:
    program = "import ctypes, json, sh, filelock, tomli; print(sh.__version__, filelock.__file__)"
    answer = guest.run(["python3", "-I", "-c", program], check=True).stdout
    assert "/usr/lib/python3" in answer
    assert guest.run(["apk-atomic", "--help"], check=True).stdout.startswith("usage: apk-atomic")
    assert guest.run(["busybox", "echo", "works"], check=True).stdout == "works\n"


def test_compiled_modules_are_used(guest: Guest) -> None:
    answer = guest.run(["python3", "-I", "-v", "-c", "import apk_atomic.errors, sh"], check=True).stderr
    used = [line for line in answer.splitlines() if "matches" in line or "code object from" in line]
    assert any("apk_atomic/__pycache__/errors" in line for line in used)
    assert any("sh/__pycache__/__init__" in line for line in used)


def test_run_hands_over_input_environment_and_status(guest: Guest) -> None:
    result = guest.run(["sh", "-c", 'cat; pwd; echo "$MORE" >&2; exit 3'], input="in\n", cwd="/etc",
                       env={"MORE": "more"})  # fmt: skip
    assert (result.status, result.stdout, result.stderr) == (3, "in\n/etc\n", "more\n")
    assert guest.run(["sh", "-c", "kill -9 $$"]).status == -9
    with pytest.raises(AssertionError, match="exited with 1"):
        guest.run(["false"], check=True)


def test_environment_is_clean(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEAK", "1")
    names = {line.split("=")[0] for line in guest.run(["env"], check=True).stdout.splitlines()}
    assert "LEAK" not in names
    assert {"PATH", "HOME", "TERM", "LC_ALL"} <= names


def test_ordinary_user(guest: Guest) -> None:
    answer = guest.run(["sh", "-c", "id -u; id -g; id -G; touch ~/mine && ls ~; touch /var/log/x"], uid=1000)
    assert answer.stdout.split() == ["1000", "1000", "1000", "mine"]
    assert "Permission denied" in answer.stderr


def test_terminal_controls_its_session(guest: Guest) -> None:
    terminal = guest.pty(["sh", "-c", "tty; stty size; cat </dev/tty"], dimensions=(30, 90))
    terminal.expect("/dev/pts/[0-9]+")
    terminal.expect("30 90")
    terminal.sendline("echoed")
    terminal.expect("echoed.*echoed")
    terminal.sendintr()
    terminal.wait()
    assert terminal.signalstatus == 2 or terminal.exitstatus == 130
    terminal.close()


def test_timeout_kills_and_tells(guest: Guest) -> None:
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        guest.run(["sh", "-c", "echo started; sleep 100 & sleep 100"], timeout=0.3)
    assert any("started" in note for note in caught.value.__notes__)
    assert guest.strays() == []


def test_strays_are_found_in_namespaces_below(guest: Guest) -> None:
    guest.run(["unshare", "-m", "sh", "-c", "sleep 100 </dev/null >/dev/null 2>&1 &"], check=True)
    guest.run(["sh", "-c", "setsid sleep 100 </dev/null >/dev/null 2>&1 &"], check=True)
    until(lambda: len(guest.strays()) == 2, 10)
    guest.kill_strays()
    assert guest.strays() == []
    guest.run(["true"], check=True)


def test_reboot_shows_what_is_in_the_slot_now(guest: Guest, volume: Volume) -> None:
    volume.add_generation(SECOND, lambda tree: (tree / "etc/new").touch())
    volume.point(SECOND, FIRST, name=SECOND)
    guest.run(["touch", "/run/old"], check=True)
    assert guest.booted == FIRST
    guest.reboot()
    assert guest.booted == SECOND
    assert guest.run(["ls", "/run"], check=True).stdout == ""
    guest.run(["test", "-e", "/etc/new"], check=True)
    guest.reboot(slot=1)
    assert guest.booted == FIRST
    assert volume.generations() == [FIRST, SECOND]


def test_a_volume_is_in_one_machine(volume: Volume) -> None:
    first, second = volume.boot(), volume.boot(slot=1)
    assert not Path(f"/proc/{first.pid}").exists()
    assert second.booted == FIRST


def test_slot_that_does_not_resolve_does_not_boot(volume: Volume) -> None:
    (volume.top / "current").unlink()
    with pytest.raises(RuntimeError, match="does not boot"):
        volume.boot()


def test_apk_installs_from_the_repository(volume: Volume) -> None:
    volume.repo.publish(HELLO)
    tree = volume.add_generation(SECOND)
    btrfsctl.set_read_only(tree, False)
    volume.point(SECOND, name=SECOND)
    guest = volume.boot(options="rw,noatime")
    # Outside a PID namespace the real apk calls sync(2), which waits for every file system of this machine.
    apart = ["unshare", "--pid", "--fork", "--mount-proc", "apk"]
    guest.run([*apart, "add", "hello"], check=True)
    assert guest.run(["hello"], check=True).stdout == "hello\n"
    assert (tree / "etc/apk/world").read_text() == "hello\n"
    volume.repo.publish(Package("hello", "2.0-r0"))
    guest.run([*apart, "upgrade"], check=True)
    assert guest.run(["apk", "info", "-e", "-v", "hello"], check=True).stdout == "hello-2.0-r0\n"
    assert guest.run(["hello"]).status == 127


def test_two_volumes_at_once() -> None:
    with make_volume() as one, make_volume() as other:
        assert one.fsid != other.fsid
        (one.top / "mark").touch()
        assert not (other.top / "mark").exists()
        guests = one.boot(), other.boot()
        guests[0].run(["touch", "/home/mark"], check=True)
        assert guests[1].run(["test", "-e", "/home/mark"]).status == 1
        assert guests[0].strays() == guests[1].strays() == []


def test_prepare_and_size() -> None:
    def prepare(tree: Path) -> None:
        (tree / "etc/resolv.conf").unlink()
        (tree / "etc/resolv.conf").symlink_to("/run/resolv.conf")

    with make_volume(256 * MIB, prepare=prepare) as volume:
        assert os.readlink(volume.tree() / "etc/resolv.conf") == "/run/resolv.conf"
        assert btrfsctl.is_read_only(volume.tree())
        status = os.statvfs(volume.top)
        assert status.f_blocks * status.f_frsize == 256 * MIB


def test_power_cycle_keeps_what_is_on_disk(volume: Volume) -> None:
    (volume.top / "mark").touch()
    volume.boot()
    volume.detach()
    assert not volume.top.is_mount()
    volume.attach()
    assert (volume.top / "mark").exists()
    assert volume.boot().booted == FIRST


def test_nothing_is_left_even_after_a_failure() -> None:
    with pytest.raises(ZeroDivisionError), make_volume() as volume:
        guest = volume.boot()
        guest.popen(["sleep", "100"])
        raise ZeroDivisionError
    assert processes_on(volume.device) == []
    assert str(volume.image) not in _backing_files()
    assert volume.device not in Path("/proc/self/mounts").read_text()
    assert not volume.image.parent.exists()


def test_what_holds_the_volume_is_reported() -> None:
    with pytest.raises(OSError, match="busy"), make_volume() as volume:
        holder = (volume.top / "fstab").open()
        assert holder.readable()
    holder.close()
    until(lambda: str(volume.image) not in _backing_files(), 10)


def test_killed_session_leaves_no_device() -> None:
    program = (
        "import os, signal\n"
        "from tests.support.world import make_volume\n"
        "with make_volume() as volume:\n"
        "    volume.boot()\n"
        "    print(volume.image, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == -9
    image = done.stdout.strip()
    until(lambda: image not in _backing_files(), 10)
    assert image.startswith("/")


def _backing_files() -> str:
    files = Path("/sys/block").glob("loop*/loop/backing_file")
    return "\n".join(_read(path) for path in files)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # detached meanwhile, by another session
        return ""
