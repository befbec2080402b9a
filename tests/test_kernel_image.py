"""`kernel_image`: each kind whole, cut short, of another release, and any bytes."""

from __future__ import annotations

import contextlib
import gzip
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apk_atomic import kernel_image
from apk_atomic.kernel_image import ImageKind, KernelImage
from apk_atomic.unpack import Damaged, MissingTool
from tests.support.bootfiles import arm64_image, bzimage, memory_file, pe_header, unstore, zboot

RELEASE = "6.18.44-0-lts"
PROJECT = Path(__file__).parents[1]
EFI_PROGRAM = b"MZ" + bytes(58) + struct.pack("<I", 64) + pe_header(64, 0x6264, 2000) + bytes(1632)
IMAGES = {
    ImageKind.BZIMAGE: bzimage(RELEASE),
    ImageKind.IMAGE: arm64_image(RELEASE),
    ImageKind.PACKED: gzip.compress(arm64_image(RELEASE)),
    ImageKind.ZBOOT: zboot(RELEASE),
}


def read(data: bytes) -> KernelImage:
    with memory_file(data) as fd:
        return kernel_image.read(fd, unstore)


@pytest.mark.parametrize("kind", IMAGES)
def test_whole(kind: ImageKind) -> None:
    assert read(IMAGES[kind]) == KernelImage(kind, RELEASE, efi=kind is not ImageKind.PACKED)


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_cut_short(kind: ImageKind, part: float) -> None:
    data = IMAGES[kind]
    with pytest.raises(Damaged):
        read(data[: int(len(data) * part)])


@pytest.mark.parametrize("compression", ["gzip", "xz", "zstd", "lz4"])
def test_zboot_payloads(compression: str) -> None:
    assert read(zboot(RELEASE, compression)).release == RELEASE


@pytest.mark.parametrize("kind", IMAGES)
def test_a_hole_without_end_is_not_read(kind: ImageKind) -> None:
    with memory_file(IMAGES[kind]) as fd:
        os.ftruncate(fd, 1 << 40)
        with pytest.raises(Damaged, match="has more than 512 MiB"):
            kernel_image.read(fd)


def test_zboot_without_the_program() -> None:
    with memory_file(zboot(RELEASE, "lz4")) as fd, pytest.raises(MissingTool, match="add the package lz4"):
        kernel_image.read(fd)


def test_signed_bzimage_is_longer_than_its_header_says() -> None:
    assert read(bzimage(RELEASE) + b"signature" * 100).release == RELEASE


def test_signature_that_is_not_all_there() -> None:
    data = bytearray(bzimage(RELEASE))
    struct.pack_into("<II", data, 0x40 + 24 + 112 + 4 * 8, len(data), 1472)
    with pytest.raises(Damaged, match="signature"):
        read(bytes(data))
    assert read(bytes(data) + bytes(1472)).release == RELEASE


def test_bzimage_without_efi_stub() -> None:
    assert read(bzimage(RELEASE, efi=False)) == KernelImage(ImageKind.BZIMAGE, RELEASE, efi=False)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "known kind"),
        (b"#!/bin/sh\n", "known kind"),
        (bytes(1 << 20), "known kind"),
        (gzip.compress(b"not a kernel" * 100, mtime=0), "not a kernel"),
        (bzimage(RELEASE, payload=bytes(4096)), "payload"),
        (bzimage("", payload=b"\x1f\x8b" * 99), "release"),
        (bzimage("../../etc", payload=b"\x1f\x8b" * 99), "release"),
        (arm64_image("\u00e9\u00e9"), "release"),
        (EFI_PROGRAM, "release"),
        (zboot(RELEASE).replace(b"\x1f\x8b", b"\x00\x00"), "no known way"),
    ],
)
def test_no_kernel(data: bytes, word: str) -> None:
    with pytest.raises(Damaged, match=word):
        read(data)


def test_another_efi_program_that_names_its_release() -> None:
    data = EFI_PROGRAM[:1000] + b"Linux version 6.18.44-0-lts (x)" + bytes(2000)
    assert read(data) == KernelImage(ImageKind.EFI, RELEASE, efi=True)


def test_banner_across_two_chunks() -> None:
    banner = b"Linux version 6.18.44-0-lts (x)"
    for at in (5, 14, 20, 30):
        body = bytes((1 << 18) - at - 64) + banner + bytes(5000)
        head = bytes(0x38) + b"ARM\x64" + bytes(4)
        assert read(head + body).release == RELEASE


@given(st.sampled_from([b"", b"MZ", b"MZ\0\0zimg", b"\x1f\x8b\x08"]), st.binary(max_size=700))
def test_any_bytes_give_a_verdict(start: bytes, rest: bytes) -> None:
    with contextlib.suppress(Damaged):
        read(start + rest)


@given(
    st.sampled_from(list(IMAGES)),
    st.lists(st.tuples(st.integers(0, 0x500), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_any_changed_header_gives_a_verdict(kind: ImageKind, changes: list[tuple[int, int]]) -> None:
    data = bytearray(IMAGES[kind])
    for at, byte in changes:
        data[at % len(data)] = byte
    with contextlib.suppress(Damaged):
        read(bytes(data))


@given(
    st.sampled_from(["gzip", "xz", "zstd", "lz4"]),
    st.lists(st.tuples(st.integers(0x400, 0x1600), st.integers(0, 255)), max_size=4),
    st.integers(0, 200),
)
def test_any_changed_payload_gives_a_verdict(compression: str, changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(zboot(RELEASE, compression))
    for at, byte in changes:
        data[at % len(data)] = byte
    with contextlib.suppress(Damaged):
        read(bytes(data[: len(data) - cut]))


@pytest.mark.parametrize("kind", ["packed", "zboot", "plain"])
def test_memory_stays_small_for_a_large_kernel(tmp_path: Path, kind: str) -> None:
    """60 MiB unpacked, some of it not to be compressed, in a process of its own."""
    body = arm64_image(RELEASE) + os.urandom(16 << 20) + bytes(44 << 20)
    data = {"packed": gzip.compress(body, 1), "plain": body, "zboot": zboot(RELEASE, body=body)}[kind]
    assert len(data) > 15 << 20
    (tmp_path / "image").write_bytes(data)
    code = (
        "import os, resource, sys; from apk_atomic import kernel_image\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak(); image = kernel_image.read(os.open(sys.argv[1], os.O_RDONLY))\n"
        "print(image.release, peak() - before)"
    )
    argv = [sys.executable, "-c", code, str(tmp_path / "image")]
    done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=True)
    release, grown = done.stdout.split()
    assert release == RELEASE
    assert int(grown) < 32 << 10
