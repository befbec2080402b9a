"""Who is told what became of a run, and that nobody who does not listen matters."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.waiting import until
from tests.support.world import Result
from tests.unattended.house import CONFIG, PERIODIC, House, toml

NOTES = "/var/log/notes"


@contextmanager
def listeners(house: House, **scripts: str) -> Iterator[None]:
    """/etc/apk-atomic with these executables in notify.d, whose names may be given with _ for -."""
    with house.trial.etc() as etc:
        directory = etc / "hooks.d/notify.d"
        directory.mkdir(parents=True)
        for name, script in scripts.items():
            path = directory / name.replace("_", "-")
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)
        (etc / "apk-atomic.toml").write_text(toml({"notify_seconds": 1}))
        assert CONFIG.endswith("apk-atomic.toml")
        yield


@contextmanager
def syslog(house: House) -> Iterator[socket.socket]:
    """What listens at /dev/log of a guest with a /dev of its own."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(os.path.join(house.guest.root, "dev/log"))
        log.settimeout(20)
        yield log


def notes(house: House) -> list[str]:
    path = house.volume.top / "commons/@var@log/notes"
    return path.read_text().splitlines() if path.exists() else []


def test_line_and_document(house: House) -> None:
    with listeners(house, tell=f'{{ echo "$# $APK_ATOMIC_OUTCOME $1"; cat; }} >>{NOTES}'):
        house.nothing()
        assert notes(house) == []  # nothing happened, nobody is told
        house.release("hello", "2.0-r0")
        new = house.committed()
        line, document = notes(house)
        message = f"generation {new} is next: upgraded hello 1.0-r0 -> 2.0-r0; it runs after the reboot"
        assert line == f"1 committed {message}"
        told = json.loads(document)
        assert (told["version"], told["message"], told["generation"]) == (1, message, new)
        assert told["upgraded"] == [{"name": "hello", "old": "1.0-r0", "new": "2.0-r0"}]
        house.release("hello", "3.0-r0", scripts={"post-upgrade": "#!/bin/sh\nexit 1\n"})
        house.trial.refused("apk-atomic", "auto")
        house.nothing(outcome="held")
        house.nothing(outcome="held")
        told_ = [json.loads(each) for each in notes(house)[1::2]]
        assert [(each["outcome"], each["status"]) for each in told_] == [("committed", 0), ("failed", 1), ("held", 0)]
        house.auto("--dry-run")
        assert len(notes(house)) == 6


def test_one_that_hangs_is_killed_with_what_it_started(house: House) -> None:
    house.release("hello", "2.0-r0")
    with listeners(house, a_hangs="sleep 1000 & sleep 1000", b_tells=f'echo "$1" >>{NOTES}'):
        house.trial.accept()
        result = house.auto()  # which checks that no process is left
        house.trial.check_new(result)
        assert "notify.d/a-hangs did not end within 1 s and was killed" in result.stderr
        assert len(notes(house)) == 1


FAILURES = (
    "exit 3", "kill -9 $$", "cat >/dev/null; yes | head -c 1000000", "exec <&-; exec /nowhere", "trap '' TERM; sleep 60"
)  # fmt: skip


@pytest.mark.parametrize("script", FAILURES, ids=range(5))
def test_one_that_fails_does_not_matter(house: House, script: str) -> None:
    house.release("hello", "2.0-r0")
    with listeners(house, a_fails=script, b_tells=f'echo "$1" >>{NOTES}'):
        house.trial.accept()
        house.trial.check_new(house.auto())
        assert len(notes(house)) == 1


def test_what_is_not_executable_is_not_run(house: House) -> None:
    house.release("hello", "2.0-r0")
    with listeners(house, tell=f"echo x >>{NOTES}"):
        directory = Path(house.guest.root, "etc/apk-atomic/hooks.d/notify.d")
        (directory / "tell").rename(directory / "tell.apk-new")
        house.committed()
    assert notes(house) == []


def test_run_that_cannot_begin_is_told(house: House) -> None:
    """The configuration is wrong, or a module of somebody else's is broken: crond has nobody who reads stderr."""
    house.own_dev()
    script = f'echo "$APK_ATOMIC_OUTCOME" >>{NOTES}; cat >>{NOTES}'
    with syslog(house) as log, listeners(house, tell=script):
        configuration = Path(house.guest.root, CONFIG)
        right = configuration.read_text()
        configuration.write_text('[auto]\npolicy = "sometimes"\n')
        house.trial.refused(PERIODIC, status=100, says="auto.policy")
        line = log.recv(4096).decode()
        assert line.startswith("<27>") and "auto.policy: must be" in line
        house.trial.refused("apk-atomic", "auto", "--dry-run", status=100)  # which is for who asks
        configuration.write_text(right)
        lock = "$(python3 -c 'import os, filelock; print(os.path.dirname(filelock.__file__))')"
        broken = f"mount -t tmpfs tmpfs {lock} && exec {PERIODIC}"
        assert house.guest.run(["unshare", "-m", "sh", "-c", broken]).status != 0
        line = log.recv(4096).decode()
        assert line.startswith("<27>") and "filelock" in line
        told = notes(house)
        assert told[::2] == ["failed"] * 2
        first, second = map(json.loads, told[1::2])
        assert (first["status"], first["policy"], second["policy"]) == (100, "", "stage")


# Another root, of a tmpfs, with the system's directories in it: in it the command that follows is run.
ELSEWHERE = """\
mount -t tmpfs tmpfs /tmp
for each in /*; do
    case $each in
        /tmp) ;;
        *) if [ -L $each ]; then cp -a $each /tmp; else mkdir /tmp$each; mount --rbind $each /tmp$each; fi ;;
    esac
done
exec chroot /tmp "$@"
"""


def test_system_that_is_not_adopted(house: House) -> None:
    """The package may be installed long before: the job fails nowhere, but who calls it himself is told."""
    house.own_dev()

    def elsewhere(*argv: str) -> Result:
        return house.guest.run(["unshare", "-m", "sh", "-ec", ELSEWHERE, "sh", *argv])

    with syslog(house) as log:
        log.setblocking(False)
        result = elsewhere(PERIODIC)
        assert (result.status, result.stdout, result.stderr) == (0, "", "")
        with pytest.raises(BlockingIOError):
            log.recv(4096)
        result = elsewhere("apk-atomic", "auto")
        assert result.status == 101 and "not on btrfs" in result.stderr
        assert "not on btrfs" in log.recv(4096).decode()
        current = house.volume.top / "current"
        target = os.readlink(current)
        current.unlink()  # which is no such thing: this system is damaged
        result = house.guest.run([PERIODIC])
        assert result.status == 101 and "has no `current`" in log.recv(4096).decode()
        current.symlink_to(target)
        house.configure(policy="none")
        assert elsewhere("apk-atomic", "auto").status == 0


# ---- syslog ----------------------------------------------------------------------------------------------


def test_syslog(house: House) -> None:
    house.own_dev()
    with syslog(house) as log:
        house.release("hello", "2.0-r0")
        new = house.committed()
        line = log.recv(4096).decode()
        assert line.startswith("<30>") and "apk-atomic[" in line  # daemon.info
        assert f"generation {new} is next: upgraded hello 1.0-r0 -> 2.0-r0" in line
        house.release("hello", "3.0-r0", scripts={"post-upgrade": "#!/bin/sh\nexit 1\n"})
        house.trial.refused("apk-atomic", "auto")
        assert log.recv(4096).decode().startswith("<27>")  # daemon.err
        house.nothing(outcome="held")
        assert "held back" in log.recv(4096).decode()
        house.nothing(outcome="held")
        log.setblocking(False)
        with pytest.raises(BlockingIOError):
            log.recv(4096)


def test_syslog_that_is_not_there(house: House) -> None:
    house.own_dev()
    assert not os.path.exists(os.path.join(house.guest.root, "dev/log"))
    house.release("hello", "2.0-r0")
    house.committed()


def test_syslog_that_does_not_read(house: House) -> None:
    """One that is stopped, so that its queue is full, and one that is gone and has left its name: nobody waits."""
    house.own_dev()
    place = os.path.join(house.guest.root, "dev/log")
    dgram = socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
    with socket.socket(*dgram) as log, socket.socket(*dgram) as other:
        log.bind(place)
        other.connect(place)
        with pytest.raises(BlockingIOError):
            while True:
                other.send(b"x")
        house.release("hello", "2.0-r0")
        house.committed()
    house.release("hello", "3.0-r0")
    house.committed()


def test_busybox_syslogd(house: House) -> None:
    house.own_dev()
    if "syslogd" not in house.guest.run(["busybox", "--list"], check=True).stdout.split():
        pytest.skip("this busybox has no syslogd")
    house.guest.run(["sh", "-c", "syslogd -O /var/log/messages"], check=True)
    messages = house.volume.top / "commons/@var@log/messages"
    house.release("hello", "2.0-r0")
    house.guest.run(["apk-atomic", "auto"], check=True)
    until(lambda: messages.exists() and "daemon.info apk-atomic[" in messages.read_text())
    assert "is next: upgraded hello" in messages.read_text()
