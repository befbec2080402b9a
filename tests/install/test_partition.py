"""The table of a new disk, and what is found on an old one."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apk_atomic import layout, loop, partition
from apk_atomic.errors import CannotRun, CheckFailed, Interrupted, NoSpace, Refused, UsageError
from apk_atomic.partition import LEAST_ESP, LEAST_VOLUME, MIB, Target
from apk_atomic.signals import Signals
from tests.support.blockdev import mount_btrfs, unmount

TARGET = Target("/dev/sda", 1 << 34, 512, is_image=False)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    with (tmp_path / "disk.img").open("wb") as file:
        file.truncate(400 * MIB)
    return tmp_path / "disk.img"


@given(st.integers(0, 1 << 42), st.integers(0, 1 << 34), st.integers(0, 1 << 36), st.sampled_from((512, 4096)))
def test_parts_lie_on_the_disk_one_after_the_other(size: int, esp: int, swap: int, sector: int) -> None:
    try:
        parts = partition.plan(Target("/dev/sda", size, sector, is_image=False), esp, swap)
    except (NoSpace, UsageError):
        assert esp < LEAST_ESP or size < esp + swap + LEAST_VOLUME + 4 * MIB
        return
    assert [part.role for part in parts] == ["ESP", *(["SWAP"] if swap else []), "ROOT"]
    assert [part.number for part in parts] == list(range(1, len(parts) + 1))
    end = MIB
    for part in parts:
        assert (part.start, part.start % MIB, part.size % MIB) == (end, 0, 0)
        end += part.size
    assert end <= size - MIB
    assert parts[-1].size >= LEAST_VOLUME
    assert len({part.guid for part in parts}) == len(parts)


def test_a_table_is_written_found_unfinished_and_finished(image: Path, signals: Signals) -> None:
    target = partition.look_at(str(image))
    assert partition.signatures(target, signals) == ()
    parts = partition.plan(target, 40 * MIB, 16 * MIB)
    partition.divide(target, parts, signals)
    assert "gpt" in partition.signatures(target, signals)
    assert partition.is_unfinished(target, signals)
    with partition.devices(target, parts) as nodes:
        assert sorted(nodes) == ["ESP", "ROOT", "SWAP"]
        layout.make_esp(nodes["ESP"], signals)
        layout.make_swap(nodes["SWAP"], signals)
        assert layout.fat_uuid(nodes["ESP"]) == blkid(nodes["ESP"])
        assert layout.swap_uuid(nodes["SWAP"]) == blkid(nodes["SWAP"])
        assert layout.fat_uuid(nodes["ROOT"]) == layout.swap_uuid(nodes["ROOT"]) == ""
    assert loop.over(str(image)) == ()
    partition.finish(target, parts, "ALPINE", signals)
    assert not partition.is_unfinished(target, signals)
    table = subprocess.check_output(["sfdisk", "--dump", image], text=True)
    assert [name in table for name in ('name="ESP"', 'name="SWAP"', 'name="ALPINE"')] == [True] * 3


def blkid(device: str) -> str:
    return subprocess.check_output(["blkid", "--probe", "-s", "UUID", "-o", "value", device], text=True).strip()


def test_a_volume_by_itself_is_unfinished_until_it_has_its_label(image: Path, signals: Signals) -> None:
    target = partition.look_at(str(image))
    layout.make_volume(str(image), partition.UNFINISHED, signals)
    assert partition.is_unfinished(target, signals)
    layout.set_label(str(image), "ROOT", signals)
    assert not partition.is_unfinished(target, signals)


def test_a_tool_that_fails_is_quoted(image: Path, signals: Signals) -> None:
    with pytest.raises(CheckFailed, match=r"mkfs\.vfat failed with exit status 1: .*nowhere"):
        layout.make_esp("/dev/nowhere", signals)


@pytest.mark.parametrize(
    ("path", "says"),
    [("/proc/no", "No such file"), ("/tmp", "neither a block device nor"), ("/dev/null", "neither a block device nor")],
)
def test_what_is_no_disk(path: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        partition.look_at(path)


def test_an_image_that_is_attached_is_in_use(image: Path) -> None:
    with loop.attached(str(image)) as device:
        with pytest.raises(Refused, match=device):
            partition.require_unused(partition.look_at(str(image)))
        partition.require_unused(partition.look_at(device))
        with loop.attached(str(image), MIB, MIB) as second:
            assert loop.over(str(image)) == tuple(sorted((device, second)))
    partition.require_unused(partition.look_at(str(image)))


@pytest.mark.parametrize(
    ("disk", "its_own", "others"),
    [("sda", ("sda", "sda1", "sda10"), ("sdaa", "sdb1", "sdap2", "sdaa1", "../tmpfs")),
     ("sda1", ("sda1",), ("sda10", "sda11", "sda")),
     ("loop5", ("loop5", "loop5p1", "loop5p12"), ("loop50", "loop55", "loop5p", "loop50p1")),
     ("nvme0n1", ("nvme0n1", "nvme0n1p2"), ("nvme0n11", "nvme0n11p2", "nvme0n1pp2"))],
)  # fmt: skip
def test_whose_partition_a_mounted_device_is(disk: str, its_own: Sequence[str], others: Sequence[str]) -> None:
    found = {name: partition._is_of(f"/dev/{name}", f"/dev/{disk}") for name in (*its_own, *others)}
    assert found == dict.fromkeys(its_own, True) | dict.fromkeys(others, False)


def test_the_tenth_partition_in_use_is_not_the_first(image: Path, tmp_path: Path) -> None:
    table = "label: gpt\n" + "size=1MiB\n" * 9 + "size=200MiB\n"
    subprocess.run(["sfdisk", "--quiet", image], input=table, text=True, check=True)
    argv = ["losetup", "--find", "--show", "--partscan", str(image)]
    disk = subprocess.check_output(argv, text=True).strip()
    (tmp_path / "top").mkdir()
    try:
        subprocess.run(["partx", "--update", disk], check=True)
        subprocess.run(["mkfs.btrfs", "--quiet", f"{disk}p10"], check=True)
        mount_btrfs(f"{disk}p10", tmp_path / "top")
        try:
            partition.require_unused(partition.look_at(f"{disk}p1"))
            for used in (f"{disk}p10", disk):
                with pytest.raises(Refused, match=f"mounted at {tmp_path}/top"):
                    partition.require_unused(partition.look_at(used))
        finally:
            unmount(tmp_path / "top")
    finally:
        subprocess.run(["partx", "--delete", disk], check=False)
        subprocess.run(["losetup", "--detach", disk], check=True)


def test_the_kernels_own_nodes_are_taken_where_it_has_them(tmp_path: Path) -> None:
    """sysfs of a disk with two partitions; nodes that are not in /dev yet are waited for, and then done without."""
    parts = partition.plan(TARGET, 40 * MIB, 0)
    for name, part in zip(("null", "zero"), parts, strict=True):
        (tmp_path / "sda" / name).mkdir(parents=True)
        (tmp_path / "sda" / name / "partition").write_text(f"{part.number}\n")
        (tmp_path / "sda" / name / "start").write_text(f"{part.start // 512}\n")
    assert partition._nodes(TARGET, parts, str(tmp_path)) == {"ESP": "/dev/null", "ROOT": "/dev/zero"}
    (tmp_path / "sda/loop").mkdir()
    (tmp_path / "sda/loop/partscan").write_text("0\n")
    assert partition._nodes(TARGET, parts, str(tmp_path)) == {}


def test_a_signal_ends_a_tool_and_is_no_failure_of_it(signals: Signals) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted):
        partition.must(["sleep", "60"], signals, hint="apk add sleep")


def test_a_tool_that_is_not_there_is_named_with_its_package(signals: Signals) -> None:
    with pytest.raises(CannotRun, match="cannot run mkfs-nowhere: not found") as raised:
        partition.must(["mkfs-nowhere"], signals, hint="apk add nowhere")
    assert raised.value.hint == "apk add nowhere"


@pytest.mark.parametrize(("content", "found"), [(b"", False), (b"\0" * 5000, False), (b"\0" * 5000 + b"x", True)])
def test_data_in_an_image(tmp_path: Path, content: bytes, found: bool) -> None:
    """Whatever it is, wherever: between holes, too."""
    path = tmp_path / "image"
    assert not partition.has_data(partition.image(str(path), MIB))
    with path.open("wb") as file:
        file.truncate(8 * MIB)
        file.seek(5 * MIB)
        file.write(content)
    assert partition.has_data(partition.image(str(path), MIB)) is found
