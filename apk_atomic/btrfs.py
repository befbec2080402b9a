"""A btrfs volume and its subvolumes, by ioctl on descriptors.

It knows nothing of generations, slots or the layout. Descriptors are directories opened O_RDONLY (O_PATH does
not do for ioctls); names are single components. A snapshot is durable, with its data, when the call returns;
deletions and the read-only property become durable with the next commit of the volume (`sync`,
`files.syncfs`). Changing calls and tree searches need CAP_SYS_ADMIN. Errors are OSError with the name;
ENOTTY: not btrfs.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Any, NamedTuple

from apk_atomic import btrfs_ioctl as raw
from apk_atomic import btrfs_space, files
from apk_atomic.btrfs_space import Space as Space
from apk_atomic.btrfs_trees import ChangedInode as ChangedInode
from apk_atomic.btrfs_trees import Child as Child
from apk_atomic.btrfs_trees import changed_inodes as changed_inodes
from apk_atomic.btrfs_trees import children as children
from apk_atomic.btrfs_trees import default_subvolume as default_subvolume
from apk_atomic.btrfs_trees import inode_paths as inode_paths

BTRFS_MAGIC = 0x9123683E
TOP_LEVEL_ID = raw.TOP_LEVEL_ID
SUBVOLUME_INODE = raw.FIRST_FREE_OBJECTID  # inode number of every subvolume's root directory

_READONLY = 1 << 1  # BTRFS_SUBVOL_RDONLY, of GETFLAGS and SNAP_CREATE_V2
_ROOT_READONLY = 1 << 0  # BTRFS_ROOT_SUBVOL_RDONLY, of GET_SUBVOL_INFO
_WANT_GENERATION = 1 << 1  # BTRFS_FS_INFO_FLAG_GENERATION
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


class FsInfo(NamedTuple):
    """`fsid` as blkid prints it; `generation`: the newest transaction, maybe still open (0 before 5.10)."""

    fsid: str
    num_devices: int
    max_devid: int
    nodesize: int
    sectorsize: int
    generation: int


class Device(NamedTuple):
    """One device of a volume; `path` is "" when it is missing. Sizes in bytes."""

    devid: int
    path: str
    total: int
    allocated: int


class SubvolumeInfo(NamedTuple):
    """`parent_id` is the containing subvolume (0 for the top level), `parent_uuid` the one this is a snapshot
    of ("": none).

    `otransid` never goes back and orders snapshots by creation; `otime` is in seconds since the epoch, by the
    clock then.
    """

    id: int
    parent_id: int
    name: str
    uuid: str
    parent_uuid: str
    otransid: int
    ctransid: int
    generation: int
    otime: float
    readonly: bool


def is_btrfs(fd: int) -> bool:
    """Whether `fd` (O_PATH allowed) lies on btrfs."""
    return files.fs_magic(fd) == BTRFS_MAGIC


def fs_info(fd: int) -> FsInfo:
    """What the volume of `fd` is."""
    buffer = bytearray(raw.FS_INFO_ARGS.pack(0, 0, b"", 0, 0, 0, 0, 0, _WANT_GENERATION, 0, b"", b""))
    raw.call(fd, raw.IOC_FS_INFO, buffer)
    max_id, devices, fsid, node, sector, _, _, _, _, generation, _, _ = raw.FS_INFO_ARGS.unpack(buffer)
    return FsInfo(_uuid(fsid), devices, max_id, node, sector, generation)


def devices(fd: int) -> list[Device]:
    """The volume's devices by devid, the missing ones included."""
    found = []
    for devid in range(1, fs_info(fd).max_devid + 1):
        buffer = bytearray(raw.DEV_INFO_ARGS.pack(devid, b"", 0, 0, b"", b""))
        try:
            raw.call(fd, raw.IOC_DEV_INFO, buffer, f"btrfs device {devid}")
        except OSError as failure:
            if failure.errno != errno.ENODEV:  # ids of removed devices stay unused
                raise
            continue
        _, _, allocated, total, _, path = raw.DEV_INFO_ARGS.unpack(buffer)
        found.append(Device(devid, raw.text(path), total, allocated))
    return found


def device_path(fd: int) -> str:
    """The first device of the volume whose path exists here; mounting it mounts the volume. ENODEV when there
    is none."""
    for device in devices(fd):
        if device.path and os.path.exists(device.path):
            return device.path
    raise files.error(errno.ENODEV, files.fd_path(fd))


def is_subvolume(fd: int, name: str | None = None) -> bool:
    """Whether `fd` (O_PATH allowed), or entry `name` of it, is the root of a btrfs subvolume; a link or
    nothing is not."""
    if name is None:
        status = os.fstat(fd)
        return stat.S_ISDIR(status.st_mode) and status.st_ino == SUBVOLUME_INODE and is_btrfs(fd)
    try:
        child = files.open_beneath(fd, name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as failure:
        if failure.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return False
        raise
    try:
        return is_subvolume(child)
    finally:
        os.close(child)


def subvolume_id(fd: int) -> int:
    """The id of the subvolume that holds `fd` (any file or directory in it)."""
    return raw.lookup(fd, 0, SUBVOLUME_INODE)[0]


def directory_path(fd: int, inode: int) -> str:
    """The path of directory `inode` from the root of the subvolume of `fd`: "" for that, else ending in "/"."""
    return raw.lookup(fd, 0, inode)[1]


def rank(fd: int) -> tuple[int, float, bool]:
    """`otransid`, `otime` and `readonly` of `subvolume_info`, in half the time: it is asked of every generation."""
    fields = _subvolume_fields(fd)
    return fields[10], fields[15] + fields[16] / 1e9, bool(fields[5] & _ROOT_READONLY)


def _subvolume_fields(fd: int) -> tuple[Any, ...]:
    buffer = bytearray(raw.SUBVOL_INFO_ARGS.size)
    raw.call(fd, raw.IOC_GET_SUBVOL_INFO, buffer)
    return raw.SUBVOL_INFO_ARGS.unpack(buffer)


def subvolume_info(fd: int) -> SubvolumeInfo:
    """About the subvolume that holds `fd`; Linux 4.18."""
    fields = _subvolume_fields(fd)
    number, name, parent_id, _, generation, flags, uuid, parent_uuid, _, ctransid, otransid = fields[:11]
    seconds, nanoseconds = fields[15:17]
    return SubvolumeInfo(
        id=number,
        parent_id=parent_id,
        name=raw.text(name),
        uuid=_uuid(uuid),
        parent_uuid=_uuid(parent_uuid) if any(parent_uuid) else "",
        otransid=otransid,
        ctransid=ctransid,
        generation=generation,
        otime=seconds + nanoseconds / 1e9,
        readonly=bool(flags & _ROOT_READONLY),
    )


def create_subvolume(dirfd: int, name: str) -> None:
    """Make an empty subvolume `name` in directory `dirfd`; its mode is 0777 less the umask. FileExistsError,
    EROFS."""
    raw.call(dirfd, raw.IOC_SUBVOL_CREATE_V2, _vol_args(name), name)


def snapshot(source_fd: int, dirfd: int, name: str, *, readonly: bool) -> None:
    """Make `name` in `dirfd` a snapshot of the subvolume whose root is `source_fd`; durable with its data on
    return.

    A read-only snapshot is the only seal there is: a writer with an open descriptor cannot reach it.
    Subvolumes inside the source appear as empty directories. EINVAL when the source is no subvolume's root,
    EXDEV on another volume.
    """
    if not is_subvolume(source_fd):
        raise files.error(errno.EINVAL, files.fd_path(source_fd), "Not the root of a subvolume")
    flags = _READONLY if readonly else 0
    raw.call(dirfd, raw.IOC_SNAP_CREATE_V2, _vol_args(name, source_fd, flags), name)


def destroy(dirfd: int, name: str, *, missing_ok: bool = False) -> None:
    """Delete subvolume `name` of `dirfd`, read-only or not, mounted or not; its space comes back later, do
    not wait.

    ENOTEMPTY when it holds subvolumes (`destroy_tree`), EINVAL when it is none, EPERM when it is the default
    subvolume, EROFS when `dirfd` is in a read-only subvolume. `missing_ok`: nothing there is success.
    """
    try:
        raw.call(dirfd, raw.IOC_SNAP_DESTROY_V2, _vol_args(name), name)
    except FileNotFoundError:
        if not missing_ok:
            raise


def destroy_tree(dirfd: int, name: str, *, missing_ok: bool = False) -> None:
    """Delete subvolume `name` of `dirfd` with all subvolumes inside it, deepest first. Repeatable after an
    interruption.

    A read-only subvolume that holds others loses the property first: the kernel deletes nothing inside a
    read-only one.
    """
    try:
        destroy(dirfd, name, missing_ok=missing_ok)
        return
    except OSError as failure:
        if failure.errno != errno.ENOTEMPTY:
            raise
    fd = files.open_beneath(dirfd, name, _DIRECTORY)
    try:
        _destroy_inside(fd)
    finally:
        os.close(fd)
    destroy(dirfd, name, missing_ok=missing_ok)


def get_readonly(fd: int) -> bool:
    """Whether the subvolume whose root is `fd` has the read-only property."""
    return bool(_flags(fd) & _READONLY)


def set_readonly(fd: int, readonly: bool) -> None:
    """Set or clear the read-only property of the subvolume whose root is `fd`. Not a seal: writers that have
    a file open go on, and nothing is flushed (`snapshot` seals)."""
    flags = _flags(fd)
    wanted = flags | _READONLY if readonly else flags & ~_READONLY
    if wanted != flags:
        raw.call(fd, raw.IOC_SUBVOL_SETFLAGS, bytearray(raw.FLAGS.pack(wanted)))


def sync(fd: int) -> None:
    """Commit the volume; as `files.syncfs`, which also reports earlier failures to write back."""
    raw.call(fd, raw.IOC_SYNC, None)


def space(fd: int) -> Space:
    """The room on the volume of `fd`, in bytes; some microseconds."""
    disks = devices(fd)
    total, allocated = sum(disk.total for disk in disks), sum(disk.allocated for disk in disks)
    return btrfs_space.estimate(total, total - allocated, btrfs_space.groups(fd))


def _destroy_inside(fd: int) -> None:
    number = subvolume_id(fd)
    inside = children(fd, number)
    if inside:
        set_readonly(fd, False)
    for child in inside:
        path = raw.lookup(fd, number, child.dirid)[1]
        directory = files.open_beneath(fd, path or ".", _DIRECTORY)
        try:
            destroy_tree(directory, child.name)
        finally:
            os.close(directory)


def _flags(fd: int) -> int:
    buffer = bytearray(raw.FLAGS.size)
    raw.call(fd, raw.IOC_SUBVOL_GETFLAGS, buffer)
    flags: int = raw.FLAGS.unpack(buffer)[0]
    return flags


def _vol_args(name: str, fd: int = 0, flags: int = 0) -> bytearray:
    """The argument of the calls that take a name; refuses what the kernel would cut off or read as a path."""
    encoded = os.fsencode(name)
    if name in ("", ".", "..") or b"/" in encoded or b"\0" in encoded:
        raise files.error(errno.EINVAL, name, "Not a name for a subvolume")
    if len(encoded) > 255:
        raise files.error(errno.ENAMETOOLONG, name)
    return bytearray(raw.VOL_ARGS_V2.pack(fd, 0, flags, 0, 0, 0, 0, encoded))


def _uuid(value: bytes) -> str:
    digits = value.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
