"""What makes a heap of packages a system that runs sealed: runlevels, names, network, keys (facts: alpine-boot 4, 8).

Everything is written beneath the root that is being made; a link in it leads nowhere else. It must not know how the
packages came there. Nothing here is durable: the seal is.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass

from apk_atomic import files, generator, lookup
from apk_atomic.errors import CheckFailed, UsageError

RESOLV = "/run/resolv.conf"
FEATURES = ("ata", "base", "ide", "keymap", "kms", "mmc", "nvme", "scsi", "usb", "virtio")
# OpenRC's runlevels are empty after `apk --initdb`. What is not installed is left out.
_RUNLEVELS = {
    "sysinit": ("devfs", "dmesg", "mdev", "hwdrivers"),
    "boot": ("modules", "hwclock", "sysctl", "hostname", "bootmisc", "syslog", "networking", "swap"),
    "default": ("crond", "acpid", "chronyd", "sshd"),
    "shutdown": ("killprocs", "mount-ro", "savecache"),
}
# A sealed root cannot keep /etc/resolv.conf; udhcpc replaces the file, openresolv writes where it is told.
_RESOLVERS = (
    ("etc/udhcpc/udhcpc.conf", f'RESOLV_CONF="{RESOLV}"'),
    ("etc/resolvconf.conf", f"resolv_conf={RESOLV}"),
)
_INTERFACES = "auto lo\niface lo inet loopback\n"
_DHCP = "\nauto {name}\niface {name} inet dhcp\n"
_LIMIT = 1 << 20  # bytes of a file that we change
_CRYPT = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789./=,")
_HASHES = {"1": 22, "5": 43, "6": 86, "2a": 53, "2b": 53, "2y": 53, "7": 43, "y": 43, "gy": 43}  # crypt(5): characters
# Where things are mounted; packages bring them too, but we mount before there are packages.
_POINTS = (("proc", 0o555), ("sys", 0o555), ("dev", 0o755), ("run", 0o755), ("tmp", 0o1777))


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells this system from others; "" or b"" leaves the packages' own. `password` is a crypt(3) hash,
    `authorized_keys` root's; `interface` gets its address by DHCP."""

    hostname: str = ""
    interface: str = ""
    password: str = ""
    authorized_keys: bytes = b""


def make_mount_points(root: int, points: tuple[str, ...]) -> None:
    """The directories to mount on, before there is a package: the system's, and `points` (absolute)."""
    for path, mode in _POINTS:
        os.mkdir(path, mode, dir_fd=root)
        os.chmod(path, mode, dir_fd=root)
    for point in points:
        os.close(make_directory(root, point.strip("/")))


def set_features(root: int, wanted: tuple[str, ...]) -> None:
    """mkinitfs's features: those that it has by default, and btrfs, and `wanted`. To be done before the kernel comes:
    its trigger makes the image, and exits 0 without btrfs in it too."""
    text = _read(root, generator.MKINITFS_CONFIG)
    lines = text.splitlines()
    known = next((line.partition("=")[2].strip("\"'").split() for line in lines if line.startswith("features=")), [])
    features = dict.fromkeys((*(known or FEATURES), "btrfs", *wanted))
    kept = [line for line in lines if not line.startswith("features=")]
    write(root, generator.MKINITFS_CONFIG, "\n".join((*kept, f'features="{" ".join(features)}"', "")))


def write_sources(root: int, repositories: tuple[str, ...], keys: tuple[tuple[str, bytes], ...]) -> None:
    """etc/apk/repositories, and the keys before the first package is fetched."""
    for name, key in keys:
        write(root, f"etc/apk/keys/{name}", key)
    write(root, "etc/apk/repositories", "".join(f"{line}\n" for line in repositories))


def configure(root: int, identity: Identity) -> None:
    """All that does not need a program of the new root."""
    for level, services in _RUNLEVELS.items():
        for service in services:
            _enable(root, level, service)
    link_resolv(root)
    _set_network(root, identity.interface)
    if identity.hostname:
        write(root, "etc/hostname", f"{identity.hostname}\n")
    if identity.password:
        _set_password(root, identity.password)
    if identity.authorized_keys:
        directory = make_directory(root, "root/.ssh")
        os.fchmod(directory, 0o700)
        os.close(directory)
        write(root, "root/.ssh/authorized_keys", identity.authorized_keys, 0o600)
    write(root, "etc/machine-id", os.urandom(16).hex() + "\n", 0o444)


def valid_hostname(name: str) -> str:
    """`name`, if a machine may be called so; else UsageError."""
    parts = name.split(".")
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")
    if len(name) > 63 or not all(part and part.strip("-") == part and allowed.issuperset(part) for part in parts):
        raise UsageError(f"{name!r} cannot be the name of a machine; nothing was changed")
    return name


def valid_keys(text: bytes, name: str) -> bytes:
    """`text`, if there is an SSH public key in it and no private one; else UsageError. `name` is the file's."""
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.lstrip().startswith(b"#")]
    if b"PRIVATE KEY" in text or not any(word.startswith(b"AAAA") for words in lines for word in words):
        raise UsageError(f"{name} holds no SSH public key such as id_ed25519.pub; nothing was changed")
    return text


def valid_interface(name: str) -> str:
    """`name`, if the kernel and etc/network/interfaces take it for that of an interface, or ""; else UsageError."""
    if len(name) > 15 or name in (".", "..") or not all(char.isprintable() and char.isascii() for char in name):
        raise UsageError(f"{name!r} cannot be the name of a network interface; nothing was changed")
    if set(" /:#\\").intersection(name):
        raise UsageError(f"{name!r} cannot be the name of a network interface; nothing was changed")
    return name


def is_hash(password: str) -> bool:
    """Whether that is what crypt(3) makes of a password; anything else that begins with "$" is one in the clear."""
    before, kind, *fields = password.split("$") if "$" in password else ("", "")
    return (
        not before
        and len(fields) > 1
        and all(field and _CRYPT.issuperset(field) for field in fields)
        and len(fields[-1]) == _HASHES.get(kind, -1)
    )


def write(root: int, path: str, content: str | bytes, mode: int = 0o644, owner: tuple[int, int] = (0, 0)) -> None:
    """Writes a file, and makes the directories above it. Raises CheckFailed where a package left a link there."""
    above, name = os.path.split(path)
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    directory = make_directory(root, above)
    try:
        files.write_atomic(directory, name, data, mode)
        os.chown(name, *owner, dir_fd=directory, follow_symlinks=False)
    finally:
        os.close(directory)


def make_directory(root: int, path: str) -> int:
    """A descriptor of a directory in the root, made where it is missing; no link on the way is followed."""
    try:
        return files.open_made(root, path)[0]
    except OSError as error:
        raise CheckFailed(f"/{path} of the new system is not a directory: {error.strerror}") from error


def _read(root: int, path: str) -> str:
    return (lookup.read(root, path, _LIMIT) or b"").decode("utf-8", "surrogateescape")


def _enable(root: int, level: str, service: str) -> None:
    """What rc-update does: a link to the script, where there is one and nobody made it before."""
    if not lookup.is_file(root, f"etc/init.d/{service}"):
        return
    directory = make_directory(root, f"etc/runlevels/{level}")
    try:
        with suppress(FileExistsError):
            os.symlink(f"/etc/init.d/{service}", service, dir_fd=directory)
    finally:
        os.close(directory)


def link_resolv(root: int) -> None:
    """The name servers that a DHCP client learns go to /run: a sealed root has only a link to there."""
    for path, line in _RESOLVERS:
        there = _read(root, path)
        if line not in there.splitlines():
            write(root, path, f"{there.rstrip()}\n{line}\n".lstrip())
    etc = make_directory(root, "etc")
    try:
        with suppress(FileNotFoundError):
            os.unlink("resolv.conf", dir_fd=etc)
        os.symlink(RESOLV, "resolv.conf", dir_fd=etc)
    finally:
        os.close(etc)


def _set_network(root: int, interface: str) -> None:
    """Without etc/network/interfaces the service `networking` fails; a package's or the user's own counts."""
    if not lookup.exists(root, "etc/network/interfaces"):
        write(root, "etc/network/interfaces", _INTERFACES + (_DHCP.format(name=interface) if interface else ""))


def _set_password(root: int, hashed: str) -> None:
    lines = _read(root, "etc/shadow").splitlines()
    fields = next((line.split(":") for line in lines if line.startswith("root:")), ["root", "", "", "0", *[""] * 5])
    fields[1] = hashed
    others = [line for line in lines if not line.startswith("root:")]
    status = lookup.status(root, "etc/shadow")
    owner = (status.st_uid, status.st_gid) if status else (0, 0)
    write(root, "etc/shadow", "\n".join((":".join(fields), *others, "")), 0o640, owner)
    passwd = [_shadowed(line) for line in _read(root, "etc/passwd").splitlines()]
    write(root, "etc/passwd", "\n".join((*passwd, "")))


def _shadowed(line: str) -> str:
    """A line of etc/passwd that sends to etc/shadow for root's password."""
    fields = line.split(":")
    return ":".join(("root", "x", *fields[2:])) if fields[0] == "root" else line
