"""`unpack`: every codec whole, cut short, followed by something else, and made of any bytes."""

from __future__ import annotations

import lzma
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apk_atomic.unpack import CHUNK, Codec, Damaged, MissingTool, Unpacked, sniff
from tests.support.bootfiles import COMPRESS, memory_file, unstore

DATA = bytes(range(256)) * 4096 + b"the end"
CODECS = list(Codec)
BY_LIBRARY = [Codec.GZIP, Codec.XZ, Codec.LZMA, Codec.BZIP2]


def unpack(packed: bytes, start: int = 0) -> tuple[bytes, int]:
    codec = sniff(packed[start : start + 8])
    assert codec is not None
    with memory_file(packed) as fd:
        stream = Unpacked(fd, start, codec, unstore)
        data = b"".join(stream)
        return data, stream.end


@pytest.mark.parametrize("codec", CODECS)
def test_whole(codec: Codec) -> None:
    packed = COMPRESS[codec](DATA)
    assert unpack(packed) == (DATA, len(packed))


@pytest.mark.parametrize("codec", CODECS)
def test_end_is_known_when_something_follows(codec: Codec) -> None:
    packed = COMPRESS[codec](DATA)
    assert unpack(b"1234" + packed + b"\0\0\0\0more", 4) == (DATA, 4 + len(packed))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("missing", [1, 100])
def test_cut_short(codec: Codec, missing: int) -> None:
    packed = COMPRESS[codec](DATA)
    with pytest.raises(Damaged):
        unpack(packed[:-missing])


@pytest.mark.parametrize("codec", BY_LIBRARY)
def test_flipped_bit(codec: Codec) -> None:
    packed = bytearray(COMPRESS[codec](DATA))
    packed[len(packed) // 2] ^= 0x10
    with pytest.raises(Damaged):
        unpack(bytes(packed))


@pytest.mark.parametrize("check", [lzma.CHECK_CRC64, lzma.CHECK_SHA256])
def test_check_that_no_kernel_knows(check: int) -> None:
    """xz makes the first if nothing else is said; the kernel does not unpack it, and starts without its initramfs."""
    with pytest.raises(Damaged, match="--check=crc32"):
        unpack(lzma.compress(DATA, check=check))
    assert unpack(lzma.compress(DATA, check=lzma.CHECK_NONE))[0] == DATA


def windowed(codec: Codec, size: int) -> bytes:
    """What says that it needs so large a window."""
    xz = codec is Codec.XZ
    filters = [{"id": lzma.FILTER_LZMA2 if xz else lzma.FILTER_LZMA1, "preset": 0, "dict_size": size}]
    if xz:
        return lzma.compress(DATA, check=lzma.CHECK_CRC32, filters=filters)
    return lzma.compress(DATA, format=lzma.FORMAT_ALONE, filters=filters)


@pytest.mark.parametrize("codec", [Codec.XZ, Codec.LZMA])
def test_window(codec: Codec) -> None:
    """`xz -9` asks for 64 MiB; what asks for more is refused with a sentence, and not called corrupt."""
    assert unpack(windowed(codec, 64 << 20))[0] == DATA
    with pytest.raises(Damaged, match=f"needs a window of more than 64 MiB to be unpacked; {codec} -9"):
        unpack(windowed(codec, 128 << 20))


@pytest.mark.parametrize("codec", [Codec.XZ, Codec.LZMA])
def test_memory_of_the_largest_window(codec: Codec) -> None:
    """Of an image of 200 MiB, which fills it; and of one of 16 MiB, which cannot."""
    assert peak(windowed(codec, 64 << 20)) < 24 << 20
    form, check = (lzma.FORMAT_XZ, lzma.CHECK_CRC32) if codec is Codec.XZ else (lzma.FORMAT_ALONE, -1)
    for mib, most in ((16, 40), (200, 88)):
        packer = lzma.LZMACompressor(form, check, preset=9)
        packed = b"".join(packer.compress(os.urandom(16) * (1 << 16)) for _ in range(mib)) + packer.flush()
        assert peak(packed) < most << 20


def peak(packed: bytes) -> int:
    """The bytes of memory that a Python with `unpack` has at most, while it reads all of it, over one that does not."""
    script = (
        "import lzma, os, resource, sys\n"
        "from apk_atomic.unpack import Unpacked, sniff\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for chunk in Unpacked(0, 0, sniff(os.pread(0, 8, 0)), None): pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    with memory_file(packed) as fd:
        done = subprocess.run([sys.executable, "-c", script], stdin=fd, stdout=subprocess.PIPE, check=True)
    return int(done.stdout) << 10


def test_chunks_are_small_however_well_it_packs() -> None:
    with memory_file(COMPRESS["gzip"](bytes(50 * CHUNK))) as fd:
        assert max(map(len, Unpacked(fd, 0, Codec.GZIP, None))) == CHUNK


@pytest.mark.parametrize("codec", [Codec.ZSTD, Codec.LZ4])
def test_without_a_program_the_package_is_named(codec: Codec) -> None:
    try:
        import compression.zstd  # type: ignore[import-not-found,unused-ignore]  # noqa: F401

        own = {Codec.ZSTD}
    except ImportError:
        own = set()
    with memory_file(COMPRESS[codec](DATA)) as fd:
        stream = Unpacked(fd, 0, codec, None)
        if codec in own:
            assert b"".join(stream) == DATA
            return
        with pytest.raises(MissingTool) as caught:
            list(stream)
        assert caught.value.package == codec


@contextmanager
def by_program(tool: str, source: int) -> Iterator[BinaryIO]:
    process = subprocess.Popen([tool, "-dc"], stdin=source, stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        yield cast(BinaryIO, process.stdout)
    if process.returncode:
        raise Damaged("is corrupt")


@pytest.mark.parametrize(
    ("codec", "options"), [(Codec.ZSTD, ["-19"]), (Codec.ZSTD, ["--no-check"]), (Codec.LZ4, ["-l"])]
)
@pytest.mark.parametrize("before", [b"", b"padding "])
def test_what_the_real_programs_make(codec: Codec, options: list[str], before: bytes) -> None:
    if shutil.which(codec) is None:
        pytest.skip(f"no {codec} on this machine")
    packed = subprocess.run([codec, *options, "-c"], input=DATA, stdout=subprocess.PIPE, check=True).stdout
    with memory_file(before + packed + bytes(8)) as fd:
        stream = Unpacked(fd, len(before), codec, by_program)
        assert b"".join(stream) == DATA
        assert stream.end == len(before) + len(packed)


@given(codec=st.sampled_from(CODECS), rest=st.binary(max_size=400))
def test_any_bytes_give_a_verdict(codec: Codec, rest: bytes) -> None:
    magic = COMPRESS[codec](b"")[:6]
    try:
        _, end = unpack(magic + rest)
        assert 4 <= end <= len(rest) + 6
    except Damaged:
        pass


@given(codec=st.sampled_from(CODECS), at=st.integers(min_value=4, max_value=3000), byte=st.integers(0, 255))
def test_any_changed_byte_gives_a_verdict(codec: Codec, at: int, byte: int) -> None:
    packed = bytearray(COMPRESS[codec](DATA[:3000]))
    packed[at % len(packed)] = byte
    if sniff(bytes(packed[:8])) is codec:
        with suppress(Damaged):
            unpack(bytes(packed))
