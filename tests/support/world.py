"""The throw-away world of the tests: a volume on a loop device, laid out as on a real machine.

    with make_volume() as volume:
        volume.repo.publish(Package("hello", files={"usr/bin/hello": File(b"#!/bin/sh\\n", 0o755)}))
        guest = volume.boot()
        guest.run(["apk-atomic", "add", "hello"], check=True)
        guest.reboot()

Everything is real: btrfs, mounts, root, apk. Nothing survives the `with`, whatever happens inside; a loop
device, mount or process that cannot be got rid of is an error.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support import btrfsctl, rootfs
from tests.support.blockdev import Loop, mount_btrfs, unmount
from tests.support.guest import Guest, Result
from tests.support.imagecache import cached_image, scratch_directory
from tests.support.isolation import copy_sparse, private_mounts, session_key
from tests.support.packages import Repository

__all__ = ["DEFAULT_SIZE", "FIRST", "MIB", "SLOTS", "Guest", "Result", "Volume", "make_volume"]

MIB = 1 << 20
DEFAULT_SIZE = 512 * MIB
SLOTS = 4
FIRST = "20240102030405abcdefgh"  # the generation that every volume is born with: foreign, in all slots
COMMONS = ("@home", "@var@cache", "@var@log")
FSTAB = """\
UUID={fsid} / btrfs ro,noatime,subvol=CURRENT_SNAPSHOTS_PATH/@ 0 0
UUID={fsid} /home btrfs rw,noatime,subvol=/commons/@home 0 0
UUID={fsid} /var/cache btrfs rw,noatime,subvol=/commons/@var@cache 0 0
UUID={fsid} /var/log btrfs rw,noatime,subvol=/commons/@var@log 0 0
tmpfs /tmp tmpfs mode=1777,nosuid,nodev 0 0
"""


class Volume:
    """An attached volume; its top level is mounted at `top` in the test's own mount namespace."""

    def __init__(self, image: Path) -> None:
        self.image = image
        self.top = image.with_name("top")
        self.fsid = btrfsctl.fsid_of(image)
        self._guest: Guest | None = None
        self.attach()

    @property
    def device(self) -> str:
        """The block device: "/dev/loop3"."""
        return self._loop.path

    @functools.cached_property
    def repo(self) -> Repository:
        """The repository that /etc/apk/repositories names, empty at first: `repo.publish(Package(…), …)`.

        It is signed, and in commons, so that a guest and the root of a change both see it.
        """
        return Repository(self.top / "commons/@var@cache/repo", key=session_key())

    def current(self) -> str:
        """The ID of the links directory that `current` points to."""
        return os.path.basename(os.readlink(self.top / "current"))

    def slots(self) -> list[str]:
        """The generation of each slot, slot 0 first."""
        links = sorted((self.top / "current").iterdir(), key=lambda link: int(link.name))
        return [os.path.basename(os.readlink(link)) for link in links]

    def generations(self) -> list[str]:
        """Names in snapshots/, sorted."""
        return sorted(os.listdir(self.top / "snapshots"))

    def tree(self, slot: int = 0) -> Path:
        """The root tree in a slot, links resolved."""
        return (self.top / "current" / str(slot) / "@").resolve(strict=True)

    def add_generation(
        self, name: str, prepare: Callable[[Path], None] | None = None, *, ours: bool = False
    ) -> Path:  # fmt: skip
        """Make a generation as the wiki's script does: from slot 0, sealed; it is in no slot yet.

        It is foreign, which spares it from garbage for a day, unless a record, a damaged one, makes it `ours`.
        """
        tree = self.top / "snapshots" / name / "@"
        tree.parent.mkdir()
        btrfsctl.snapshot(self.tree(), tree, read_only=False)
        self.finish(name, prepare)
        if ours:
            (tree.parent / "generation.json").write_text("{}")
        return tree

    def finish(self, name: str, prepare: Callable[[Path], None] | None = None) -> None:
        """Render the fstab of a generation that is still writable, let `prepare` change it, seal it."""
        tree = self.top / "snapshots" / name / "@"
        template = (self.top / "fstab").read_text()
        (tree / "etc/fstab").write_text(template.replace("CURRENT_SNAPSHOTS_PATH", f"/snapshots/{name}"))
        if prepare is not None:
            prepare(tree)
        btrfsctl.set_read_only(tree, True)

    def point(self, *generations: str, name: str) -> None:
        """Make links/NAME with these generations (the last one repeats) and let `current` be it."""
        make_links(self.top, generations, name)
        scratch = self.top / "next" / f"current-{name}"
        scratch.symlink_to(f"./links/{name}")
        scratch.rename(self.top / "current")

    def boot(self, slot: int = 0, *, options: str = "ro,noatime") -> Guest:
        """Boot what is in a slot; `options` are those of `rootflags=`. `detach` ends the guest at the latest.

        A volume is in one machine: a guest that runs already is shut down first.
        """
        self.shutdown()
        place = self.image.with_name("guest")
        place.mkdir(exist_ok=True)
        self._guest = Guest(self.device, str(place), slot, options)
        return self._guest

    def shutdown(self) -> None:
        """End the guest, if there is one."""
        if self._guest is not None:
            self._guest.shutdown()
            self._guest = None

    def attach(self) -> None:
        """After `detach`: attach and mount again, as after a power cycle."""
        self._loop = Loop(self.image)
        mount_btrfs(self.device, self.top)

    def detach(self) -> None:
        """End the guest, unmount, detach; TimeoutError or EBUSY if something is still there. Idempotent."""
        try:
            self.shutdown()
            if self.top.is_mount():
                unmount(self.top)
        except BaseException:
            self._loop.let_go()
            raise
        self._loop.detach()


@contextlib.contextmanager
def make_volume(
    size: int = DEFAULT_SIZE, *, prepare: Callable[[Path], None] | None = None, installed: bool = True
) -> Iterator[Volume]:
    """A fresh volume of `size` bytes; `prepare` may change its first tree before that is sealed. apk-atomic is
    `installed` in it unless that is for the test to do.

    Each has a file system id of its own, so any number can be there at once.
    """
    private_mounts()
    template = _template(size, installed=installed)
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(scratch_directory("apk-atomic-volume-"))
        image = place / "volume.img"
        copy_sparse(template, image)
        btrfsctl.renew_fsid(image)
        volume = Volume(image)
        stack.callback(volume.detach)
        (volume.top / "fstab").write_text(FSTAB.format(fsid=volume.fsid))
        volume.repo.write_index()
        volume.finish(FIRST, prepare)
        yield volume


def make_links(top: Path, generations: tuple[str, ...], name: str) -> None:
    """Make links/NAME: a slot for each generation, the last one repeated."""
    links = top / "links" / name
    links.mkdir()
    for slot in range(SLOTS):
        target = generations[min(slot, len(generations) - 1)]
        (links / str(slot)).symlink_to(f"../../snapshots/{target}")


def _template(size: int, *, installed: bool) -> Path:
    """The image of which volumes are copies: the layout, with a first tree that is not sealed yet."""

    def base_inputs() -> list[str]:
        return [str(size), Path(__file__).read_text(), *rootfs.base_inputs()]

    def inputs() -> list[str]:
        return [*base_inputs(), *rootfs.project_inputs()]

    base = cached_image("base", base_inputs, lambda image: _build_base(image, size))
    if not installed:
        return base
    return cached_image("world", inputs, lambda image: _build(image, base))


def _build_base(image: Path, size: int) -> None:
    btrfsctl.make_filesystem(image, size)
    with _mounted(image) as top:
        for name in ("commons", "links", "next", "snapshots", f"snapshots/{FIRST}"):
            (top / name).mkdir()
        for name in COMMONS:
            btrfsctl.create_subvolume(top / "commons" / name)
        make_links(top, (FIRST,), FIRST)
        (top / "current").symlink_to(f"./links/{FIRST}")
        (top / "commons/@home/user").mkdir()
        os.chown(top / "commons/@home/user", 1000, 1000)
        tree = top / "snapshots" / FIRST / "@"
        btrfsctl.create_subvolume(tree)
        rootfs.fill_base(tree)


def _build(image: Path, base: Path) -> None:
    copy_sparse(base, image)
    btrfsctl.renew_fsid(image)
    with _mounted(image) as top:
        rootfs.install_project(top / "snapshots" / FIRST / "@")


@contextlib.contextmanager
def _mounted(image: Path) -> Iterator[Path]:
    with contextlib.ExitStack() as stack:
        top = stack.enter_context(scratch_directory("apk-atomic-build-")) / "top"
        loop = Loop(image)
        stack.callback(loop.detach)
        mount_btrfs(loop.path, top)
        stack.callback(unmount, top)
        yield top
