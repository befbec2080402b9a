"""The reboot after an upgrade: only where the policy says so, and never under somebody who was not warned.

The guest's /sbin/reboot only writes down that it was called. Commands run in a PID namespace with a /proc of its own:
who is logged in on this machine must not decide.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from apk_atomic import machine
from apk_atomic.missed import SEEN
from apk_atomic.schedule import Session
from tests.support.world import Result
from tests.unattended.house import CONFIG, QUARTERLY, House

ALWAYS = ["00:00-24:00"]
# A user's session: sleeps on a terminal of its own, and writes down what appears there.
LOGIN = """\
import ctypes, os, pty, sys, time
pid, terminal = pty.fork()
if pid == 0:
    os.setuid(int(sys.argv[1]))
    ctypes.CDLL(None).prctl(15, sys.argv[2].encode())  # PR_SET_NAME
    time.sleep(1000)
os.close(os.open("/var/log/logged-in", os.O_CREAT))
while True:
    try:
        said = os.read(terminal, 1000)
    except OSError:
        break
    with open("/var/log/terminal", "ab") as file:
        file.write(said)
"""


def alone(
    house: House, *argv: str, login: tuple[str, str] = ("", ""), before: str = ":", within: str = ""
) -> Result:
    """A command with nobody logged in, or one user, whose process is called like that and started by `within`; no daily
    job was missed."""
    uid, name = login
    script = before
    if uid:
        Path(house.guest.root, "tmp/login.py").write_text(LOGIN)
        script = (
            f"{before}\n{within} python3 /tmp/login.py {uid} {name} &\n"
            'while [ ! -e /var/log/logged-in ]; do sleep 0.01; done; sleep 0.1\n'
        )
    program = f'mount -t proc proc /proc; : >{SEEN}\n{script}\n"$@"; exit $?'  # so that the shell stays init
    return house.guest.run(["unshare", "-p", "-f", "-m", "sh", "-c", program, "sh", *argv])


def reboots(house: House) -> int:
    path = house.volume.top / "commons/@var@log/rebooted"
    return len(path.read_text().splitlines()) if path.exists() else 0


def on_terminal(house: House) -> str:
    path = house.volume.top / "commons/@var@log/terminal"
    return path.read_text() if path.exists() else ""


def staged(house: House) -> str:
    """A generation that waits for the reboot; its ID."""
    house.release("hello", "2.0-r0")
    return house.committed()


def test_apply_reboots_after_the_upgrade(house: House) -> None:
    house.configure(policy="apply", reboot="when-needed")
    assert alone(house, "apk-atomic", "auto").stderr == ""
    assert reboots(house) == 0  # nothing was upgraded
    house.release("hello", "2.0-r0")
    result = alone(house, "apk-atomic", "auto")
    new = house.volume.slots()[0]
    assert f"generation {new} is next" in result.stderr
    assert f"apk-atomic: rebooting into generation {new}\n" in result.stderr
    assert reboots(house) == 1
    house.trial.reboot()
    house.configure(policy="apply", reboot="when-needed")
    alone(house, "apk-atomic", "auto")
    assert reboots(house) == 1


@pytest.mark.parametrize(
    "settings",
    [{"policy": "apply"}, {"policy": "stage", "reboot": "when-needed"}, {"policy": "check", "reboot": ALWAYS}],
    ids=["never", "stage", "check"],
)
def test_no_reboot_without_the_policy(house: House, settings: dict[str, object]) -> None:
    staged(house)
    house.configure(**settings)
    for argv in (["apk-atomic", "auto"], [QUARTERLY]):
        result = alone(house, *argv)
        assert (result.status, result.stdout, result.stderr) == (0, "", "")
    assert reboots(house) == 0


def test_window(house: House) -> None:
    new = staged(house)
    days = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
    later = days[(time.localtime().tm_wday + 3) % 7]
    house.configure(policy="apply", reboot=[f"{later} 00:00-24:00"])
    assert (alone(house, QUARTERLY).stderr, reboots(house)) == ("", 0)
    house.configure(policy="apply", reboot=[f"{later} 00:00-24:00", *ALWAYS])
    assert alone(house, QUARTERLY).stderr == f"apk-atomic: rebooting into generation {new}\n"
    assert reboots(house) == 1


def test_job_without_anything_pending_does_not_start_python(house: House) -> None:
    house.configure(policy="apply", reboot=ALWAYS)
    result = alone(house, QUARTERLY, before="mount -t tmpfs tmpfs /usr/lib")
    assert (result.status, result.stdout, result.stderr) == (0, "", "")


def test_inhibit_file(house: House) -> None:
    staged(house)
    house.configure(policy="apply", reboot=ALWAYS)
    house.guest.run(["touch", "/run/apk-atomic.inhibit"], check=True)
    alone(house, QUARTERLY)
    assert reboots(house) == 0


def test_generation_that_failed_is_not_booted(house: House) -> None:
    new = staged(house)
    (house.volume.top / "snapshots" / new / "failed").touch()
    house.configure(policy="apply", reboot=ALWAYS)
    alone(house, QUARTERLY)
    assert reboots(house) == 0


def test_transaction_at_work_is_not_cut_off(house: House) -> None:
    staged(house)
    house.configure(policy="apply", reboot=ALWAYS)
    script = "touch /var/log/ready; while [ ! -e /var/log/go ]; do sleep 0.01; done"
    holder = house.trial.start("apk-atomic", "run", "--", "sh", "-c", script)
    house.trial.wait_for("ready")
    assert alone(house, QUARTERLY).status == 0
    assert reboots(house) == 0
    house.trial.flag("go").touch()
    house.trial.finish(holder)
    alone(house, QUARTERLY)
    assert reboots(house) == 1


def test_generation_is_dropped_while_it_looks(house: House) -> None:
    """Then nobody is warned of a reboot that there will not be."""
    staged(house)
    house.configure(policy="apply", reboot=ALWAYS, reboot_warning_seconds=86400)
    process = house.trial.start("apk-atomic", "auto", "--reboot", "--json", env={"APK_ATOMIC_FAULT": "chosen:stop"})
    house.trial.wait_stopped(process)
    house.guest.run(["apk-atomic", "discard"], check=True)
    house.trial.go_on(process)
    house.trial.wait_stopped(process)
    house.trial.go_on(process)
    result = house.trial.finish(process)
    assert json.loads(result.stdout)["reboot"]["message"] == "nothing waits for a reboot"
    assert reboots(house) == 0


def test_reboot_that_fails_is_said(house: House) -> None:
    staged(house)
    house.configure(policy="apply", reboot=ALWAYS)
    no = Path(house.guest.root, "tmp/no")
    no.write_text("#!/bin/sh\necho no power\nexit 3\n")
    no.chmod(0o755)
    result = alone(house, QUARTERLY, before="mount --bind /tmp/no /sbin/reboot")
    assert result.status == 106 and "no reboot: /sbin/reboot ended with exit status 3: no power" in result.stderr
    no.write_text("#!/nowhere\n")
    result = alone(house, QUARTERLY, before="mount --bind /tmp/no /sbin/reboot")
    assert result.status == 106 and "no reboot: cannot run /sbin/reboot" in result.stderr


NOTES = "/var/log/notes"


def listener(house: House, script: str) -> str:
    """The shell lines that put an executable into notify.d; the machine reboots as soon as it may."""
    house.configure(policy="apply", reboot=ALWAYS, reboot_warning_seconds=60)
    listener_ = Path(house.guest.root, "tmp/listener")
    listener_.write_text(f"#!/bin/sh\n{script}\n")
    listener_.chmod(0o755)
    directory = f"{os.path.dirname(CONFIG)}/hooks.d/notify.d"
    return f"""
        mount -t tmpfs tmpfs /{os.path.dirname(CONFIG)}
        cp /tmp/auto.toml /{CONFIG}
        mkdir -p /{directory}
        cp /tmp/listener /{directory}/tell"""


def test_reboot_that_fails_after_the_upgrade(house: House) -> None:
    """The new generation is next, so the run did not fail; but it is said, and everybody is told."""
    listen = listener(house, f'echo "$APK_ATOMIC_OUTCOME $1" >>{NOTES}')
    no = Path(house.guest.root, "tmp/no")
    no.write_text("#!/bin/sh\nexit 3\n")
    no.chmod(0o755)
    house.release("hello", "2.0-r0")
    result = alone(house, "apk-atomic", "auto", before=f"mount --bind /tmp/no /sbin/reboot; {listen}")
    assert (result.status, house.content("hello")) == (0, "2.0-r0"), result
    assert "no reboot: /sbin/reboot ended with exit status 3" in result.stderr
    told = house.trial.flag("notes").read_text().splitlines()
    assert [line.split()[0] for line in told] == ["committed", "reboot", "failed"]


def signalled(words: str, when: str) -> list[str]:
    """The command gets SIGTERM as soon as `when` is true; its status is said."""
    wait = f"while ! {when}; do sleep 0.01; done 2>/dev/null"
    return ["sh", "-c", f"{words} & {wait}; kill -TERM $!; wait $!; echo status $?"]


WARNED = "grep -q reboots /var/log/terminal"


def test_signal_during_the_warning_after_the_upgrade(house: House) -> None:
    """There is no reboot; the new generation stays, so the run did not fail."""
    house.configure(policy="apply", reboot=ALWAYS, reboot_warning_seconds=60)
    house.release("hello", "2.0-r0")
    result = alone(house, *signalled("apk-atomic auto", WARNED), login=("1000", "editor"))
    assert (result.stdout, house.content("hello"), reboots(house)) == ("status 0\n", "2.0-r0", 0), result
    assert "is next: upgraded hello" in result.stderr and "interrupted by SIGTERM; no reboot" in result.stderr
    house.trial.flag("terminal").unlink()
    house.trial.flag("logged-in").unlink()
    result = alone(house, *signalled("apk-atomic auto --reboot", WARNED), login=("1000", "editor"))
    assert (result.stdout, reboots(house)) == ("status 143\n", 0)


def test_signal_while_the_upgrade_is_told(house: House) -> None:
    """It is not lost: what is told is told to its end, and then there is no reboot."""
    listen = listener(house, f'touch /var/log/ready; sleep 1; echo "$APK_ATOMIC_OUTCOME" >>{NOTES}')
    house.release("hello", "2.0-r0")
    result = alone(house, *signalled("apk-atomic auto", "[ -e /var/log/ready ]"), before=listen)
    assert (result.stdout, house.content("hello"), reboots(house)) == ("status 0\n", "2.0-r0", 0), result
    assert house.trial.flag("notes").read_text() == "committed\n"


def test_who_is_told_of_the_reboot_holds_nobody_up(house: House) -> None:
    """The volume is not locked while notify.d is run; what is changed meanwhile is not cut off nor booted unseen."""
    staged(house)
    listen = listener(house, "apk-atomic add extra >/var/log/added 2>&1; echo $? >/var/log/status")
    house.release("extra", "1.0-r0")
    result = alone(house, QUARTERLY, before=listen)
    assert house.trial.flag("status").read_text() == "0\n", house.trial.flag("added").read_text()
    assert (result.status, house.content("extra"), reboots(house)) == (0, "1.0-r0", 0)


# ---- who is logged in ------------------------------------------------------------------------------------


def test_user_is_warned_first(house: House) -> None:
    staged(house)
    house.configure(policy="apply", reboot=ALWAYS, reboot_warning_seconds=1)
    alone(house, QUARTERLY, login=("1000", "editor"))
    said = "this machine reboots in 1 seconds; to prevent it, as root: touch /run/apk-atomic.inhibit"
    assert said in on_terminal(house)
    assert reboots(house) == 1


def test_user_prevents_it(house: House) -> None:
    staged(house)
    house.configure(policy="apply", reboot=ALWAYS, reboot_warning_seconds=3)
    watch = "while ! grep -q reboots /var/log/terminal; do sleep 0.01; done; touch /run/apk-atomic.inhibit"
    alone(house, QUARTERLY, login=("1000", "editor"), before=f"({watch}) 2>/dev/null &")
    assert "reboots in" in on_terminal(house)
    assert reboots(house) == 0


@pytest.mark.parametrize("login", [("65534", "daemon"), ("0", "getty")], ids=["no login shell", "getty"])
def test_nobody_is_logged_in(house: House, login: tuple[str, str]) -> None:
    staged(house)
    house.configure(policy="apply", reboot=ALWAYS, reboot_warning_seconds=86400)
    alone(house, QUARTERLY, login=login)
    assert (on_terminal(house), reboots(house)) == ("", 1)


@pytest.mark.parametrize("within", ["unshare -m", "unshare -p -f"])
def test_container_is_nobody_who_is_logged_in(house: House, within: str) -> None:
    """Its terminal is in another /dev/pts as a rule, where nobody could be warned: there would be no reboot, ever."""
    staged(house)
    house.configure(policy="apply", reboot=ALWAYS, reboot_warning_seconds=86400)
    alone(house, QUARTERLY, login=("0", "sh"), within=within)
    assert (on_terminal(house), reboots(house)) == ("", 1)


def test_session_without_a_terminal(house: House) -> None:
    """A desktop: it cannot be warned, so it is not rebooted under."""
    staged(house)
    house.configure(policy="apply", reboot=ALWAYS)
    sessions = Path(house.guest.root, "run/systemd/sessions")
    sessions.mkdir(parents=True)
    (sessions / "c1").write_text("UID=1000\nUSER=user\nCLASS=user\nSTATE=active\n")
    alone(house, QUARTERLY)
    assert reboots(house) == 0
    alone(house, QUARTERLY, before="sed -i s/active/closing/ /run/systemd/sessions/c1")
    assert reboots(house) == 1


def test_sessions_of_elogind(tmp_path: Path) -> None:
    for name, lines in {
        "1": "USER=anna\nCLASS=user\nTTY=tty2\nSTATE=online",
        "2": "USER=ben\nCLASS=user\nTTY=pts/3\nSTATE=active",
        "3": "USER=anna\nCLASS=greeter\nTTY=tty1\nSTATE=active",
        "4": "UID=7\nCLASS=user\nSTATE=active",
        "5": "USER=eve\nCLASS=user\nSTATE=closing",
        "6": "\x00=\n==",
    }.items():
        (tmp_path / name).write_text(lines)
    (tmp_path / "directory").mkdir()
    found = machine.sessions(proc=str(tmp_path / "none"), directory=str(tmp_path))
    assert found == (Session("7", ""), Session("anna", "/dev/tty2"), Session("ben", "/dev/pts/3"))


def test_power_supplies(tmp_path: Path) -> None:
    for name, files in {
        "AC": {"type": "Mains", "online": "0"},
        "BAT0": {"type": "Battery", "status": "Discharging"},
        "hid": {"type": "Battery", "status": "Discharging", "scope": "Device"},
    }.items():
        (tmp_path / name).mkdir()
        for key, value in files.items():
            (tmp_path / name / key).write_text(f"{value}\n")
    ac, battery, mouse = machine.supplies(str(tmp_path))
    assert (ac.type, ac.online, battery.status, mouse.scope) == ("Mains", "0", "Discharging", "Device")
    assert machine.supplies(str(tmp_path / "nowhere")) == ()


def test_priority_is_stepped_down(house: House) -> None:
    """Of the run, and of all that it starts."""
    script = "#!/bin/sh\ncut -d' ' -f19 /proc/self/stat >/var/log/priority\nionice >>/var/log/priority 2>&1\n"
    house.configure(nice=7, io="idle")
    house.release("hello", "2.0-r0", scripts={"post-upgrade": script})
    house.committed()
    lines = house.trial.flag("priority").read_text().splitlines()
    assert lines[0] == "7"
    assert lines[1].startswith("idle") or "not found" in lines[1]
