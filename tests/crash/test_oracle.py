"""The oracle notices each difference that it is there for, and nothing else."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import btrfsctl, oracle, powercut
from tests.support.oracle import fingerprint, leftovers, subvolumes, survivors, tagged

pytestmark = pytest.mark.skipif(bool(powercut.unavailable()), reason=str(powercut.unavailable()))


@pytest.fixture
def tree(scratch: Path) -> Path:
    root = scratch / "tree"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_text("root\n")
    (root / "etc/link").symlink_to("passwd")
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", 0o20666, os.makedev(1, 3))
    return root


def replace_link(tree: Path) -> None:
    (tree / "etc/link").unlink()
    (tree / "etc/link").symlink_to("shadow")


def replace_device(tree: Path) -> None:
    (tree / "null").unlink()
    os.mknod(tree / "null", 0o20666, os.makedev(1, 5))


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (lambda tree: (tree / "etc/passwd").write_text("Root\n"), ["- etc/passwd", "+ etc/passwd"]),
        (lambda tree: (tree / "etc/passwd").chmod(0o4755), ["- etc/passwd", "+ etc/passwd"]),
        (lambda tree: os.chown(tree / "etc/link", 7, 0, follow_symlinks=False), ["- etc/link", "+ etc/link"]),
        (lambda tree: os.setxattr(tree / "etc", "trusted.x", b"1"), ["- etc", "+ etc"]),
        (lambda tree: os.link(tree / "etc/passwd", tree / "x"), ["- etc/passwd", "+ etc/passwd", "+ x"]),
        (lambda tree: (tree / "fifo").unlink(), ["- fifo"]),
        (lambda tree: (tree / "new").mkdir(), ["+ new"]),
        (lambda tree: tree.chmod(0o700), ["- .", "+ ."]),
        (replace_link, ["- etc/link", "+ etc/link"]),
        (replace_device, ["- null", "+ null"]),
    ],
)
def test_each_kind_of_change_is_seen(tree: Path, change: Callable[[Path], object], lines: list[str]) -> None:
    before = fingerprint(tree)
    assert before == fingerprint(tree) and hash(before) == hash(fingerprint(tree))
    change(tree)
    after = fingerprint(tree)
    assert before != after
    assert [line.partition(":")[0] for line in before.differences(after)] == lines


def test_times_count_only_on_request(tree: Path) -> None:
    before, before_timed = fingerprint(tree), fingerprint(tree, mtime=True)
    os.utime(tree / "etc/passwd", (1, 1))
    assert fingerprint(tree) == before
    assert fingerprint(tree, mtime=True) != before_timed


def test_what_is_excluded_does_not_count(tree: Path) -> None:
    before = fingerprint(tree, exclude=["etc"])
    (tree / "etc/passwd").write_text("changed")
    assert fingerprint(tree, exclude=["etc"]) == before
    assert fingerprint(tree, exclude=["etc/passwd"]) != fingerprint(tree)


def test_names_that_are_not_text_are_read(tree: Path) -> None:
    before = fingerprint(tree)
    (tree / os.fsdecode(b"\xff\n")).touch()
    assert len(before.differences(fingerprint(tree))) == 1


@contextlib.contextmanager
def started_cat(tag: str) -> Iterator[subprocess.Popen[bytes]]:
    """A tagged process at work: Popen returns while execve(2) still sets it up, when it has no environment yet."""
    with subprocess.Popen(["cat"], stdin=-1, stdout=-1, env={oracle.TAG: tag}) as cat:
        assert cat.stdin is not None and cat.stdout is not None
        cat.stdin.write(b"up\n")
        cat.stdin.flush()
        assert cat.stdout.readline() == b"up\n"
        yield cat


def test_what_is_left_is_named_and_what_is_gone_is_not(scratch: Path) -> None:
    before = leftovers("left", concerning=[str(scratch)])
    btrfsctl.make_filesystem(scratch / "image", 128 << 20)
    with powercut.attached(scratch / "image") as device:
        concerning = [str(scratch), device]
        with powercut.mounted(device) as top, started_cat("left") as cat:
            assert tagged("left") == [cat.pid]
            left = leftovers("left", concerning).since(before)
            assert [line.partition(": ")[0] for line in left] == ["mount", "process", "loop device"]
            assert f"{device} / {top} btrfs" in left[0] and left[1].endswith(f"{cat.pid} cat")
            assert survivors("left", 0.05) == [f"{cat.pid} cat"]
            oracle.kill_tagged("left")
            assert survivors("left") == []
    assert leftovers("left", concerning).since(before) == []


def test_a_mount_in_another_namespace_is_seen(scratch: Path) -> None:
    before = leftovers(concerning=[str(scratch)])
    script = f"mount -t tmpfs tmpfs {scratch} && echo up && exec cat"
    argv = ["unshare", "--mount", "--propagation=private", "sh", "-c", script]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"up\n"
        (line,) = leftovers(concerning=[str(scratch)]).since(before)
        assert line.startswith(f"mount: tmpfs / {scratch} tmpfs in mnt:[")
        holder.communicate(b"")
    assert leftovers(concerning=[str(scratch)]).since(before) == []


def test_subvolumes_are_listed_wherever_they_are(scratch: Path) -> None:
    btrfsctl.make_filesystem(scratch / "image", 128 << 20)
    with powercut.attach(scratch / "image") as top:
        (top / "snapshots/a b").mkdir(parents=True)
        btrfsctl.create_subvolume(top / "snapshots/a b/@")
        btrfsctl.create_subvolume(top / "snapshots/a b/@/nested")
        assert subvolumes(top) == {"snapshots/a b/@", "snapshots/a b/@/nested"}
        btrfsctl.destroy_subvolume(top / "snapshots/a b/@/nested")
        assert subvolumes(top) == {"snapshots/a b/@"}
