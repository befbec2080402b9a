"""`removal` against a real file system: links, depth; subvolumes are in `test_btrfs`, locked files in `adversity`."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from apk_atomic import removal


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """The directory `root`, with a secret beside it that no path inside may reach."""
    (tmp_path / "secret").touch()
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/name").touch()
    descriptor = os.open(tmp_path / "root", os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def test_remove_tree_follows_no_link(tmp_path: Path, fd: int) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (tmp_path / "root/etc/deep/er").mkdir(parents=True)
    os.mkfifo(tmp_path / "root/etc/deep/fifo")
    (tmp_path / "root/etc/deep/away").symlink_to(outside)
    (tmp_path / "root/etc" / os.fsdecode(b"\xfe")).touch()
    (tmp_path / "root/link").symlink_to("../outside")
    removal.remove_tree(fd, "etc/deep")
    assert sorted(os.listdir(tmp_path / "root/etc")) == sorted(["name", os.fsdecode(b"\xfe")])
    removal.remove_tree(fd, "etc")
    removal.remove_tree(fd, "link")
    assert os.listdir(tmp_path / "root") == []
    assert os.listdir(outside) == ["kept"]
    with pytest.raises(FileNotFoundError):
        removal.remove_tree(fd, "etc")


def test_remove_tree_does_not_pass_a_linked_parent(tmp_path: Path, fd: int) -> None:
    (tmp_path / "root/out").symlink_to("..")
    with pytest.raises(OSError, match="out"):
        removal.remove_tree(fd, "out/secret")
    assert (tmp_path / "secret").exists()


def test_remove_tree_deletes_what_is_deeper_than_descriptors_and_recursion_reach(tmp_path: Path, fd: int) -> None:
    at = os.dup(fd)
    for _ in range(1500):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        removal.remove_tree(fd, "d")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert os.listdir(tmp_path / "root") == ["etc"]
