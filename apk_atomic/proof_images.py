"""The boot proof's verdict on one initramfs: can the kernel of this release find its root with it?

Facts (alpine-boot 1.6, 3.1): mkinitfs exits 0 for images without btrfs, without modules and for a truncated
tree; what is in the image is all that counts. Pure: values in, findings out, no file is opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from apk_atomic import elf
from apk_atomic.kernel import SUFFIXES, Modules, module_name, parse_modules
from apk_atomic.proof_types import Findings
from apk_atomic.unpack import Damaged

if TYPE_CHECKING:
    from collections.abc import Collection

    from apk_atomic.initramfs import Image

ROOT_MODULE = "btrfs"
_MODULE_DIRECTORIES = ("usr/lib/modules/", "lib/modules/")
_LOADERS = ("sbin/modprobe", "usr/sbin/modprobe", "bin/kmod", "usr/bin/kmod")
# What mkinitfs's init cannot do without, each looked for where its name stands in init.
_HELPERS = (
    (b"nlplug-findfs", ("sbin/nlplug-findfs", "usr/sbin/nlplug-findfs")),
    (b"busybox", ("bin/busybox", "usr/bin/busybox")),
)
_SCANNERS = ("sbin/btrfs", "usr/sbin/btrfs", "bin/btrfs", "usr/bin/btrfs")
_MAX_SCRIPTS = 4  # of interpreters that are scripts themselves; the kernel allows five

# PE machines (PE/COFF 3.3.1) of kernels, and the ELF machines of the programs that each runs, 32-bit ones included
_MACHINES = {
    0x8664: frozenset({62, 3}), 0x14C: frozenset({3}), 0xAA64: frozenset({183, 40}), 0x5064: frozenset({243}),
    0x6264: frozenset({258}), 0x6232: frozenset({258}),
}  # fmt: skip


def judge_image(path: str, image: Image, modules: Modules, wanted: Collection[str] = ()) -> Findings:
    """What stands against booting `modules.release` with the image `path`.

    `wanted` are modules that this machine's disk needs beside btrfs: missing ones are worth a warning, since
    they may be built into the kernel under another name.
    """
    findings = Findings()
    _judge_init(findings, path, image)
    _judge_modules(findings, path, image, modules, wanted)
    for name in image.staged:
        findings.fail("initramfs-staging", f"{path}: {name} in it names the staging subvolume, gone at boot")
    return findings


def releases_in(image: Image) -> frozenset[str]:
    """The releases that the image has modules, or tables of modules, for."""
    found = (_split(name) for name in image.members)
    return frozenset(release for release, rest in found if rest)


def modules_in(image: Image, release: str) -> dict[str, str]:
    """Member name by module name, of the modules for `release`."""
    return {
        module_name(name): name
        for name, member in image.members.items()
        if name.endswith(SUFFIXES) and member.is_file and _split(name)[0] == release
    }


def _split(name: str) -> tuple[str, str]:
    """usr/lib/modules/REL/kernel/x.ko → (REL, kernel/x.ko); ("", "") for what is not below a release."""
    for directory in _MODULE_DIRECTORIES:
        if name.startswith(directory):
            release, _, rest = name[len(directory) :].partition("/")
            return release, rest
    return "", ""


def _judge_init(findings: Findings, path: str, image: Image) -> None:
    name = image.program("init")
    if name is None:
        findings.fail("initramfs-no-init", f"{path} holds no executable init")
        return
    missing = _missing_interpreter(image, name)
    if missing:
        findings.fail("initramfs-no-interpreter", f"{path}: init in it needs {missing}, which is not in it")
    text = image.starts.get(name, b"")
    if not text.startswith(b"#!"):
        return
    for word, places in _HELPERS:
        if word in text and not any(image.program(place) for place in places):
            findings.fail("initramfs-no-helper", f"{path} holds no {word.decode()}, which init in it calls")
    if b"btrfs" in text and not any(image.program(place) for place in _SCANNERS):
        findings.warn("initramfs-no-scan", f"{path} holds no btrfs program: volumes of several devices fail")


def _missing_interpreter(image: Image, name: str) -> str:
    """The first interpreter in the chain from program `name` on that the image does not have; "" for none."""
    for _ in range(_MAX_SCRIPTS):
        start = image.starts.get(name, b"")
        wanted = script_interpreter(start) or _elf_interpreter(start)
        if not wanted:
            return ""
        found = image.program(wanted)
        if found is None:
            return wanted
        name = found
    return ""


def script_interpreter(start: bytes) -> str:
    """What the first line `#!…` of a script names; "" for anything else."""
    words = start.partition(b"\n")[0][2:].split() if start.startswith(b"#!") else []
    return words[0].decode("utf-8", "surrogateescape") if words else ""


def _elf_interpreter(start: bytes) -> str:
    if not start.startswith(elf.MAGIC):
        return ""
    try:
        return elf.interpreter(start)
    except Damaged:
        return ""  # its headers lie behind what was kept: no verdict


def _judge_modules(
    findings: Findings, path: str, image: Image, modules: Modules, wanted: Collection[str]
) -> None:
    release = modules.release
    needed = modules.closure(ROOT_MODULE)
    others = sorted(releases_in(image) - {release})
    if release not in releases_in(image):
        if needed or others:
            instead = f", only for {', '.join(others)}" if others else ""
            findings.fail("initramfs-wrong-release", f"{path} holds no modules for {release}{instead}")
        return
    if others:
        findings.warn("initramfs-other-release", f"{path} also holds modules for {', '.join(others)}")
    present = modules_in(image, release)
    missing = sorted((needed or frozenset()) - present.keys())
    if ROOT_MODULE in missing:
        findings.fail("initramfs-no-btrfs", f"{path} holds no btrfs module for {release}")
    elif missing:
        text = f"{path} lacks {', '.join(missing)}, which the btrfs module of {release} needs"
        findings.fail("initramfs-no-dependency", text)
    elif needed:
        _judge_tables(findings, path, image, release)
    _warn_wanted(findings, path, modules, present.keys(), wanted)


def _judge_tables(findings: Findings, path: str, image: Image, release: str) -> None:
    """modprobe finds a module in modules.dep only; images of other makers (booster) load without it."""
    if not any(image.program(place) for place in _LOADERS):
        return
    names = (f"{directory}{release}/modules.dep" for directory in _MODULE_DIRECTORIES)
    table = next((image.starts[name] for name in names if name in image.starts), b"")
    if ROOT_MODULE not in parse_modules(release, table, b"").needs:
        findings.fail("initramfs-no-table", f"{path}: modules.dep in it does not know the btrfs module")


def _warn_wanted(
    findings: Findings, path: str, modules: Modules, present: Collection[str], wanted: Collection[str]
) -> None:
    for module in wanted:
        needed = modules.closure(module.replace("-", "_"))
        if needed and not needed <= set(present):
            findings.warn("initramfs-no-driver", f"{path} holds no {module} module, which this disk needs")


def machines_of(head: bytes) -> frozenset[int]:
    """The ELF machines whose programs the kernel image that begins with `head` runs; none where it does not say."""
    at = int.from_bytes(head[0x3C:0x40], "little")
    if head[:2] == b"MZ" and head[at : at + 4] == b"PE\0\0":
        return _MACHINES.get(int.from_bytes(head[at + 4 : at + 6], "little"), frozenset())
    return _MACHINES[0x8664] if head[0x202:0x206] == b"HdrS" else frozenset()
