"""`files` against a real file system: hostile links, odd files, atomic replacement."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apk_atomic import files

PROJECT = Path(__file__).parents[1]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting and device nodes need root")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory with a secret beside it that no path inside may reach."""
    (tmp_path / "secret").write_bytes(b"host")
    inside = tmp_path / "root"
    (inside / "etc").mkdir(parents=True)
    (inside / "etc/name").write_bytes(b"inside")
    return inside


@pytest.fixture
def fd(root: Path) -> Iterator[int]:
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def temps(root: Path) -> list[str]:
    return [name for name in os.listdir(root) if name.startswith(files.TEMP_PREFIX)]


def read_and_close(fd: int) -> bytes:
    with open(fd, "rb") as file:
        return file.read()


def test_open_beneath_opens_and_closes_on_exec(fd: int) -> None:
    opened = files.open_beneath(fd, "etc/name", os.O_RDONLY)
    assert not os.get_inheritable(opened)
    assert read_and_close(opened) == b"inside"


def test_open_entry_opens_one_name_and_no_link(root: Path, fd: int) -> None:
    (root / "link").symlink_to("etc")
    opened = files.open_entry(fd, "etc", os.O_RDONLY | os.O_DIRECTORY)
    assert not os.get_inheritable(opened)
    assert os.listdir(opened) == ["name"]
    os.close(opened)
    for name, code in (
        ("etc/name", errno.EINVAL), ("/etc", errno.EINVAL), ("..", errno.EINVAL), (".", errno.EINVAL),
        ("", errno.EINVAL), ("a\0b", errno.EINVAL), ("link", errno.ELOOP), ("none", errno.ENOENT),
    ):  # fmt: skip
        with pytest.raises(OSError) as failure:
            files.open_entry(fd, name, os.O_RDONLY)
        assert failure.value.errno == code, name


def test_open_beneath_takes_a_path_descriptor_and_ignores_a_mode_without_create(root: Path) -> None:
    path_only = os.open(root, os.O_PATH)
    try:
        assert read_and_close(files.open_beneath(path_only, "etc/name", os.O_RDONLY, 0o600)) == b"inside"
    finally:
        os.close(path_only)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("../secret", errno.EXDEV),
        ("etc/../../secret", errno.EXDEV),
        ("/etc/passwd", errno.EXDEV),
        ("up", errno.ELOOP),
        ("absolute", errno.ELOOP),
        ("harmless", errno.ELOOP),
        ("directory/name", errno.ELOOP),
        ("missing", errno.ENOENT),
        ("etc/name/more", errno.ENOTDIR),
        ("etc\0/name", errno.EINVAL),
        ("etc/\ud800", errno.EINVAL),
    ],
)
def test_open_beneath_refuses(root: Path, fd: int, path: str, code: int) -> None:
    for name, target in (
        ("up", "../secret"),
        ("absolute", "/etc/passwd"),
        ("harmless", "etc/name"),
        ("directory", "etc"),
    ):
        (root / name).symlink_to(target)
    with pytest.raises(OSError) as caught:
        files.open_beneath(fd, path, os.O_RDONLY)
    assert caught.value.errno == code
    assert caught.value.filename == path


def test_open_beneath_without_the_ban_on_links_still_stays_beneath(root: Path, fd: int) -> None:
    (root / "harmless").symlink_to("etc/name")
    (root / "up").symlink_to("../secret")
    assert (
        read_and_close(files.open_beneath(fd, "harmless", os.O_RDONLY, resolve=files.RESOLVE_BENEATH))
        == b"inside"
    )
    with pytest.raises(OSError, match="up") as caught:
        files.open_beneath(fd, "up", os.O_RDONLY, resolve=files.RESOLVE_BENEATH)
    assert caught.value.errno == errno.EXDEV


def test_open_in_root_resolves_links_as_a_chroot_does(root: Path, fd: int) -> None:
    (root / "absolute").symlink_to("/etc/name")
    (root / "up").symlink_to("../../../etc/name")
    (root / "out").symlink_to("../secret")
    for path in ("absolute", "up", "/etc/name", "../../etc/name"):
        assert read_and_close(files.open_in_root(fd, path, os.O_RDONLY)) == b"inside"
    with pytest.raises(FileNotFoundError):
        files.open_in_root(fd, "out", os.O_RDONLY)


def test_open_in_root_does_not_follow_magic_links() -> None:
    proc = os.open("/proc/self", os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="exe") as caught:
            files.open_in_root(proc, "exe", os.O_RDONLY)
        assert caught.value.errno == errno.ELOOP
    finally:
        os.close(proc)


def test_open_in_root_can_refuse_mounts() -> None:
    slash = os.open("/", os.O_RDONLY)
    try:
        os.close(files.open_in_root(slash, "proc/version", os.O_RDONLY))
        with pytest.raises(OSError, match="proc/version") as caught:
            files.open_in_root(slash, "proc/version", os.O_RDONLY, no_xdev=True)
        assert caught.value.errno == errno.EXDEV
    finally:
        os.close(slash)


def test_read_file_reads_up_to_the_limit(fd: int) -> None:
    assert files.read_file(fd, "etc/name", 6) == b"inside"
    with pytest.raises(files.FileTooLarge) as caught:
        files.read_file(fd, "etc/name", 5)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, "etc/name")


def test_read_file_reads_what_stat_calls_empty_and_what_is_large(root: Path, fd: int) -> None:
    (root / "large").write_bytes(b"x" * 300_000)
    (root / "empty").touch()
    assert files.read_file(fd, "large", 300_000) == b"x" * 300_000
    assert files.read_file(fd, "empty", 0) == b""
    proc = os.open("/proc", os.O_RDONLY)
    try:
        assert files.read_file(proc, "version", 4096).startswith(b"Linux")
        with pytest.raises(files.FileTooLarge):
            files.read_file(proc, "version", 5)
    finally:
        os.close(proc)


def test_read_file_refuses_a_fifo_without_blocking(root: Path, fd: int) -> None:
    os.mkfifo(root / "fifo")
    with pytest.raises(OSError, match="Not a regular file") as caught:
        files.read_file(fd, "fifo", 10)
    assert caught.value.filename == "fifo"


def test_read_file_refuses_directories_and_links(root: Path, fd: int) -> None:
    (root / "link").symlink_to("etc/name")
    with pytest.raises(IsADirectoryError):
        files.read_file(fd, "etc", 10)
    with pytest.raises(OSError, match="link"):
        files.read_file(fd, "link", 10)
    assert files.read_file(fd, "link", 10, resolve=files.IN_ROOT) == b"inside"


@needs_root
def test_read_file_refuses_a_device(root: Path, fd: int) -> None:
    os.mknod(root / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    with pytest.raises(OSError, match="Not a regular file"):
        files.read_file(fd, "zero", 10)


Writer = Callable[[int, str, bytes, int], None]
both_writers = pytest.mark.parametrize("write", [files.write_durable, files.write_atomic])


@both_writers
def test_write_replaces_as_a_whole(root: Path, fd: int, write: Writer) -> None:
    with open(root / "etc/name", "rb") as before:
        old_mask = os.umask(0o077)
        try:
            write(fd, "etc/name", b"new" * 100_000, 0o644)
        finally:
            os.umask(old_mask)
        assert before.read() == b"inside"  # a reader that had it open keeps the old file
    assert (root / "etc/name").read_bytes() == b"new" * 100_000
    assert stat.S_IMODE((root / "etc/name").stat().st_mode) == 0o644
    assert temps(root / "etc") == []


@both_writers
def test_write_replaces_a_link_and_not_its_target(root: Path, fd: int, write: Writer) -> None:
    (root / "link").symlink_to("../secret")
    write(fd, "link", b"new", 0o600)
    assert (root / "link").read_bytes() == b"new"
    assert not (root / "link").is_symlink()
    assert (root.parent / "secret").read_bytes() == b"host"


@both_writers
def test_write_does_not_pass_a_linked_directory(root: Path, fd: int, write: Writer) -> None:
    (root / "out").symlink_to("..")
    with pytest.raises(OSError, match="out") as caught:
        write(fd, "out/secret", b"new", 0o600)
    assert caught.value.errno == errno.ELOOP
    assert (root.parent / "secret").read_bytes() == b"host"


@both_writers
def test_a_failed_write_names_its_file_and_leaves_nothing(root: Path, fd: int, write: Writer) -> None:
    with pytest.raises(IsADirectoryError) as caught:
        write(fd, "etc", b"new", 0o600)
    assert caught.value.filename == "etc"
    assert os.listdir(root) == ["etc"]


@both_writers
@pytest.mark.parametrize("path", ["", ".", "..", "etc/", "etc/.."])
def test_write_needs_a_name(fd: int, write: Writer, path: str) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        write(fd, path, b"new", 0o600)


def test_a_write_that_outgrows_the_limit_keeps_the_old_file(root: Path, fd: int) -> None:
    script = (
        "import os, resource, signal, sys; from apk_atomic import files\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: files.write_durable(os.open(sys.argv[1], os.O_RDONLY), 'etc/name', b'x' * 5000)\n"
        "except OSError as error: print(error.errno, error.filename)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, root], capture_output=True, text=True, check=True, cwd=PROJECT
    )
    assert done.stdout.split() == [str(errno.EFBIG), "etc/name"]
    assert (root / "etc/name").read_bytes() == b"inside"
    assert temps(root / "etc") == []


def test_syncing_wants_a_real_descriptor(root: Path, fd: int) -> None:
    files.syncfs(fd)
    files.fsync_dir(fd)
    files.fsync_dir(fd, "etc")
    path_only = os.open(root, os.O_PATH)
    try:
        with pytest.raises(OSError, match=str(root)) as caught:
            files.syncfs(path_only)
        assert caught.value.errno == errno.EBADF
    finally:
        os.close(path_only)


def test_fs_magic_tells_proc_from_others(fd: int) -> None:
    proc = os.open("/proc", os.O_PATH)
    try:
        assert files.fs_magic(proc) == 0x9FA0
        assert files.fs_magic(fd) != 0x9FA0
    finally:
        os.close(proc)
    with pytest.raises(OSError, match="descriptor 99999") as caught:
        files.fs_magic(99999)
    assert caught.value.errno == errno.EBADF


def test_list_names_sorts_and_follows_no_link(root: Path, fd: int) -> None:
    odd = os.fsdecode(b"\xff-name")
    for name in ("b", "a", odd):
        (root / name).touch()
    (root / "link").symlink_to("etc")
    assert files.list_names(fd) == sorted(["a", "b", "etc", "link", odd])
    assert files.list_names(fd, "etc") == ["name"]
    assert files.list_names(fd) == files.list_names(fd)  # no offset is left behind in the descriptor
    with pytest.raises(OSError, match="link"):
        files.list_names(fd, "link")


def test_the_module_imports_next_to_nothing() -> None:
    heavy = "{'re', 'pathlib', 'typing', 'tempfile', 'shutil'}"
    script = f"import sys, apk_atomic.files; print(*{heavy} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", script], capture_output=True, text=True, check=True, cwd=PROJECT
    )
    assert done.stdout.split() == []


# ---- directories -------------------------------------------------------------------------------------------


def test_directories_are_made_where_they_are_missing(root: Path, fd: int) -> None:
    assert files.make_directories(fd, "/a/b/c")
    assert not files.make_directories(fd, "a/b/c")
    assert (root / "a/b/c").is_dir()


@pytest.mark.parametrize("way", ["link/x", "etc/name/x", "etc/name"])
def test_directories_are_made_beneath_and_through_no_link(root: Path, fd: int, way: str) -> None:
    (root / "link").symlink_to("..")
    with pytest.raises(OSError, match=r"directory|symbolic"):
        files.make_directories(fd, way)
    assert sorted(os.listdir(root.parent)) == ["root", "secret"]
