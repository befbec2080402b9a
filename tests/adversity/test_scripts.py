"""Package scripts that misbehave in every way a script can: what they started is dead before the seal."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.adversity.trial import Trial, publish_script
from tests.support import oracle
from tests.support.packages import File, Package
from tests.support.world import FIRST, make_volume

PYTHON = "exec python3 -I - <<'END'\n{program}\nEND"
SUBVOLUME = """\
import fcntl, os, struct
def make(directory, name):
    fd = os.open(directory, os.O_RDONLY)
    fcntl.ioctl(fd, 0x5000940E, bytearray(struct.pack("=q4088s", 0, name.encode())))
    os.close(fd)
"""


def python(program: str) -> str:
    return PYTHON.format(program=program)


def add(trial: Trial, script: str, **more: object) -> tuple[str, ...]:
    """The line that installs a package with this post-install script."""
    publish_script(trial.volume, "bad", script, **more)
    return ("apk-atomic", "add", "bad")


# ---- scripts that fail -----------------------------------------------------------------------------------

FAILING = {
    "fails": ("exit 3", 1),
    "is killed": ("kill -9 $$", 1),
    "kills apk": ("kill -9 $PPID; sleep 100", 137),
    "terminates apk": ("kill -TERM $PPID; sleep 100", 143),
    "kills everything": ("kill -9 -1; sleep 100", 137),
    "replaces apk's database": ("mount -t tmpfs tmpfs /lib/apk/db; exit 1", None),
}


@pytest.mark.parametrize("case", FAILING)
def test_script_that(shared: Trial, case: str) -> None:
    script, status = FAILING[case]
    argv = add(shared, script)
    result = shared.refused(*argv, status=status)
    assert "nothing was changed" in result.stderr
    if case == "fails":
        assert "a script or trigger of bad-1.0-r0 failed" in result.stderr
        assert "--atomic-accept bad" in result.stderr


def test_script_that_signals_its_group(shared: Trial) -> None:
    """The group is the caller's, as with apk itself: the wrapper is told too, and discards."""
    result = shared.refused(*add(shared, "kill -TERM 0; sleep 100"), status=143)
    assert "interrupted by SIGTERM" in result.stderr


def test_script_that_kills_its_group(trial: Trial) -> None:
    """Nobody is left to tidy up: the next run does."""
    argv = add(trial, "kill -9 0")
    process = trial.start(*argv)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    trial.finish(process, clean=False)
    assert trial.volume.slots() == [FIRST] * 4
    assert not trial.guest.strays()
    assert "recovered: transaction" in trial.run("apk-atomic", "run", "true").stderr
    trial.works()


def test_script_that_hangs_and_ignores(trial: Trial) -> None:
    """The first signal is passed on, a second one is the end of everything inside."""
    process = trial.start(*add(trial, "trap '' TERM INT HUP; echo x >/var/log/ready; while :; do sleep 100; done"))
    trial.wait_for("ready")
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGINT)
    result = trial.finish(process)
    assert result.status in (130, 143)
    trial.check_old(result)
    trial.works()


def test_nobody_reads_what_is_said(trial: Trial) -> None:
    """A broken pipe for stdout and stderr neither ends a transaction halfway nor makes it fail."""
    reader, writer = os.pipe()
    os.close(reader)
    process = trial.start("apk-atomic", "run", "--", "touch", "/etc/made", stdout=writer, stderr=writer)
    os.close(writer)
    assert process.wait() == 0
    assert (trial.volume.tree() / "etc/made").exists()
    trial.works()


# ---- scripts that leave something behind -----------------------------------------------------------------

DAEMON = r"""
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        out = open("/etc/kept-open", "wb", buffering=0)
        for fd in (0, 1, 2):
            os.dup2(os.open("/dev/null", os.O_RDWR), fd)
        open("/var/log/ready", "w").close()
        while True:
            out.write(b"x")
            os.utime("/etc/passwd")
            time.sleep(0.001)
    os._exit(0)
while not os.path.exists("/var/log/ready"):
    time.sleep(0.001)
"""


@pytest.mark.parametrize("status", [0, 1])
def test_daemon_is_dead_before_the_seal(trial: Trial, status: int) -> None:
    """Double fork, a session of its own, a descriptor open in /etc that is written to all the time."""
    argv = add(trial, python(DAEMON + f"sys.exit({status})"))
    if status:
        trial.refused(*argv, status=1)
    else:
        trial.committed(*argv)
        assert (trial.volume.tree() / "etc/kept-open").stat().st_size > 0
        sealed = oracle.fingerprint(trial.volume.tree())
        assert sealed.differences(oracle.fingerprint(trial.volume.tree())) == []
    trial.works()


MOUNTS = """\
mount -t tmpfs tmpfs /srv && touch /srv/hidden
mount -t tmpfs tmpfs /etc/apk/keys
mount --bind /usr /opt
mount --make-rshared / ; mount -t tmpfs shared /mnt
mkdir -p /media/x && mount -t proc proc /media/x
exit 0
"""


def test_mounts_of_a_script_are_gone(trial: Trial) -> None:
    trial.committed(*add(trial, MOUNTS))
    tree = trial.volume.tree()
    assert not (tree / "srv/hidden").exists()
    assert list((tree / "etc/apk/keys").iterdir())
    assert (tree / "media/x").is_dir()
    trial.works()


def test_root_mounted_over(trial: Trial) -> None:
    """What is put over the root of the change is not what is sealed."""
    trial.committed(*add(trial, "mount -t tmpfs tmpfs /usr; mkdir /usr/fake; touch /etc/made; exit 0"))
    assert (trial.volume.tree() / "usr/bin/python3").exists()
    assert not (trial.volume.tree() / "usr/fake").exists()


@pytest.mark.parametrize("words", ["remount,ro", "remount,ro,bind", "remount,rw,noexec,nosuid"])
def test_root_remounted(trial: Trial, words: str) -> None:
    """A remount of / without `bind` is one of the whole volume, the running system's too; while apk is at work it is
    busy."""
    result = trial.run(*add(trial, f"mount -o {words} / || exit 0; touch /etc/made || true; exit 0"))
    if result.status:
        assert "nothing was changed" in result.stderr
        trial.check_old(result)
    else:
        trial.check_new(result)
    trial.guest.run(["touch", "/var/log/writable"], check=True)
    trial.works()


@pytest.mark.parametrize("place", ["/", "/home", "/var/log"])
@pytest.mark.parametrize("status", [0, 3])
def test_volume_made_read_only(trial: Trial, place: str, status: int) -> None:
    """/home and /var/log of the running system are back when the command ends, whatever becomes of the change."""
    line = f"echo x >/etc/made; mount -o remount,ro {place}; exit {status}"
    result = trial.run("apk-atomic", "run", "--", "sh", "-c", line)
    assert result.stderr.count("made the whole volume read-only") == 1, result
    for directory in ("/home/user", "/var/log"):
        trial.guest.run(["touch", f"{directory}/writable"], check=True)
    if status:
        trial.check_old(result, status)
    else:
        trial.check_new(result)
    trial.works()


SUBVOLUMES = {
    "in the root": 'make("/srv", "sub")',
    "deep": 'os.makedirs("/srv/a/b"); make("/srv/a/b", "one"); make("/srv/a/b/one", "two")\n'
    'os.mkdir("/srv/a/b/one/x"); make("/srv/a/b/one/x", "three")',
    "read-only": 'make("/srv", "sub"); make("/srv/sub", "inner")\n'
    'fcntl.ioctl(os.open("/srv/sub", os.O_RDONLY), 0x4008941A, struct.pack("=Q", 2))',
}


@pytest.mark.parametrize("case", SUBVOLUMES)
def test_subvolume_in_the_root(trial: Trial, case: str) -> None:
    argv = add(trial, python(SUBVOLUME + SUBVOLUMES[case]))
    result = trial.refused(*argv, status=104, says="made the btrfs subvolume")
    assert "nothing was changed" in result.stderr
    trial.works()


def test_subvolume_in_tmp(trial: Trial) -> None:
    """/tmp of the change lies in the staging: what is made there goes with it."""
    program = SUBVOLUME + (
        'make("/tmp", "sub"); os.makedirs("/tmp/a/b"); make("/tmp/a/b", "deep"); make("/tmp/sub", "in")\n'
        'fcntl.ioctl(os.open("/tmp/sub", os.O_RDONLY), 0x4008941A, struct.pack("=Q", 2))\n'
    )
    trial.committed(*add(trial, python(program)))
    trial.works()


def test_subvolume_in_commons_is_the_users_business(trial: Trial) -> None:
    result = trial.run(*add(trial, python(SUBVOLUME + 'make("/var/log", "sub")')))
    assert result.status == 0
    assert "commons/@var@log/sub" in oracle.subvolumes(trial.volume.top)
    trial.works()


def test_tmp_that_is_hard_to_remove(trial: Trial) -> None:
    """Deeper than a path can name, immutable, with names of 255 bytes that are no text."""
    program = (
        "import fcntl, os, struct\n"
        "os.chdir('/tmp')\n"
        "for _ in range(1500):\n    os.mkdir('d' * 20); os.chdir('d' * 20)\n"
        "os.chdir('/tmp')\n"
        "open(b'\\xff' * 255, 'w').close()\n"
        "os.mkdir('locked'); open('locked/file', 'w').close()\n"
        "for name in ('locked/file', 'locked'):\n"
        "    fcntl.ioctl(os.open(name, os.O_RDONLY), 0x40086602, struct.pack('l', 0x10))\n"
    )
    trial.committed(*add(trial, python(program)))
    trial.works()


# ---- scripts that reach out ------------------------------------------------------------------------------


def test_kernel_settings_cannot_be_written(trial: Trial) -> None:
    """Each would be a change of the running system: written with the value it has, so that a failure does no harm."""
    script = (
        "for each in kernel/hostname kernel/core_pattern vm/swappiness; do\n"
        "  cat /proc/sys/$each >/proc/sys/$each && echo $each >>/var/log/written\n"
        "done 2>/dev/null\n"
        "for each in /proc/sysrq-trigger /proc/irq/default_smp_affinity /sys/kernel/mm/ksm/run; do\n"
        "  [ -e $each ] && true >>$each && echo $each >>/var/log/written\n"
        "done 2>/dev/null\n"
        "touch /sys/made /proc/sys/made 2>/dev/null && echo made >>/var/log/written\n"
        "exit 0"
    )
    trial.committed(*add(trial, script))
    assert not trial.flag("written").exists()


REACH = """\
exec >/var/log/seen 2>&1
for root in /proc/1/root /proc/self/root /proc/1/cwd/../../.. /../../../.. /proc/1/task/1/root; do
  ls $root/run/apk-atomic
  [ -e $root{canary} ] && echo "ESCAPED by $root"
done
for fd in /proc/1/fd/* /proc/self/fd/*; do
  readlink $fd
  [ -e $fd/../../../..{canary} ] && echo "ESCAPED by $fd"
done
ls /proc | grep -c '^[0-9]'
cat /proc/self/mountinfo
exit 0
"""


def test_host_is_out_of_reach(trial: Trial, tmp_path: Path) -> None:
    """No root, descriptor or mount inside leads to the host, to the top level or to another generation."""
    canary = tmp_path / "canary"
    canary.write_text("x")
    Path(trial.guest.root, "run/canary").write_text("x")
    trial.committed(*add(trial, REACH.format(canary=canary) + REACH.format(canary="/run/canary")))
    seen = trial.flag("seen").read_text()
    assert "ESCAPED" not in seen
    assert "apk-atomic.lock" not in seen
    assert "/run/apk-atomic/top" not in seen
    lines = [line.split() for line in seen.splitlines() if " - btrfs " in line]
    assert lines
    assert {line[3] for line in lines} <= {
        *(line[3] for line in lines if line[3].startswith("/staging/") and line[4] in ("/", "/tmp")),
        "/commons/@home", "/commons/@var@cache", "/commons/@var@log",
    }  # fmt: skip


def test_commons_outside_var_are_read_only(trial: Trial) -> None:
    before = oracle.fingerprint(trial.volume.top / "commons/@home")
    trial.committed(*add(trial, "touch /home/made 2>/dev/null; rm -rf /home/user 2>/dev/null; exit 0"))
    assert oracle.fingerprint(trial.volume.top / "commons/@home") == before


# ---- apk itself ------------------------------------------------------------------------------------------


def test_apk_is_missing(trial: Trial) -> None:
    name = "20240301000000withoutx"
    trial.volume.add_generation(name, lambda tree: (tree / "sbin/apk").unlink())
    trial.accept()
    argv = ("apk-atomic", "add", "x", f"--atomic-base={name}")
    result = trial.refused(*argv, status=104, says="there is no apk in the base generation")
    assert "apk-atomic rollback" in result.stderr
    trial.committed("apk-atomic", "run", f"--atomic-base={name}", "--", "touch", "/etc/made")


@pytest.mark.parametrize("content", [b"", b"#!/nowhere\n", b"\x7fELF garbage"])
def test_apk_cannot_be_executed(trial: Trial, content: bytes) -> None:
    name = "20240301000000brokenxx"
    trial.volume.add_generation(name, lambda tree: replace(tree / "sbin/apk", content))
    trial.accept()
    trial.refused("apk-atomic", "add", "x", f"--atomic-base={name}", status=104, says="cannot execute /sbin/apk")


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("nonexistent", 127), ("/nonexistent", 127), ("/etc/hostname/x", 127), ("echo hi > /etc/made", 127),
        ("/etc/hostname", 126), ("/etc", 126), ("/usr/bin/no-interpreter", 127), ("/usr/bin/garbage", 126),
    ],
)  # fmt: skip
def test_command_cannot_be_executed(odd: Trial, command: str, status: int) -> None:
    """As a shell would have it; and apk-atomic's exit statuses for roots that would not boot say something else."""
    refused = odd.refused("apk-atomic", "run", "--", command, status=status, says=f"cannot execute {command} in")
    assert "nothing was changed" in refused.stderr
    assert "apk-atomic run -- sh -c" in refused.stderr


@pytest.mark.parametrize("words", ["run", "run --", "run ''", "run -- ''", "shell x", "shell -- x", "shell ''"])
def test_words_that_are_no_command(odd: Trial, words: str) -> None:
    refused = odd.refused("apk-atomic", *shlex.split(words), status=100, says="nothing was changed")
    assert "apk-atomic run -- COMMAND" in refused.stderr


@pytest.fixture(scope="module")
def odd() -> Iterator[Trial]:
    """A root with programs that are none."""

    def prepare(tree: Path) -> None:
        (tree / "etc/hostname").write_text("odd\n")
        replace(tree / "usr/bin/no-interpreter", b"#!/nowhere\n")
        replace(tree / "usr/bin/garbage", b"\x7fELF garbage")

    with make_volume(prepare=prepare) as made:
        yield Trial(made)


def replace(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o755)


def test_script_that_removes_everything(trial: Trial) -> None:
    """The worst that a script can do to its root stays in its root, and is refused by the proof."""
    result = trial.refused(*add(trial, "rm -rf /bin /usr /etc /lib /sbin /boot 2>/dev/null; exit 0"))
    assert "nothing was changed" in result.stderr
    trial.works()


@pytest.mark.parametrize(
    ("gone", "lacks"),
    [
        ("/usr/bin/apk-atomic", "/usr/bin/apk-atomic"),
        ("/usr/bin/python3*", "/usr/bin/python3"),
        ("/usr/lib/python3* /usr/local/lib/python3*", "the package apk_atomic of python3"),
        ("/usr/*lib/python3*/*-packages/apk_atomic /usr/local/lib/python3*/*-packages/apk_atomic",
         "the package apk_atomic of python3."),
    ],
)  # fmt: skip
def test_no_way_back_by_ourselves_is_said(trial: Trial, gone: str, lacks: str) -> None:
    """The user may want that; the boot menu leads back. That something else is gone is no news."""
    result = trial.run("apk-atomic", "run", "--", "sh", "-c", f"rm -rf {gone}")
    assert f"the new generation lacks {lacks}" in result.stderr, result
    trial.check_new(result)
    result = trial.run("apk-atomic", "discard")
    assert result.status == 0
    trial.accept()
    result = trial.run("apk-atomic", "run", "rm", "/etc/hostname")
    assert "lacks" not in result.stderr
    trial.check_new(result)


@pytest.mark.parametrize("place", ["lib/apk/db", "etc/apk"])
def test_database_in_a_common_is_refused(trial: Trial, place: str) -> None:
    """It would be another one for the running system at once."""
    name = "20240301000000elsewher"
    moved = trial.volume.top / "commons/@var@cache" / place.replace("/", "-")

    def move(tree: Path) -> None:
        shutil.move(tree / place, moved)
        (tree / place).symlink_to(f"/var/cache/{moved.name}")

    trial.volume.add_generation(name, move)
    before = oracle.fingerprint(moved)
    trial.accept()
    argv = ("apk-atomic", "add", "x", f"--atomic-base={name}")
    result = trial.refused(*argv, status=104, says="in commons/@var@cache, which all generations share")
    assert f"put it at /{place}" in result.stderr
    assert oracle.fingerprint(moved) == before


def test_world_that_is_a_link_into_a_common(trial: Trial) -> None:
    """apk replaces the link, and leaves what it led to: nothing that all share is changed."""
    name = "20240301000000linkedxx"
    kept = trial.volume.top / "commons/@home/world"

    def move(tree: Path) -> None:
        shutil.move(tree / "etc/apk/world", kept)
        (tree / "etc/apk/world").symlink_to("/home/world")

    trial.volume.add_generation(name, move)
    trial.volume.repo.publish(Package("x", files={"usr/share/x": File(b"x")}))
    before = kept.read_bytes()
    trial.accept()
    trial.committed("apk-atomic", "add", "x", f"--atomic-base={name}")
    world = trial.volume.tree() / "etc/apk/world"
    assert not world.is_symlink() and "x" in world.read_text().split()
    assert kept.read_bytes() == before


def test_trigger_that_fails(trial: Trial) -> None:
    package = Package(
        "bad", files={"usr/share/bad": File(b"x")}, triggers=("/usr/share",),
        scripts={"trigger": "#!/bin/sh\nexit 1\n"},
    )  # fmt: skip
    trial.volume.repo.publish(package)
    trial.refused("apk-atomic", "add", "bad", status=1, says="a script or trigger of bad-1.0-r0 failed")
