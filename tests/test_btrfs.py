"""`btrfs` and its parts against a real volume on a loop device."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from apk_atomic import btrfs, btrfs_ioctl, btrfs_space, files, removal
from apk_atomic.btrfs_space import Group
from tests.support.loopbtrfs import HAVE_LOOP, MIB, btrfs_volume

needs_volume = pytest.mark.skipif(not HAVE_LOOP, reason="needs root, loop devices and mkfs.btrfs")
MAX_U64 = 2**64 - 1


@pytest.fixture(scope="module")
def volume() -> Iterator[Path]:
    with btrfs_volume() as top:
        yield top


@contextlib.contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def top(volume: Path) -> Iterator[int]:
    with opened(volume) as fd:
        yield fd


@pytest.fixture
def place(volume: Path, request: pytest.FixtureRequest) -> Path:
    """A directory of the test's own in the top level."""
    directory = volume / str(request.node.name).replace("/", "_")
    directory.mkdir()
    return directory


@pytest.fixture
def here(place: Path) -> Iterator[int]:
    with opened(place) as fd:
        yield fd


@pytest.fixture
def root(place: Path, here: int) -> Path:
    """A subvolume with a few files."""
    btrfs.create_subvolume(here, "@")
    (place / "@/etc").mkdir()
    (place / "@/etc/fstab").write_bytes(b"old")
    (place / "@/etc/hostname").write_bytes(b"box")
    return place / "@"


@pytest.fixture
def staged(place: Path, here: int, root: Path) -> Iterator[int]:
    """A fresh writable snapshot of `root`."""
    with opened(root) as source:
        btrfs.snapshot(source, here, "staged", readonly=False)
    with opened(place / "staged") as fd:
        yield fd


def changed(fd: int) -> set[str]:
    """The paths of all that changed since the snapshot `fd` was taken."""
    files.syncfs(fd)
    since = btrfs.subvolume_info(fd).otransid
    return {path for inode in btrfs.changed_inodes(fd, since) for path in btrfs.inode_paths(fd, inode.ino)}


# --- the layouts -----------------------------------------------------------------------------------------

KERNEL_REQUESTS = {  # as linux/btrfs.h gives them on x86_64, aarch64, armv7 and riscv64
    "IOC_SYNC": 0x9408,
    "IOC_TREE_SEARCH_V2": 0xC0709411,
    "IOC_INO_LOOKUP": 0xD0009412,
    "IOC_SPACE_INFO": 0xC0109414,
    "IOC_SNAP_CREATE_V2": 0x50009417,
    "IOC_SUBVOL_CREATE_V2": 0x50009418,
    "IOC_SUBVOL_GETFLAGS": 0x80089419,
    "IOC_SUBVOL_SETFLAGS": 0x4008941A,
    "IOC_DEV_INFO": 0xD000941E,
    "IOC_FS_INFO": 0x8400941F,
    "IOC_GET_SUBVOL_INFO": 0x81F8943C,
    "IOC_SNAP_DESTROY_V2": 0x5000943F,
}


@pytest.mark.parametrize("name", [name for name in dir(btrfs_ioctl) if name.startswith("IOC_")])
@pytest.mark.skipif(struct.calcsize("@QI0Q") == 12, reason="32-bit x86 packs GET_SUBVOL_INFO tighter")
def test_request_numbers_and_with_them_sizes_are_the_kernels(name: str) -> None:
    assert getattr(btrfs_ioctl, name) == KERNEL_REQUESTS[name]


def test_search_key_is_all_of_the_search_arguments_but_the_size() -> None:
    assert (btrfs_ioctl.SEARCH_KEY.size, btrfs_ioctl.SEARCH_ARGS_V2.size) == (104, 112)
    assert (btrfs_ioctl.SEARCH_HEADER.size, btrfs_ioctl.SPACE_INFO.size) == (32, 24)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ((256, 1, 0), (256, 1, 1)),
        ((256, 1, MAX_U64), (256, 2, 0)),
        ((256, 255, MAX_U64), (257, 0, 0)),
    ],
)
def test_following_carries(key: btrfs_ioctl.Key, expected: btrfs_ioctl.Key) -> None:
    assert btrfs_ioctl.following(key) == expected


# --- the volume ------------------------------------------------------------------------------------------


@needs_volume
def test_identity_of_the_volume(volume: Path, top: int) -> None:
    info, (device,) = btrfs.fs_info(top), btrfs.devices(top)
    blkid = subprocess.run(
        ["blkid", "-p", "-o", "value", "-s", "UUID", device.path], capture_output=True, text=True, check=True
    )
    assert info.fsid == blkid.stdout.strip()
    assert (info.num_devices, info.max_devid, info.sectorsize) == (1, 1, 4096)
    assert info.nodesize >= 4096
    before = info.generation
    for _ in range(2):  # the first may still be in the transaction that runs already
        (volume / "something-to-commit").touch()
        btrfs.sync(top)
    assert btrfs.fs_info(top).generation > before > 0
    assert device.total == 256 * MIB
    assert 0 < device.allocated <= device.total
    assert btrfs.device_path(top) == device.path


@needs_volume
def test_is_btrfs(volume: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with opened(volume, os.O_PATH) as fd:
        assert btrfs.is_btrfs(fd)
    with opened(Path("/proc")) as fd:
        assert not btrfs.is_btrfs(fd)


@pytest.mark.parametrize(
    "ask",
    [
        btrfs.fs_info,
        btrfs.subvolume_id,
        btrfs.subvolume_info,
        btrfs.default_subvolume,
        btrfs.sync,
        btrfs.space,
    ],
)
def test_elsewhere_calls_fail_with_enotty(ask: object) -> None:
    assert callable(ask)
    with opened(Path("/proc")) as fd, pytest.raises(OSError) as caught:
        ask(fd)
    assert caught.value.errno == errno.ENOTTY
    assert caught.value.filename


@needs_volume
def test_space_is_near_what_the_kernel_tells_everybody(volume: Path, top: int) -> None:
    btrfs.sync(top)
    space, kernel = btrfs.space(top), os.statvfs(volume)
    assert space.total == 256 * MIB
    assert 0 <= space.unallocated < space.total
    assert abs(space.data_free - kernel.f_bavail * kernel.f_frsize) < 16 * MIB
    assert 0 < space.metadata_free < space.total


@needs_volume
def test_space_shrinks_by_what_is_written(place: Path, here: int) -> None:
    files.syncfs(here)
    before = btrfs.space(here).data_free
    (place / "ballast").write_bytes(os.urandom(8 * MIB))
    files.syncfs(here)
    assert 7 * MIB <= before - btrfs.space(here).data_free <= 9 * MIB


def test_estimate_counts_copies_and_the_reserve() -> None:
    groups = [Group(1, 100, 40), Group(4 | 1 << 5, 50, 20), Group(2, 8, 1), Group(4 | 1 << 49, 10, 0)]
    space = btrfs_space.estimate(1000, 600, groups)
    assert space == btrfs_space.Space(
        total=1000, unallocated=600, data_free=60 + 600, metadata_free=30 + 300 - 10
    )


def test_estimate_of_mixed_groups_and_of_a_full_volume() -> None:
    mixed = btrfs_space.estimate(100, 20, [Group(1 | 4, 60, 50)])
    assert (mixed.data_free, mixed.metadata_free) == (30, 30)
    assert btrfs_space.estimate(100, 0, [Group(4, 20, 15), Group(4 | 1 << 49, 10, 0)]).metadata_free == 0


@pytest.mark.parametrize(("bit", "copies"), [(3, 1), (4, 2), (5, 2), (6, 2), (7, 2), (8, 3), (9, 3), (10, 4)])
def test_copies_by_profile(bit: int, copies: int) -> None:
    """The bits are BTRFS_BLOCK_GROUP_*: raid0, raid1, dup, raid10, raid5, raid6, raid1c3, raid1c4."""
    assert Group(1 << 2 | 1 << bit, 0, 0).copies == copies


# --- subvolumes ------------------------------------------------------------------------------------------


@needs_volume
def test_create_says_what_it_made(top: int, place: Path, here: int) -> None:
    before = time.time()
    btrfs.create_subvolume(here, "@home")
    with opened(place / "@home") as fd:
        info = btrfs.subvolume_info(fd)
        assert info.id == btrfs.subvolume_id(fd) >= 256
        assert (info.parent_id, info.name, info.parent_uuid, info.readonly) == (5, "@home", "", False)
        assert len(info.uuid) == 36
        assert before - 5 <= info.otime <= time.time() + 5
    assert btrfs.subvolume_id(top) == btrfs.TOP_LEVEL_ID


@needs_volume
def test_ids_hold_for_everything_inside(root: Path) -> None:
    with opened(root) as fd, opened(root / "etc/fstab") as file:
        assert btrfs.subvolume_id(file) == btrfs.subvolume_id(fd)
        assert btrfs.subvolume_info(file).uuid == btrfs.subvolume_info(fd).uuid


@needs_volume
def test_is_subvolume(place: Path, here: int, root: Path) -> None:
    (place / "plain").mkdir()
    (place / "file").touch()
    (place / "link").symlink_to("@")
    assert btrfs.is_subvolume(here, "@")
    assert not any(btrfs.is_subvolume(here, name) for name in ("plain", "file", "link", "missing"))
    with opened(root, os.O_PATH) as fd, opened(root / "etc") as inside:
        assert btrfs.is_subvolume(fd)
        assert not btrfs.is_subvolume(inside)


@needs_volume
def test_snapshots_share_nothing_but_the_past(place: Path, here: int, root: Path) -> None:
    with opened(root) as source:
        btrfs.snapshot(source, here, "ro", readonly=True)
        btrfs.snapshot(source, here, "rw", readonly=False)
        original = btrfs.subvolume_info(source)
    (root / "etc/fstab").write_bytes(b"later")
    assert (place / "ro/etc/fstab").read_bytes() == (place / "rw/etc/fstab").read_bytes() == b"old"
    with opened(place / "ro") as ro, opened(place / "rw") as rw:
        assert btrfs.get_readonly(ro)
        assert not btrfs.get_readonly(rw)
        first, second = btrfs.subvolume_info(ro), btrfs.subvolume_info(rw)
    assert (first.readonly, second.readonly) == (True, False)
    assert first.parent_uuid == second.parent_uuid == original.uuid
    assert original.otransid <= first.otransid < second.otransid
    with pytest.raises(OSError) as caught:
        (place / "ro/new").touch()
    assert caught.value.errno == errno.EROFS


@needs_volume
def test_a_read_only_snapshot_is_out_of_reach_of_an_open_writer(place: Path, here: int, root: Path) -> None:
    with open(root / "etc/fstab", "r+b", buffering=0) as straggler, opened(root) as source:
        btrfs.snapshot(source, here, "sealed", readonly=True)
        straggler.write(b"evil")
    assert (place / "sealed/etc/fstab").read_bytes() == b"old"


@needs_volume
def test_the_read_only_property_can_be_set_and_cleared(root: Path) -> None:
    with opened(root) as fd:
        for readonly in (True, True, False, False):
            btrfs.set_readonly(fd, readonly)
            assert btrfs.get_readonly(fd) is readonly
    (root / "writable").touch()


@needs_volume
def test_what_cannot_be_snapshotted(place: Path, here: int, root: Path) -> None:
    with opened(root / "etc") as no_root, pytest.raises(OSError, match="Not the root of a subvolume"):
        btrfs.snapshot(no_root, here, "copy", readonly=True)
    with opened(root) as source:
        with pytest.raises(FileExistsError) as caught:
            btrfs.snapshot(source, here, "@", readonly=True)
        assert caught.value.filename == "@"
        btrfs.set_readonly(source, True)
        with pytest.raises(OSError, match="inner") as refused:
            btrfs.snapshot(source, source, "inner", readonly=False)
        assert refused.value.errno == errno.EROFS
        with pytest.raises(OSError, match="inner") as refused:
            btrfs.create_subvolume(source, "inner")
        assert refused.value.errno == errno.EROFS
    assert os.listdir(place) == ["@"]


@needs_volume
@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b", "x" * 256])
def test_names_are_single_components(volume: Path, top: int, name: str) -> None:
    before = sorted(os.listdir(volume))
    for act in (btrfs.create_subvolume, btrfs.destroy, btrfs.destroy_tree):
        with pytest.raises(OSError) as caught:
            act(top, name)
        assert caught.value.errno in (errno.EINVAL, errno.ENAMETOOLONG)
    assert sorted(os.listdir(volume)) == before


@needs_volume
def test_names_need_not_be_utf8(top: int, place: Path, here: int) -> None:
    name = os.fsdecode(b"caf\xe9" + b"x" * 251)
    btrfs.create_subvolume(here, name)
    number = place.stat().st_ino
    assert [child.name for child in btrfs.children(top, 5) if child.dirid == number] == [name]
    with opened(place / name) as fd:
        assert btrfs.subvolume_info(fd).name == name
    btrfs.destroy(here, name)
    assert os.listdir(place) == []


@needs_volume
def test_destroy(place: Path, here: int, root: Path) -> None:
    with opened(root) as source:
        btrfs.snapshot(source, here, "ro", readonly=True)
    btrfs.destroy(here, "ro")
    btrfs.destroy(here, "ro", missing_ok=True)
    with pytest.raises(FileNotFoundError) as caught:
        btrfs.destroy(here, "ro")
    assert caught.value.filename == "ro"
    (place / "plain").mkdir()
    with pytest.raises(OSError, match="plain") as refused:
        btrfs.destroy(here, "plain")
    assert refused.value.errno == errno.EINVAL
    assert sorted(os.listdir(place)) == ["@", "plain"]


@needs_volume
def test_destroy_keeps_what_holds_subvolumes_and_the_default_one(place: Path, here: int, root: Path) -> None:
    with opened(root) as fd:
        btrfs.create_subvolume(fd, "inner")
        with pytest.raises(OSError, match="@") as caught:
            btrfs.destroy(here, "@")
        assert caught.value.errno == errno.ENOTEMPTY
        assert btrfs.default_subvolume(here) == btrfs.TOP_LEVEL_ID
        subprocess.run(["btrfs", "subvolume", "set-default", root / "inner"], check=True)
        try:
            with opened(root / "inner") as inner:
                assert btrfs.default_subvolume(here) == btrfs.subvolume_id(inner)
            with pytest.raises(PermissionError):
                btrfs.destroy(fd, "inner")
        finally:
            subprocess.run(["btrfs", "subvolume", "set-default", "5", place], check=True)
    assert btrfs.default_subvolume(here) == btrfs.TOP_LEVEL_ID
    assert (root / "inner").is_dir()


@needs_volume
def test_children_are_the_direct_ones(place: Path, here: int, root: Path) -> None:
    odd = os.fsdecode(b"\xff")
    with opened(root) as fd, opened(root / "etc") as etc:
        btrfs.create_subvolume(fd, "a")
        btrfs.create_subvolume(etc, odd)
        with opened(root / "a") as inner:
            btrfs.create_subvolume(inner, "deeper")
        btrfs.create_subvolume(fd, "gone")
        btrfs.destroy(fd, "gone")
        found = btrfs.children(here, btrfs.subvolume_id(fd))
        assert [(child.name, child.dirid) for child in found] == [("a", 256), (odd, os.fstat(etc).st_ino)]
        with opened(root / "a") as inner:
            assert found[0].id == btrfs.subvolume_id(inner)


@needs_volume
def test_destroy_tree_takes_read_only_and_nested_ones_along(place: Path, here: int, root: Path) -> None:
    with opened(root) as fd, opened(root / "etc") as etc:
        btrfs.create_subvolume(etc, os.fsdecode(b"d\xe9ep"))
        with opened(root / "etc" / os.fsdecode(b"d\xe9ep")) as deep:
            btrfs.create_subvolume(deep, "deeper")
            btrfs.set_readonly(deep, True)
        btrfs.snapshot(fd, fd, "of-itself", readonly=True)
        btrfs.set_readonly(fd, True)
    with opened(place) as parent:
        btrfs.destroy_tree(parent, "@")
        btrfs.destroy_tree(parent, "@", missing_ok=True)
        with pytest.raises(FileNotFoundError):
            btrfs.destroy_tree(parent, "@")
    assert os.listdir(place) == []


@needs_volume
def test_destroy_tree_wants_a_subvolume_and_follows_no_link(place: Path, here: int, root: Path) -> None:
    (place / "plain").mkdir()
    (place / "link").symlink_to("@")
    with pytest.raises(OSError, match="plain") as caught:
        btrfs.destroy_tree(here, "plain")
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(OSError, match="link") as caught:
        btrfs.destroy_tree(here, "link")
    assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)
    assert (root / "etc/fstab").exists()


@needs_volume
def test_remove_tree_stops_at_a_subvolume(place: Path, here: int) -> None:
    (place / "tmp").mkdir()
    with opened(place / "tmp") as fd:
        btrfs.create_subvolume(fd, "inner")
    (place / "tmp/inner/kept").touch()
    with pytest.raises(OSError, match="inner") as caught:
        removal.remove_tree(here, "tmp")
    assert caught.value.errno == errno.EXDEV
    assert (place / "tmp/inner/kept").exists()
    removal.remove_tree(here, "tmp", foreign=btrfs.destroy_tree)
    assert os.listdir(place) == []


# --- changed inodes --------------------------------------------------------------------------------------


@needs_volume
def test_a_fresh_snapshot_has_no_changes(staged: int) -> None:
    assert changed(staged) == set()


@needs_volume
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("echo new > etc/fstab", {"etc/fstab"}),
        ("touch etc/new", {"etc", "etc/new"}),
        ("rm etc/hostname", {"etc"}),
        ("rm -r etc", {"."}),
        ("chmod 600 etc/fstab", {"etc/fstab"}),
        ("ln etc/fstab etc/second", {"etc", "etc/fstab", "etc/second"}),
        ("mv etc/hostname hostname", {".", "etc", "hostname"}),
        ("mkdir -p a/b; ln -s nowhere a/b/c", {".", "a", "a/b", "a/b/c"}),
        ("cat etc/fstab", set()),
    ],
)
def test_changes_show(volume: Path, top: int, change: str, expected: set[str]) -> None:
    with contextlib.ExitStack() as stack:
        for name in ("base", "staged"):
            stack.callback(btrfs.destroy, top, name, missing_ok=True)
        btrfs.create_subvolume(top, "base")
        (volume / "base/etc").mkdir()
        for name in ("fstab", "hostname"):
            (volume / "base/etc" / name).write_text(name)
        with opened(volume / "base") as base:
            btrfs.snapshot(base, top, "staged", readonly=False)
        subprocess.run(change, shell=True, check=True, cwd=volume / "staged", stdout=subprocess.DEVNULL)
        with opened(volume / "staged") as fd:
            assert changed(fd) == expected


@needs_volume
def test_extended_attributes_and_mapped_stores_count(place: Path, staged: int) -> None:
    os.setxattr(place / "staged/etc/hostname", "user.note", b"1")
    assert changed(staged) == {"etc/hostname"}
    with open(place / "staged/etc/fstab", "r+b") as file, mmap.mmap(file.fileno(), 3) as mapped:
        mapped[:3] = b"map"
    assert changed(staged) == {"etc/hostname", "etc/fstab"}


@needs_volume
def test_what_is_told_of_an_inode(place: Path, staged: int) -> None:
    target = place / "staged/etc/fstab"
    target.write_bytes(b"12345")
    target.chmod(0o640)
    os.chown(target, 12, 34)
    (place / "staged/dir").mkdir()
    files.syncfs(staged)
    since = btrfs.subvolume_info(staged).otransid
    by_path = {
        btrfs.inode_paths(staged, inode.ino)[0]: inode for inode in btrfs.changed_inodes(staged, since)
    }
    fstab, status = by_path["etc/fstab"], target.stat()
    assert (fstab.ino, fstab.mode, fstab.size) == (status.st_ino, status.st_mode, 5)
    assert (fstab.nlink, fstab.uid, fstab.gid, fstab.is_dir) == (1, 12, 34, False)
    assert fstab.created <= since < fstab.transid
    assert by_path["dir"].is_dir
    assert by_path["dir"].created > since


@needs_volume
def test_an_open_deleted_file_has_no_links_and_no_path(place: Path, staged: int) -> None:
    with open(place / "staged/ghost", "wb") as ghost:
        ghost.write(b"boo")
        ghost.flush()
        (place / "staged/ghost").unlink()
        files.syncfs(staged)
        number = os.fstat(ghost.fileno()).st_ino
        found = btrfs.changed_inodes(staged, btrfs.subvolume_info(staged).otransid)
        assert [inode.nlink for inode in found if inode.ino == number] == [0]
        assert btrfs.inode_paths(staged, number) == []


@needs_volume
def test_many_changes_fill_many_pages_and_none_is_lost(place: Path, here: int, root: Path) -> None:
    for number in range(3000):
        (root / f"file-{number:04}").write_bytes(b"%d" % number)
    with opened(root) as source:
        btrfs.snapshot(source, here, "staged", readonly=False)
    for number in range(0, 3000, 2):
        (place / f"staged/file-{number:04}").write_bytes(b"changed" * 20)
    with opened(place / "staged") as fd:
        assert changed(fd) == {f"file-{number:04}" for number in range(0, 3000, 2)}
        everything = [inode.ino for inode in btrfs.changed_inodes(fd, 0)]
    assert len(everything) == len(set(everything)) == 3000 + 4  # the root, etc, and the two files in it
    assert everything == sorted(everything)


@needs_volume
def test_every_hard_link_is_found(place: Path, here: int, root: Path) -> None:
    """500 long names in one directory overflow the inode's ref item: the rest are extended refs."""
    odd = os.fsdecode(b"\xfflink")
    (root / "sub").mkdir()
    os.link(root / "etc/fstab", root / "sub" / odd)
    os.link(root / "etc/fstab", root / "top")
    names = {f"{number:0100}" for number in range(500)}
    for name in names:
        os.link(root / "etc/fstab", root / "sub" / name)
    files.syncfs(here)
    with opened(root) as fd:
        found = btrfs.inode_paths(fd, (root / "top").stat().st_ino, {})
    assert found == sorted({"etc/fstab", "top", f"sub/{odd}"} | {f"sub/{name}" for name in names})


@needs_volume
def test_paths_of_directories_and_the_cache(place: Path, here: int, root: Path) -> None:
    (root / "a/b/c").mkdir(parents=True)
    files.syncfs(here)
    directories: dict[int, str] = {}
    with opened(root) as fd:
        assert btrfs.inode_paths(fd, btrfs.SUBVOLUME_INODE) == ["."]
        assert btrfs.inode_paths(fd, (root / "a/b/c").stat().st_ino, directories) == ["a/b/c"]
        assert directories == {(root / "a/b").stat().st_ino: "a/b/"}
        assert btrfs.inode_paths(fd, 10**9) == []


@needs_volume
def test_nested_subvolumes_are_not_entered(place: Path, staged: int) -> None:
    btrfs.create_subvolume(staged, "inner")
    (place / "staged/inner/file").touch()
    assert changed(staged) == {"."}
