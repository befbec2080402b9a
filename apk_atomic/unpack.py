"""Compressed segments of boot files as streams of chunks, in bounded memory.

gzip, xz, lzma and bzip2 are the standard library's, zstd too where Python has it (3.14). Otherwise zstd and
lz4 need a program, which the caller runs and hands in as an `External`; their frame is walked here, so that a
truncated one is found, and its end known, without unpacking it. This module must not know what is inside the
segments nor where the program comes from. It writes nothing.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from contextlib import AbstractContextManager
    from typing import BinaryIO, Protocol

    # Called with "zstd" or "lz4" and a descriptor at offset 0 whose whole content is one compressed frame;
    # gives a stream of the unpacked bytes. Raises MissingTool when the program is not there and Damaged, at
    # the latest on exit, when it failed or went over its limits.
    External = Callable[[str, int], AbstractContextManager[BinaryIO]]

    class _Decoder(Protocol):
        """What lzma, bz2 and compression.zstd offer alike, and `_Inflate` for zlib."""

        @property
        def eof(self) -> bool: ...

        @property
        def needs_input(self) -> bool: ...

        @property
        def unused_data(self) -> bytes: ...

        def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


CHUNK = 1 << 18  # bytes handed out at once; with the decoder's window this is what memory goes to
# `xz -9`, which mkinitfs uses, asks for a window of 64 MiB, and uses as much of it as the image unpacks to. The kernel
# would take more; what asks for that is refused, for a transaction must not need it.
_WINDOW, _MEMORY = 64 << 20, 72 << 20  # bytes; the second with the rest of liblzma's decoder
_XZ_CRC32 = 1  # the id of the check; 0 is none, and the kernel knows no other (Documentation/staging/xz.rst)
_FRAME_PARTS = 200_000  # blocks of a zstd or lz4 frame: 15 MiB have some hundreds
_LZ4_BLOCK = 8 << 20
_LZ4_BOUND = _LZ4_BLOCK + _LZ4_BLOCK // 255 + 16  # the kernel refuses larger ones (lib/decompress_unlz4.c)
_ZSTD_MAGIC, _LZ4_MAGIC = 0xFD2FB528, 0x184C2102


class Damaged(Exception):
    """A boot file is not what it should be; the text says where, as the end of a sentence."""


class MissingTool(Damaged):
    """The program that unpacks a segment is not there; `package` brings it."""

    def __init__(self, package: str) -> None:
        super().__init__(f"cannot be unpacked: the base has no {package}; add the package {package}")
        self.package = package


class Codec(StrEnum):
    """How a segment is compressed; the value is also the name of the program and of its package."""

    GZIP = "gzip"
    XZ = "xz"
    LZMA = "lzma"
    BZIP2 = "bzip2"
    ZSTD = "zstd"
    LZ4 = "lz4"


_MAGIC = (
    (b"\x1f\x8b", Codec.GZIP),
    (b"\xfd7zXZ\x00", Codec.XZ),
    (b"]\x00\x00", Codec.LZMA),
    (b"BZh", Codec.BZIP2),
    (b"\x28\xb5\x2f\xfd", Codec.ZSTD),
    (b"\x02\x21\x4c\x18", Codec.LZ4),  # the legacy frame, the only one that the kernel reads
)


def sniff(head: bytes) -> Codec | None:
    """The codec of a segment that begins with `head` (6 bytes suffice)."""
    return next((codec for magic, codec in _MAGIC if head.startswith(magic)), None)


class Unpacked:
    """Iterates once over the chunks (at most CHUNK bytes) of the segment at offset `start` of `fd`.

    `end` is the offset behind the segment, known when the iteration has come to its end. Raises Damaged for a
    segment that is truncated or corrupt. The position of `fd` is left alone but for an External, whose program lives
    until the iterator is at its end, or closed.
    """

    def __init__(self, fd: int, start: int, codec: Codec, external: External | None) -> None:
        self._fd, self._start, self._codec, self._external = fd, start, codec, external
        self.end = -1

    def __iter__(self) -> Generator[bytes, None, None]:
        decoder = _decoder(self._codec)
        if self._codec is Codec.XZ:
            _require_crc32(self._fd, self._start)
        if decoder is not None:
            return self._by_library(decoder)
        return self._by_program()

    def _by_library(self, decoder: _Decoder) -> Generator[bytes, None, None]:
        offset = self._start
        while not decoder.eof:
            data = b""
            if decoder.needs_input:
                data = os.pread(self._fd, CHUNK // 4, offset)
                offset += len(data)
                if not data:
                    raise Damaged(f"is truncated: the {self._codec} data does not come to its end")
            chunk = self._decode(decoder, data)
            if chunk:
                yield chunk
        self.end = offset - len(decoder.unused_data)

    def _decode(self, decoder: _Decoder, data: bytes) -> bytes:
        try:
            return decoder.decompress(data, CHUNK)
        except Exception as error:
            # zlib.error, LZMAError and ZstdError have no common base, and bz2 raises OSError or ValueError; of a limit
            # of memory only the text of the error speaks ("Memory usage limit exceeded")
            if isinstance(error, MemoryError) or "memory" in str(error).lower():
                needs = f"needs a window of more than {_WINDOW >> 20} MiB to be unpacked"
                raise Damaged(f"{needs}; {self._codec} -9 makes one that does not") from error
            raise Damaged(f"is corrupt: {self._codec} says: {error}") from error

    def _by_program(self) -> Generator[bytes, None, None]:
        walk = _zstd_end if self._codec is Codec.ZSTD else _lz4_end
        end = walk(self._fd, self._start)
        if self._external is None:
            raise MissingTool(self._codec)
        with _alone(self._fd, self._start, end) as source, self._external(self._codec, source) as output:
            while chunk := output.read(CHUNK):
                yield chunk
        self.end = end


class _Inflate:
    """zlib's gzip decoder (one member, checksum verified) with the interface of the other three."""

    def __init__(self) -> None:
        import zlib

        self._zlib = zlib.decompressobj(wbits=31)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        output = self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)
        self.needs_input = not self._zlib.unconsumed_tail and len(output) < max_length
        return output


def _decoder(codec: Codec) -> _Decoder | None:
    """The standard library's decoder, imported now; None where it has none."""
    if codec is Codec.GZIP:
        return _Inflate()
    if codec is Codec.BZIP2:
        import bz2

        return bz2.BZ2Decompressor()
    if codec in (Codec.XZ, Codec.LZMA):
        import lzma

        form = lzma.FORMAT_XZ if codec is Codec.XZ else lzma.FORMAT_ALONE
        return lzma.LZMADecompressor(form, memlimit=_MEMORY)
    return _zstd_decoder() if codec is Codec.ZSTD else None


def _zstd_decoder() -> _Decoder | None:
    try:
        from importlib import import_module

        zstd = import_module("compression.zstd")  # Python 3.14, where it was built with libzstd
    except ImportError:
        return None
    limit = {zstd.DecompressionParameter.window_log_max: _WINDOW.bit_length() - 1}  # `zstd -19` asks for 8 MiB
    decoder: _Decoder = zstd.ZstdDecompressor(options=limit)
    return decoder


@contextmanager
def _alone(fd: int, start: int, end: int) -> Iterator[int]:
    """A descriptor at offset 0 of nothing but the bytes from `start` to `end` of `fd`."""
    if start == 0 and end == os.fstat(fd).st_size:
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
        return
    copy = os.memfd_create("segment", os.MFD_CLOEXEC)
    try:
        while start < end and (sent := os.sendfile(copy, fd, start, end - start)):
            start += sent
        os.lseek(copy, 0, os.SEEK_SET)
        yield copy
    finally:
        os.close(copy)


def _require_crc32(fd: int, start: int) -> None:
    """Raises Damaged for an xz stream with another check than the kernel's, as xz makes it if nothing else is said."""
    if _number(fd, start + 7, 1) & 15 > _XZ_CRC32:
        raise Damaged("has a check that no kernel can verify; xz --check=crc32 makes another")


def _number(fd: int, offset: int, size: int) -> int:
    """A little-endian number; Damaged when the file ends before it does."""
    data = os.pread(fd, size, offset)
    if len(data) < size:
        raise Damaged("is truncated: it ends inside a header")
    return int.from_bytes(data, "little")


def _zstd_end(fd: int, start: int) -> int:
    """The offset behind the zstd frame (RFC 8878) at `start`, found by its block headers."""
    descriptor = _number(fd, start + 4, 1)
    single, dictionary = descriptor >> 5 & 1, (0, 1, 2, 4)[descriptor & 3]
    content = (single, 2, 4, 8)[descriptor >> 6]
    offset = start + 5 + (1 - single) + dictionary + content
    size = os.fstat(fd).st_size
    for _ in range(_FRAME_PARTS):
        header = _number(fd, offset, 3)
        kind, length = header >> 1 & 3, header >> 3
        if kind == 3:
            raise Damaged("is corrupt: a block of the zstd frame is of no known kind")
        offset += 3 + (1 if kind == 1 else length)
        if header & 1:
            offset += 4 if descriptor & 4 else 0
            if offset > size:
                raise Damaged("is truncated: the zstd data does not come to its end")
            return offset
    raise Damaged("is corrupt: the zstd frame has too many blocks")


def _lz4_end(fd: int, start: int) -> int:
    """The offset behind the legacy lz4 frame at `start`; a zero or the file's end ends it."""
    size = os.fstat(fd).st_size
    offset = start + 4
    for _ in range(_FRAME_PARTS):
        if offset + 4 > size:
            return offset
        length = _number(fd, offset, 4)
        if length == 0:
            return offset
        offset += 4
        if length == _LZ4_MAGIC:
            continue
        if length > _LZ4_BOUND:
            raise Damaged("is corrupt: a block of the lz4 frame is larger than the kernel accepts")
        offset += length
        if offset > size:
            raise Damaged("is truncated: the lz4 data does not come to its end")
    raise Damaged("is corrupt: the lz4 frame has too many blocks")
