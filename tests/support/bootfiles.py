"""Small kernels, module trees, initramfs images and programs that the boot proof accepts, made on the spot.

Nothing here is taken from a real kernel: headers are true, payloads are not. `kernel_files`, `initramfs_image` and
`system_files` together make a root that passes the proof; their arguments, and `cut`, make the broken ones.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from apk_atomic.unpack import Damaged

File = tuple[int, bytes] | tuple[str, str]  # (mode, content) or ("symlink", target)
Files = dict[str, File]
Member = tuple[str, int, bytes]  # name, mode with its type, content or link target

BTRFS = "kernel/fs/btrfs/btrfs.ko"
MODULES: Mapping[str, tuple[str, ...]] = {
    BTRFS: ("kernel/lib/raid6/raid6_pq.ko", "kernel/crypto/xor.ko"),
    "kernel/lib/raid6/raid6_pq.ko": (),
    "kernel/crypto/xor.ko": (),
    "kernel/drivers/block/virtio_blk.ko": (),
    "kernel/drivers/staging/vme/vme.ko": (),
}
BUILTIN = ("kernel/fs/binfmt_script.ko", "kernel/lib/libcrc32c.ko")
INIT = (
    b"#!/bin/sh\n/bin/busybox mount -t proc proc /proc\nnlplug-findfs -p /sbin/mdev\n"
    b"exec switch_root /sysroot /sbin/init\n"
)
GENERATION = "/snapshots/20260101000000abcdefgh"
FSTAB = (
    "LABEL=ROOT / btrfs subvol={generation}/@,ro,noatime 0 0\n"
    "LABEL=ROOT /home btrfs subvol=/commons/@home 0 0\n"
    "tmpfs /tmp tmpfs nosuid,nodev 0 0\n"
)


def bzimage(release: str, *, payload: bytes = b"\x1f\x8b" + b"kernel" * 200, efi: bool = True) -> bytes:
    """An x86 kernel image with protocol 2.15, whose kernel is `payload`."""
    payload += bytes(-len(payload) % 16)
    setup = bytearray(5 * 512)
    setup[0x1F1] = 4
    struct.pack_into("<I", setup, 0x1F4, len(payload) // 16)
    struct.pack_into("<H", setup, 0x1FE, 0xAA55)
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, 0x20F)
    struct.pack_into("<H", setup, 0x20E, 0x300)
    struct.pack_into("<II", setup, 0x248, 0, len(payload))
    text = f"{release} (builder@test) #1 SMP\0".encode()
    setup[0x500 : 0x500 + len(text)] = text
    if efi:
        header = pe_header(0x40, 0x8664, len(setup) + len(payload))
        setup[:2], setup[0x3C:0x40] = b"MZ", struct.pack("<I", 0x40)
        setup[0x40 : 0x40 + len(header)] = header
    return bytes(setup) + payload


def pe_header(at: int, machine: int, size: int) -> bytes:
    """A PE32+ header for offset `at`, with one section that reaches to `size`, and no signature."""
    start = at + 24 + 0xF0 + 40
    optional = struct.pack("<H", 0x20B) + bytes(0xEE)
    section = b".text\0\0\0" + struct.pack("<IIII", size - start, start, size - start, start) + bytes(16)
    return b"PE\0\0" + struct.pack("<HHIIIHH", machine, 1, 0, 0, 0, 0xF0, 0) + optional + section


def arm64_image(release: str) -> bytes:
    """A plain arm64 Image with an EFI header."""
    body = b"\0" * 512 + f"Linux version %s\0Linux version {release} (builder@test) #1\0".encode() + b"\0" * 4096
    size = 0x400 + len(body)
    head = bytearray(0x400)
    head[:2], head[0x38:0x3C] = b"MZ", b"ARM\x64"
    struct.pack_into("<QQ", head, 0x10, size + 65536, 0xA)
    struct.pack_into("<I", head, 0x3C, 0x40)
    header = pe_header(0x40, 0xAA64, size)
    head[0x40 : 0x40 + len(header)] = header
    return bytes(head) + body


def zboot(release: str, compression: str = "gzip", *, body: bytes = b"") -> bytes:
    """An EFI zboot image around `body`, or `arm64_image`."""
    payload = COMPRESS[compression](body or arm64_image(release))
    start = 0x400
    head = bytearray(start)
    head[:2], head[4:8] = b"MZ", b"zimg"
    struct.pack_into("<II", head, 8, start, len(payload))
    head[0x18 : 0x18 + len(compression)] = compression.encode()
    head[0x38:0x3C] = b"\xcd\x23\x82\x81"
    struct.pack_into("<I", head, 0x3C, 0x40)
    header = pe_header(0x40, 0xAA64, start + len(payload))
    head[0x40 : 0x40 + len(header)] = header
    return bytes(head) + payload


def elf(interpreter: str = "", libraries: tuple[str, ...] = (), *, content: bytes = b"code") -> bytes:
    """An x86_64 ELF program: one loaded segment, and what it needs to run."""
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in libraries)
    count = 1 + bool(interpreter) + bool(libraries)
    at = 64 + 56 * count
    path = interpreter.encode() + b"\0" if interpreter else b""
    entries, offset = [(5, at + len(path))], 1
    for name in libraries:
        entries.append((1, offset))
        offset += len(name) + 1
    dynamic = b"".join(struct.pack("<qQ", *entry) for entry in [*entries, (0, 0)]) if libraries else b""
    body = path + strings + dynamic + content
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, at + len(body), at + len(body), 4096)
    headers = load
    if interpreter:
        headers += struct.pack("<IIQQQQQQ", 3, 4, at, at, at, len(path), len(path), 1)
    if libraries:
        where = at + len(path) + len(strings)
        headers += struct.pack("<IIQQQQQQ", 2, 6, where, where, where, len(dynamic), len(dynamic), 8)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    return ident + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, count, 0, 0, 0) + headers + body


BUSYBOX = elf(content=b"a static busybox")


def module_files(release: str, *, suffix: str = ".gz", builtin: tuple[str, ...] = BUILTIN) -> Files:
    """lib/modules/RELEASE as Alpine's kernel package and depmod leave it."""
    directory = f"lib/modules/{release}"
    modules = {path: needs for path, needs in MODULES.items() if path not in builtin}
    lines = [f"{path}{suffix}: {' '.join(need + suffix for need in needs)}\n" for path, needs in modules.items()]
    files: Files = {
        f"{directory}/modules.dep": (0o644, "".join(lines).encode()),
        f"{directory}/modules.builtin": (0o644, "".join(f"{path}\n" for path in builtin).encode()),
        f"{directory}/modules.order": (0o644, "".join(f"{path}\n" for path in modules).encode()),
    }
    for path in modules:
        files[f"{directory}/{path}{suffix}"] = (0o644, module(path, release, suffix))
    return files


def module(path: str, release: str, suffix: str = ".gz") -> bytes:
    text = elf(content=f"{path} of {release}".encode())
    return gzip.compress(text, mtime=0) if suffix == ".gz" else text


def kernel_files(flavor: str, release: str, *, builtin: tuple[str, ...] = BUILTIN) -> Files:
    """What a kernel package, and depmod after it, put into a root."""
    return {
        f"boot/vmlinuz-{flavor}": (0o644, bzimage(release)),
        f"usr/share/kernel/{flavor}/kernel.release": (0o644, f"{release}\n".encode()),
        f"lib/modules/{release}/kernel-suffix": (0o644, f"-{flavor}\n".encode()),
        **module_files(release, builtin=builtin),
    }


def system_files(generation: str = GENERATION) -> Files:
    """What the proof asks of a root beside its kernel: init, accounts, runlevels, etc/fstab, mount points."""
    runlevels: Files = {
        f"etc/runlevels/{name}": ("symlink", f"/etc/init.d/{name.rpartition('/')[2]}")
        for name in ("sysinit/devfs", "sysinit/mdev", "boot/modules", "boot/hostname")
    }
    services: Files = {target.strip("/"): (0o755, b"#!/sbin/openrc-run\n") for _, target in runlevels.values()
                       if isinstance(target, str)}  # fmt: skip
    return {
        "bin/busybox": (0o755, BUSYBOX),
        "bin/sh": ("symlink", "/bin/busybox"),
        "sbin/init": ("symlink", "/bin/busybox"),
        "sbin/openrc": (0o755, elf()),
        "sbin/mkinitfs": (0o755, b"#!/bin/sh\n"),
        "etc/mkinitfs/mkinitfs.conf": (0o644, b'features="base btrfs"\n'),
        "etc/inittab": (0o644, b"::sysinit:/sbin/openrc sysinit\n::wait:/sbin/openrc default\n"),
        "etc/passwd": (0o644, b"root:x:0:0:root:/root:/bin/sh\n"),
        "etc/resolv.conf": ("symlink", "/run/resolv.conf"),
        "etc/fstab": (0o644, FSTAB.format(generation=generation).encode()),
        "home": (0o755 | stat.S_IFDIR, b""),
        "tmp": (0o1777 | stat.S_IFDIR, b""),
        **services,
        **runlevels,
    }


def initramfs_members(release: str, *, without: tuple[str, ...] = (), suffix: str = ".gz") -> list[Member]:
    """What mkinitfs 3.13 puts into an image, in little; `without` are substrings of names to leave out."""
    directory = f"usr/lib/modules/{release}"
    members: list[Member] = [
        *((name, stat.S_IFDIR | 0o755, b"") for name in (".", "usr", "usr/bin", "usr/sbin", "usr/lib", "etc")),
        *((name, stat.S_IFLNK | 0o777, f"usr/{name}".encode()) for name in ("bin", "sbin", "lib")),
        ("init", stat.S_IFREG | 0o755, INIT),
        ("etc/fstab", stat.S_IFREG | 0o644, b"/dev/cdrom /media/cdrom iso9660 ro 0 0\n"),
        ("usr/bin/busybox", stat.S_IFREG | 0o755, BUSYBOX),
        ("usr/bin/sh", stat.S_IFLNK | 0o777, b"/bin/busybox"),
        ("usr/sbin/modprobe", stat.S_IFLNK | 0o777, b"/bin/busybox"),
        ("usr/sbin/nlplug-findfs", stat.S_IFREG | 0o755, elf(content=b"nlplug-findfs")),
    ]
    for path, content in module_files(release, suffix=suffix).items():
        if isinstance(content[1], bytes):
            members.append((f"{directory}/{path.partition(release)[2][1:]}", stat.S_IFREG | 0o644, content[1]))
    return [each for each in members if not any(word in each[0] for word in without)]


def initramfs_image(
    release: str, *extra: Member, without: tuple[str, ...] = (), compression: str = "gzip"
) -> bytes:
    """An initramfs that boots kernel `release` from btrfs, but for what `without` takes away from it."""
    return COMPRESS[compression](newc([*initramfs_members(release, without=without), *extra]))


def newc(members: list[Member], *, trailer: bool = True, checksum: bool = False) -> bytes:
    """A cpio archive as `cpio -H newc` (or crc) writes it, padded to 512 bytes."""
    out = bytearray()
    for inode, (name, mode, content) in enumerate([*members, *([("TRAILER!!!", 0, b"")] if trailer else [])], 1):
        total = sum(content) & 0xFFFFFFFF if checksum else 0
        fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(os.fsencode(name)) + 1, total)
        out += b"070702" if checksum else b"070701"
        out += "".join(f"{field:08X}" for field in fields).encode() + os.fsencode(name) + b"\0"
        out += bytes(-len(out) % 4) + content
        out += bytes(-len(out) % 4)
    return bytes(out) + bytes(-len(out) % 512)


def microcode() -> bytes:
    """A microcode image: a plain archive, as intel-ucode has it."""
    return newc([("kernel/x86/microcode/GenuineIntel.bin", stat.S_IFREG | 0o644, b"microcode" * 10)])


def zstd_stored(data: bytes) -> bytes:
    """`data` as a zstd frame (RFC 8878) of raw blocks."""
    out = b"\x28\xb5\x2f\xfd" + b"\xa0" + struct.pack("<I", len(data))
    blocks = [data[at : at + 65536] for at in range(0, len(data), 65536)] or [b""]
    for number, block in enumerate(blocks, 1):
        out += struct.pack("<I", len(block) << 3 | (number == len(blocks)))[:3] + block
    return out


def lz4_stored(data: bytes) -> bytes:
    """`data` as a legacy lz4 frame of blocks that are all literals."""
    out = b"\x02\x21\x4c\x18"
    for at in range(0, len(data), 65536):
        block = data[at : at + 65536]
        extra = len(block) - 15
        head = bytes([len(block) << 4]) if extra < 0 else b"\xf0" + b"\xff" * (extra // 255) + bytes([extra % 255])
        out += struct.pack("<I", len(head) + len(block)) + head + block
    return out


COMPRESS: Mapping[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gzip": lambda data: gzip.compress(data, 1, mtime=0),
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32, preset=0),
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE, preset=0),
    "bzip2": lambda data: bz2.compress(data, 1),
    "zstd": zstd_stored,
    "lz4": lz4_stored,
}


@contextmanager
def unstore(tool: str, source: int) -> Iterator[BinaryIO]:
    """An `unpack.External` for the frames of `zstd_stored` and `lz4_stored`: nothing is run."""
    with os.fdopen(os.dup(source), "rb") as file:
        data = file.read()
    try:
        unpacked = _zstd_raw(data) if tool == "zstd" else _lz4_literals(data)
    except IndexError as error:
        raise Damaged(f"is corrupt: {tool} failed") from error
    yield io.BytesIO(unpacked)


def _zstd_raw(data: bytes) -> bytes:
    out, at = b"", 9
    while at < len(data):
        size = int.from_bytes(data[at : at + 3], "little") >> 3
        out += data[at + 3 : at + 3 + size]
        at += 3 + size
    return out


def _lz4_literals(data: bytes) -> bytes:
    out, at = b"", 4
    while at + 4 <= len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        block = data[at + 4 : at + 4 + size]
        skip = 1
        if block[0] == 0xF0:
            while block[skip] == 0xFF:
                skip += 1
            skip += 1
        out += block[skip:]
        at += 4 + size
    return out


def write_files(root: Path, files: Files) -> None:
    """Puts `files` into the directory `root`, replacing what is there."""
    for name, (kind, content) in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(kind, int) and stat.S_ISDIR(kind):
            path.mkdir(exist_ok=True)
            continue
        path.unlink(missing_ok=True)
        if isinstance(kind, str) and isinstance(content, str):
            path.symlink_to(content)
        elif isinstance(kind, int) and isinstance(content, bytes):
            path.write_bytes(content)
            path.chmod(kind)


@contextmanager
def memory_file(data: bytes) -> Iterator[int]:
    """A descriptor of a file in memory that holds `data`."""
    fd = os.memfd_create("boot")
    try:
        with os.fdopen(os.dup(fd), "wb") as file:
            file.write(data)
        yield fd
    finally:
        os.close(fd)
