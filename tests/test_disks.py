"""`disks`: what lies on devices, made by the real mkfs; the modules that drive them, in a sysfs of our own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apk_atomic import disks, loop
from apk_atomic.disks import Area

MIB = 1 << 20
UUID = "0123cafe-4567-89ab-cdef-0123456789ab"
MAKERS = {
    "btrfs": ["mkfs.btrfs", "--quiet", "--label", "mine", "--uuid", UUID],
    "ext4": ["mkfs.ext4", "-q", "-L", "mine", "-U", UUID],
    "xfs": ["mkfs.xfs", "-q", "-L", "mine", "-m", f"uuid={UUID}"],
    "swap": ["mkswap", "--label", "mine", "--uuid", UUID],
    "vfat": ["mkfs.vfat", "-F", "32", "-n", "MINE", "-i", "0123CAFE"],
}


def blank(path: Path, size: int = 320 * MIB) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


@pytest.mark.parametrize("kind", MAKERS)
def test_what_the_real_tools_make(tmp_path: Path, kind: str) -> None:
    if shutil.which(MAKERS[kind][0]) is None:
        pytest.skip(f"no {MAKERS[kind][0]} on this machine")
    image = blank(tmp_path / "image")
    subprocess.run([*MAKERS[kind], image], check=True, capture_output=True)
    expected = (kind, "0123-CAFE", "MINE") if kind == "vfat" else (kind, UUID, "mine")
    assert disks.identify(disks.head_of(str(image))) == expected


def test_fat16_and_what_is_nothing(tmp_path: Path) -> None:
    image = blank(tmp_path / "image", 16 * MIB)
    assert disks.identify(disks.head_of(str(image))) == ("", "", "")
    subprocess.run(["mkfs.vfat", "-F", "16", "-i", "89ABCDEF", image], check=True, capture_output=True)
    assert disks.identify(disks.head_of(str(image)))[:2] == ("vfat", "89AB-CDEF")
    assert disks.identify(disks.head_of(str(tmp_path / "none"))) == ("", "", "")


@given(st.binary(max_size=5000))
def test_any_bytes_are_something_or_nothing(head: bytes) -> None:
    assert len(disks.identify(head)) == 3


def test_an_attached_device_is_found_by_what_is_on_it(tmp_path: Path) -> None:
    image = blank(tmp_path / "image", 16 * MIB)
    subprocess.run([*MAKERS["swap"], image], check=True, capture_output=True)
    with loop.attached(str(image)) as device:
        assert Area(device, "swap", UUID, "mine") in list(disks.areas())
        number = Path(f"/sys/class/block/{Path(device).name}/dev").read_text().strip()
        for spec in (f"UUID={UUID.upper()}", f'UUID="{UUID}"', "LABEL=mine", device, number):
            assert disks.find(spec) == device
    for spec in (f"UUID={UUID}", "LABEL=mine", "UUID=", "/dev/none", "PARTUUID=none", "NONSENSE=x", "", "999:999"):
        assert disks.find(spec) == ""


def make_swap(path: Path, uuid: str) -> None:
    subprocess.run(["mkswap", "--uuid", uuid, blank(path, 16 * MIB)], check=True, capture_output=True)


def test_whether_a_uuid_is_missing(tmp_path: Path) -> None:
    """The links of udev are a short cut, and no more: one that is stale is not believed."""
    other = UUID.replace("0123", "4567")
    sysfs, dev = tmp_path / "sys", tmp_path / "dev"
    for name in ("vda", "vdb"):
        (sysfs / name).mkdir(parents=True)
        (sysfs / name / "size").write_text("32768\n")
    (dev / "disk/by-uuid").mkdir(parents=True)

    def missing(uuid: str) -> bool:
        return disks.is_missing(uuid, str(sysfs), str(dev))

    assert not missing(UUID)  # nothing can be read, so nothing is said
    make_swap(dev / "vda", UUID)
    assert (missing(UUID.upper()), missing(other), missing("")) == (False, True, True)
    for uuid in (UUID, other):
        (dev / "disk/by-uuid" / uuid).symlink_to("../../vda")
    assert (missing(UUID), missing(other), missing("../../vda")) == (False, True, True)
    make_swap(dev / "vdb", other)
    assert not missing(other)
    (sysfs / "vda/size").write_text("0\n")  # only the link leads there now
    assert not missing(UUID)


# ---- drivers -----------------------------------------------------------------------------------------------


class Sysfs:
    """A /sys in little: `driven` gives a device directory its driver."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.block = top / "class/block"
        self.block.mkdir(parents=True)

    def disk(self, path: str) -> Path:
        place = self.top / "devices" / path
        place.mkdir(parents=True)
        (self.block / place.name).symlink_to(place)
        return place

    def driven(self, path: str, driver: str, module: str = "") -> None:
        place = self.top / "bus/drivers" / driver
        place.mkdir(parents=True)
        (self.top / "devices" / path / "driver").symlink_to(place)
        if module:
            (self.top / "module" / module).mkdir(parents=True)
            (place / "module").symlink_to(self.top / "module" / module)

    def modules(self, device: str) -> tuple[str, ...]:
        return disks.modules_of(device, str(self.block))


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path)


def test_a_partition_of_a_virtual_disk(sysfs: Sysfs) -> None:
    sysfs.disk("pci0/0000:00:02.0/virtio1/block/vda/vda2")
    sysfs.driven("pci0/0000:00:02.0/virtio1", "virtio_blk", "virtio_blk")
    sysfs.driven("pci0/0000:00:02.0", "virtio-pci", "virtio_pci")
    assert sysfs.modules("/dev/vda2") == ("virtio_blk", "virtio_pci")


def test_a_driver_that_is_built_in_names_no_module(sysfs: Sysfs) -> None:
    sysfs.disk("pci0/0000:00:1f.2/ata1/host0/0:0:0:0/block/sda")
    sysfs.driven("pci0/0000:00:1f.2/ata1/host0/0:0:0:0", "sd", "sd_mod")
    sysfs.driven("pci0/0000:00:1f.2", "ahci")
    assert sysfs.modules("/dev/sda") == ("sd_mod",)


def test_what_lies_below_a_mapped_device(sysfs: Sysfs) -> None:
    mapped = sysfs.disk("virtual/block/dm-0")
    (mapped / "dm").mkdir()
    (mapped / "dm/uuid").write_text("CRYPT-LUKS2-0123-root\n")
    (mapped / "slaves").mkdir()
    (mapped / "slaves/md1").mkdir()
    raid = sysfs.disk("virtual/block/md1")
    (raid / "md").mkdir()
    (raid / "md/level").write_text("raid1\n")
    (raid / "slaves").mkdir()
    for name in ("nvme0n1p2", "dm-0"):  # a circle ends
        (raid / "slaves" / name).mkdir()
    sysfs.disk("virtual/nvme-subsystem/nvme-subsys0/nvme0n1/nvme0n1p2")
    assert set(sysfs.modules("/dev/dm-0")) == {"dm_mod", "dm_crypt", "md_mod", "raid1", "nvme"}


def test_a_device_without_any(sysfs: Sysfs) -> None:
    sysfs.disk("virtual/block/loop0")
    assert sysfs.modules("/dev/loop0") == sysfs.modules("/dev/none") == ()
