"""The boot proof: in full on images as large as real ones, and what it costs where it is inherited."""

from __future__ import annotations

import gzip
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bench.figures import MIB, Row, compared, cpu_of, in_turns, ms, times
from bench.shapes import OURS, Lab, Shape
from tests.support import bootfiles
from tests.support.binaries import add_binary

RELEASE = "6.12.1-0-lts"
IMAGE_BYTES = 15 * MIB
KERNEL_BYTES = 11 * MIB
PROOF_SECONDS, INHERITED_RATIO = 1.0, 1.05
HELLO = "hello=1.{}-r0"
Compress = Callable[[bytes], bytes]
_SYSTEM = ("sbin/openrc", "etc/init.d/", "etc/runlevels/")


def boot(lab: Lab, rounds: int) -> Iterator[Row]:
    """`prove`, and a transaction that inherits its proof beside one on a root without a kernel."""
    for name, compress in _compressors().items():
        machine = lab.ours(Shape(), name, partial(_make_bootable, compress))
        machine.once(OURS, "add", HELLO.format(1))
        machine.reboot()
        found = in_turns(
            min(rounds, 5), {"prove": machine.contestant(OURS, "prove"), "status": machine.contestant(OURS, "status")}
        )
        proof = found["prove"]
        yield Row(
            f"full boot proof, {name} initramfs of {IMAGE_BYTES // MIB} MiB: the whole command",
            ms(proof.wall),
            f"status {ms(found['status'].wall)}",
            times(proof.wall / found["status"].wall),
            f"≤ {ms(PROOF_SECONDS)}",
            proof.wall <= PROOF_SECONDS,
            cpu=cpu_of(proof, found["status"]),
            pairs=len(proof.samples),
        )
    with_kernel = lab.ours(Shape(), "gzip", partial(_make_bootable, _gzip))
    without = lab.ours(Shape())
    found = in_turns(
        rounds, {"kernel": with_kernel.contestant(OURS, "add", HELLO), "none": without.contestant(OURS, "add", HELLO)}
    )
    yield compared(
        "one package, boot proof inherited", found["kernel"], found["none"], "without a kernel", ratio=INHERITED_RATIO
    )


def _compressors() -> dict[str, Compress]:
    """gzip, and zstd where this machine has the program."""
    found: dict[str, Compress] = {"gzip": _gzip}
    if shutil.which("zstd"):
        found["zstd"] = _zstd
    return found


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, 6, mtime=0)


def _zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-q", "-c", "-3"], input=data, stdout=subprocess.PIPE, check=True).stdout


def _make_bootable(compress: Compress, tree: Path) -> None:
    """A kernel with its modules, an initramfs, and a system that init can start."""
    kernel = random.Random(1).randbytes(KERNEL_BYTES)
    files = bootfiles.kernel_files("lts", RELEASE)
    files["boot/vmlinuz-lts"] = (0o644, bootfiles.bzimage(RELEASE, payload=b"\x1f\x8b" + kernel))
    files["boot/initramfs-lts"] = (0o644, compress(_image()))
    files |= {name: file for name, file in bootfiles.system_files().items() if name.startswith(_SYSTEM)}
    bootfiles.write_files(tree, files)
    if program := shutil.which("zstd"):
        add_binary(tree, Path(program), "usr/bin/zstd")


def _image() -> bytes:
    """Compressed, of the wanted size: two thirds modules that are compressed already, one third what halves."""
    part = IMAGE_BYTES // 3
    packed, text = random.Random(2).randbytes(2 * part), random.Random(3).randbytes(part).hex().encode()
    directory = f"usr/lib/modules/{RELEASE}/kernel/drivers/bench"
    count = 200
    members = [
        (f"{directory}/{number}.{kind}", 0o100644, _share(data, number, count))
        for kind, data in (("ko.gz", packed), ("bin", text))
        for number in range(count)
    ]
    return bootfiles.newc([*bootfiles.initramfs_members(RELEASE), *members])




def _share(data: bytes, number: int, count: int) -> bytes:
    """One of `count` equal parts."""
    return data[number * len(data) // count : (number + 1) * len(data) // count]
