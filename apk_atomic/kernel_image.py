"""Kernel images: which kind, whole or cut short, and the release they say they are.

Kinds that boot on UEFI or under GRUB: x86 bzImage, EFI zboot, plain arm64 (and riscv64) Image, gzip'd Image,
and any other EFI program that names its release. Any bytes give an answer or `unpack.Damaged`. This module
must not know where images lie or what goes with them, and writes nothing.
"""

from __future__ import annotations

import os
import struct
from contextlib import closing
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from apk_atomic.unpack import CHUNK, Codec, Damaged, Unpacked, sniff

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from apk_atomic.unpack import External

MAX_UNPACKED = 1 << 29  # bytes of an image, also when it is unpacked; a real one has 20 to 60 MiB
_BANNER = b"Linux version "
_MAX_RELEASE = 256
_RELEASE_CHARACTERS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_+~")
_IMAGE_MAGICS = (b"ARM\x64", b"RSC\x05")
_PAYLOADS = (
    b"\x1f\x8b", b"BZh", b"]\x00\x00", b"\xfd7zXZ", b"\x89LZO", b"\x02\x21\x4c\x18", b"\x28\xb5\x2f\xfd",
    b"\x7fELF",
)  # fmt: skip


class ImageKind(StrEnum):
    """The forms of a kernel image; the value is what messages call it."""

    BZIMAGE = "bzImage"
    ZBOOT = "EFI zboot image"
    IMAGE = "plain Image"
    PACKED = "gzip'd Image"
    EFI = "EFI program"


class KernelImage(NamedTuple):
    """`release` is what `uname -r` will say; `efi`: firmware and rEFInd can start it, not only GRUB."""

    kind: ImageKind
    release: str
    efi: bool


def read(fd: int, external: External | None = None) -> KernelImage:
    """The kernel image in the regular file `fd`, whose position is left alone.

    Raises Damaged when it is no such image, is cut short, or does not say its release, and MissingTool when
    that is inside a zstd or lz4 payload that `external` is needed for.
    """
    _require(os.fstat(fd).st_size <= MAX_UNPACKED, f"has more than {MAX_UNPACKED >> 20} MiB")  # holes are read, too
    head = os.pread(fd, 4096, 0).ljust(4096, b"\0")
    if head[0x1FE:0x200] == b"\x55\xaa" and head[0x202:0x206] == b"HdrS":
        release = _bzimage(fd, head)
        return KernelImage(ImageKind.BZIMAGE, release, _check_pe(fd, head))
    if head[:2] == b"MZ" and head[4:8] == b"zimg":
        _require(_check_pe(fd, head), "is corrupt: it has no PE header")
        return KernelImage(ImageKind.ZBOOT, _zboot(fd, head, external), True)
    if head[0x38:0x3C] in _IMAGE_MAGICS:
        efi = _check_pe(fd, head)
        return KernelImage(ImageKind.IMAGE, _release(_chunks(fd)), efi)
    if sniff(head) is Codec.GZIP:
        return KernelImage(ImageKind.PACKED, _packed(fd), False)
    _require(_check_pe(fd, head), "is no kernel image of a known kind")
    return KernelImage(ImageKind.EFI, _release(_chunks(fd)), True)


def _bzimage(fd: int, head: bytes) -> str:
    """The release of a bzImage whose sizes are right (kernel: Documentation/arch/x86/boot.rst)."""
    sectors, (blocks,) = head[0x1F1] or 4, struct.unpack_from("<I", head, 0x1F4)
    protocol, version = struct.unpack_from("<H", head, 0x206)[0], struct.unpack_from("<H", head, 0x20E)[0]
    setup, size = (sectors + 1) * 512, os.fstat(fd).st_size
    _require(size >= setup + blocks * 16, "is truncated: its header promises more")
    _require(blocks > 0, "is corrupt: its header promises no kernel at all")
    if protocol >= 0x208:  # payload_offset came with it
        start, length = struct.unpack_from("<II", head, 0x248)
        _require(start + length <= blocks * 16, "is corrupt: its payload lies behind its end")
        magic = os.pread(fd, 8, setup + start)
        _require(magic.startswith(_PAYLOADS), "is corrupt: its payload is no kernel")
    _require(0 < version < 0x200 * sectors, "is corrupt: it does not say its release")
    return _checked(os.pread(fd, _MAX_RELEASE, version + 0x200))


def _zboot(fd: int, head: bytes, external: External | None) -> str:
    """The release inside an EFI zboot image (kernel: drivers/firmware/efi/libstub/zboot-header.S)."""
    start, length = struct.unpack_from("<II", head, 8)
    _require(0 < length <= os.fstat(fd).st_size - start, "is truncated: its payload is not all there")
    name = head[0x18:0x38].partition(b"\0")[0].decode("ascii", "replace")
    codec = sniff(os.pread(fd, 8, start))
    _require(codec is not None, f"is corrupt: its payload, said to be {name}, is compressed in no known way")
    return _release(_unpacked(fd, start, codec or Codec.GZIP, external))


def _packed(fd: int) -> str:
    """The release of a gzip'd Image, read to its end."""
    chunks = _unpacked(fd, 0, Codec.GZIP, None)
    first = next(chunks, b"")
    _require(first[0x38:0x3C] in _IMAGE_MAGICS, "is gzip'd, and not a kernel image inside")
    return _release(_with_first(first, chunks))


def _with_first(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _check_pe(fd: int, head: bytes) -> bool:
    """Whether there is a PE header, as EFI programs have; Damaged when what it promises is not all there."""
    if head[:2] != b"MZ":
        return False
    at = struct.unpack_from("<I", head, 0x3C)[0]
    pe = os.pread(fd, 24, at)
    if len(pe) < 24 or pe[:4] != b"PE\0\0":
        return False
    count, optional = struct.unpack_from("<H", pe, 6)[0], struct.unpack_from("<H", pe, 20)[0]
    size, table = os.fstat(fd).st_size, os.pread(fd, count * 40, at + 24 + optional)
    _require(len(table) == count * 40, "is truncated: its PE header is not all there")
    for index in range(count):
        length, start = struct.unpack_from("<II", table, index * 40 + 16)
        _require(start + length <= size, "is truncated: a PE section is not all there")
    start, length = _signature(os.pread(fd, optional, at + 24))
    _require(start + length <= size, "is truncated: its signature is not all there")
    return True


def _signature(optional: bytes) -> tuple[int, int]:
    """Offset and size of the certificate table, the fifth data directory of a PE file; (0, 0) for none."""
    base = 112 if optional[:2] == b"\x0b\x02" else 96
    if len(optional) < base + 5 * 8:
        return 0, 0
    start, length = struct.unpack_from("<II", optional, base + 4 * 8)
    return start, length


def _release(chunks: Iterable[bytes]) -> str:
    """The release in the banner of an unpacked kernel; reads all of `chunks`, whose end proves them whole."""
    found, tail = "", b""
    for chunk in chunks:
        if not found:
            data = tail + chunk
            found = _banner(data)
            tail = data[-len(_BANNER) - _MAX_RELEASE :]
    _require(bool(found), "does not say its release: no kernel is in it")
    return found


def _banner(data: bytes) -> str:
    """The release behind the first "Linux version " that is followed by one and a blank; "" for none."""
    at = data.find(_BANNER)
    while at >= 0:
        start = at + len(_BANNER)
        word, blank, _ = data[start : start + _MAX_RELEASE].partition(b" ")
        if blank and _is_release(word):
            return word.decode("ascii")
        at = data.find(_BANNER, start)
    return ""


def _checked(text: bytes) -> str:
    """The release at the beginning of `text`, up to a blank or its NUL."""
    word = text.partition(b"\0")[0].partition(b" ")[0]
    _require(_is_release(word), "is corrupt: it does not say its release")
    return word.decode("ascii")


def _is_release(word: bytes) -> bool:
    return word[:1].isdigit() and _RELEASE_CHARACTERS.issuperset(word)


def _unpacked(fd: int, start: int, codec: Codec, external: External | None) -> Iterator[bytes]:
    room = MAX_UNPACKED
    with closing(iter(Unpacked(fd, start, codec, external))) as chunks:
        for chunk in chunks:
            room -= len(chunk)
            _require(room >= 0, f"unpacks to more than {MAX_UNPACKED >> 20} MiB")
            yield chunk


def _chunks(fd: int) -> Iterator[bytes]:
    offset = 0
    while chunk := os.pread(fd, CHUNK, offset):
        offset += len(chunk)
        yield chunk


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise Damaged(otherwise)
