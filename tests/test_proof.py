"""The boot proof on whole roots: one that boots, and each way in which it would not."""

from __future__ import annotations

import gzip
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apk_atomic import kernel, proof
from apk_atomic.proof import Proof, ProofInput
from tests.support.bootfiles import (
    BTRFS,
    BUILTIN,
    FSTAB,
    GENERATION,
    Files,
    arm64_image,
    bzimage,
    elf,
    initramfs_image,
    kernel_files,
    microcode,
    system_files,
    unstore,
    write_files,
)

RELEASE, OTHER, VIRT = "6.18.44-0-lts", "6.18.45-0-lts", "6.18.44-0-virt"
LTS = ("boot/vmlinuz-lts", "boot/initramfs-lts")
STAGING = b"rootflags=subvol=/staging/20260101000000abcdefgh/@"
MUSL = "/lib/ld-musl-x86_64.so.1"
MUSL_NAME = "ld-musl-x86_64.so.1"
REGULAR = stat.S_IFREG | 0o644
WITHOUT_BUILTIN_BTRFS = (BTRFS, "kernel/lib/raid6/raid6_pq.ko", "kernel/crypto/xor.ko")


class Root:
    """A root directory, its base's names in boot/, and the verdict on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts = ProofInput(GENERATION, decompress=unstore)
        path.mkdir()
        write_files(path, {**system_files(), **kernel_files("lts", RELEASE), **self.image(initramfs_image(RELEASE))})

    @staticmethod
    def image(data: bytes, flavor: str = "lts") -> Files:
        return {f"boot/initramfs-{flavor}": (0o600, data)}

    def write(self, files: Files) -> None:
        write_files(self.path, files)

    def text(self, path: str, content: str) -> None:
        self.write({path: (0o644, content.encode())})

    def remove(self, path: str) -> None:
        target = self.path / path
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink()

    def remember(self) -> None:
        """What is in boot/ now is what base had."""
        fd = os.open(self.path, os.O_RDONLY)
        self.facts = self.facts._replace(base_boot_names=kernel.boot_names(fd))
        os.close(fd)

    def prove(self, **facts: object) -> Proof:
        return self.judge(proof.prove, facts)

    def prove_own(self, **facts: object) -> Proof:
        return self.judge(proof.prove_own, facts)

    def judge(self, function: Callable[[int, ProofInput], Proof], facts: dict[str, object]) -> Proof:
        fd = os.open(self.path, os.O_PATH | os.O_DIRECTORY)
        try:
            return function(fd, self.facts._replace(**facts))  # type: ignore[arg-type]
        finally:
            os.close(fd)

    def must_run(self, changed: tuple[str, ...], inputs: tuple[str, ...]) -> bool:
        fd = os.open(self.path, os.O_PATH | os.O_DIRECTORY)
        try:
            return proof.must_run(fd, changed, inputs, ())
        finally:
            os.close(fd)

    def failures(self, **facts: object) -> set[str]:
        return {finding.code for finding in self.prove(**facts).failures}

    def warnings(self, **facts: object) -> set[str]:
        found = self.prove(**facts)
        assert found.passed, found.failures
        return {finding.code for finding in found.warnings}


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    (tmp_path / "secret").write_bytes(b"host")
    before = len(os.listdir("/proc/self/fd"))
    yield Root(tmp_path / "root")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_root_that_boots(root: Root) -> None:
    root.write({"boot/intel-ucode.img": (0o644, microcode())})
    root.remember()
    found = root.prove(volume_uuid="x", is_missing=lambda uuid: True)
    assert (found.failures, found.warnings) == ((), ())
    assert found.kernels == {"lts": RELEASE}
    assert set(found.images) == {"boot/initramfs-lts", "boot/intel-ucode.img"}
    assert {"bin/busybox", "etc/inittab", *LTS} <= set(found.inputs)
    assert root.prove(menu_paths=("/current/0/@/boot/vmlinuz-lts", "boot/initramfs-lts", "intel-ucode.img")).passed


def test_a_root_with_merged_usr(root: Root) -> None:
    for name in ("bin", "sbin", "lib"):
        (root.path / "usr").mkdir(exist_ok=True)
        (root.path / name).rename(root.path / "usr" / name)
        (root.path / name).symlink_to(f"/usr/{name}")
    assert root.prove().failures == ()


@pytest.mark.parametrize("compression", ["none", "xz", "lzma", "bzip2", "zstd", "lz4"])
def test_images_of_every_compression(root: Root, compression: str) -> None:
    root.write(root.image(initramfs_image(RELEASE, compression=compression)))
    assert root.failures() == set()


Break = Callable[[Root], None]


def without(*words: str) -> Break:
    return lambda root: root.write(root.image(initramfs_image(RELEASE, without=words)))


def remove(path: str) -> Break:
    return lambda root: root.remove(path)


def replace(path: str, content: bytes, mode: int = 0o644) -> Break:
    return lambda root: root.write({path: (mode, content)})


def fstab(old: str, new: str) -> Break:
    return lambda root: root.text("etc/fstab", FSTAB.format(generation=GENERATION).replace(old, new))


def extra(name: str, mode: int, content: bytes, *leave: str) -> Break:
    return lambda root: root.write(root.image(initramfs_image(RELEASE, (name, mode, content), without=leave)))


def chmod(path: str, mode: int) -> Break:
    return lambda root: (root.path / path).chmod(mode)


def link(path: str, target: str) -> Break:
    return lambda root: root.write({path: ("symlink", target)})


MODULES = f"usr/lib/modules/{RELEASE}"
FOREIGN = elf()[:18] + (183).to_bytes(2, "little") + elf()[20:]


def file_at(path: str) -> Break:
    def break_it(root: Root) -> None:
        root.remove(path)
        root.text(path, "a file")

    return break_it


def without_services(*names: str) -> Break:
    def break_it(root: Root) -> None:
        for name in names:
            root.remove(f"etc/init.d/{name}")

    return break_it


FAILURES: dict[str, tuple[Break, str]] = {
    # kernel
    "kernel image missing": (remove("boot/vmlinuz-lts"), "kernel-missing"),
    "kernel image cut short": (replace("boot/vmlinuz-lts", bzimage(RELEASE)[:-100]), "kernel-damaged"),
    "kernel image empty": (replace("boot/vmlinuz-lts", b""), "kernel-damaged"),
    "kernel image on the host": (link("boot/vmlinuz-lts", "../../secret"), "kernel-missing"),
    "kernel image of another release": (replace("boot/vmlinuz-lts", bzimage(OTHER)), "kernel-release"),
    "kernel.release of another": (replace("usr/share/kernel/lts/kernel.release", OTHER.encode()), "modules-missing"),
    "modules missing": (remove(f"lib/modules/{RELEASE}"), "modules-missing"),
    "modules.dep missing": (remove(f"lib/modules/{RELEASE}/modules.dep"), "modules-table"),
    "modules.dep empty": (replace(f"lib/modules/{RELEASE}/modules.dep", b""), "modules-table"),
    "modules.builtin missing": (remove(f"lib/modules/{RELEASE}/modules.builtin"), "modules-table"),
    "no btrfs in the kernel": (replace(f"lib/modules/{RELEASE}/modules.dep", b"kernel/x.ko:\n"), "modules-no-btrfs"),
    # initramfs
    "image missing": (remove("boot/initramfs-lts"), "initramfs-missing"),
    "image empty": (replace("boot/initramfs-lts", b""), "initramfs-damaged"),
    "image cut short": (replace("boot/initramfs-lts", initramfs_image(RELEASE)[:-1]), "initramfs-damaged"),
    "image followed by junk": (replace("boot/initramfs-lts", initramfs_image(RELEASE) + b"junk"), "initramfs-damaged"),
    "image of another release": (replace("boot/initramfs-lts", initramfs_image(OTHER)), "initramfs-wrong-release"),
    "image without modules": (without("modules/"), "initramfs-wrong-release"),
    "image without btrfs": (without("btrfs.ko"), "initramfs-no-btrfs"),
    "image without a dependency": (without("xor.ko"), "initramfs-no-dependency"),
    "image without modules.dep": (without("modules.dep"), "initramfs-no-table"),
    "image with another modules.dep": (
        extra(f"{MODULES}/modules.dep", REGULAR, b"kernel/x.ko:\n"), "initramfs-no-table",
    ),
    "image without init": (without("init"), "initramfs-no-init"),
    "image with an init that nobody may run": (extra("init", REGULAR, b"#!/bin/sh\n"), "initramfs-no-init"),
    "image without a shell": (without("bin/sh"), "initramfs-no-interpreter"),
    "image with a shell that leads nowhere": (
        extra("usr/bin/sh", stat.S_IFLNK, b"/bin/ash"), "initramfs-no-interpreter",
    ),
    "image without the shell's linker": (
        extra("usr/bin/busybox", stat.S_IFREG | 0o755, elf(MUSL)), "initramfs-no-interpreter",
    ),
    "image without nlplug-findfs": (without("nlplug"), "initramfs-no-helper"),
    "image with staging baked in": (extra("etc/cmdline.d/root.conf", REGULAR, STAGING), "initramfs-staging"),
    "microcode damaged": (replace("boot/amd-ucode.img", b"damaged"), "initramfs-damaged"),
    # init
    "init missing": (remove("sbin/init"), "init-missing"),
    "init leads nowhere": (link("sbin/init", "/bin/none"), "init-missing"),
    "init on the host": (link("sbin/init", "../../secret"), "init-missing"),
    "init in a loop": (link("sbin/init", "init"), "init-missing"),
    "init is a directory": (link("sbin/init", "/etc"), "init-missing"),
    "init not executable": (chmod("bin/busybox", 0o644), "init-not-executable"),
    "init cut short": (replace("bin/busybox", elf()[:-1], 0o755), "init-damaged"),
    "init is no program": (replace("bin/busybox", b"hello", 0o755), "init-damaged"),
    "init's linker missing": (replace("bin/busybox", elf(MUSL), 0o755), "init-interpreter"),
    "init is a script without interpreter": (replace("bin/busybox", b"#!/bin/none\n", 0o755), "init-missing"),
    "init is a script of itself": (replace("bin/busybox", b"#!/sbin/init\n", 0o755), "init-missing"),
    "shell missing": (remove("bin/sh"), "shell-missing"),
    "inittab missing": (remove("etc/inittab"), "inittab-missing"),
    "openrc missing": (remove("sbin/openrc"), "inittab-program"),
    "openrc not executable": (chmod("sbin/openrc", 0o644), "inittab-program"),
    "openrc empty": (replace("sbin/openrc", b"", 0o755), "inittab-program"),
    "openrc without its library": (replace("sbin/openrc", elf("/lib/ld", ("librc.so.1",)), 0o755), "inittab-program"),
    "inittab without sysinit": (replace("etc/inittab", b"# nothing\n::wait:/sbin/openrc default\n"), "inittab-sysinit"),
    "inittab with a comment for sysinit": (replace("etc/inittab", b"#::sysinit:/sbin/openrc\n"), "inittab-sysinit"),
    "no service at all": (remove("etc/init.d"), "runlevel-empty"),
    "services of boot gone": (without_services("modules", "hostname"), "runlevel-empty"),
    "init of another machine": (replace("bin/busybox", FOREIGN, 0o755), "init-machine"),
    "openrc of another machine": (replace("sbin/openrc", FOREIGN, 0o755), "inittab-program"),
    "no root": (replace("etc/passwd", b"user:x:0:0::/:/bin/sh\n"), "no-root-account"),
    "sysinit empty": (remove("etc/runlevels/sysinit"), "runlevel-empty"),
    "boot empty": (remove("etc/runlevels/boot"), "runlevel-empty"),
    # fstab
    "fstab missing": (remove("etc/fstab"), "fstab-missing"),
    "fstab is a link to the host": (link("etc/fstab", "../../secret"), "fstab-missing"),
    "fstab without /": (fstab(" / ", " /other "), "fstab-root"),
    "fstab with two /": (fstab("tmpfs /tmp", "tmpfs /"), "fstab-root"),
    "fstab with another file system": (fstab("/ btrfs", "/ ext4"), "fstab-root"),
    "fstab of another generation": (fstab("abcdefgh", "hgfedcba"), "fstab-generation"),
    "fstab of the link": (fstab(GENERATION, "/current/0"), "fstab-generation"),
    "fstab without subvol": (fstab(f"subvol={GENERATION}/@,", ""), "fstab-generation"),
    "fstab with a part of another generation": (
        fstab("/commons/@home", "/snapshots/20260101000000hgfedcba/@usr"), "fstab-generation",
    ),
    "fstab with rw": (fstab("ro,noatime", "noatime"), "fstab-ro"),
    "fstab with rw after ro": (fstab("noatime", "rw"), "fstab-ro"),
    "fstab with subvolid": (fstab("noatime", "subvolid=5"), "fstab-subvolid"),
    "fstab not rendered": (fstab(GENERATION, "CURRENT_SNAPSHOTS_PATH"), "fstab-template"),
    "mount point missing": (remove("home"), "mount-point"),
    "mount point is a file": (file_at("home"), "mount-point"),
    # staging
    "staging in fstab": (fstab(GENERATION, "/staging/20260101000000abcdefgh"), "staging"),
    "staging in the kernel command line": (replace("etc/kernel/cmdline", STAGING), "staging"),
    "staging in dracut.conf.d": (replace("etc/dracut.conf.d/root.conf", STAGING), "staging"),
    "staging in grub.cfg": (replace("boot/grub/grub.cfg", STAGING), "staging-loader"),
    "staging in a loader entry": (replace("boot/loader/entries/alpine.conf", STAGING), "staging-loader"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILURES)
def test_what_does_not_boot(root: Root, case: str) -> None:
    break_it, code = FAILURES[case]
    break_it(root)
    assert code in root.failures()


WARNINGS: dict[str, tuple[Break, str]] = {
    "modules left over": (replace("lib/modules/6.1.0-0-lts/modules.dep", b"x"), "modules-left"),
    "a kernel for GRUB only": (replace("boot/vmlinuz-lts", bzimage(RELEASE, efi=False)), "kernel-no-efi"),
    "an image with two releases": (extra(f"usr/lib/modules/{OTHER}/x.ko", REGULAR, b"x"), "initramfs-other-release"),
    "microcode without microcode": (replace("boot/amd-ucode.img", initramfs_image(RELEASE)), "microcode-empty"),
    "an empty service": (link("etc/runlevels/boot/gone", "/etc/init.d/gone"), "runlevel-dangling"),
    "fsck of btrfs": (fstab("noatime 0 0", "noatime 0 1"), "fstab-passno"),
    "subvolid of a common": (fstab("subvol=/commons/@home", "subvolid=300"), "fstab-subvolid"),
    "a line that is none": (fstab("tmpfs /tmp tmpfs nosuid,nodev 0 0", "hello"), "fstab-line"),
    "an optional mount point": (fstab("tmpfs /tmp tmpfs nosuid", "tmpfs /mnt/x tmpfs nofail"), "mount-point"),
    "no resolv.conf": (remove("etc/resolv.conf"), "resolv-conf"),
    "resolv.conf of a sealed root": (link("etc/resolv.conf", "../var/lib/resolv.conf"), "resolv-conf"),
    "resolv.conf in a loop": (link("etc/resolv.conf", "resolv.conf"), "resolv-conf"),
    "D-Bus without a machine-id": (link("etc/runlevels/boot/dbus", "/etc/init.d/hostname"), "machine-id"),
    "ssh without host keys": (link("etc/runlevels/default/sshd", "/etc/init.d/hostname"), "host-keys"),
    "a damaged kernel that is not installed": (replace("boot/vmlinuz-old", b"old"), "kernel-damaged"),
}


@pytest.mark.parametrize("case", WARNINGS)
def test_what_deserves_a_word(root: Root, case: str) -> None:
    break_it, code = WARNINGS[case]
    break_it(root)
    assert code in root.warnings()


@pytest.mark.parametrize(
    "line", ["dev /dev/x tmpfs ro", "tmpfs /run/x tmpfs rw", "LABEL=x /home/y btrfs subvol=/z", "/swap none swap sw"]
)
def test_mount_points_that_need_not_exist(root: Root, line: str) -> None:
    root.text("etc/fstab", FSTAB.format(generation=GENERATION) + line + "\n")
    assert root.warnings() == set()


def test_a_sysinit_that_makes_no_devices(root: Root) -> None:
    root.remove("etc/runlevels/sysinit/devfs")
    assert root.warnings() == set()
    root.remove("etc/runlevels/sysinit/mdev")
    root.write({"etc/runlevels/sysinit/dmesg": ("symlink", "/etc/init.d/hostname")})
    assert root.warnings() == {"runlevel-devices"}


def test_btrfs_built_in_needs_no_module_in_the_image(root: Root) -> None:
    root.write(kernel_files("lts", RELEASE, builtin=(*BUILTIN, *WITHOUT_BUILTIN_BTRFS)))
    root.write(root.image(initramfs_image(RELEASE, without=("modules/",))))
    assert root.failures() == set()
    root.write(root.image(initramfs_image(OTHER)))
    assert root.failures() == {"initramfs-wrong-release"}
    root.remove("boot/initramfs-lts")
    assert root.failures() == {"initramfs-missing"}
    assert root.warnings(menu_paths=("boot/vmlinuz-lts",)) == {"initramfs-missing"}


def test_missing_decompressor_names_the_package(root: Root) -> None:
    root.write(root.image(initramfs_image(RELEASE, compression="lz4")))
    (finding,) = root.prove(decompress=None).failures
    assert finding.code == "missing-tool"
    assert "add the package lz4" in finding.message


def test_images_made_elsewhere(root: Root) -> None:
    root.text("etc/mkinitfs/mkinitfs.conf", "disable_trigger=yes\n")
    root.remove("boot/initramfs-lts")
    assert root.warnings() == {"initramfs-elsewhere"}


@pytest.mark.parametrize("name", ["dracut-lts", "booster-lts"])
def test_images_of_other_generators(root: Root, name: str) -> None:
    (root.path / "boot/initramfs-lts").rename(root.path / f"boot/{name}")
    assert root.prove().passed
    root.write({f"boot/{name}": (0o600, initramfs_image(OTHER))})
    assert root.failures() == {"initramfs-wrong-release"}


def test_programs_libraries(root: Root) -> None:
    libc, libz = "libc.musl-x86_64.so.1", "libz.so.1"
    root.write({"bin/busybox": (0o755, elf(MUSL, (libc, libz))), MUSL[1:]: (0o755, elf())})
    root.write(root.image(initramfs_image(RELEASE)))
    assert root.failures() == {"init-library", "shell-library"}
    root.write({f"usr/lib/{libz}": (0o755, elf("", ("libgone.so",)))})
    assert root.failures() == {"init-library", "shell-library"}
    root.write({"usr/local/lib/libgone.so": (0o755, elf())})
    found = root.prove()
    assert found.passed
    assert {f"usr/lib/{libz}", "usr/local/lib/libgone.so", MUSL[1:]} <= set(found.inputs)
    root.text("etc/ld-musl-x86_64.path", "/opt/lib:/lib\n")
    assert root.failures() == {"init-library", "shell-library"}


# ---- several kernels, and the boot menu ------------------------------------------------------------------------------


@pytest.fixture
def two(root: Root) -> Root:
    root.write({**kernel_files("virt", VIRT), **root.image(initramfs_image(VIRT), "virt")})
    root.remember()
    return root


def test_two_flavors(two: Root) -> None:
    assert two.prove().kernels == {"lts": RELEASE, "virt": VIRT}
    two.write(two.image(initramfs_image(RELEASE), "virt"))
    assert two.failures() == {"initramfs-wrong-release"}


def test_a_flavor_that_the_menu_does_not_boot(two: Root) -> None:
    two.write(two.image(b"damaged", "virt"))
    assert two.warnings(menu_paths=LTS) == {"initramfs-damaged"}
    assert two.failures(menu_paths=(*LTS, "boot/vmlinuz-virt", "boot/initramfs-virt")) == {"initramfs-damaged"}


def remove_kernel(root: Root, flavor: str, release: str) -> None:
    for path in (f"boot/vmlinuz-{flavor}", f"boot/initramfs-{flavor}", f"usr/share/kernel/{flavor}"):
        root.remove(path)
    root.remove(f"lib/modules/{release}")


def test_kernel_replaced_by_another_flavor_does_not_survive_a_static_menu(two: Root) -> None:
    remove_kernel(two, "lts", RELEASE)
    assert two.failures() == {"menu-path"}
    assert two.failures(menu_paths=LTS) == {"menu-path"}
    assert two.warnings(allow_removed=True) == {"menu-path"}
    assert two.warnings(menu_paths=("boot/vmlinuz-virt", "boot/initramfs-virt")) == set()
    assert two.failures(menu_paths=LTS, allow_removed=True) == {"menu-path"}


def test_last_kernel_removed(root: Root) -> None:
    root.remember()
    remove_kernel(root, "lts", RELEASE)
    assert root.failures() == {"menu-path"}
    assert root.warnings(allow_removed=True) == {"menu-path"}


def test_root_that_never_had_a_kernel(root: Root) -> None:
    remove_kernel(root, "lts", RELEASE)
    root.remove("sbin/init")
    root.remove("etc/runlevels")
    assert root.warnings() == {"no-kernel"}
    assert root.failures(menu_paths=("boot/vmlinuz-lts",)) >= {"menu-path", "init-missing"}
    fstab("ro,", "")(root)
    assert root.failures() == {"fstab-ro"}


def test_empty_root(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    found = proof.prove(fd, ProofInput(GENERATION))
    os.close(fd)
    assert [finding.code for finding in found.failures] == ["fstab-missing"]
    assert [finding.code for finding in found.warnings] == ["no-kernel"]


def test_menu_with_an_image_of_its_own_name(root: Root) -> None:
    (root.path / "boot/initramfs-lts").rename(root.path / "boot/initrd.img")
    menu = ("boot/vmlinuz-lts", "boot/initrd.img")
    root.write({"boot/initramfs-lts": (0o600, b"unused")})
    assert root.warnings(menu_paths=menu) == {"initramfs-damaged"}
    root.write({"boot/initrd.img": (0o600, initramfs_image(OTHER))})
    assert root.failures(menu_paths=menu) == {"initramfs-wrong-release"}


def test_menu_path_that_is_empty_or_no_file(root: Root) -> None:
    root.write({"boot/amd-ucode.img": (0o644, b"")})
    assert "menu-path" in root.failures(menu_paths=(*LTS, "boot/amd-ucode.img"))
    assert root.failures(menu_paths=(*LTS, "boot")) == {"menu-path"}


def boot_moved(root: Root, link: str) -> None:
    (root.path / "boot").rename(root.path / "usr/boot")
    (root.path / "boot").symlink_to(link)


def image_moved(root: Root, link: str) -> None:
    (root.path / "boot/initramfs-lts").rename(root.path / "boot/x")
    (root.path / "boot/initramfs-lts").symlink_to(link)


@pytest.mark.parametrize("menu", [None, LTS])
@pytest.mark.parametrize(
    ("move", "link", "found"),
    [
        (boot_moved, "/usr/boot", {"menu-link"}),
        (boot_moved, "usr/boot", set()),
        (boot_moved, "../usr/boot", {"menu-link"}),
        (image_moved, "/boot/x", {"menu-link"}),
        (image_moved, "x", set()),
        (image_moved, "../boot/x", set()),
    ],
)
def test_links_that_a_boot_loader_reads_otherwise(
    root: Root, move: Callable[[Root, str], None], link: str, found: set[str], menu: tuple[str, ...] | None
) -> None:
    """It starts at the top level of the volume: there is no /boot there, and `..` leads out of the generation."""
    root.remember()
    move(root, link)
    assert root.failures(menu_paths=menu) == found
    assert found or "usr/boot/vmlinuz-lts" in root.prove().inputs or move is image_moved


def test_grub_cfg_does_not_count_beside_a_static_menu(root: Root) -> None:
    root.write({"boot/grub/grub.cfg": (0o600, STAGING)})
    assert root.warnings(menu_paths=LTS) == {"staging-loader"}


def test_microcode_that_the_menu_does_not_load(root: Root) -> None:
    root.write({"boot/intel-ucode.img": (0o644, microcode())})
    assert root.warnings(menu_paths=LTS) == {"microcode-unused"}
    assert root.warnings(menu_paths=(*LTS, "boot/intel-ucode.img")) == set()
    assert root.warnings() == set()


@pytest.mark.parametrize("target", ["/run/resolv.conf", "../tmp/resolv.conf", "/var/run/x", "/etc/hosts"])
def test_a_resolv_conf_that_can_be_written_or_is_there(root: Root, target: str) -> None:
    root.text("etc/hosts", "")
    root.write({"etc/resolv.conf": ("symlink", target)})
    assert root.warnings() == set()


def test_what_services_of_a_sealed_root_find(root: Root) -> None:
    root.text("etc/machine-id", "0123456789abcdef0123456789abcdef\n")
    root.write({"etc/ssh/ssh_host_ed25519_key": (0o600, b"key")})
    for name in ("dbus", "sshd"):
        root.write({f"etc/runlevels/default/{name}": ("symlink", "/etc/init.d/hostname")})
    assert root.warnings() == set()
    root.text("etc/machine-id", "\n")
    assert root.warnings() == {"machine-id"}


# ---- what is not in the root -----------------------------------------------------------------------------------------


def test_facts_of_the_volume(root: Root) -> None:
    assert root.failures(default_subvolume=256) == {"default-subvolume"}
    fstab("LABEL=ROOT /", "UUID=1234-ABCD /")(root)
    assert root.failures(volume_uuid="1234-abce") == {"fstab-volume"}
    assert root.warnings(volume_uuid="1234-abcd") == set()
    assert root.warnings(is_missing=lambda uuid: True) == {"fstab-uuid"}
    assert root.warnings(is_missing=lambda uuid: False) == set()


def test_devices_are_asked_only_of_what_is_not_known(root: Root) -> None:
    """The volume is mounted, and a label says nothing: a plain fstab makes the proof of each transaction read none."""
    asked: list[str] = []

    def is_missing(uuid: str) -> bool:
        asked.append(uuid)
        return False

    fstab("LABEL=ROOT /", "UUID=1234-ABCD /")(root)
    root.prove(volume_uuid="1234-abcd", is_missing=is_missing)
    assert asked == []
    fstab("tmpfs", 'UUID="CAFE" /opt ext4 ro 0 0\nUUID=BEEF /mnt ext4 noauto 0 0\ntmpfs')(root)
    root.prove(volume_uuid="1234-abcd", is_missing=is_missing)
    assert asked == ["CAFE"]


def test_resume(root: Root) -> None:
    assert root.warnings(resume="UUID=1") == set()
    assert root.warnings(resume="UUID=1", hibernated=True) == {"resume"}


def test_drivers_of_this_disk(root: Root) -> None:
    root.write(root.image(initramfs_image(RELEASE, without=("virtio",))))
    assert root.warnings(wanted_modules=("virtio-blk", "libcrc32c", "unknown")) == {"initramfs-no-driver"}
    assert root.warnings(wanted_modules=("xor",)) == set()


def test_images_already_read_are_not_read_again(root: Root) -> None:
    images = root.prove().images
    root.write(root.image(b"damaged"))
    assert root.prove(images=images).passed


# ---- inherited -------------------------------------------------------------------------------------------------------


def test_what_no_generation_inherits(root: Root) -> None:
    root.remember()
    root.write(root.image(b"damaged"))
    assert root.prove_own().passed
    for facts in ({"generation_path": "/snapshots/x"}, {"default_subvolume": 7}, {"menu_paths": ("boot/gone",)}):
        assert not root.prove_own(**facts).passed
    assert root.prove_own(menu_paths=LTS).passed
    assert [each.code for each in root.prove_own(menu_paths=LTS, init="/usr/bin/gone").failures] == ["init-missing"]
    root.remove("boot/initramfs-lts")
    assert not root.prove_own().passed


@pytest.mark.parametrize(
    ("changed", "due"),
    [
        (("etc/fstab", "etc", "usr/share/doc", "usr/bin/new"), False),
        (("usr/bin/busybox",), True),
        (("/bin/busybox",), True),
        (("boot",), True),
        (("usr/lib/modules/x/y.ko",), True),
        (("etc/runlevels/boot/new",), True),
        (("etc/inittab",), True),
        (("sbin/fsck.member",), True),
        (("sbin", "bin", "usr/sbin", "etc", "home"), False),
        ((), False),
    ],
)
def test_when_a_full_proof_is_due(root: Root, changed: tuple[str, ...], due: bool) -> None:
    inputs = root.prove().inputs
    fd = os.open(root.path, os.O_RDONLY)
    assert proof.must_run(fd, changed, inputs, ("usr/sbin", "etc", "usr/sbin/fsck.member")) is due
    assert proof.must_run(fd, changed, (), ())
    os.close(fd)


def test_a_full_proof_is_due_when_an_input_is_gone(root: Root) -> None:
    inputs = root.prove().inputs
    root.remove("etc/inittab")
    fd = os.open(root.path, os.O_RDONLY)
    assert proof.must_run(fd, ("etc",), inputs, ())
    os.close(fd)


def test_programs_of_an_older_machine_run_too(root: Root) -> None:
    """A 32-bit root on a 64-bit kernel; and a kernel that does not say what it runs is not asked."""
    root.write({"sbin/openrc": (0o755, elf()[:18] + b"\x03\0" + elf()[20:])})
    assert root.prove().passed
    root.write({"sbin/openrc": (0o755, FOREIGN), "boot/vmlinuz-lts": (0o644, gzip.compress(arm64_image(RELEASE)))})
    assert root.prove().passed
    root.write({"boot/vmlinuz-lts": (0o644, arm64_image(RELEASE))})
    assert root.failures() == {"init-machine", "shell-machine"}


def test_a_file_may_be_bound_over_a_file(root: Root) -> None:
    root.text("etc/hosts", "")
    root.text("etc/fstab", FSTAB.format(generation=GENERATION) + "/home/hosts /etc/hosts none bind 0 0\n")
    assert root.prove().passed


def test_a_linker_of_another_machine(root: Root) -> None:
    root.write({"sbin/init": (0o755, elf(MUSL)), MUSL[1:]: (0o755, FOREIGN)})
    assert root.failures() == {"init-interpreter"}


def test_services_of_the_runlevels_are_inputs(root: Root) -> None:
    found = root.prove()
    root.remove("etc/init.d/hostname")
    assert root.must_run(("etc/init.d", "etc/init.d/hostname"), found.inputs)
    root.remove("etc/init.d")
    assert root.must_run(("etc", "etc/init.d"), found.inputs)


def linked_init(root: Root) -> None:
    """An init of which everything is found by links: its interpreter, a library, and that by one more."""
    root.write({
        "sbin/init": (0o755, elf(f"/lib64/{MUSL_NAME}", ("libx.so.1",))),
        f"lib64/{MUSL_NAME}": ("symlink", "ld-link.so"),
        "lib64/ld-link.so": ("symlink", "ld-real.so"),
        "lib64/ld-real.so": (0o755, elf()),
        "usr/other/libx.so.1": ("symlink", "libx.so.link"),
        "usr/other/libx.so.link": ("symlink", "/opt/libx.so.1.0"),
        "opt/libx.so.1.0": (0o755, elf()),
        "etc/ld-musl-x86_64.path": (0o644, b"/lib:/usr/other"),
    })  # fmt: skip


@pytest.mark.parametrize(
    "path",
    [
        f"lib64/{MUSL_NAME}", "lib64/ld-link.so", "lib64/ld-real.so", "usr/other/libx.so.1",
        "usr/other/libx.so.link", "opt/libx.so.1.0", "etc/ld-musl-x86_64.path",
    ],
)  # fmt: skip
def test_every_link_to_what_init_needs_is_an_input(root: Root, path: str) -> None:
    linked_init(root)
    found = root.prove()
    assert found.passed, found.failures
    root.remove(path)
    assert root.must_run((path, str(Path(path).parent)), found.inputs)
    assert not root.prove().passed


def test_a_library_that_comes_before_the_one_that_was_found(root: Root) -> None:
    linked_init(root)
    inputs = root.prove().inputs
    root.write({"lib/libx.so.1": (0o755, b"no library")})
    assert root.must_run(("lib", "lib/libx.so.1"), inputs)
    assert root.failures() == {"init-damaged"}


def test_directories_to_look_in_that_are_new(root: Root) -> None:
    root.write({"sbin/init": (0o755, elf(MUSL, ("libx.so.1",)))})
    root.write({MUSL[1:]: (0o755, elf()), "lib/libx.so.1": (0o755, elf())})
    inputs = root.prove().inputs
    root.text("etc/ld-musl-x86_64.path", "/nowhere")
    assert root.must_run(("etc", "etc/ld-musl-x86_64.path"), inputs)
    assert root.failures() == {"init-library"}


def test_the_link_of_a_merged_usr(root: Root) -> None:
    for name in ("bin", "sbin", "lib"):
        (root.path / name).rename(root.path / f"usr/{name}")
        (root.path / name).symlink_to(f"usr/{name}")
    found = root.prove()
    assert found.passed, found.failures
    assert not root.must_run(("usr/bin", "usr/lib", "usr/sbin", "usr/bin/new"), found.inputs)
    root.remove("bin")
    assert root.must_run(("bin",), found.inputs)
    (root.path / "opt").mkdir()
    (root.path / "bin").symlink_to("opt")
    assert root.must_run(("bin",), found.inputs)
    assert not root.prove().passed


# ---- any bytes -------------------------------------------------------------------------------------------------------

TARGETS = (
    "boot/vmlinuz-lts", "boot/initramfs-lts", f"lib/modules/{RELEASE}/modules.dep", "etc/fstab", "etc/inittab",
    "bin/busybox", "usr/share/kernel/lts/kernel.release", "etc/mkinitfs/mkinitfs.conf", "etc/passwd",
    f"lib/modules/{RELEASE}/modules.builtin", "boot/amd-ucode.img", "etc/ld-musl-x86_64.path",
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    target=st.sampled_from(TARGETS),
    content=st.one_of(
        st.binary(max_size=300),
        st.text(max_size=80).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.sampled_from([b"#!", b"#!\n", b"#!/\0x\n", elf("/../../secret\0"), elf("x" * 300, ("../" * 99, "\t"))]),
    ),
)
def test_any_content_gives_a_verdict(root: Root, target: str, content: bytes) -> None:
    kept = (root.path / target).read_bytes() if (root.path / target).exists() else None
    root.write({target: (0o755, content)})
    started = time.monotonic()
    root.prove()
    assert time.monotonic() - started < 5
    if kept is None:
        root.remove(target)
    else:
        root.write({target: (0o755, kept)})


@pytest.mark.parametrize("kind", ["pipe", "socket-like", "directory", "loop", "outside", "device"])
def test_odd_files_everywhere(root: Root, kind: str) -> None:
    """None blocks, none reaches the host, each is a verdict."""
    for path in (*TARGETS, "sbin/init", "etc/runlevels/boot", "usr/share/kernel/lts", "lib/modules", "boot/dracut-lts"):
        target = root.path / path
        if target.exists() or target.is_symlink():
            root.remove(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        make: dict[str, Callable[[Path], None]] = {
            "pipe": os.mkfifo,
            "socket-like": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
            "directory": os.mkdir,
            "loop": lambda path: path.symlink_to(path.name),
            "outside": lambda path: path.symlink_to("../../../../../../secret"),
            "device": lambda path: path.symlink_to("/dev/zero"),
        }
        if kind == "device":
            root.write({"dev/zero": (0o644, b"")})
        make[kind](target)
    root.remember()
    assert not root.prove(menu_paths=LTS).passed
    assert not root.prove().passed
