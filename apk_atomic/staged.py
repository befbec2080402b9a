"""The staged root of a transaction: opened beside its base, with the mounts that a change in it gets."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

from apk_atomic import chroot, files, fstab, namespace
from apk_atomic.changed import Part
from apk_atomic.chroot import Bind, Common, RootPlan
from apk_atomic.config import Config
from apk_atomic.databases import Databases
from apk_atomic.errors import CheckFailed
from apk_atomic.journal import STAGING
from apk_atomic.namespace import Command
from apk_atomic.session import Work
from apk_atomic.volume import TOP_LEVEL, Volume, subvolumes_of

FSTAB = "etc/fstab"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_LIMIT = 1 << 20  # bytes of an fstab or resolv.conf
_GET_FSLABEL = 0x81009431  # BTRFS_IOC_GET_FSLABEL, <linux/btrfs.h>
_DISK_LINKS = {"PARTUUID": "by-partuuid", "PARTLABEL": "by-partlabel", "ID": "by-id"}


class Staged(NamedTuple):
    """`root` and `base_root` are directory descriptors of the writable staged root and of the sealed base.

    `meanwhile` is what this process does while a command runs in the root.
    """

    work: Work
    id: str
    base: str
    root: int
    base_root: int
    fstab: fstab.Rendered
    plan: RootPlan
    databases: Databases
    meanwhile: Callable[[], None] | None = None

    @property
    def commons(self) -> tuple[Common, ...]:
        """What of the plan is shared by all generations: the rest belongs to this one, beside its `@`."""
        own = f"/{STAGING}/{self.id}/"
        return tuple(common for common in self.plan.commons if not common.subvolume.startswith(own))

    @contextmanager
    def parts(self) -> Iterator[tuple[Part, ...]]:
        """Every subvolume of the generation, `@` first, for `changed.compare`."""
        top = self.work.volume.top
        places = {common.subvolume: common.point.lstrip("/") for common in self.plan.commons}
        with ExitStack() as stack:
            found = [Part("", self.base_root, self.root)]
            for name in subvolumes_of(self.work.volume, self.base)[1:]:
                base = files.open_beneath(top, f"snapshots/{self.base}/{name}", _DIRECTORY)
                stack.callback(os.close, base)
                root = files.open_beneath(top, f"{STAGING}/{self.id}/{name}", _DIRECTORY)
                stack.callback(os.close, root)
                found.append(Part(places.get(f"/{STAGING}/{self.id}/{name}", name), base, root))
            yield tuple(found)

    def run(self, command: Command, binds: Sequence[Bind] = ()) -> int:
        """Runs a command in the root; its exit status. Every process that it started is dead afterwards."""
        plan = self.plan._replace(binds=tuple(binds))
        signals, held = self.work.signals, (self.work.lock,)
        return namespace.run(command, lambda: chroot.enter(plan), signals, held=held, meanwhile=self.meanwhile)


def plan_staged(volume: Volume, config: Config, name: str, text: str) -> RootPlan:
    """The root of the change in `staging/NAME`, whose etc/fstab is `text`."""
    return RootPlan(
        device=volume.device,
        subvolume=f"/staging/{name}/@",
        commons=present(volume, commons_of(volume, config, text, f"/snapshots/{name}", f"/staging/{name}")),
        tmp=f"{TOP_LEVEL}/staging/{name}/tmp",
        resolv=host_resolv(),
    )


def plan_sealed(volume: Volume, config: Config, name: str, root: int) -> RootPlan:
    """The sealed root of generation NAME, for what only reads it or writes to the shared cache."""
    named = commons_of(volume, config, read_fstab(root) or "", f"/snapshots/{name}", f"/snapshots/{name}")
    return RootPlan(
        device=volume.device,
        subvolume=f"/snapshots/{name}/@",
        commons=present(volume, tuple(common._replace(optional=True) for common in named)),
        resolv=host_resolv(),
        read_only=True,
    )


def commons_of(volume: Volume, config: Config, text: str, generation: str, place: str) -> tuple[Common, ...]:
    """The subvolumes of this volume that an fstab names.

    In `text` the generation is `generation` (`/snapshots/ID`); its own subvolumes are mounted from `place`,
    where it lies during the change.
    """
    found = fstab.mounts_for_change(
        fstab.parse(text), generation, lambda spec: is_volume(volume, spec), dict(config.chroot.commons)
    )
    return tuple(
        Common(
            each.mountpoint,
            f"{place}/{each.part}" if each.part else each.subvol,
            each.writable,
            each.flags,
            each.optional,
        )
        for each in found
    )


def make_mount_points(root: int, text: str) -> tuple[str, ...]:
    """Makes the mount points that an fstab names and a staged root lacks; the absolute paths of those that it made.

    A line that is new in the template is to work from the next boot on, and the root is sealed then. What stands in the
    way of one is left: whoever mounts or proves says so.
    """
    return tuple(point for point in fstab.points_in_root(fstab.parse(text)) if _make_mount_point(root, point))


def _make_mount_point(root: int, point: str) -> bool:
    try:
        os.close(files.open_in_root(root, point, os.O_PATH))
    except FileNotFoundError:
        with suppress(OSError):
            return files.make_directories(root, point)
    except OSError:
        return False
    return False


def present(volume: Volume, commons: tuple[Common, ...]) -> tuple[Common, ...]:
    """Those commons that are on the volume. Raises CheckFailed for one that is not, and is not marked nofail."""
    return tuple(common for common in commons if _is_present(volume, common))


def _is_present(volume: Volume, common: Common) -> bool:
    try:
        os.close(files.open_beneath(volume.top, common.subvolume.lstrip("/"), os.O_PATH | os.O_DIRECTORY))
    except OSError as error:
        if common.optional:
            return False
        name = common.subvolume.lstrip("/")
        raise CheckFailed(
            f"etc/fstab mounts {name} at {common.point}, which the volume does not have ({error.strerror}); "
            "nothing was changed",
            hint=f"mount -o subvolid=5 {volume.device} /mnt; then btrfs subvolume create /mnt/{name}, or vi /mnt/fstab",
        ) from error
    return True


def is_volume(volume: Volume, spec: str) -> bool:
    """Whether the first field of an fstab line names the device of the volume."""
    key, equals, value = spec.partition("=")
    value = value.strip('"')
    if not equals:
        return os.path.realpath(spec) == os.path.realpath(volume.device)
    if key == "UUID":
        return value.lower() == volume.fsid
    if key == "LABEL":
        return value == label_of(volume)
    link = f"/dev/disk/{_DISK_LINKS.get(key, key)}/{value}"
    # busybox mdev makes no such links: then a btrfs line that names one can hardly mean another volume
    return not os.path.exists(link) or os.path.realpath(link) == os.path.realpath(volume.device)


def label_of(volume: Volume) -> str:
    """The label of the volume's file system, "" for none."""
    buffer = bytearray(256)
    fcntl.ioctl(volume.top, _GET_FSLABEL, buffer)
    return os.fsdecode(bytes(buffer).split(b"\0")[0])


def host_resolv() -> bytes | None:
    """What the caller's /etc/resolv.conf says now; None where it has none."""
    try:
        with open("/etc/resolv.conf", "rb") as file:
            return file.read(_LIMIT)
    except OSError:
        return None


def write_fstab(root: int, text: str) -> None:
    """Writes etc/fstab into a staged root; a link or anything else in its place is replaced, never followed."""
    files.write_atomic(root, FSTAB, fstab.encode(text), 0o644)


def read_fstab(root: int) -> str | None:
    """etc/fstab of a root; None where there is no such regular file."""
    try:
        return fstab.decode(files.read_file(root, FSTAB, _LIMIT))
    except OSError:
        return None


def read_template(volume: Volume) -> str | None:
    """The fstab template at the top level; None where there is none. Raises CheckFailed where it cannot be read."""
    try:
        return fstab.decode(files.read_file(volume.top, "fstab", _LIMIT))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckFailed(
            f"the fstab template at the top level of the volume cannot be read: {error.strerror}; nothing was changed",
            hint=f"mount -o subvolid=5 {volume.device} /mnt; then put a plain file at /mnt/fstab",
        ) from error
