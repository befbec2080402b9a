"""Not the right user, system or layout; pointer, slots and top level in every wrong shape."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.adversity.trial import Trial
from tests.support import btrfsctl, oracle
from tests.support.blockdev import Loop
from tests.support.imagecache import scratch_directory
from tests.support.world import FIRST, MIB, Guest, Volume

BLKROSET = 0x125D
ADD = ("apk-atomic", "add", "x")
CHANGING = (ADD, ("apk-atomic", "run", "true"), ("apk-atomic", "rollback"), ("apk-atomic", "gc"))


@pytest.mark.parametrize("argv", [*CHANGING, ("apk-atomic", "discard"), ("apk-atomic", "gc", "--dry-run")], ids=str)
def test_not_root(shared: Trial, argv: tuple[str, ...]) -> None:
    result = shared.refused(*argv, uid=1000, status=100, says="only root")
    assert "nothing was changed" in result.stderr
    assert f"doas {' '.join(argv)}" in result.stderr


# ---- the system is not such a one ------------------------------------------------------------------------

COPY = """\
mkdir -p /tmp/other && {mount} && cd /tmp/other && {fill}
mkdir -p proc dev && mount -t proc proc proc && mount --bind /dev dev
exec chroot . "$@"
"""
ON_TMPFS = COPY.format(
    mount="mount -t tmpfs tmpfs /tmp/other",
    fill="cp -a /bin /sbin /lib* /usr /etc . && mkdir -p run tmp",
)
ON_PLAIN_BTRFS = COPY.format(mount="mount -t btrfs -o subvol=/@flat {device} /tmp/other", fill="mkdir -p run")


def elsewhere(trial: Trial, script: str, *argv: str) -> tuple[str, ...]:
    return ("unshare", "-m", "sh", "-ec", script.replace("{device}", trial.volume.device), "sh", *argv)


@pytest.mark.parametrize("argv", [ADD, ("apk-atomic", "status"), ("apk-atomic", "diff")], ids=str)
def test_not_on_btrfs(shared: Trial, argv: tuple[str, ...]) -> None:
    result = shared.refused(*elsewhere(shared, ON_TMPFS, *argv), status=101, says="not on btrfs but on tmpfs")
    assert "apk-atomic adopt gives it to this system, init" in result.stderr


def test_root_is_no_generation(trial: Trial) -> None:
    btrfsctl.snapshot(trial.volume.tree(), trial.volume.top / "@flat", read_only=False)
    trial.accept()
    result = trial.refused(*elsewhere(trial, ON_PLAIN_BTRFS, *ADD), status=101, says="/ is /@flat of its btrfs volume")
    assert "apk-atomic adopt gives it to this system, init" in result.stderr


POOR: dict[str, tuple[str, int, str, str]] = {
    "no /proc": ("umount -l /proc", 101, "the mount table cannot be read: No such file or directory", "/proc mounted"),
    "no /dev": ("mount -t tmpfs tmpfs /dev", 104, "is not there", "is /dev mounted?"),
    "no /run": ("mount -t tmpfs -o ro tmpfs /run", 100, "cannot make /run/apk-atomic: Read-only", "df /run"),
    "little /run": ("mount -t tmpfs -o nr_inodes=3 tmpfs /run", 103, "/run/apk-atomic/top: No space", "df /run"),
}


@pytest.mark.parametrize("what", POOR)
def test_system_without_the_usual_mounts(shared: Trial, what: str) -> None:
    script, status, says, hint = POOR[what]
    for argv in (ADD, ("apk-atomic", "rollback"), ("apk-atomic", "gc")):
        result = shared.refused("unshare", "-m", "sh", "-c", f'{script} && exec "$@"', "sh", *argv, status=status)
        assert says in result.stderr and hint in result.stderr
        assert "othing was changed" in result.stderr


WITHOUT = "import ctypes, os, sys; ctypes.CDLL(None).prctl(24, 21, 0, 0, 0); os.execvp(sys.argv[1], sys.argv[1:])"


@pytest.mark.parametrize("how", [("unshare", "-U", "-r"), ("python3", "-I", "-c", WITHOUT)], ids=lambda each: each[0])
def test_root_in_name_only(shared: Trial, how: tuple[str, ...]) -> None:
    """In a user namespace, and without CAP_SYS_ADMIN: what a container has."""
    for argv in (ADD, ("apk-atomic", "rollback"), ("apk-atomic", "gc")):
        result = shared.refused(*how, *argv)
        assert result.status in (101, 104)
        assert "Operation not permitted; nothing was changed" in result.stderr


OVERLAY = """\
mkdir -p /tmp/o && mount -t tmpfs tmpfs /tmp/o && cd /tmp/o && mkdir lower upper work new
mount -t btrfs -o ro,noatime,subvol=/snapshots/%s/@ {device} lower
mount -t overlay -o lowerdir=/tmp/o/lower,upperdir=upper,workdir=work overlay new
mkdir -p new/tmp/o/lower && mount --move lower new/tmp/o/lower
for each in proc dev run var/cache var/log home; do mount --rbind /$each new/$each; done
cd new && mkdir -p mnt && pivot_root . mnt && umount -l /mnt
exec "$@"
"""


def test_root_is_an_overlay_over_a_generation(trial: Trial) -> None:
    """mkinitfs's overlaytmpfs: the lower layer is what is booted, and a transaction starts from that."""
    trial.works()
    trial.guest.reboot()
    trial = Trial(trial.volume, trial.guest)
    trial.committed(*elsewhere(trial, OVERLAY % trial.guest.booted, "apk-atomic", "run", "touch", "/etc/made"))
    assert (trial.volume.tree() / "etc/made").exists()
    assert not Path(trial.guest.root, "etc/made").exists()


@contextmanager
def plain_btrfs() -> Iterator[str]:
    """A device with an empty btrfs."""
    with scratch_directory("apk-atomic-plain-") as place:
        btrfsctl.make_filesystem(place / "plain.img", 128 * MIB)
        loop = Loop(place / "plain.img")
        try:
            yield loop.path
        finally:
            loop.detach()


def test_named_volume_without_the_layout(shared: Trial) -> None:
    with plain_btrfs() as device:
        for words in (("add", "x"), ("status",), ("gc",), ("diff",), ("rollback",)):
            result = shared.refused("apk-atomic", *words, "--atomic-volume", device, status=101)
            assert "no snapshots and no links" in result.stderr
            assert "apk-atomic init" in result.stderr


@pytest.mark.parametrize(
    ("spec", "status", "says"),
    [
        ("/dev/null", 100, "neither a block device nor a directory"),
        ("/nowhere", 100, "No such file"),
        ("/etc/fstab", 100, "losetup"),
        ("/proc", 101, "not on btrfs"),
        ("/dev/loop-control", 100, "neither a block device nor a directory"),
        ("", 100, "needs a value"),
    ],
)
def test_named_volume_that_is_none(shared: Trial, spec: str, status: int, says: str) -> None:
    shared.refused(*ADD, f"--atomic-volume={spec}", status=status, says=says)


def test_device_that_holds_no_btrfs(shared: Trial) -> None:
    with scratch_directory("apk-atomic-zero-") as place:
        (place / "zero.img").write_bytes(b"")
        os.truncate(place / "zero.img", 4 * MIB)
        loop = Loop(place / "zero.img")
        try:
            shared.refused(*ADD, "--atomic-volume", loop.path, status=101, says="holds no btrfs")
        finally:
            loop.detach()


@pytest.mark.parametrize("argv", CHANGING, ids=str)
def test_part_of_the_layout_is_missing(shared: Trial, argv: tuple[str, ...]) -> None:
    with moved(shared, "links", lambda path: None):
        result = shared.refused(*argv, status=101, says="no links")
        assert "nothing was changed" in result.stderr


@contextmanager
def moved(trial: Trial, name: str, instead: Callable[[Path], object]) -> Iterator[None]:
    """Something else stands where `name` was at the top level, for a while."""
    path, aside = trial.volume.top / name, trial.volume.top / f"{name}.aside"
    os.rename(path, aside)
    try:
        instead(path)
        trial.accept()
        yield
    finally:
        if path.is_symlink() or path.is_file() or path.is_fifo():
            path.unlink()
        elif path.exists():
            shutil.rmtree(path)
        os.rename(aside, path)
        trial.accept()


# ---- the pointer and the slots ---------------------------------------------------------------------------

POINTERS: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "dangling": lambda path: path.symlink_to("./links/20300101000000zzzzzzzz"),
    "a directory": lambda path: path.mkdir(),
    "a file": lambda path: path.write_text("./links/x"),
    "a FIFO": lambda path: os.mkfifo(path),
    "a loop": lambda path: path.symlink_to("current"),
    "garbage": lambda path: path.symlink_to("\x1b[2J\nhere"),
    "not UTF-8": lambda path: os.symlink(b"./links/\xff\xfe", path),
    "absolute": lambda path: path.symlink_to(f"/links/{FIRST}"),
    "above": lambda path: path.symlink_to(f"../links/{FIRST}"),
    "out of links": lambda path: path.symlink_to("./links/../../etc"),
    "deeper": lambda path: path.symlink_to(f"./links/{FIRST}/0"),
    "links itself": lambda path: path.symlink_to("./links/"),
    "a snapshot": lambda path: path.symlink_to(f"./snapshots/{FIRST}"),
    "4095 bytes": lambda path: path.symlink_to("./links/" + "x" * 4087),
}


@pytest.mark.parametrize("shape", POINTERS)
def test_pointer_of_a_wrong_shape(shared: Trial, shape: str) -> None:
    with moved(shared, "current", POINTERS[shape]):
        for argv in (ADD, ("apk-atomic", "rollback"), ("apk-atomic", "gc")):
            result = shared.refused(*argv)
            assert result.status in (101, 104)
            assert "nothing was changed" in result.stderr
            assert "ln -sfn ./links/ID current" in result.stderr
            assert "\x1b" not in result.stderr
        assert shared.refused("apk-atomic", "status").status in (101, 104)


def test_pointer_that_is_mended_works_again(trial: Trial) -> None:
    with moved(trial, "current", POINTERS["garbage"]):
        trial.refused(*ADD)
    trial.works()


SLOTS: dict[str, str] = {
    "dangling": "../../snapshots/20300101000000zzzzzzzz",
    "outside": "../../../../etc",
    "absolute": f"/snapshots/{FIRST}",
    "commons": "../../commons/@home",
    "climbing": "../../snapshots/../commons/@home",
    "top level": "../..",
    "a loop": "0",
    "empty tail": "../../snapshots/",
    "option": "../../snapshots/-rf",
    "control": "../../snapshots/a\x1b[2Jb",
}


def rewire(trial: Trial, slot: int, text: str) -> None:
    link = trial.volume.top / "links" / trial.volume.current() / str(slot)
    link.unlink()
    link.symlink_to(text)
    trial.accept()


@pytest.mark.parametrize("shape", SLOTS)
def test_slot_0_leads_elsewhere(trial: Trial, shape: str) -> None:
    """Nothing is guessed and nothing is collected; rollback to a generation by its name mends it."""
    before = oracle.fingerprint(trial.volume.top / "commons")
    rewire(trial, 0, SLOTS[shape])
    trial.refused(*ADD, status=106, says="slot 0 does not lead to a generation")
    trial.unchanged("apk-atomic", "gc")
    answer = trial.run("apk-atomic", "status")
    assert answer.status == 0
    assert "slot 0 leads to no generation" in answer.stderr
    assert trial.run("apk-atomic", "rollback", FIRST).status == 0
    assert trial.volume.slots() == [FIRST] * 4
    assert oracle.fingerprint(trial.volume.top / "commons") == before
    trial.works()


def test_other_slots_lead_elsewhere(trial: Trial) -> None:
    """They are repaired by the next commit, and what they led to is not touched."""
    before = oracle.fingerprint(trial.volume.top / "commons/@home")
    rewire(trial, 1, SLOTS["commons"])
    rewire(trial, 2, SLOTS["outside"])
    rewire(trial, 3, SLOTS["dangling"])
    assert "slot 1 leads to no generation" in trial.run("apk-atomic", "status").stderr
    new = trial.works()
    assert trial.volume.slots() == [new, FIRST, FIRST, FIRST]
    assert oracle.fingerprint(trial.volume.top / "commons/@home") == before


@pytest.mark.parametrize("kind", ["a directory", "a file", "missing"])
def test_slot_that_is_no_link(trial: Trial, kind: str) -> None:
    link = trial.volume.top / "links" / trial.volume.current() / "0"
    link.unlink()
    if kind == "a directory":
        link.mkdir()
    elif kind == "a file":
        link.write_text("x")
    trial.accept()
    trial.refused(*ADD, status=106, says="slot 0 does not lead to a generation")
    trial.committed("apk-atomic", "run", "--atomic-base", "booted", "touch", "/etc/made")


# ---- the top level ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["staging", "next"])
@pytest.mark.parametrize("shape", ["a link", "a file", "a FIFO"])
def test_directory_of_ours_is_something_else(trial: Trial, part: str, shape: str) -> None:
    """A link would make us work in a place that is not ours: refused, whatever it leads to."""
    path = trial.volume.top / part
    if path.exists():
        path.rmdir()
    canary = trial.volume.top / "commons/@home/canary"
    canary.mkdir()
    (canary / "20200101000000aaaaaaaa").mkdir()
    if shape == "a link":
        path.symlink_to("commons/@home/canary")
    elif shape == "a file":
        path.write_text("mine")
    else:
        os.mkfifo(path)
    before = oracle.fingerprint(canary)
    trial.accept()
    result = trial.refused("apk-atomic", "run", "touch", "/etc/made")
    assert part in result.stderr
    assert "nothing was changed" in result.stderr
    assert oracle.fingerprint(canary) == before
    path.unlink()
    trial.works()


TEMPLATES: dict[str, Callable[[Path], object]] = {
    "a link": lambda path: path.symlink_to("/etc/fstab"),
    "a directory": lambda path: path.mkdir(),
    "a FIFO": lambda path: os.mkfifo(path),
    "huge": lambda path: path.write_bytes(b"# x\n" * (1 << 19)),
}


@pytest.mark.parametrize("shape", TEMPLATES)
def test_template_cannot_be_read(shared: Trial, shape: str) -> None:
    with moved(shared, "fstab", TEMPLATES[shape]):
        result = shared.refused("apk-atomic", "run", "touch", "/etc/made")
        assert "the fstab template at the top level of the volume cannot be read" in result.stderr
        assert "nothing was changed" in result.stderr and "/mnt/fstab" in result.stderr


def test_default_subvolume_is_another(trial: Trial) -> None:
    def set_default(number: str) -> None:
        command = ["btrfs", "subvolume", "set-default", number, str(trial.volume.top)]
        subprocess.run(command, check=True)

    tree = trial.volume.tree()
    listing = subprocess.check_output(["btrfs", "subvolume", "show", str(tree)], text=True)
    number = next(line.split()[-1] for line in listing.splitlines() if "Subvolume ID" in line)
    trial.works()
    set_default(number)
    for argv in (ADD, ("apk-atomic", "rollback")):
        result = trial.refused(*argv, status=104, says=f"the default subvolume is {number}, not 5")
        assert "btrfs subvolume set-default 5" in result.stderr
    set_default("5")
    trial.works()


def protect(device: str, on: bool) -> None:
    with open(device, "rb") as opened:
        fcntl.ioctl(opened, BLKROSET, int(on).to_bytes(4, "little"))


def test_disk_is_write_protected(volume: Volume) -> None:
    volume.detach()
    loop = Loop(volume.image)
    try:
        protect(loop.path, True)
        place = volume.image.with_name("protected")
        place.mkdir()
        guest = Guest(loop.path, str(place), 0, "ro,noatime")
        try:
            for argv in (ADD, ("apk-atomic", "rollback"), ("apk-atomic", "gc")):
                result = guest.run(argv)
                assert (result.status, "read-only" in result.stderr) == (104, True), result
                assert "nothing was changed" in result.stderr
            assert guest.run(["apk-atomic", "status"], check=True).stdout.startswith(FIRST)
            assert guest.strays() == []
        finally:
            guest.shutdown()
    finally:
        protect(loop.path, False)  # the number outlives the device
        loop.detach()
        volume.attach()
    Trial(volume).works()
