"""Which volume is meant and what of it runs, on real mounts in the test's own namespace."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from apk_atomic import locate, mounts
from apk_atomic.errors import NotSuchRoot, UsageError
from apk_atomic.locate import generation_of
from tests.support import btrfsctl, engine
from tests.support.blockdev import Loop
from tests.support.guest import Guest
from tests.support.imagecache import scratch_directory
from tests.support.world import FIRST, Volume


@pytest.fixture(scope="module")
def top() -> Iterator[Path]:
    with engine.file_system() as mounted:
        btrfsctl.create_subvolume(mounted / "other")
        yield mounted


@pytest.mark.parametrize(
    ("subvolume", "generation"),
    [
        ("/snapshots/20260101000000abcdefgh/@", "20260101000000abcdefgh"),
        ("/snapshots/mine/@", "mine"),
        ("/snapshots/mine/@/", None),
        ("/snapshots/mine/@home", None),
        ("/snapshots/mine", None),
        ("/snapshots/../@", None),
        ("/snapshots/a b/@", None),
        ("/snapshots//@", None),
        ("/staging/mine/@", None),
        ("snapshots/mine/@", None),
        ("/", None),
        ("", None),
        ("/@", None),
        ("/x/snapshots/mine/@", None),
        ("/snapshots/mine/@//deleted", None),
    ],
)
def test_generation_of_a_subvolume_path(subvolume: str, generation: str | None) -> None:
    assert generation_of(subvolume) == generation


# ---- named volumes -----------------------------------------------------------------------------------------


def test_a_device_and_a_directory_name_the_same_volume(top: Path) -> None:
    device, fsid = engine.device_of(top)
    by_directory = locate.named(str(top / "other"))
    assert by_directory == locate.named(str(top))
    assert (by_directory.device, by_directory.fsid, by_directory.booted) == (device, fsid, None)
    link = top / "link"
    link.symlink_to(device)
    assert locate.named(device) == locate.named(str(link)) == by_directory


def test_a_directory_on_a_bind_mount(top: Path, tmp_path: Path) -> None:
    mounts.mount(str(top / "other"), str(tmp_path), "", mounts.BIND)
    try:
        assert locate.named(str(tmp_path)).device == engine.device_of(top)[0]
    finally:
        mounts.unmount(str(tmp_path))


def test_what_is_no_volume(top: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"")
    with pytest.raises(UsageError, match="neither a block device nor a directory") as refusal:
        locate.named(str(image))
    assert "losetup" in refusal.value.hint
    with pytest.raises(UsageError, match="No such file or directory"):
        locate.named(str(tmp_path / "nothing"))
    with pytest.raises(NotSuchRoot, match="is not on btrfs"):
        locate.named("/proc")


def test_a_device_without_btrfs() -> None:
    with scratch_directory("apk-atomic-empty-") as place:
        image = place / "image"
        for size in (1 << 20, 4096):  # the second ends before a superblock could be there
            with open(image, "wb") as file:
                file.truncate(size)
            loop = Loop(image)
            try:
                with pytest.raises(NotSuchRoot, match="holds no btrfs"):
                    locate.named(loop.path)
            finally:
                loop.detach()


# ---- the running system ------------------------------------------------------------------------------------


def ask(guest: Guest, expression: str) -> str:
    program = f"from apk_atomic import locate; print({expression})"
    done = guest.run(["python3", "-c", program])
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def test_the_booted_generation(volume: Volume, guest: Guest) -> None:
    expected = f"Located(device='{volume.device}', fsid='{volume.fsid}', booted='{FIRST}')"
    assert ask(guest, "locate.running()") == expected
    assert ask(guest, f"locate.named('{volume.device}')") == expected
    assert ask(guest, "locate.named('/')") == expected
    assert ask(guest, "locate.named('/home')") == expected
    volume.add_generation("20250101000000abcdefgh")
    volume.point("20250101000000abcdefgh", name="20250101000001abcdefgh")
    assert ask(guest, "locate.booted_generation()") == FIRST


def test_a_device_that_has_no_node_any_more(volume: Volume, guest: Guest) -> None:
    """What the mount table calls it is only a name; without any node there is nothing to mount."""
    guest.run(["mount", "-t", "tmpfs", "dev", "/dev"], check=True)
    number = os.stat(volume.device).st_rdev
    major, minor = str(os.major(number)), str(os.minor(number))
    assert f"CheckFailed: the device of the volume, {volume.device}, is not there" in ask(guest, "locate.running()")
    guest.run(["mknod", volume.device, "b", major, minor], check=True)
    assert ask(guest, "locate.running().device") == volume.device


def test_below_an_overlay(volume: Volume, guest: Guest) -> None:
    """`overlaytmpfs` of mkinitfs: / is an overlay, its lower layer was mounted below /sysroot."""
    steps = """\
mkdir /run/o && mount -t tmpfs o /run/o && mkdir /run/o/lower /run/o/upper /run/o/work /run/o/root
mount --bind / /run/o/lower
mount -t overlay -o lowerdir=/run/o/lower,upperdir=/run/o/upper,workdir=/run/o/work o /run/o/root
mount --rbind /run /run/o/root/run && mount -t proc proc /run/o/root/proc && mount --rbind /dev /run/o/root/dev
cd /run/o/root && mkdir -p mnt/old && pivot_root . mnt/old && cd /
exec chroot . python3 -c 'from apk_atomic import locate; print(locate.running().booted, locate.booted_generation())'
"""
    script = ["unshare", "--mount", "sh", "-euc", steps]
    done = guest.run(script)
    assert (done.stdout, done.stderr) == (f"{FIRST} {FIRST}\n", "")


@pytest.mark.parametrize(
    ("mount", "message"),
    [
        ("mount -t tmpfs root /mnt", "/ is not on btrfs but on tmpfs"),
        ("mount -o subvol=/ {device} /mnt", "/ is / of its btrfs volume, not a generation"),
        ("mount -o subvol=/commons/@home {device} /mnt", "/ is /commons/@home of its btrfs volume"),
    ],
)
def test_a_root_that_is_none(volume: Volume, guest: Guest, mount: str, message: str) -> None:
    steps = f"""\
{mount.format(device=volume.device)}
cd /mnt
for name in bin lib lib64 usr proc sys dev old; do mkdir -p $name; done
for name in bin lib lib64 usr proc sys dev; do [ ! -e /$name ] || mount --rbind /$name $name; done
pivot_root . old && cd /
exec chroot . python3 -c '
from apk_atomic import locate
print(locate.booted_generation())
locate.running()'
"""
    done = guest.run(["unshare", "--mount", "sh", "-euc", steps])
    assert done.stdout == "None\n", done.stderr
    assert message in done.stderr.splitlines()[-1]


def test_no_proc(guest: Guest) -> None:
    steps = "umount /proc && exec python3 -c 'from apk_atomic import locate; locate.running()'"
    done = guest.run(["unshare", "--mount", "sh", "-euc", steps])
    assert "NotSuchRoot: the mount table cannot be read: No such file or directory" in done.stderr
