"""The root in which a change runs (design, section 5), made inside the namespace of `namespace.run`.

The staged subvolume is mounted by itself and everything else below it; then it becomes the root and the old one is
detached. Each mount point is opened beneath that root with no link followed, so a hostile snapshot can refuse to
be a root, but not lead us to the host.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

from apk_atomic import files, mounts
from apk_atomic.errors import CheckFailed
from apk_atomic.faults import VARIABLE
from apk_atomic.lock import RUN

ROOT = f"{RUN}/root"
MARKER = "apk-atomic/inside"  # below the root's /run: its presence says that a change is at work here
DATABASE = "lib/apk/db"
_DIRECTORY = os.O_PATH | os.O_DIRECTORY
_DROPPED = ("LD_", "PYTHON", "DBUS_")
_SAFE = mounts.NOSUID | mounts.NODEV
_SYSTEM = _SAFE | mounts.NOEXEC
_FLAGS = {"nosuid": mounts.NOSUID, "nodev": mounts.NODEV, "noexec": mounts.NOEXEC}
_RUN_SIZE, _DB_SIZE = "16m", "256m"
_PROC_READ_ONLY = ("sys", "sysrq-trigger", "irq", "bus")
_OURS = "apk-atomic"  # in the real path of every program of ours
_APK = ("sbin/apk", "usr/sbin/apk", "usr/bin/apk", "bin/apk")
_DATABASE_LIMIT = 1 << 28  # bytes of one file


class Common(NamedTuple):
    """A subvolume of the volume to mount at `point` (absolute); `flags` are fstab's nodev, nosuid, noexec.

    `optional`: where it is missing, nothing is mounted.
    """

    point: str
    subvolume: str
    writable: bool
    flags: tuple[str, ...] = ()
    optional: bool = False


class Bind(NamedTuple):
    """A file or directory of the caller's, visible at the same absolute path inside; read-only but for a cache."""

    source: str
    target: str
    writable: bool = False


class RootPlan(NamedTuple):
    """What the root consists of.

    `subvolume` is the path of the root from the top level; `tmp` a directory of this namespace that becomes /tmp ('':
    a tmpfs); `resolv` what a dangling /etc/resolv.conf link is to lead to. `copied_database`: the database directory
    becomes a writable copy that is forgotten, which lets `update` and `cache` work on a sealed root.
    """

    device: str
    subvolume: str
    commons: tuple[Common, ...] = ()
    binds: tuple[Bind, ...] = ()
    tmp: str = ""
    resolv: bytes | None = None
    read_only: bool = False
    copied_database: bool = False


def enter(plan: RootPlan) -> None:
    """Makes the root and moves this process into it. To be called as PID 1 of fresh namespaces.

    Raises CheckFailed, which names the path, where the snapshot has no plain directory for a mount.
    """
    assemble(plan)
    mounts.pivot_to(ROOT)


def assemble(plan: RootPlan) -> None:
    """Makes the root at ROOT, and leaves this process outside: for a program that is not in it, and works on it.

    Where that fails, nothing of it is left.
    """
    umask = os.umask(0o022)
    os.makedirs(ROOT, mode=0o700, exist_ok=True)
    try:
        flags = mounts.NOATIME | (mounts.RDONLY if plan.read_only else 0)
        mounts.mount(plan.device, ROOT, "btrfs", flags, f"subvol={plan.subvolume}")
        try:
            _furnish(plan)
        except BaseException:
            with suppress(OSError):
                mounts.unmount(ROOT, mounts.DETACH)
            raise
    finally:
        os.umask(umask)


def _furnish(plan: RootPlan) -> None:
    """Mounts everything below the root that is at ROOT already."""
    root = os.open(ROOT, _DIRECTORY)
    try:
        _mount_all(root, plan)
    finally:
        os.close(root)


def _mount_all(root: int, plan: RootPlan) -> None:
    _mount_system(root)
    _mount_tmp(root, plan.tmp)
    for common in plan.commons:
        _mount_common(root, plan.device, common)
    for bind in sorted(plan.binds, key=lambda each: each.target):
        _bind_from_caller(root, bind)
    if plan.resolv is not None:
        _provide_resolv(root, plan.resolv)
    if plan.copied_database:
        _make_database_writable(root, plan.commons)


def find_apk(root: int) -> str | None:
    """The absolute path of apk inside the root, or None. A link to ourselves or to a front of ours is none."""
    for path in _APK:
        try:
            fd = files.open_in_root(root, path, os.O_PATH)
        except OSError:
            continue
        try:
            mode = os.fstat(fd).st_mode
            if stat.S_ISREG(mode) and mode & 0o111 and _OURS not in files.fd_path(fd).removeprefix(files.fd_path(root)):
                return f"/{path}"
        finally:
            os.close(fd)
    return None


def environment(caller: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment, less what would lead programs inside to files outside."""
    return {
        name: value
        for name, value in caller.items()
        if not name.startswith(_DROPPED) and name not in ("", "TMPDIR", "SSH_AUTH_SOCK", "XDG_RUNTIME_DIR", VARIABLE)
    }


def _open_point(root: int, path: str) -> int:
    try:
        return files.open_beneath(root, path.lstrip("/"), _DIRECTORY)
    except OSError as error:
        raise CheckFailed(
            f"/{path.lstrip('/')} in the generation is not a plain directory to mount on ({error.strerror}); "
            "nothing was changed"
        ) from error


def _mount_on(root: int, path: str, source: str, fstype: str, flags: int, data: str = "") -> None:
    point = _open_point(root, path)
    try:
        mounts.mount(source, mounts.descriptor_path(point), fstype, flags, data)
    finally:
        os.close(point)


def _remount_read_only(root: int, path: str, flags: int) -> None:
    point = files.open_beneath(root, path.lstrip("/"), os.O_PATH)
    try:
        mounts.mount("", mounts.descriptor_path(point), "", mounts.REMOUNT | mounts.BIND | mounts.RDONLY | flags)
    finally:
        os.close(point)


def _mount_system(root: int) -> None:
    _mount_on(root, "proc", "proc", "proc", _SYSTEM)
    for name in _PROC_READ_ONLY:
        _protect(root, f"proc/{name}")
    _mount_on(root, "sys", "sysfs", "sysfs", _SYSTEM | mounts.RDONLY)
    _mount_on(root, "dev", "/dev", "", mounts.BIND | mounts.REC)
    _mount_on(root, "dev", "", "", mounts.SLAVE | mounts.REC)
    _mount_on(root, "run", "tmpfs", "tmpfs", _SAFE, f"mode=0755,size={_RUN_SIZE}")
    run = _open_point(root, "run")
    os.mkdir(os.path.dirname(MARKER), 0o755, dir_fd=run)
    os.close(files.open_beneath(run, MARKER, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444))
    os.close(run)


def _protect(root: int, path: str) -> None:
    """Makes an entry of /proc read-only by a bind mount on itself; a kernel without it has nothing to protect."""
    try:
        point = files.open_beneath(root, path, os.O_PATH)
    except FileNotFoundError:
        return
    mounts.mount(mounts.descriptor_path(point), mounts.descriptor_path(point), "", mounts.BIND)
    os.close(point)
    _remount_read_only(root, path, _SYSTEM)


def _mount_tmp(root: int, tmp: str) -> None:
    if tmp:
        _mount_on(root, "tmp", tmp, "", mounts.BIND)
    else:
        _mount_on(root, "tmp", "tmpfs", "tmpfs", _SAFE, "mode=1777")


def _mount_common(root: int, device: str, common: Common) -> None:
    flags = mounts.NOATIME
    for name in common.flags:
        flags |= _FLAGS[name]
    _mount_on(root, common.point, device, "btrfs", flags, f"subvol={common.subvolume}")
    if not common.writable:
        _remount_read_only(root, common.point, flags)


def _bind_from_caller(root: int, bind: Bind) -> None:
    source = os.open(bind.source, os.O_PATH)
    try:
        is_directory = stat.S_ISDIR(os.fstat(source).st_mode)
        _make_point(root, bind.target.strip("/"), is_directory)
        try:
            point = files.open_beneath(root, bind.target.strip("/"), os.O_PATH)
        except OSError as error:
            raise CheckFailed(
                f"{bind.source} cannot be shown in the new root, where {bind.target} is no plain path "
                f"({error.strerror}); nothing was changed"
            ) from error
        mounts.mount(mounts.descriptor_path(source), mounts.descriptor_path(point), "", mounts.BIND)
        os.close(point)
        if not bind.writable:
            _remount_read_only(root, bind.target.strip("/"), _SAFE)
    finally:
        os.close(source)


def _make_point(root: int, path: str, is_directory: bool) -> None:
    """Makes what is missing of a mount point below /tmp or /run of the root; elsewhere it has to be there."""
    parts = path.split("/")
    if parts[0] not in ("tmp", "run"):
        return
    for depth in range(2, len(parts) + (1 if is_directory else 0)):
        _make_directory(root, "/".join(parts[:depth]))
    if not is_directory:
        os.close(files.open_beneath(root, path, os.O_WRONLY | os.O_CREAT, 0o644))


def _make_directory(root: int, path: str) -> None:
    """mkdir(2) itself follows the links on the way, and to the build /tmp is what the change has left there."""
    above, name = os.path.split(path)
    parent = files.open_beneath(root, above, _DIRECTORY)
    try:
        with suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=parent)
    finally:
        os.close(parent)


def _provide_resolv(root: int, content: bytes) -> None:
    """Where etc/resolv.conf is a link into /run or /tmp, makes the file it leads to; the link stays as it was.

    Where the change has put something else on the way there, what runs now does without name servers.
    """
    try:
        text = os.readlink("etc/resolv.conf", dir_fd=root)
    except OSError:
        return  # a file, which counts as it is, or nothing
    target = os.path.normpath(os.path.join("/etc", text)).lstrip("/")
    target = target.removeprefix("var/") if target.startswith("var/run/") else target
    if not target.startswith(("run/", "tmp/")):
        return
    with suppress(OSError):
        _make_point(root, os.path.dirname(target), True)
        files.write_atomic(root, target, content)


def _make_database_writable(root: int, commons: tuple[Common, ...]) -> None:
    """A tmpfs copy of the database directory, and of nothing in /var/log unless that is a writable common."""
    directory = files.open_in_root(root, DATABASE, os.O_RDONLY | os.O_DIRECTORY)
    contents = {}
    for name in os.listdir(directory):
        try:
            contents[name] = files.read_file(directory, name, _DATABASE_LIMIT)
        except OSError:
            continue  # not a file of the database
    mounts.mount("tmpfs", mounts.descriptor_path(directory), "tmpfs", _SAFE, f"mode=0755,size={_DB_SIZE}")
    os.close(directory)
    copy = files.open_in_root(root, DATABASE, os.O_RDONLY | os.O_DIRECTORY)
    for name, content in contents.items():
        files.write_atomic(copy, name, content)
    os.close(copy)
    if not any(common.writable and common.point in ("/var", "/var/log") for common in commons):
        _mount_on(root, "var/log", "tmpfs", "tmpfs", _SAFE, "mode=0755")
