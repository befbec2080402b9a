"""A tree is copied with all that it has, or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from apk_atomic import treecopy
from tests.support import btrfsctl
from tests.support.blockdev import Loop, mount_btrfs, unmount
from tests.support.imagecache import scratch_directory
from tests.support.isolation import private_mounts

MIB = 1 << 20
LARGE = 12_000  # bytes of an attribute: room for btrfs, too much for a block of ext4


@pytest.fixture
def places() -> Iterator[tuple[Path, Path]]:
    """A btrfs, and an ext4, which refuses what btrfs takes."""
    private_mounts()
    with ExitStack() as stack:
        place = stack.enter_context(scratch_directory("apk-atomic-copy-"))
        images = place / "btrfs.img", place / "ext4.img"
        btrfsctl.make_filesystem(images[0], 256 * MIB)
        with images[1].open("wb") as file:
            file.truncate(32 * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-b", "4096", images[1]], check=True)
        for image in images:
            loop = Loop(image)
            stack.callback(loop.detach)
            point = image.with_suffix("")
            if image is images[0]:
                mount_btrfs(loop.path, point)
            else:
                point.mkdir()
                subprocess.run(["mount", loop.path, point], check=True)
            stack.callback(unmount, point)
        yield place / "btrfs", place / "ext4"


@pytest.mark.parametrize("kind", ["directory", "fifo"])
def test_an_attribute_for_which_there_is_no_room(places: tuple[Path, Path], kind: str) -> None:
    source, target = places[0] / "source", places[1] / "target"
    source.mkdir()
    target.mkdir()
    if kind == "directory":
        (source / "one").mkdir()
    else:
        os.mkfifo(source / "one")
    os.setxattr(source / "one", "trusted.large", b"x" * LARGE)
    with ExitStack() as stack:
        fds = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (source, target)]
        for fd in fds:
            stack.callback(os.close, fd)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as caught:
            treecopy.copy_content(fds[0], fds[1], fds[0], lambda: None)
    assert caught.value.errno == errno.ENOSPC
