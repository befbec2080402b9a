"""A booted volume under attack: every command is judged by what it leaves behind.

    trial.refused("apk-atomic", "add", "x", status=103, says="MiB are free")   # the volume is what it was
    trial.committed("apk-atomic", "add", "x")                                  # it is exactly one generation further

Either way nothing is left: no mount, no process, no loop device, no subvolume, nothing in staging/ and next/.
Commands run in a session of their own, so that a script that signals its process group cannot reach the tests.
Nothing here is durable.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.support import btrfsctl, oracle
from tests.support.oracle import TAG, Fingerprint
from tests.support.packages import File, Package
from tests.support.waiting import until
from tests.support.world import Guest, Result, Volume

PARTS = ("snapshots", "links", "next", "staging")
PATIENCE = 20.0
IOC_SYNC, IOC_GET_SUBVOL_INFO = 0x9408, 0x81F8943C
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class View:
    """The volume at one moment; equal views mean that nothing was changed. `pending` is the file in /run."""

    current: str
    slots: tuple[str, ...]
    names: tuple[str, ...]
    subvolumes: frozenset[str]
    pending: str
    tree: Fingerprint | None


class Trial:
    """`guest` is booted from `volume`, or from another one while `volume` is named by --atomic-volume."""

    def __init__(self, volume: Volume, guest: Guest | None = None, *, deep: bool = True) -> None:
        self.volume = volume
        self.guest = guest or volume.boot()
        self.tag = f"adversity-{os.getpid()}-{next(_numbers)}"
        self._deep = deep
        self._known: dict[tuple[str, int], Fingerprint] = {}
        self.accept_mounts()
        self.view = self.look(deep=False)

    def _concerning(self) -> tuple[str, ...]:
        return (self.volume.device, str(self.volume.image.parent))

    def look(self, *, deep: bool = True) -> View:
        """What is on the volume now; a pointer that leads nowhere reads as its text. `deep`: with the whole tree."""
        top = self.volume.top
        names = tuple(f"{part}/{name}" for part in PARTS for name in _names(top / part))
        slots: tuple[str, ...] = ()
        tree = None
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # a link that leads elsewhere, or in a circle
            slots = tuple(self.volume.slots())
            tree = self._tree() if deep and self._deep else None
        return View(_pointer(top), slots, names, oracle.subvolumes(top), self.pending(), tree)

    def _tree(self) -> Fingerprint:
        """The whole tree behind current/0/@, read anew unless btrfs knows of no change to any inode in it."""
        tree = self.volume.tree()
        key = (str(tree), _last_change(tree))
        if key not in self._known:
            self._known[key] = oracle.fingerprint(tree)
        return self._known[key]

    def pending(self) -> str:
        """The content of /run/apk-atomic/next in the guest, '' where there is none."""
        try:
            return Path(self.guest.root, "run/apk-atomic/next").read_text()
        except (FileNotFoundError, NotADirectoryError):
            return ""

    def accept(self) -> None:
        """What is on the volume now is what the next command starts from."""
        self.view = self.look(deep=False)

    def reboot(self, slot: int = 0) -> None:
        """Boot what is in the slot now; then this is what the next command starts from."""
        self.guest.reboot(slot)
        self.accept_mounts()
        self.accept()

    def accept_mounts(self) -> None:
        """What is mounted and attached now is no leftover."""
        self._leftovers = oracle.leftovers(concerning=self._concerning())

    # ---- commands ----------------------------------------------------------------------------------------

    def run(self, *argv: str, **how: Any) -> Result:
        """Run a command and check that it left nothing behind, whatever it did."""
        result = self.guest.run(argv, **self._apart(how))
        self.check_clean(result)
        return result

    def start(self, *argv: str, **how: Any) -> subprocess.Popen[bytes]:
        """The same, still running: for tests that act meanwhile; then `finish`."""
        self._remember()
        pipe = subprocess.PIPE
        how = {"stdin": subprocess.DEVNULL, "stdout": pipe, "stderr": pipe} | self._apart(how)
        return self.guest.popen(argv, **how)

    def finish(self, process: subprocess.Popen[bytes], *, clean: bool = True) -> Result:
        """Wait for what `start` gave; `clean`: nothing may be left, as after `run`."""
        out, err = process.communicate(timeout=60)
        texts = (data.decode(errors="surrogateescape") for data in (out, err))
        result = Result((str(process.args),), process.returncode, *texts)
        if clean:
            self.check_clean(result)
        return result

    def _apart(self, how: dict[str, Any]) -> dict[str, Any]:
        env = dict(how.pop("env", None) or {})
        return {"start_new_session": True, **how, "env": {**env, TAG: self.tag}}

    def refused(self, *argv: str, status: int | None = None, says: str = "", **how: Any) -> Result:
        """The command fails, and the volume is exactly what it was."""
        self._remember()
        result = self.run(*argv, **how)
        self.check_old(result, status, says)
        return result

    def unchanged(self, *argv: str, status: int = 0, **how: Any) -> Result:
        """The command ends like that, and the volume is exactly what it was."""
        self._remember()
        result = self.run(*argv, **how)
        assert result.status == status, result
        self.check_same()
        return result

    def check_same(self) -> None:
        """The volume is what it was when it was last looked at."""
        _assert_equal(self.look(), self.view)

    def _remember(self) -> None:
        """The tree as it is before the command."""
        if self.view.tree is None:
            self.view = replace(self.view, tree=self.look().tree)

    def check_old(self, result: Result, status: int | None = None, says: str = "") -> None:
        said = f"{result.argv}: exit status {result.status}\n{result.stdout}{result.stderr}"
        assert result.status != 0, said
        assert status is None or result.status == status, said
        assert says in result.stderr, said
        self.check_same()

    def committed(self, *argv: str, **how: Any) -> str:
        """The command succeeds and one new generation is next, sealed and whole; its ID."""
        result = self.run(*argv, **how)
        return self.check_new(result)

    def check_new(self, result: Result) -> str:
        said = f"{result.argv}: exit status {result.status}\n{result.stdout}{result.stderr}"
        assert result.status == 0, said
        before, self.view = self.view, self.look(deep=False)
        new = self.volume.slots()[0]
        assert f"snapshots/{new}" not in before.names, said
        assert btrfsctl.is_read_only(self.volume.tree())
        assert all(self.volume.tree(slot).is_dir() for slot in range(len(self.view.slots)))
        assert not [name for name in self.view.names if name.startswith(("next/", "staging/"))]
        links = {name for name in self.view.names if name.startswith("links/")}
        assert links - set(before.names) == {f"links/{self.volume.current()}"}
        assert before.current.replace("./", "") not in links
        return new

    def works(self) -> str:
        """The next run works: a package is added and is in the new generation."""
        name = f"probe{next(_numbers)}"
        self.volume.repo.publish(Package(name, files={f"usr/share/{name}": File(b"x")}))
        self.accept()
        new = self.committed("apk-atomic", "add", name)
        assert (self.volume.tree() / "usr/share" / name).is_file()
        return new

    def check_clean(self, result: Result) -> None:
        """Whatever it did: no traceback, mount, process, loop device or journal is left."""
        said = f"{result.argv}: exit status {result.status}\n{result.stdout}{result.stderr}"
        assert "apk_atomic/" not in result.stderr, said  # a traceback of ours
        assert not self.guest.lasting_strays(), said
        assert not oracle.survivors(self.tag), said
        assert not oracle.leftovers(concerning=self._concerning()).since(self._leftovers), said
        staging = self.volume.top / "staging"
        assert staging.is_symlink() or not staging.is_dir() or not os.listdir(staging), said

    # ---- what the tests do meanwhile ---------------------------------------------------------------------

    def flag(self, name: str) -> Path:
        """A file in /var/log, which test, guest and package scripts all see."""
        return self.volume.top / "commons/@var@log" / name

    def wait_for(self, name: str) -> None:
        """Until a script has made the flag."""
        until(self.flag(name).exists)

    def wait_stopped(self, process: subprocess.Popen[bytes]) -> None:
        """Until the command has stopped itself at a fault point."""
        until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")

    def go_on(self, process: subprocess.Popen[bytes]) -> None:
        os.kill(process.pid, signal.SIGCONT)

    @contextlib.contextmanager
    def etc(self) -> Any:
        """/etc/apk-atomic of the booted system, writable for once; its path."""
        self.guest.run(["mount", "-t", "tmpfs", "tmpfs", "/etc/apk-atomic"], check=True)
        self.accept_mounts()
        try:
            yield Path(self.guest.root, "etc/apk-atomic")
        finally:
            self.guest.run(["umount", "/etc/apk-atomic"], check=True)



def publish_script(volume: Volume, name: str, script: str, **more: Any) -> Package:
    """A package with one file and a post-install script of busybox sh."""
    package = Package(
        name, files={f"usr/share/{name}": File(b"x")}, scripts={"post-install": f"#!/bin/sh\n{script}\n"}, **more
    )
    volume.repo.publish(package)
    return package


def _names(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _last_change(tree: Path) -> int:
    """ctransid of a subvolume (GET_SUBVOL_INFO, 504 bytes): the transaction that last changed an inode in it."""
    handle = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(handle, IOC_SYNC)
        buffer = bytearray(504)
        fcntl.ioctl(handle, IOC_GET_SUBVOL_INFO, buffer)
    finally:
        os.close(handle)
    return int.from_bytes(buffer[344:352], sys.byteorder)


def _pointer(top: Path) -> str:
    try:
        return os.readlink(top / "current")
    except OSError as error:
        return f"({error.strerror})"


def _assert_equal(now: View, before: View) -> None:
    if now.tree and before.tree and now.tree != before.tree:
        raise AssertionError("\n".join(before.tree.differences(now.tree)[:20]))
    assert replace(now, tree=None) == replace(before, tree=None)
