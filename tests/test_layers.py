"""Imports point downwards only, and sh, filelock and tomli have one importer each (design, section 10)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "apk_atomic"

# From the bottom up. A row is a layer of the design, or a part of one: a module imports modules of the rows below
# its own and no others of ours.
LAYERS = (
    ("errors", "faults", "btrfs_ioctl", "exchange", "verdict", "names", "applets", "holds", "schedule"),
    ("model", "grammar"),
    ("retention", "atomic_options", "autoplan", "config_schema"),
    ("cmdline",),
    ("rehearsal",),
    ("config", "files", "console", "signals", "mounts", "terminal", "loop", "disks", "machine", "missed"),
    ("process", "lock", "btrfs_trees", "btrfs_space", "lookup", "unpack", "hibernation", "fat", "removal"),
    ("settings",),
    ("nvram", "partition", "esp_types", "elf", "cpio", "generator", "kernel", "kernel_image"),
    ("btrfs", "notify", "namespace", "installed", "fstab", "initramfs", "bootmenu", "esp_mtools"),
    ("locate", "esp", "loaders", "proof_types", "oldfstab", "checkup_types", "generations"),
    ("checkup_volume", "checkup_boot", "checkup_root", "oldcommons"),
    ("checkup",),
    ("volume", "chroot", "proof_images", "proof_fstab", "proof_sealed", "adoption"),
    ("operands", "journal", "changed", "databases", "decompress", "proof_init", "proof_kernels", "freshness", "newroot",
     "adoptstate", "adoptreport", "treecopy", "sharedcache"),
    ("proof", "rebuild"),
    ("pointer", "layout"),
    ("session",),
    ("staged", "repoint", "preflight", "recording", "superblock", "hooks"),
    ("building", "discarding"),
    ("bootable", "apkline", "shared", "selfcheck", "remembered", "oldboot"),
    ("transaction", "bootinstall", "newmenu", "firstrecord", "apkchange", "held"),
    ("bootstrap", "examine", "adoptmenu"),
    ("order", "oldsystem"),
    ("makesystem", "firstroot"),
    ("newcommons", "adoptwork"),
    ("takeover",),
    ("context", "arguments", "report"),
    ("planning",),
    ("unattended",),
    ("restart",),
    ("commands",),
    ("verbs",),
    ("cli",),
    ("front",),
)
SINGLE_IMPORTER = {"sh": "process", "filelock": "lock", "tomli": "config"}
NEVER = {"subprocess", "tomllib", "fileinput", "multiprocessing"}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def row_of(module: str) -> int:
    return next(number for number, row in enumerate(LAYERS) if module in row)


def layer_name(path: Path) -> str:
    return "commands" if path.parent.name == "commands" else path.stem


def imports_of(path: Path) -> set[str]:
    """Top-level names of foreign modules, `apk_atomic.X` as `.X`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "apk_atomic" + (f".{node.module}" if node.module else "") if node.level else node.module or ""
            found |= {f"{base}.{alias.name}" for alias in node.names} if base == "apk_atomic" else {base}
    return {name.replace("apk_atomic", "", 1) if name.startswith("apk_atomic") else name for name in found}


def ours(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith(".")} - {"VERSION"}


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.stem)
def test_imports_point_downwards(path: Path) -> None:
    own = row_of(layer_name(path))
    wrong = {name for name in ours(imports_of(path)) if row_of(name) >= own}
    assert not wrong, f"{path.name} imports {wrong}, which are not below it"


def test_every_layer_has_its_modules() -> None:
    named = {module for row in LAYERS for module in row}
    assert named == {layer_name(path) for path in modules()}


@pytest.mark.parametrize("library", SINGLE_IMPORTER)
def test_one_importer(library: str) -> None:
    importers = {path.stem for path in modules() if library in {name.split(".")[0] for name in imports_of(path)}}
    assert importers == {SINGLE_IMPORTER[library]}


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.stem)
def test_no_other_way_to_start_a_process(path: Path) -> None:
    assert not NEVER & {name.split(".")[0] for name in imports_of(path)}


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.stem)
def test_docstring(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))
