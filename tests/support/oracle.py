"""What must be equal before and after: whole trees, mounts, processes, loop devices, subvolumes.

    before = leftovers(concerning=(volume.device,))
    ... run something with TAG=name in its environment ...
    assert not leftovers("name", concerning=(volume.device,)).since(before)

It only looks; it must not know what apk-atomic does. Nothing here is durable.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import stat
import subprocess
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

TAG = "APK_ATOMIC_TEST_TAG"
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A whole tree: every path in it, with all that makes it what it is. Hashable; equal for equal trees."""

    entries: frozenset[tuple[str, str]]

    def differences(self, other: Fingerprint) -> list[str]:
        """Lines as of a diff from this tree to the other: `- path: how it was`, `+ path: how it is`."""
        gone = [(path, "-", text) for path, text in self.entries - other.entries]
        come = [(path, "+", text) for path, text in other.entries - self.entries]
        ordered = sorted(gone + come, key=lambda row: (row[0], row[1] == "+"))
        return [f"{sign} {path}: {text}" for path, sign, text in ordered]


def fingerprint(root: Path, exclude: Collection[str] = (), *, mtime: bool = False) -> Fingerprint:
    """Read the whole tree, root included (as "."); what is mounted in it belongs to it.

    exclude: paths relative to root, each left out with all below it. Of each path: type, mode, owner, links,
    size, content, target, device number, extended attributes, on request mtime. Errors of reading are raised.
    """
    return Fingerprint(frozenset(_walk(os.fspath(root), ".", frozenset(exclude), mtime)))


def _walk(path: str, name: str, exclude: frozenset[str], mtime: bool) -> Iterator[tuple[str, str]]:
    status = os.lstat(path)
    yield name, _describe(path, status) + (f" mtime={status.st_mtime_ns}" if mtime else "")
    if stat.S_ISDIR(status.st_mode):
        for child in sorted(os.listdir(path)):
            below = child if name == "." else f"{name}/{child}"
            if below not in exclude:
                yield from _walk(f"{path}/{child}", below, exclude, mtime)


def _describe(path: str, status: os.stat_result) -> str:
    text = f"{stat.filemode(status.st_mode)} {status.st_uid}:{status.st_gid}"
    if stat.S_ISREG(status.st_mode):
        text += f" links={status.st_nlink} size={status.st_size} {_digest(path)}"
    elif stat.S_ISLNK(status.st_mode):
        text += f" -> {os.readlink(path)}"
    elif not stat.S_ISDIR(status.st_mode):
        text += f" device={status.st_rdev:#x}"
    names = sorted(os.listxattr(path, follow_symlinks=False))
    values = [f"{name}={os.getxattr(path, name, follow_symlinks=False).hex()}" for name in names]
    return " ".join([text, *values])


def _digest(path: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb", buffering=0) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What is mounted, runs and is attached at one moment, as readable lines."""

    mounts: frozenset[str]
    processes: frozenset[str]
    loops: frozenset[str]

    def since(self, before: Leftovers) -> list[str]:
        """What is there now and was not then; empty when all was cleaned up."""
        fresh = {
            "mount": self.mounts - before.mounts,
            "process": self.processes - before.processes,
            "loop device": self.loops - before.loops,
        }
        return [f"{kind}: {line}" for kind, lines in fresh.items() for line in sorted(lines)]


def leftovers(tag: str = "", concerning: Collection[str] = ()) -> Leftovers:
    """Look at the whole machine: every mount namespace, every loop device, every process that bears the tag.

    concerning: only mounts and loop devices one of whose paths (source, root, mount point; backing file)
    is one of these or below it: other sessions on the same machine come and go.
    """
    wanted = tuple(concerning) or ("",)
    processes = frozenset(f"{pid} {_command(pid)}" for pid in (tagged(tag) if tag else ()))
    return Leftovers(frozenset(_mounts(wanted)), processes, frozenset(_loops(wanted)))


def _mounts(wanted: tuple[str, ...]) -> Iterator[str]:
    """Of each mount namespace that some process lives in, once."""
    seen: set[str] = set()
    for pid in _pids():
        with contextlib.suppress(OSError):  # it ended meanwhile
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace not in seen:
                lines = Path(f"/proc/{pid}/mountinfo").read_text(errors="surrogateescape").splitlines()
                seen.add(namespace)
                rows = [row for row in map(_mount_row, lines) if _is_about(row, wanted)]
                yield from (f"{row} in {namespace}" for row in rows)


def _mount_row(line: str) -> str:
    fields = line.split(" ")
    dash = fields.index("-")
    return f"{fields[dash + 2]} {fields[3]} {fields[4]} {fields[dash + 1]}"


def _loops(wanted: tuple[str, ...]) -> Iterator[str]:
    for name in sorted(os.listdir("/sys/block")):
        with contextlib.suppress(OSError):  # not attached, or not a loop device
            backing = Path(f"/sys/block/{name}/loop/backing_file").read_text().rstrip("\n")
            row = f"/dev/{name} {backing}"
            if _is_about(row, wanted):
                yield row


def _is_about(row: str, wanted: tuple[str, ...]) -> bool:
    """Whether a field is one of these paths or lies below it: /dev/loop1 is not about /dev/loop12."""
    return any(field == path or field.startswith(f"{path}/") for field in row.split(" ") for path in wanted)


def _pids() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "(ended meanwhile)"


def tagged(tag: str) -> list[int]:
    """Processes with `TAG=tag` in the environment that they were started with; zombies have none."""
    wanted = f"{TAG}={tag}".encode()
    found: list[int] = []
    for pid in _pids():
        with contextlib.suppress(OSError):
            if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def survivors(tag: str, patience: float = 2.0) -> list[str]:
    """Tagged processes that are still there after so many seconds; returns at once when none is."""
    deadline = time.monotonic() + patience
    while (left := tagged(tag)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return [f"{pid} {_command(pid)}" for pid in left]


def kill_tagged(tag: str, patience: float = 5.0) -> None:
    """SIGKILL them until none is left; TimeoutError if one does not die."""
    deadline = time.monotonic() + patience
    while left := tagged(tag):
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {left} survive SIGKILL")
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def subvolumes(top: Path) -> frozenset[str]:
    """Paths of all subvolumes that have one, relative to the top level, which must be mounted there."""
    argv = ["btrfs", "subvolume", "list", os.fspath(top)]
    listed = subprocess.run(argv, check=True, capture_output=True, text=True, errors="surrogateescape").stdout
    return frozenset(line.split(" ", 8)[8] for line in listed.splitlines())
