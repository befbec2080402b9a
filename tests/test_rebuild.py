"""`rebuild`: which flavors a change concerns, from changed paths alone, and which images a trigger made well."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apk_atomic import initramfs, rebuild
from apk_atomic.generator import GeneratorKind
from apk_atomic.rebuild import Plan
from tests.support.bootfiles import (
    BUSYBOX,
    Files,
    Member,
    elf,
    initramfs_image,
    kernel_files,
    system_files,
    unstore,
    write_files,
)

OLD, NEW, VIRT = "6.18.44-0-lts", "6.18.45-0-lts", "6.18.44-0-virt"
IMAGE = "boot/initramfs-lts"
REGULAR = stat.S_IFREG | 0o644
CONFIG: Member = ("etc/modprobe.d/blacklist.conf", REGULAR, b"blacklist pcspkr\n")


def image(release: str, *extra: Member, without: tuple[str, ...] = ()) -> Files:
    flavor = release.rpartition("-")[2]
    return {f"boot/initramfs-{flavor}": (0o600, initramfs_image(release, CONFIG, *extra, without=without))}


BASE: Files = {
    **system_files(), **kernel_files("lts", OLD), **image(OLD),
    "sbin/nlplug-findfs": (0o755, elf(content=b"nlplug-findfs")),
    "etc/modprobe.d/blacklist.conf": (0o644, CONFIG[2]),
}  # fmt: skip
VIRT_FILES: Files = {**kernel_files("virt", VIRT), **image(VIRT)}


class Roots:
    """Base and staged, and the paths that were changed between them."""

    def __init__(self, directory: Path) -> None:
        self.base, self.staged = directory / "base", directory / "staged"
        self.changed: list[str] = []
        write_files(self.base, BASE)

    def stage(self) -> None:
        shutil.copytree(self.base, self.staged, symlinks=True)

    def write(self, files: Files) -> None:
        """As a change does: new inodes, and directories that name them, are in the list."""
        for path in files:
            parent, *others = Path(path).parents
            self.changed += [path, str(parent), *(str(each) for each in others if not (self.staged / each).exists())]
        write_files(self.staged, files)

    def remove(self, path: str) -> None:
        target = self.staged / path
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink()
        self.changed += [path, str(Path(path).parent)]

    def plan(self, members: bool = True, configured: tuple[str, ...] = ()) -> Plan:
        base, staged = (os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (self.base, self.staged))
        try:
            known = self._members() if members else {}
            return rebuild.concerned_flavors(base, staged, self.changed, known, configured=configured, external=unstore)
        finally:
            os.close(base)
            os.close(staged)

    def _members(self) -> dict[str, tuple[str, ...]]:
        found = {}
        for path in (self.base / "boot").glob("initramfs-*"):
            fd = os.open(path, os.O_RDONLY)
            found[f"boot/{path.name}"] = tuple(initramfs.read(fd).members)
            os.close(fd)
        return found

    def reasons(self, members: bool = True) -> dict[str, str]:
        return {each.flavor: "; ".join(each.reasons) for each in self.plan(members).rebuild}


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    roots = Roots(tmp_path)
    roots.stage()
    return roots


def test_nothing_changed(roots: Roots) -> None:
    assert roots.plan().rebuild == () == roots.plan().kept


def test_an_unrelated_package(roots: Roots) -> None:
    roots.write({"usr/bin/new": (0o755, b"new"), "etc/new.conf": (0o644, b""), "etc/fstab": (0o644, b"other"),
                 "etc/passwd": (0o644, b"root:x:0:0::/root:/bin/sh\n"), "bin/added": (0o755, b"")})  # fmt: skip
    assert roots.reasons() == {} == roots.reasons(members=False)


def test_a_new_kernel_whose_trigger_did_nothing(roots: Roots) -> None:
    roots.remove(f"lib/modules/{OLD}")
    roots.write(kernel_files("lts", NEW))
    (each,) = roots.plan().rebuild
    assert (each.flavor, each.release, each.output) == ("lts", NEW, IMAGE)
    assert each.reasons == (f"kernel {NEW} in place of {OLD}",)


def test_a_new_kernel_whose_trigger_did_it_well_is_left_alone(roots: Roots) -> None:
    roots.remove(f"lib/modules/{OLD}")
    roots.write({**kernel_files("lts", NEW), **image(NEW)})
    plan = roots.plan()
    assert (plan.rebuild, plan.kept) == ((), ("lts",))
    assert plan.images is not None and "init" in plan.images[IMAGE].members


Lie = Callable[[Roots], None]
LIES: dict[str, tuple[Lie, str]] = {
    "the old image once more": (lambda roots: roots.write(image(OLD)), "holds no modules"),
    "no btrfs": (lambda roots: roots.write(image(NEW, without=("btrfs.ko",))), "no btrfs"),
    "cut short": (lambda roots: roots.write({IMAGE: (0o600, initramfs_image(NEW)[:-99])}), "truncated"),
    "empty": (lambda roots: roots.write({IMAGE: (0o600, b"")}), "empty"),
    "gone": (lambda roots: roots.remove(IMAGE), "in place of"),
    "another build's modules": (
        lambda roots: roots.write(
            image(NEW, (f"usr/lib/modules/{NEW}/kernel/fs/btrfs/btrfs.ko.gz", REGULAR, b"another"))
        ),
        "older than usr/lib/modules",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_new_kernel_whose_trigger_lied(roots: Roots, lie: str) -> None:
    roots.remove(f"lib/modules/{OLD}")
    roots.write(kernel_files("lts", NEW))
    make, word = LIES[lie]
    make(roots)
    assert word in roots.reasons()["lts"]


@pytest.mark.parametrize("members", [True, False])
def test_a_member_that_was_upgraded(roots: Roots, members: bool) -> None:
    roots.write({"bin/busybox": (0o755, elf(content=b"a newer busybox"))})
    assert "usr/bin/busybox" in roots.reasons(members)["lts"]


def test_a_member_that_was_written_again_with_the_same_bytes(roots: Roots) -> None:
    roots.write({"bin/busybox": (0o755, BUSYBOX), "bin/sh": ("symlink", "/bin/busybox")})
    assert roots.reasons() == {}


def test_a_member_that_was_removed(roots: Roots) -> None:
    roots.remove("etc/modprobe.d")
    assert "etc/modprobe.d/blacklist.conf" in roots.reasons()["lts"]


def test_a_member_that_now_is_a_link_elsewhere(roots: Roots) -> None:
    roots.write({"bin/sh": ("symlink", "/bin/dash")})
    assert "usr/bin/sh" in roots.reasons()["lts"]


def test_members_that_the_generator_makes_itself(roots: Roots) -> None:
    roots.write({"init": (0o755, b"#!/bin/sh\n")})
    assert roots.reasons() == {}


def test_an_image_made_before_a_member_changed(roots: Roots) -> None:
    roots.write({**image(OLD), "bin/busybox": (0o755, elf(content=b"a newer busybox"))})
    assert f"{IMAGE} is older than usr/bin/busybox" in roots.reasons()["lts"]


def test_an_image_made_after_a_member_changed(roots: Roots) -> None:
    newer = elf(content=b"a newer busybox")
    roots.write({**image(OLD, ("usr/bin/busybox", stat.S_IFREG | 0o755, newer)), "bin/busybox": (0o755, newer)})
    assert (roots.plan().rebuild, roots.plan().kept) == ((), ("lts",))


def test_configuration(roots: Roots) -> None:
    roots.write({"etc/mkinitfs/mkinitfs.conf": (0o644, b'features="base btrfs nvme"\n')})
    assert roots.reasons() == {"lts": "etc/mkinitfs/mkinitfs.conf changed"}


@pytest.mark.parametrize("image_is_younger", [True, False])
def test_configuration_and_an_image_in_the_same_change(roots: Roots, image_is_younger: bool) -> None:
    config: Files = {"etc/mkinitfs/features.d/mine.files": (0o644, b"/bin/mine\n")}
    for files in (config, image(OLD)) if image_is_younger else (image(OLD), config):
        roots.write(files)
        for path in files:
            os.utime(roots.staged / path)
    assert bool(roots.plan().kept) is image_is_younger


def test_configuration_written_again_with_the_same_bytes(roots: Roots) -> None:
    roots.write({"etc/mkinitfs/mkinitfs.conf": (0o644, b'features="base btrfs"\n')})
    assert roots.reasons() == {}


def test_an_added_module_and_a_removed_one(roots: Roots) -> None:
    extra = f"lib/modules/{OLD}/extra/zfs.ko.gz"
    roots.write({extra: (0o644, b"zfs")})
    assert roots.reasons() == {"lts": f"{extra} changed"}
    roots.changed = []
    roots.remove(f"lib/modules/{OLD}/extra")
    roots.remove(f"lib/modules/{OLD}/kernel/crypto/xor.ko.gz")
    assert "changed" in roots.reasons()["lts"]


def test_tables_that_triggers_write_again(roots: Roots) -> None:
    directory = f"lib/modules/{OLD}"
    roots.write({f"{directory}/modules.dep": (0o644, b"new\n"), f"{directory}/initramfs-suffix": (0o644, b"-lts\n")})
    assert roots.reasons() == {}


def test_only_the_flavor_concerned(tmp_path: Path) -> None:
    roots = Roots(tmp_path)
    write_files(roots.base, VIRT_FILES)
    roots.stage()
    roots.write(kernel_files("lts", NEW))
    assert set(roots.reasons()) == {"lts"}
    roots.write({"etc/mkinitfs/mkinitfs.conf": (0o644, b"")})
    assert set(roots.reasons()) == {"lts", "virt"}


def test_an_added_flavor(roots: Roots) -> None:
    roots.write(kernel_files("virt", VIRT))
    (each,) = roots.plan().rebuild
    assert (each.flavor, each.output, each.reasons) == ("virt", "boot/initramfs-virt", (f"new kernel {VIRT}",))


def test_a_removed_flavor(tmp_path: Path) -> None:
    roots = Roots(tmp_path)
    write_files(roots.base, VIRT_FILES)
    roots.stage()
    boot = [name for name in VIRT_FILES if name.startswith("boot/")]
    for path in (*boot, f"lib/modules/{VIRT}", "usr/share/kernel/virt"):
        roots.remove(path)
    assert roots.reasons() == {}


def test_an_image_that_was_lost(roots: Roots) -> None:
    roots.remove(IMAGE)
    roots.write({"boot/other": (0o644, b"")})
    assert roots.reasons() == {"lts": f"{IMAGE} is gone"}


def test_another_generator_keeps_the_name_that_the_menu_knows(roots: Roots) -> None:
    roots.remove("sbin/mkinitfs")
    roots.write({"usr/bin/booster": (0o755, b"booster")})
    plan = roots.plan()
    (each,) = plan.rebuild
    assert plan.generator is not None and plan.generator.kind is GeneratorKind.BOOSTER
    assert each.output == IMAGE
    assert "booster in place of mkinitfs" in each.reasons


@pytest.mark.parametrize("how", ["disabled", "none"])
def test_images_that_are_somebody_elses(roots: Roots, how: str) -> None:
    if how == "disabled":
        roots.write({"etc/mkinitfs/mkinitfs.conf": (0o644, b"disable_trigger=yes\n")})
    else:
        roots.remove("sbin/mkinitfs")
    roots.write(kernel_files("lts", NEW))
    plan = roots.plan()
    assert (plan.rebuild, plan.elsewhere) == ((), True)


def test_a_configured_command(roots: Roots) -> None:
    roots.write(kernel_files("lts", NEW))
    plan = roots.plan(configured=("/usr/bin/mine", "{flavor}", "{output}"))
    (each,) = plan.rebuild
    assert plan.generator is not None
    fd = os.open(roots.staged, os.O_RDONLY)
    assert rebuild.build_command(fd, plan.generator, each.release, each.output) == ["/usr/bin/mine", "lts", f"/{IMAGE}"]
    os.close(fd)


def test_base_without_a_readable_image(roots: Roots) -> None:
    (roots.base / IMAGE).write_bytes(b"damaged")
    roots.write({"bin/busybox": (0o755, b"new")})
    assert roots.reasons(members=False) == {}


def test_merged_usr(tmp_path: Path) -> None:
    """Base split, the change merges /usr: what moved is looked at under both names."""
    roots = Roots(tmp_path)
    for name in ("bin", "sbin", "lib"):
        (roots.base / "usr" / name).mkdir(parents=True, exist_ok=True)
        shutil.copytree(roots.base / name, roots.base / "usr" / name, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(roots.base / name)
        (roots.base / name).symlink_to(f"usr/{name}")
    roots.stage()
    assert roots.reasons() == {}
    roots.write({"usr/bin/busybox": (0o755, b"new")})
    assert "usr/bin/busybox" in roots.reasons()["lts"]


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) <= len(before)
