"""`kernel`, `lookup` and `generator`: what a root has, in both /usr layouts, with hostile links and odd files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apk_atomic import generator, kernel, lookup
from apk_atomic.generator import GeneratorKind
from apk_atomic.kernel import Kernel
from tests.support.bootfiles import kernel_files, system_files, write_files

LTS, VIRT = "6.18.44-0-lts", "6.18.44-0-virt"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/modules.dep").write_bytes(b"host")
    root = tmp_path / "root"
    write_files(root, {**system_files(), **kernel_files("lts", LTS), **kernel_files("virt", VIRT)})
    return root


@pytest.fixture
def root(tree: Path) -> Iterator[int]:
    fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_flavors(root: int) -> None:
    assert kernel.kernels(root) == (Kernel("lts", LTS), Kernel("virt", VIRT))
    assert kernel.boot_names(root) == ("vmlinuz-lts", "vmlinuz-virt")


def test_flavors_that_only_one_file_names(tree: Path, root: int) -> None:
    (tree / "boot/vmlinuz-virt").unlink()
    (tree / "boot/vmlinuz-own").write_bytes(b"own")
    (tree / "usr/share/kernel/empty").mkdir()
    assert kernel.kernels(root) == (Kernel("lts", LTS), Kernel("own", ""), Kernel("virt", VIRT))


def test_no_kernel(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    assert kernel.kernels(fd) == () == kernel.boot_names(fd)
    os.close(fd)


@pytest.mark.parametrize("text", [b"", b"..", b"../../secret", b"a\x1bb", b"x" * 1000])
def test_a_release_that_is_no_name_is_none(tree: Path, root: int, text: bytes) -> None:
    (tree / "usr/share/kernel/lts/kernel.release").write_bytes(text)
    assert kernel.declared_release(root, "lts") == ""


def test_closure(root: int) -> None:
    modules = kernel.load_modules(root, LTS)
    assert modules is not None
    assert modules.closure("btrfs") == frozenset({"btrfs", "raid6_pq", "xor"})
    assert modules.closure("libcrc32c") == frozenset()
    assert modules.closure("zfs") is None


def test_closure_follows_what_only_lists_direct_dependencies() -> None:
    table = b"kernel/a-x.ko: kernel/b.ko.gz kernel/lost.ko\nkernel/b.ko.gz: kernel/c.ko kernel/a-x.ko\nnonsense\n"
    modules = kernel.parse_modules(LTS, table, b"kernel/c.ko\n")
    assert modules.closure("a_x") == frozenset({"a_x", "b", "lost"})


@pytest.mark.parametrize("table", ["modules.dep", "modules.builtin"])
def test_tables_must_be_there(tree: Path, root: int, table: str) -> None:
    path = tree / f"lib/modules/{LTS}/{table}"
    path.write_bytes(b"")
    assert kernel.load_modules(root, LTS) is None
    path.unlink()
    path.symlink_to("../../../../../secret/modules.dep")
    assert kernel.load_modules(root, LTS) is None
    path.unlink()
    os.mkfifo(path)
    assert kernel.load_modules(root, LTS) is None


def test_merged_usr(tree: Path, root: int) -> None:
    (tree / "usr/lib").mkdir()
    (tree / "lib/modules").rename(tree / "usr/lib/modules")
    (tree / "lib").rmdir()
    (tree / "lib").symlink_to("/usr/lib")
    assert kernel.load_modules(root, LTS) is not None
    assert lookup.real_path(root, f"lib/modules/{LTS}/modules.dep") == f"usr/lib/modules/{LTS}/modules.dep"


@pytest.mark.parametrize(
    ("path", "name"),
    [("kernel/fs/btrfs/btrfs.ko.gz", "btrfs"), ("a/raid6-pq.ko", "raid6_pq"), ("x.ko.zst", "x"), ("x.ko.sig", "")],
)
def test_module_names(path: str, name: str) -> None:
    assert kernel.module_name(path) == name


@given(st.binary(max_size=400), st.binary(max_size=200))
def test_any_tables_give_modules(dependencies: bytes, builtin: bytes) -> None:
    modules = kernel.parse_modules(LTS, dependencies, builtin)
    for name in (*modules.needs, "btrfs"):
        modules.closure(name)


# ---- lookup --------------------------------------------------------------------------------------------------------


def test_links_never_leave_the_root(tree: Path, root: int) -> None:
    (tree / "etc/up").symlink_to("../../../../etc/passwd")
    (tree / "etc/absolute").symlink_to("/etc/passwd")
    (tree / "etc/loop").symlink_to("loop")
    for name in ("up", "absolute"):
        assert lookup.read(root, f"etc/{name}", 100) == b"root:x:0:0:root:/root:/bin/sh\n"
        assert lookup.real_path(root, f"etc/{name}") == "etc/passwd"
    assert lookup.read(root, "etc/loop", 100) is None
    assert lookup.real_path(root, "etc/loop") is None
    assert lookup.link_target(root, "etc/absolute") == "/etc/passwd"


def test_what_is_no_file(tree: Path, root: int) -> None:
    os.mkfifo(tree / "etc/pipe")
    for name in ("etc/pipe", "etc", "etc/none", "etc/passwd/x", "a" * 300, "etc/\0", ""):
        assert lookup.open_file(root, name) is None
        assert lookup.read(root, name, 100) is None
    assert lookup.read(root, "etc/passwd", 5) is None
    assert lookup.names(root, "etc/passwd") == []


def test_same_content(tree: Path, root: int, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_files(other, system_files())
    (other / "etc/passwd").write_bytes(b"root:y:0:0:root:/root:/bin/sh\n")
    (other / "sbin/init").unlink()
    (other / "sbin/init").symlink_to("/bin/other")
    (other / "etc/inittab").unlink()
    fd = os.open(other, os.O_RDONLY)
    same = {path: lookup.same_content(root, fd, path) for path in
            ("etc/fstab", "bin/sh", "etc", "etc/none", "etc/passwd", "sbin/init", "etc/inittab", "boot")}  # fmt: skip
    os.close(fd)
    assert {path for path, equal in same.items() if equal} == {"etc/fstab", "bin/sh", "etc", "etc/none"}


def test_layouts() -> None:
    assert lookup.merged("/bin/sh") == lookup.merged("usr/bin/sh") == "usr/bin/sh"
    assert lookup.merged("etc/passwd") == "etc/passwd"
    assert lookup.layouts("usr/bin/sh") == ("usr/bin/sh", "bin/sh")
    assert lookup.layouts("usr/share/x") == ("usr/share/x",)
    assert lookup.layouts("etc/passwd") == ("etc/passwd",)


# ---- generator -----------------------------------------------------------------------------------------------------


def test_generators(tree: Path, root: int) -> None:
    found = generator.find_generator(root)
    assert found is not None and found.kind is GeneratorKind.MKINITFS
    words = ["/sbin/mkinitfs", "-o", "/boot/initramfs-lts", LTS]
    assert generator.command(found, "lts", LTS, found.image_name("lts")) == words
    (tree / "sbin/mkinitfs").unlink()
    assert generator.find_generator(root) is None
    (tree / "usr/bin").mkdir()
    (tree / "usr/bin/booster").touch()
    found = generator.find_generator(root)
    assert found is not None
    words = ["/usr/bin/booster", "build", "--force", "--kernel-version", LTS, "/boot/booster-lts"]
    assert generator.command(found, "lts", LTS, found.image_name("lts")) == words
    (tree / "usr/bin/dracut").touch()
    found = generator.find_generator(root)
    assert found is not None
    words = ["/usr/bin/dracut", "--force", "/boot/dracut-lts", LTS]
    assert generator.command(found, "lts", LTS, found.image_name("lts")) == words


def test_configured_command(root: int) -> None:
    found = generator.find_generator(root, ("/usr/local/bin/make-it", "--for={flavor}", "{output}"))
    assert found is not None
    assert generator.command(found, "lts", LTS, "boot/x") == ["/usr/local/bin/make-it", "--for=lts", "/boot/x"]
    found = generator.find_generator(root, ("make-it",))
    assert found is not None
    assert generator.command(found, "lts", LTS, "boot/x") == ["make-it", LTS, "/boot/x"]


def test_a_generator_of_the_kind_that_is_configured(tmp_path: Path) -> None:
    write_files(tmp_path, {f"usr/sbin/{name}": (0o755, b"#!/bin/sh\n") for name in ("mkinitfs", "dracut")})
    root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert str(generator.find_generator(root, ("dracut",)).kind) == "dracut"  # type: ignore[union-attr]
        assert generator.find_generator(root, ("booster",)) is None
    finally:
        os.close(root)


@pytest.mark.parametrize(
    ("text", "disabled"),
    [("disable_trigger=yes\n", True), ('  disable_trigger="1" # me\n', True), ("disable_trigger=no", False),
     ("# disable_trigger=yes", False), ("disable_trigger=yes\ndisable_trigger=", False), ("", False)],
)  # fmt: skip
def test_disabled_trigger(tree: Path, root: int, text: str, disabled: bool) -> None:
    (tree / "etc/mkinitfs/mkinitfs.conf").write_text(text)
    assert generator.trigger_disabled(root, generator.find_generator(root)) is disabled


@pytest.mark.parametrize(
    ("release", "flavor"), [(LTS, "lts"), ("6.1.0-0-rpi-custom", "rpi-custom"), ("6.1.0", "6.1.0"), ("", "")]
)
def test_flavor_of(release: str, flavor: str) -> None:
    assert generator.flavor_of(release) == flavor
