"""`fat`: entries of FATs that the real tools made, traded and settled; and any bytes."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apk_atomic import fat
from apk_atomic.fat import NoFat
from tests.support.bootfiles import memory_file

MIB = 1 << 20
KINDS = {"12": MIB, "16": 16 * MIB, "32": 34 * MIB}


class Disk:
    """A FAT in a file, filled by mtools; `fd` is open on it."""

    def __init__(self, path: Path, bits: str) -> None:
        self.path = path
        with path.open("wb") as file:
            file.truncate(KINDS[bits])
        subprocess.run(["mkfs.vfat", "-F", bits, "-n", "label", path], check=True, capture_output=True)
        self.fd = os.open(path, os.O_RDWR)

    def tool(self, *argv: str, data: bytes = b"") -> bytes:
        command = [argv[0], "-i", str(self.path), *argv[1:]]
        return subprocess.run(command, input=data, check=True, capture_output=True).stdout

    def put(self, name: str, data: bytes) -> None:
        self.tool("mcopy", "-D", "o", "-", f"::/{name}", data=data)

    def get(self, name: str) -> bytes:
        return self.tool("mtype", f"::/{name}")

    def check(self) -> None:
        subprocess.run(["fsck.vfat", "-n", self.path], check=True, capture_output=True)


@pytest.fixture(params=KINDS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    found = Disk(tmp_path / "fat.img", request.param)
    found.tool("mmd", "::/EFI", "::/EFI/apk-atomic")
    yield found
    os.close(found.fd)


NAMES = ("EFI/apk-atomic/refind.conf", "menu", "EFI/a name that is long and has blanks.efi", "EFI/BOOTX64.EFI")


@pytest.mark.parametrize("name", NAMES)
def test_two_files_trade_places(disk: Disk, name: str) -> None:
    old, new = b"old" * 3000, b"a new one" * 7000
    disk.put(name, old)
    disk.put(f"{name}.new", new)
    fat.trade(disk.fd, name, f"{name}.new")
    assert (disk.get(name), disk.get(f"{name}.new")) == (new, old)
    disk.tool("mdel", f"::/{name}.new")
    assert disk.get(name) == new
    disk.check()


def test_a_directory_of_many_clusters(disk: Disk) -> None:
    for number in range(60):
        disk.put(f"EFI/apk-atomic/a long name, number {number}", f"{number}".encode())
    disk.tool("mdel", "::/EFI/apk-atomic/a long name, number 7")
    found = fat.find(disk.fd, "efi/APK-ATOMIC/A long NAME, number 59")
    assert found is not None and (found.size, found.is_directory) == (2, False)
    for gone in ("EFI/apk-atomic/a long name, number 7", "EFI/none", "none/none", "label", "EFI/apk-atomic/x/y"):
        assert fat.find(disk.fd, gone) is None


def test_what_is_no_file_does_not_trade(disk: Disk) -> None:
    disk.put("one", b"1")
    for other in ("EFI", "none"):
        with pytest.raises(NoFat):
            fat.trade(disk.fd, "one", other)


def test_a_new_file_that_a_cut_left_with_the_clusters_of_the_old(disk: Disk) -> None:
    """Between the two writes of a trade both names lead to the same content; deleting one must not free it."""
    disk.put("menu", b"old" * 1000)
    disk.put("menu.new", b"new" * 1000)
    one, two = fat.find(disk.fd, "menu"), fat.find(disk.fd, "menu.new")
    assert one is not None and two is not None
    fat._point(disk.fd, one.offset, two)
    fat.settle(disk.fd, "menu", "menu.new")
    disk.put("menu.new", b"another" * 1000)
    disk.tool("mdel", "::/menu.new")
    disk.put("more", b"x" * 5000)
    assert disk.get("menu") == b"new" * 1000


def test_a_new_file_whose_clusters_are_free_already(disk: Disk) -> None:
    disk.put("menu.new", b"new" * 1000)
    found = fat.find(disk.fd, "menu.new")
    assert found is not None
    entry = os.pread(disk.fd, 32, found.offset)
    disk.tool("mdel", "::/menu.new")
    disk.put("menu.new", b"")
    again = fat.find(disk.fd, "menu.new")
    assert again is not None
    os.pwrite(disk.fd, entry, again.offset)
    fat.settle(disk.fd, "menu", "menu.new")
    settled = fat.find(disk.fd, "menu.new")
    assert settled is not None and (settled.cluster, settled.size) == (0, 0)
    disk.check()


def test_what_needs_no_settling_stays(disk: Disk) -> None:
    disk.put("menu", b"1")
    disk.put("menu.new", b"2")
    before = disk.path.read_bytes()
    for path in ("menu", "none"):
        fat.settle(disk.fd, path, "menu.new")
    fat.settle(disk.fd, "menu", "none")
    assert disk.path.read_bytes() == before


@given(st.binary(min_size=512, max_size=3000), st.sampled_from([0, 1, 16, 512]), st.integers(0, 9))
def test_any_bytes_give_an_answer(data: bytes, entries: int, small: int) -> None:
    """Also behind a boot sector that makes some sense."""
    head = bytearray(data[:512])
    struct.pack_into("<HBHBHHBH", head, 11, 512, 1, 1, 1, entries, 60, 0xF8, small)
    head[510:] = b"\x55\xaa"
    for image in (data, bytes(head) + data):
        with memory_file(image) as fd, contextlib.suppress(NoFat):
            fat.find(fd, "EFI/BOOT")


def test_a_directory_in_a_circle_comes_to_an_end() -> None:
    image = bytearray(64 * 512)
    struct.pack_into("<HBHBHHBH", image, 11, 512, 1, 1, 1, 0, 64, 0xF8, 0)
    struct.pack_into("<IIHHI", image, 32, 64, 1, 0, 0, 2)
    image[510:512] = b"\x55\xaa"
    struct.pack_into("<I", image, 512 + 8, 2)
    image[1024:1536] = (b"FILE    TXT\x20" + bytes(20)) * 16
    with memory_file(bytes(image)) as fd:
        assert fat.find(fd, "none") is None
        assert fat.find(fd, "file.txt") is not None
