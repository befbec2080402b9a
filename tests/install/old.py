"""Systems as setup-disk and people make them, without the layout: a root at the top level of a btrfs, or in `@`.

    with old_system("/@") as old:
        old.boot()
        old.guest.run(["apk-atomic", "adopt"], check=True)

The root holds the tests' small distribution with a kernel, and apk-atomic. Nothing here is durable.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

from apk_atomic import loaders
from tests.install.disks import KERNEL, make_refind
from tests.support import btrfsctl, rootfs
from tests.support.blockdev import Loop, mount_btrfs, unmount
from tests.support.bootpackages import generator_package, kernel_package, system_package
from tests.support.guest import BOOT_STEPS, LAST_STEPS, Guest, Result
from tests.support.imagecache import cached_image, scratch_directory
from tests.support.isolation import copy_sparse, private_mounts, session_key
from tests.support.packages import Repository
from tests.support.world import MIB

SIZE = 768 * MIB
PLACEHOLDER = 2
LAYOUT = frozenset(("commons", "current", "fstab", "links", "next", "snapshots", "staging", "state"))
REFIND = "usr/share/refind"
# What setup-disk leaves in etc/fstab: a dump of /proc/mounts.
ROOT_LINE = "UUID={fsid} / btrfs rw,relatime,space_cache=v2,subvolid={number},subvol={subvolume} 0 1"
FSTAB = f"{ROOT_LINE}\n/dev/cdrom /media/cdrom iso9660 noauto,ro 0 0\n"
# A machine started by UEFI, with an ESP; the kernel here may know no FAT, so the ESP is what --esp says.
FIRMWARE = """\
mount -t tmpfs tmpfs $root/sys/firmware
mkdir $root/sys/firmware/efi
mount --bind {esp} $root/boot/efi
"""
ADOPT = ("--esp", "/boot/efi", "--no-nvram", "--append", "quiet")


class OldGuest(Guest):
    """The old system at run; its `subvolume` is / as the old loader has it."""

    def __init__(self, old: OldSystem, mountpoint: str, steps: str) -> None:
        self._subvolume, self._steps = old.subvolume, steps
        super().__init__(old.device, mountpoint, 0, "rw,relatime")

    def _script(self, slot: int) -> str:
        options = shlex.quote(f"subvol={self._subvolume}")
        device = shlex.quote(self.device)
        return (
            f"root={shlex.quote(self._mountpoint)}\nmount -t btrfs -o {options} {device} $root\n"
            + BOOT_STEPS.format(device=device) + self._steps + LAST_STEPS
        )  # fmt: skip


class OldSystem:
    """A volume with an old system; `top` is its top level, mounted in the test's own namespace.

    It is on `device`, or attached: then `image` is; where that lies, is also the place for all else.
    """

    def __init__(self, image: Path, subvolume: str, device: str = "") -> None:
        self.image, self.subvolume = image, subvolume
        self.top, self.esp = image.with_name("top"), image.with_name("esp")
        self.fsid = btrfsctl.fsid_of(image)
        self._loop = None if device else Loop(image)
        self._guests: list[Guest] = []
        self.device = self._loop.path if self._loop else device
        mount_btrfs(self.device, self.top)
        (self.esp / "EFI/alpine").mkdir(parents=True, exist_ok=True)
        (self.esp / "EFI/alpine/grubx64.efi").write_bytes(b"old loader")
        # an ESP is a file system of its own
        subprocess.run(["mount", "--bind", self.esp, self.esp], check=True)

    @property
    def root(self) -> Path:
        """The old root."""
        return self.top / self.subvolume.strip("/")

    def boot(self, steps: str = "") -> Guest:
        """Start the old system; `steps` are further lines of what starts it."""
        self.shutdown()
        place = self.image.with_name("guest")
        place.mkdir(exist_ok=True)
        found = OldGuest(self, str(place), FIRMWARE.format(esp=self.esp) + steps)
        self._guests.append(found)
        return found

    def boot_new(self, slot: int = 0) -> Guest:
        """Start what the new loader starts."""
        self.shutdown()
        place = self.image.with_name("guest")
        found = Guest(self.device, str(place), slot, "ro,noatime")
        self._guests.append(found)
        return found

    def shutdown(self) -> None:
        while self._guests:
            self._guests.pop().shutdown()

    def close(self) -> None:
        """Let go of everything. Idempotent."""
        self.shutdown()
        if not self.top.is_mount():
            return
        unmount(self.esp)
        unmount(self.top)
        if self._loop:
            self._loop.detach()

    def write_fstab(self, *lines: str, root: str = FSTAB) -> None:
        """etc/fstab as setup-disk leaves it, and further lines."""
        number = subprocess.check_output(["btrfs", "inspect-internal", "rootid", self.root], text=True).strip()
        text = root.format(fsid=self.fsid, number=number, subvolume=self.subvolume)
        (self.root / "etc/fstab").write_text(text + "".join(f"{line}\n" for line in lines))

    def adopt(self, *words: str, **environment: str) -> Result:
        """`apk-atomic adopt` in the running old system."""
        command = ["apk-atomic", "adopt", *words]
        return self._guests[-1].run(command, env=environment)

    def tree(self) -> dict[str, tuple[object, ...]]:
        """Every name of the old root with what is to be seen of it, but for what the layout adds beside it."""
        names = sorted(os.listdir(self.root))
        wanted = [name for name in names if self.subvolume != "/" or name not in LAYOUT]
        return {path: seen for name in wanted for path, seen in fingerprint(self.root / name, self.root).items()}

    def generation(self) -> Path:
        """The root in slot 0, sealed."""
        return self.top / "current/0/@"


def fingerprint(start: Path, base: Path) -> dict[str, tuple[object, ...]]:
    """A file or tree: kind, owner, times of writing, content or target, of every name; attributes of files."""
    found = {str(start.relative_to(base)): _seen(start)}
    if start.is_dir() and not start.is_symlink():
        for directory, directories, files in os.walk(start):
            for name in (*directories, *files):
                path = Path(directory, name)
                found[str(path.relative_to(base))] = _seen(path)
    return found


def _seen(path: Path) -> tuple[object, ...]:
    status = path.lstat()
    made_up = status.st_ino == PLACEHOLDER  # the time of what stands for a subvolume in a snapshot is always now
    base = (status.st_mode, status.st_uid, status.st_gid, 0 if made_up else status.st_mtime_ns)
    if stat.S_ISLNK(status.st_mode):
        return (*base, os.readlink(path))
    if stat.S_ISREG(status.st_mode):
        return (*base, status.st_nlink, path.read_bytes(), _attributes(path))
    return base


def _attributes(path: Path) -> dict[str, bytes]:
    return {name: os.getxattr(path, name) for name in os.listxattr(path)}


@contextlib.contextmanager
def old_system(subvolume: str = "/") -> Iterator[OldSystem]:
    """A fresh old system whose root is `subvolume` of its volume."""
    private_mounts()
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(scratch_directory("apk-atomic-old-"))
        image = place / "volume.img"
        copy_sparse(_image(subvolume), image)
        btrfsctl.renew_fsid(image)
        old = OldSystem(image, subvolume)
        stack.callback(old.close)
        old.write_fstab()
        yield old


def _image(subvolume: str) -> Path:
    def inputs() -> list[str]:
        return [subvolume, Path(__file__).read_text(), *rootfs.base_inputs(), *rootfs.project_inputs()]

    return cached_image(f"old{subvolume.replace('/', '-')}", inputs, lambda image: _build(image, subvolume))


def _build(image: Path, subvolume: str) -> None:
    btrfsctl.make_filesystem(image, SIZE)
    with contextlib.ExitStack() as stack:
        top = stack.enter_context(scratch_directory("apk-atomic-build-")) / "top"
        loop = Loop(image)
        stack.callback(loop.detach)
        mount_btrfs(loop.path, top)
        stack.callback(unmount, top)
        root = top / subvolume.strip("/")
        if subvolume != "/":
            btrfsctl.create_subvolume(root)
        rootfs.fill_base(root)
        rootfs.install_project(root)
        _install_packages(root)
        make_refind(root / REFIND)
        (root / "boot/efi").mkdir()
        (root / "home/user").mkdir()
        os.chown(root / "home/user", 1000, 1000)
        (root / "home/user/file").write_text("mine")
        (root / "var/log/messages").write_text("a line\n")


def _install_packages(root: Path) -> None:
    repository = Repository(root / "var/cache/repo", key=session_key())
    repository.publish(kernel_package(KERNEL), generator_package(), system_package())
    subprocess.run(["mount", "--bind", "/dev", root / "dev"], check=True)
    try:
        command = ["chroot", str(root), "/sbin/apk", "add", "openrc", "linux-lts"]
        subprocess.run(command, check=True, capture_output=True, env=rootfs.CLEAN)
    finally:
        subprocess.run(["umount", root / "dev"], check=True)
    shutil.rmtree(root / "tmp", ignore_errors=True)
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)


PROGRAM = f"{loaders.DIRECTORY}/refind_{loaders.suffix()}.efi"
