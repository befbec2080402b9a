"""The staged root: whose device an fstab line names, what is mounted for a change, and the parts beside `@`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from apk_atomic import mounts, staged
from apk_atomic.chroot import Common
from apk_atomic.config import Chroot, Config
from apk_atomic.errors import CheckFailed
from apk_atomic.volume import Volume as Opened
from tests.support import btrfsctl, engine
from tests.support.engine import Place
from tests.support.isolation import private_mounts
from tests.support.packages import File, Package
from tests.support.world import FIRST, Guest, Volume

SECOND, LINKS = "20240202030405abcdefgh", "20240202030406abcdefgh"


@pytest.fixture
def place(top: Path) -> Iterator[Place]:
    with engine.place(top) as made:
        yield made


@pytest.fixture
def opened(place: Place) -> Opened:
    return place.volume


# ---- is_volume ---------------------------------------------------------------------------------------------


def test_by_uuid_and_label(opened: Opened) -> None:
    assert staged.is_volume(opened, f"UUID={opened.fsid}")
    assert staged.is_volume(opened, f'UUID="{opened.fsid.upper()}"')
    assert not staged.is_volume(opened, "UUID=12345678-1234-1234-1234-123456789012")
    assert staged.is_volume(opened, "LABEL=")
    assert not staged.is_volume(opened, "LABEL=ROOT")


def test_by_label_of_a_labelled_volume(volume: Volume) -> None:
    fd = os.open(volume.top, os.O_RDONLY)
    try:
        labelled = Opened(volume.device, volume.fsid, None, fd, False)
        assert staged.is_volume(labelled, "LABEL=ROOT")
        assert staged.is_volume(labelled, 'LABEL="ROOT"')
        assert not staged.is_volume(labelled, "LABEL=root")
    finally:
        os.close(fd)


def test_by_device_and_by_links_to_it(opened: Opened, tmp_path: Path) -> None:
    assert staged.is_volume(opened, opened.device)
    assert not staged.is_volume(opened, "/dev/null")
    assert not staged.is_volume(opened, "tmpfs")
    (tmp_path / "disk").symlink_to(opened.device)
    assert staged.is_volume(opened, str(tmp_path / "disk"))


@pytest.mark.parametrize(
    ("spec", "link"),
    [("PARTUUID=1-2", "by-partuuid/1-2"), ("PARTLABEL=root", "by-partlabel/root"), ("ID=ata-x", "by-id/ata-x")],
)
def test_by_partition(opened: Opened, spec: str, link: str) -> None:
    """Where udev made links they decide; without any, as with mdev, such a line can only mean this volume."""
    private_mounts()
    assert staged.is_volume(opened, spec)
    disks = Path("/dev/disk")
    made = not disks.exists()
    disks.mkdir(exist_ok=True)
    mounts.mount("disk", str(disks), "tmpfs")
    try:
        path = disks / link
        path.parent.mkdir()
        path.symlink_to(opened.device)
        assert staged.is_volume(opened, spec)
        path.unlink()
        path.symlink_to("/dev/null")
        assert not staged.is_volume(opened, spec)
    finally:
        mounts.unmount(str(disks))
        if made:
            disks.rmdir()


# ---- commons_of --------------------------------------------------------------------------------------------


def commons(opened: Opened, text: str, **wishes: str) -> tuple[Common, ...]:
    config = Config(chroot=Chroot(commons=tuple((f"/{name.replace('_', '/')}", wish) for name, wish in wishes.items())))
    lines = text.replace("VOLUME", f"UUID={opened.fsid}")
    return staged.commons_of(opened, config, lines, "/snapshots/new", "/staging/new")


FSTAB = """\
VOLUME / btrfs subvol=/snapshots/new/@,ro 0 0
VOLUME /home btrfs subvol=/commons/@home,nodev,nosuid 0 0
VOLUME /var/log btrfs subvol=commons/@var@log 0 0
VOLUME /var/lib/ro btrfs subvol=/commons/@ro,ro 0 0
VOLUME /usr btrfs subvol=/snapshots/new/@usr,ro 0 0
VOLUME /old btrfs subvol=/snapshots/old/@ 0 0
VOLUME /top btrfs subvol=/ 0 0
VOLUME /tmp btrfs subvol=/commons/@tmp 0 0
VOLUME /later btrfs subvol=/commons/@later,noauto 0 0
/dev/null /other btrfs subvol=/commons/@other 0 0
UUID=ABCD-1234 /boot/efi vfat defaults 0 0
nfs:/x /net nfs _netdev 0 0
"""


def test_commons_and_parts(opened: Opened) -> None:
    assert commons(opened, FSTAB) == (
        Common("/home", "/commons/@home", False, ("nodev", "nosuid")),
        Common("/usr", "/staging/new/@usr", True),
        Common("/var/lib/ro", "/commons/@ro", False),
        Common("/var/log", "/commons/@var@log", True),
    )


def test_wishes(opened: Opened) -> None:
    points = {common.point: common.writable for common in commons(opened, FSTAB, home="rw", var_log="skip")}
    assert points == {"/home": True, "/usr": True, "/var/lib/ro": False}


# ---- files of the root -------------------------------------------------------------------------------------


def test_fstab_is_never_written_through_a_link(place: Place, tmp_path: Path) -> None:
    root = place.generation("one", lambda root: (root / "etc").mkdir(), sealed=False)
    outside = tmp_path / "fstab"
    outside.write_text("host\n")
    (root / "etc/fstab").symlink_to(outside)
    fd = os.open(root, os.O_RDONLY)
    try:
        assert staged.read_fstab(fd) is None
        staged.write_fstab(fd, "new \udcff\n")
        assert staged.read_fstab(fd) == "new \udcff\n"
        assert (root / "etc/fstab").read_bytes() == b"new \xff\n"
        assert (root / "etc/fstab").stat().st_mode & 0o7777 == 0o644
        (root / "etc/fstab").unlink()
        (root / "etc").rmdir()
        (root / "etc").symlink_to(tmp_path)
        with pytest.raises(OSError, match="symbolic links"):
            staged.write_fstab(fd, "new")
    finally:
        os.close(fd)
    assert outside.read_text() == "host\n"


def test_template(place: Place) -> None:
    assert staged.read_template(place.volume) is None
    (place.top / "fstab").write_text("x\n")
    assert staged.read_template(place.volume) == "x\n"
    (place.top / "fstab").unlink()
    (place.top / "fstab").symlink_to("/etc/fstab")
    with pytest.raises(CheckFailed, match="symbolic links"):
        staged.read_template(place.volume)


# ---- a generation of more than one subvolume ---------------------------------------------------------------


@pytest.fixture
def divided(volume: Volume) -> Guest:
    """A machine whose generation has a second subvolume, mounted at /opt."""
    with open(volume.top / "fstab", "a") as template:
        template.write(f"UUID={volume.fsid} /opt btrfs ro,noatime,subvol=CURRENT_SNAPSHOTS_PATH/@opt 0 0\n")
    tree = volume.add_generation(SECOND)
    btrfsctl.create_subvolume(tree.parent / "@opt")
    (tree.parent / "@opt/tool").write_text("old")
    btrfsctl.set_read_only(tree.parent / "@opt", True)
    volume.point(SECOND, FIRST, name=LINKS)
    return volume.boot()


def test_a_change_in_another_subvolume_makes_a_generation(volume: Volume, divided: Guest) -> None:
    line = "[ $(cat /opt/tool) = old ] && echo new > /opt/tool"
    said = divided.run(["apk-atomic", "run", "--", "sh", "-c", line], check=True).stderr
    assert "shared by all generations" not in said
    new, booted, *_ = volume.slots()
    assert booted == SECOND
    home = volume.top / "snapshots" / new
    assert (home / "@opt/tool").read_text() == "new\n"
    assert btrfsctl.is_read_only(home / "@opt")
    assert (volume.top / "snapshots" / SECOND / "@opt/tool").read_text() == "old"
    divided.reboot()
    assert divided.run(["cat", "/opt/tool"], check=True).stdout == "new\n"


def test_no_change_in_two_subvolumes_makes_none(volume: Volume, divided: Guest) -> None:
    said = divided.run(["apk-atomic", "run", "--", "touch", "/tmp/x"], check=True).stderr
    assert "nothing changed" in said
    assert volume.generations() == sorted([FIRST, SECOND])


def test_a_package_in_another_subvolume_is_part_of_the_generation(volume: Volume, divided: Guest) -> None:
    volume.repo.publish(Package("tool", files={"opt/tool2": File(b"t")}))
    said = divided.run(["apk-atomic", "add", "tool"], check=True).stderr
    assert "under a mount point" not in said
    assert (volume.tree().parent / "@opt/tool2").read_bytes() == b"t"


# ---- a line that is new in the template ---------------------------------------------------------------------


def add_line(volume: Volume, line: str) -> None:
    with open(volume.top / "fstab", "a") as template:
        template.write(line.format(fsid=volume.fsid) + "\n")


def test_a_new_commons_line_works_from_the_next_boot(volume: Volume) -> None:
    """The sealed root has no such directory, and nobody could make it there."""
    add_line(volume, "UUID={fsid} /srv/new/data btrfs rw,subvol=/commons/@data 0 0")
    add_line(volume, "tmpfs /mnt/scratch tmpfs size=1m 0 0")
    btrfsctl.create_subvolume(volume.top / "commons/@data")
    guest = volume.boot()
    said = guest.run(["apk-atomic", "run", "--", "touch", "/etc/x"], check=True).stderr
    assert "made /srv/new/data in the new generation" in said and "made /mnt/scratch in the new generation" in said
    guest.reboot()
    guest.run(["touch", "/srv/new/data/file"], check=True)
    assert (volume.top / "commons/@data/file").exists()
    again = guest.run(["apk-atomic", "run", "--", "touch", "/etc/y"], check=True).stderr
    assert "in the new generation" not in again


def test_a_commons_that_the_volume_does_not_have_is_named(volume: Volume) -> None:
    add_line(volume, "UUID={fsid} /srv/data btrfs rw,subvol=/commons/@data 0 0")
    before = volume.generations(), volume.slots()
    result = volume.boot().run(["apk-atomic", "run", "--", "touch", "/etc/x"])
    assert result.status == 104 and (volume.generations(), volume.slots()) == before
    assert "mounts commons/@data at /srv/data, which the volume does not have" in result.stderr
    assert "nothing was changed" in result.stderr and "btrfs subvolume create /mnt/commons/@data" in result.stderr


def test_a_commons_that_may_be_missing_is_left_out(volume: Volume) -> None:
    add_line(volume, "UUID={fsid} /srv/data btrfs rw,nofail,subvol=/commons/@data 0 0")
    guest = volume.boot()
    guest.run(["apk-atomic", "run", "--", "touch", "/etc/x"], check=True)
    assert guest.run(["apk-atomic", "info", "-v"]).status == 0


def test_what_stands_where_a_mount_point_should_be_is_named(volume: Volume) -> None:
    """A link is never followed, nor is anything of the user's replaced."""
    add_line(volume, "UUID={fsid} /etc/passwd btrfs rw,subvol=/commons/@home 0 0")
    result = volume.boot().run(["apk-atomic", "run", "--", "touch", "/etc/x"])
    assert result.status == 104 and "/etc/passwd" in result.stderr and "nothing was changed" in result.stderr
