"""Kernels of a root: their flavors, where their files lie, and what their modules depend on.

Alpine's layout: boot/vmlinuz-FLAVOR, usr/share/kernel/FLAVOR/kernel.release, lib/modules/RELEASE (which may
be usr/lib/modules: links are followed inside the root). This module must not know what an initramfs has to
hold, and writes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from apk_atomic import lookup

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

BOOT, MODULES, DECLARED = "boot", "lib/modules", "usr/share/kernel"
KERNEL_PREFIX = "vmlinuz-"
IMAGE_PREFIXES = ("initramfs-", "dracut-", "booster-")  # of mkinitfs, dracut, booster (Alpine's triggers)
MICROCODE_SUFFIX = "-ucode.img"
TABLES = ("modules.dep", "modules.builtin")
SUFFIXES = (".ko", ".ko.gz", ".ko.xz", ".ko.zst")
_MAX_TABLE = 1 << 22  # modules.dep of a kernel with all modules has about 0.8 MB
_MAX_RELEASE = 256


class Kernel(NamedTuple):
    """One flavor. `release` is what kernel.release says, "" where only `image` is there."""

    flavor: str
    release: str

    @property
    def image(self) -> str:
        return f"{BOOT}/{KERNEL_PREFIX}{self.flavor}"


class Modules(NamedTuple):
    """The tables of lib/modules/RELEASE by module name: what is built in, and what each depends on."""

    release: str
    builtin: frozenset[str]
    needs: Mapping[str, tuple[str, ...]]

    def closure(self, name: str) -> frozenset[str] | None:
        """The modules that must be loaded for module `name`, itself included, built-in ones left out; None
        when there is no such module. Dependencies that no table knows are in it too: nobody can load them."""
        if name not in self.builtin and name not in self.needs:
            return None
        seen, rest = set[str](), [name]
        while rest:
            module = rest.pop()
            if module not in seen and module not in self.builtin:
                seen.add(module)
                rest += self.needs.get(module, ())
        return frozenset(seen)


def kernels(root: int) -> tuple[Kernel, ...]:
    """Every flavor that a kernel image or a kernel.release of the root names, sorted."""
    images = (name.removeprefix(KERNEL_PREFIX) for name in boot_names(root) if is_kernel(name))
    flavors = {*images, *lookup.names(root, DECLARED)} - {""}
    found = (Kernel(flavor, declared_release(root, flavor)) for flavor in sorted(flavors))
    return tuple(kernel for kernel in found if kernel.release or lookup.is_file(root, kernel.image))


def declared_release(root: int, flavor: str) -> str:
    """The release that the kernel package of `flavor` says it is, "" for none."""
    text = lookup.read(root, f"{DECLARED}/{flavor}/kernel.release", _MAX_RELEASE)
    words = (text or b"").decode("utf-8", "replace").split()
    return words[0] if words and is_component(words[0]) else ""


def boot_names(root: int) -> tuple[str, ...]:
    """Names in boot/ of what a boot menu may use: kernels, initramfs images, microcode; sorted."""
    return tuple(name for name in lookup.names(root, BOOT) if is_kernel(name) or is_image(name))


def is_kernel(name: str) -> bool:
    return name.startswith(KERNEL_PREFIX)


def is_image(name: str) -> bool:
    """Whether `name` is that of an initramfs or a microcode image."""
    return name.startswith(IMAGE_PREFIXES) or name.endswith(MICROCODE_SUFFIX)


def image_names(flavor: str) -> tuple[str, ...]:
    """Where generators put the initramfs of `flavor`, the usual place first."""
    return tuple(f"{BOOT}/{prefix}{flavor}" for prefix in IMAGE_PREFIXES)


def modules_directory(release: str) -> str:
    return f"{MODULES}/{release}"


def is_component(name: str) -> bool:
    """Whether `name` is one part of a path and no more: a release becomes one."""
    return name not in ("", ".", "..") and "/" not in name and name.isprintable()


def module_name(path: str) -> str:
    """kernel/fs/btrfs/btrfs.ko.gz → btrfs; as modprobe does, "-" counts as "_". "" for what is no module."""
    name = path.rpartition("/")[2]
    stem, dot, rest = name.partition(".ko")
    return stem.replace("-", "_") if dot and f".ko{rest}" in SUFFIXES else ""


def read_table(root: int, release: str, name: str) -> bytes | None:
    """modules.dep, modules.builtin … of `release`; None when missing, empty or absurdly large."""
    return lookup.read(root, f"{modules_directory(release)}/{name}", _MAX_TABLE) or None


def load_modules(root: int, release: str) -> Modules | None:
    """The tables of `release` in a root; None when modules.dep or modules.builtin is missing or empty."""
    dependencies, builtin = (read_table(root, release, name) for name in TABLES)
    if dependencies is None or builtin is None:
        return None
    return parse_modules(release, dependencies, builtin)


def parse_modules(release: str, dependencies: bytes, builtin: bytes) -> Modules:
    """Modules from the text of modules.dep and of modules.builtin; senseless lines count for nothing."""
    needs = {}
    for line in dependencies.decode("utf-8", "replace").splitlines():
        path, colon, rest = line.partition(":")
        if colon and (name := module_name(path)):
            needs[name] = tuple(_names(rest))
    return Modules(release, frozenset(_names(builtin.decode("utf-8", "replace"))), needs)


def _names(paths: str) -> Iterator[str]:
    """The module names in a listing of paths."""
    return filter(None, map(module_name, paths.split()))
