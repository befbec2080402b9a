"""`initramfs` and `cpio`: images as generators make them, broken ones, and any bytes."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apk_atomic import initramfs
from apk_atomic.initramfs import Image
from apk_atomic.unpack import Damaged
from tests.support.bootfiles import (
    COMPRESS,
    INIT,
    Member,
    initramfs_image,
    initramfs_members,
    memory_file,
    microcode,
    newc,
    unstore,
)

RELEASE = "6.18.44-0-lts"
REGULAR, LINK, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777, stat.S_IFDIR | 0o755
PROJECT = Path(__file__).parents[1]


def read(data: bytes) -> Image:
    with memory_file(data) as fd:
        return initramfs.read(fd, unstore)


def refuses(data: bytes, word: str) -> None:
    with pytest.raises(Damaged, match=word):
        read(data)


@pytest.mark.parametrize("compression", COMPRESS)
def test_every_compression_shows_the_same_members(compression: str) -> None:
    image = read(initramfs_image(RELEASE, compression=compression))
    assert image.codecs == (compression,)
    assert set(image.members) == {name for name, _, _ in initramfs_members(RELEASE)} - {"."}
    assert image.starts["init"] == INIT
    assert image.members["bin"].content == "usr/bin"


@pytest.mark.parametrize("compression", COMPRESS)
def test_truncated_at_any_place_is_found(compression: str) -> None:
    data = initramfs_image(RELEASE, compression=compression)
    for size in (len(data) // 3, len(data) // 2, len(data) - 600 if compression == "none" else len(data) - 1):
        with pytest.raises(Damaged):
            read(data[:size])


def test_microcode_first_padding_between_and_several_segments() -> None:
    second = newc([("etc/added", REGULAR, b"added")])
    data = microcode() + bytes(1024) + initramfs_image(RELEASE) + bytes(3) + COMPRESS["xz"](second) + bytes(100)
    image = read(data)
    assert image.codecs == ("none", "gzip", "xz")
    assert {"kernel/x86/microcode/GenuineIntel.bin", "init", "etc/added"} <= set(image.members)


def test_later_members_replace_earlier_ones() -> None:
    image = read(newc([("init", REGULAR, b"one")]) + newc([("init", REGULAR, b"three"), ("init", LINK, b"a")]))
    assert (image.members["init"].content, dict(image.starts)) == ("a", {})
    image = read(newc([("init", REGULAR, b"one")]) + newc([("init", REGULAR, b"three")]))
    assert (image.members["init"].size, image.starts["init"]) == (5, b"three")


def test_names_are_plain() -> None:
    image = read(newc([("./usr/lib", DIRECTORY, b""), ("/etc/x", REGULAR, b""), (".", DIRECTORY, b"")]))
    assert set(image.members) == {"usr/lib", "etc/x"}


def test_hard_links_share_the_content_of_the_last() -> None:
    image = read(linked("bin/first", b"") + linked("bin/init", b"#!/bin/sh\n") + newc([]))
    assert image.members["bin/first"] == image.members["bin/init"]
    assert image.members["bin/first"].size == 10
    assert image.starts["bin/first"] == b"#!/bin/sh\n"


def test_hard_links_that_all_carry_data_have_that_of_the_last_as_in_the_kernel() -> None:
    """So many that comparing each with each would take minutes."""
    archive = b"".join(linked(f"l{number}", b"%05d" % number) for number in range(15_000))
    image = read(COMPRESS["gzip"](archive + linked("empty", b"") + newc([("l7", REGULAR, b"its own")])))
    assert len({image.members[name] for name in image.members if name != "l7"}) == 1
    assert image.members["empty"].content == read(newc([("x", REGULAR, b"14999")])).members["x"].content
    assert image.members["l7"].size == len(b"its own")


def linked(name: str, content: bytes, inode: int = 7) -> bytes:
    """A member of which there is another hard link."""
    fields = (inode, stat.S_IFREG | 0o755, 0, 0, 2, 0, len(content), 8, 1, 0, 0, len(name) + 1, 0)
    head = b"070701" + "".join(f"{field:08X}" for field in fields).encode() + name.encode() + b"\0"
    head += bytes(-len(head) % 4)
    return head + content + bytes(-len(content) % 4)


def test_checksums_are_verified() -> None:
    whole = newc([("a", REGULAR, b"abcdefgh" * 100)], checksum=True)
    assert read(whole).members["a"].size == 800
    refuses(whole.replace(b"abc", b"abd", 1), "checksum")


def test_digest_is_that_of_a_file_in_a_root(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"content" * 100_000)
    fd = os.open(tmp_path / "x", os.O_RDONLY)
    assert read(newc([("x", REGULAR, b"content" * 100_000)])).members["x"].content == initramfs.file_digest(fd)
    os.close(fd)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"),
        (bytes(5000), "empty"),
        (b"hello world", "neither"),
        (newc([("a", REGULAR, b"x")], trailer=False), "magic"),
        (newc([("a", REGULAR, b"x")], trailer=False).rstrip(b"\0"), "truncated"),
        (b"070707" + bytes(200), "magic"),
        (newc([]).replace(b"0000000B", b"0000 00B", 1), "hexadecimal"),
        (newc([("a", REGULAR, b"")]).replace(b"00000002", b"00000000", 2), "no name"),
        (newc([("abc", REGULAR, b"")]).replace(b"abc\0", b"abcd", 1), "name"),
        (newc([("a", LINK, b"x" * 5000)]), "too long"),
        (COMPRESS["gzip"](b""), "holds nothing"),
        (COMPRESS["gzip"](newc([]) + b"junk"), "magic|truncated"),
        (COMPRESS["gzip"](newc([("a", REGULAR, b"")], trailer=False)), "magic|truncated"),
        (newc([]) + b"junk", "neither"),
        (b"\0\0" + newc([]), "aligned"),
    ],
)
def test_broken(data: bytes, word: str) -> None:
    refuses(data, word)


def test_staging_paths_are_noticed_across_chunks_and_nowhere_else() -> None:
    path = b"root=LABEL=ROOT rootflags=subvol=/staging/20260101000000abcdefgh/@"
    members: list[Member] = [(f"etc/{at}.conf", REGULAR, b"x" * ((1 << 18) - at) + path) for at in (20, 60, 300)]
    members.append(("lib/modules/x/modules.dep", REGULAR, b"kernel/drivers/staging/vme/vme.ko:\n" * 9))
    assert read(newc(members)).staged == tuple(name for name, _, _ in members[:3])


def test_links_resolve_inside_the_image() -> None:
    image = read(initramfs_image(RELEASE, ("loop", LINK, b"loop"), ("out", LINK, b"../../bin/sh")))
    assert image.program("/bin/sh") == image.program("sbin/modprobe") == image.program("out") == "usr/bin/busybox"
    assert image.resolve("loop") is None
    assert image.program("etc/fstab") is None
    assert image.program("bin/none") is None


@pytest.mark.parametrize("data", [newc([("a", REGULAR, bytes(2 << 20))]), newc([]) + bytes(2 << 20)])
def test_bombs_are_refused(data: bytes) -> None:
    with memory_file(COMPRESS["gzip"](data)) as fd:
        with pytest.raises(Damaged, match="more than 1 MiB"):
            initramfs.read(fd, limit=1 << 20)
        assert initramfs.read(fd, limit=3 << 20).codecs == ("gzip",)


def test_members_without_end_are_refused() -> None:
    entry = newc([("a", REGULAR, b"")], trailer=False)[:112]
    refuses(COMPRESS["gzip"](entry * (initramfs.MAX_MEMBERS + 1)), "members")
    refuses(COMPRESS["gzip"](newc([]) * (initramfs.MAX_MEMBERS + 1)), "members")


def test_a_hole_without_end_is_not_read() -> None:
    with memory_file(initramfs_image(RELEASE)) as fd:
        os.ftruncate(fd, 1 << 40)
        with pytest.raises(Damaged, match="has more than 1024 MiB"):
            initramfs.read(fd)


LONG = "n" * 4080
MANY: dict[str, list[Member]] = {
    "names": [(f"{LONG}{number}", REGULAR, b"") for number in range(20_000)],
    "wide names": [(f"{LONG[:4000]}\U0001f427{number}", REGULAR, b"") for number in range(10_000)],
    "targets": [(f"{number}", LINK, f"{LONG}{number}".encode()) for number in range(20_000)],
    "short names": [(f"{number}", REGULAR, b"") for number in range(initramfs.MAX_MEMBERS - 10)],
}


def packed_links() -> bytes:
    return b"".join(linked(f"{number}", b"", number) for number in range(initramfs.MAX_MEMBERS - 10))


@pytest.mark.parametrize("kind", [*MANY, "hard links"])
def test_memory_stays_small_for_members_without_end(tmp_path: Path, kind: str) -> None:
    """They pack to next to nothing; refused, and in a process of its own with less than 32 MiB."""
    archive = newc(MANY[kind]) if kind in MANY else packed_links()
    (tmp_path / "image").write_bytes(COMPRESS["gzip"](archive))
    code = (
        "import os, resource, sys; from apk_atomic import initramfs; from apk_atomic.unpack import Damaged\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "try: initramfs.read(os.open(sys.argv[1], os.O_RDONLY))\n"
        "except Damaged as error: print(str(error).replace(' ', '_'), peak() - before)"
    )
    argv = [sys.executable, "-c", code, str(tmp_path / "image")]
    done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=True)
    said, grown = done.stdout.split()
    assert said == "has_names_and_links_of_members_that_fill_more_than_12_MiB"
    assert int(grown) < 32 << 10


def test_memory_stays_small_for_a_large_image(tmp_path: Path) -> None:
    """60 MiB of members, in a process of its own: what it needs on top of its imports is below 32 MiB."""
    big: list[Member] = [(f"lib/firmware/{number}", REGULAR, os.urandom(1 << 20)) for number in range(20)]
    big.append(("lib/firmware/zeros", REGULAR, bytes(40 << 20)))
    (tmp_path / "image").write_bytes(initramfs_image(RELEASE, *big))
    code = (
        "import os, resource, sys; from apk_atomic import initramfs\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak(); image = initramfs.read(os.open(sys.argv[1], os.O_RDONLY))\n"
        "print(len(image.members), peak() - before)"
    )
    argv = [sys.executable, "-c", code, str(tmp_path / "image")]
    done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=True)
    count, grown = map(int, done.stdout.split())
    assert count > 21
    assert grown < 32 << 10


@pytest.mark.parametrize("tool", ["zstd", "lz4"])
def test_memory_stays_small_with_a_real_program(tmp_path: Path, tool: str) -> None:
    """20 MiB packed by the real zstd and lz4, unpacked by them, in a process of its own."""
    if shutil.which(tool) is None:
        pytest.skip(f"no {tool} on this machine")
    big: list[Member] = [(f"lib/firmware/{number}", REGULAR, os.urandom(1 << 20)) for number in range(20)]
    plain = newc([*initramfs_members(RELEASE), *big])
    options = ["-l"] if tool == "lz4" else ["-3"]
    packed = subprocess.run([tool, *options, "-c"], input=plain, stdout=subprocess.PIPE, check=True).stdout
    assert len(packed) > 15 << 20
    (tmp_path / "image").write_bytes(microcode() + packed)
    code = (
        "import os, resource, subprocess, sys; from contextlib import contextmanager\n"
        "from apk_atomic import initramfs\n"
        "@contextmanager\n"
        "def by_program(tool, source):\n"
        "    with subprocess.Popen([tool, '-dc'], stdin=source, stdout=subprocess.PIPE) as process:\n"
        "        yield process.stdout\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak(); image = initramfs.read(os.open(sys.argv[1], os.O_RDONLY), by_program)\n"
        "print(len(image.members), peak() - before)"
    )
    argv = [sys.executable, "-c", code, str(tmp_path / "image")]
    done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=True)
    count, grown = map(int, done.stdout.split())
    assert count > 21
    assert grown < 32 << 10


def test_reading_imports_no_decoder_that_is_not_needed() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(PROJECT)!r}); from apk_atomic import initramfs, proof\n"
        "print({'zlib', 'lzma', 'bz2', 'hashlib', 'pathlib'} & set(sys.modules))"
    )
    argv = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@given(st.binary(max_size=600))
def test_any_bytes_give_a_verdict(data: bytes) -> None:
    with contextlib.suppress(Damaged):
        read(data)


@given(
    compression=st.sampled_from(["none", "gzip"]),
    changes=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_any_changed_archive_gives_a_verdict(compression: str, changes: list[tuple[int, int]]) -> None:
    archive = bytearray(newc([*initramfs_members(RELEASE)[:12], ("l", LINK, b"bin/sh"), ("f", REGULAR, b"x" * 99)]))
    for at, byte in changes:
        archive[at % len(archive)] = byte
    try:
        image = read(COMPRESS[compression](bytes(archive)))
        for name in ("init", "bin/sh", "l"):
            image.program(name)
    except Damaged:
        pass


SEGMENTS = {
    "microcode": microcode(),
    "plain": newc([("etc/a", REGULAR, b"a" * 40)]),
    **{name: COMPRESS[name](newc([(f"etc/{name}", REGULAR, b"b" * 40)])) for name in COMPRESS if name != "none"},
}


@given(
    names=st.lists(st.sampled_from(list(SEGMENTS)), min_size=1, max_size=5),
    padding=st.integers(1, 600),
    cut=st.integers(0, 2000),
)
def test_any_row_of_segments_gives_a_verdict(names: list[str], padding: int, cut: int) -> None:
    """Whole, what is read are their members, in whatever order they stand; cut short, there is a verdict. Zeros between
    them there must be: only they end a legacy frame of lz4, for the kernel too."""
    data = b"".join(SEGMENTS[name] + bytes(-len(SEGMENTS[name]) % 4 + padding * 4) for name in names)
    image = read(data)
    assert image.codecs == tuple("none" if name in ("microcode", "plain") else name for name in names)
    assert {f"etc/{name}" for name in names if name in COMPRESS} <= set(image.members)
    with contextlib.suppress(Damaged):
        read(data[: max(len(data) - cut, 0)])


@given(
    names=st.lists(st.sampled_from(list(SEGMENTS)), min_size=1, max_size=3),
    changes=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_any_changed_row_gives_a_verdict(names: list[str], changes: list[tuple[int, int]]) -> None:
    data = bytearray(b"".join(SEGMENTS[name] + bytes(-len(SEGMENTS[name]) % 4) for name in names))
    for at, byte in changes:
        data[at % len(data)] = byte
    with contextlib.suppress(Damaged):
        read(bytes(data))
