"""The staged root made bootable: initramfs where an input changed, then the boot proof."""

from __future__ import annotations

from dataclasses import dataclass

from apk_atomic import files
from apk_atomic.changed import Changed
from apk_atomic.model import Image, Proof
from apk_atomic.staged import Staged

_BOOT = ("vmlinuz-", "initramfs-")


@dataclass(frozen=True, slots=True)
class Bootable:
    """What the record keeps of it; `boot_paths` are what the boot menu will look for in the root."""

    boot_paths: tuple[str, ...] = ()
    kernels: tuple[tuple[str, str], ...] = ()
    images: tuple[Image, ...] = ()
    proof: Proof | None = None
    warnings: tuple[str, ...] = ()


def boot_names(root: int) -> tuple[str, ...]:
    """The kernels, initramfs and microcode images in boot/ of a root: what a static boot menu may name."""
    try:
        names = files.list_names(root, "boot")
    except OSError:
        return ()
    return tuple(f"boot/{name}" for name in names if name.startswith(_BOOT) or name.endswith("-ucode.img"))


def make_bootable(root: Staged, changed: Changed) -> Bootable:
    """Raises BuildFailed, CheckFailed: the transaction is then discarded."""
    return Bootable(boot_paths=boot_names(root.base_root))
