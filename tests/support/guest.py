"""A running machine without the machine: a mount namespace whose / is a generation of a volume.

Kernel and processes are the host's, but / is mounted as the kernel of a booted machine mounts it, so that
field 4 of its mountinfo names the generation; the commons of its fstab are mounted, /run and /tmp are fresh,
and nothing else of the host is to be seen. Nothing here is durable.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pexpect

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = {
    "PATH": PATH, "HOME": "/root", "USER": "root", "LOGNAME": "root", "SHELL": "/bin/sh",
    "TERM": "xterm", "LC_ALL": "C.UTF-8",
}  # fmt: skip
USER_ID = 1000
TIMEOUT = 60.0
KILL_SECONDS = 10.0

# pivot_root, then everything of the host goes; the holder lives as long as the test keeps its stdin open.
LAST_STEPS = """\
mkdir "$root/run/.host"
cd "$root"
pivot_root . run/.host
exec chroot . /bin/sh -c 'umount -l /run/.host && rmdir /run/.host && echo up && exec cat >/dev/null'
"""


@dataclass(frozen=True, slots=True)
class Result:
    """What a command in the guest did; `status` is negative for a signal, as in subprocess."""

    argv: tuple[str, ...]
    status: int
    stdout: str
    stderr: str


class Guest:
    """A booted generation. Made by `Volume.boot`, ended by `shutdown` (the volume does it at the latest)."""

    def __init__(self, device: str, mountpoint: str, slot: int, options: str) -> None:
        self.device = device
        self._mountpoint = mountpoint
        self._options = options
        self._started: list[subprocess.Popen[bytes]] = []
        self._holder = self._start(slot)

    @property
    def pid(self) -> int:
        """A process in the guest's mount namespace, there as long as the guest is up."""
        return self._holder.pid

    @property
    def root(self) -> str:
        """The guest's / as a path of the test process."""
        return f"/proc/{self.pid}/root"

    @property
    def booted(self) -> str:
        """The booted generation, from field 4 of / as apk-atomic reads it: "20240102030405abcdefgh"."""
        return root_of_mountinfo(self.pid).split("/")[2]

    def run(
        self, argv: Sequence[str], *, input: str | None = None, timeout: float = TIMEOUT, check: bool = False,
        **how: Any,
    ) -> Result:  # fmt: skip
        """Run a command to its end. `how`: env (added to the clean one), cwd, uid; else see `popen`."""
        how.setdefault("stdin", subprocess.DEVNULL if input is None else subprocess.PIPE)
        process = self.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how)
        data = None if input is None else input.encode(errors="surrogateescape")
        try:
            out, err = process.communicate(data, timeout)
        except BaseException as error:
            process.kill()
            self.kill_strays()
            out, err = process.communicate(timeout=KILL_SECONDS)
            error.add_note(f"{shlex.join(argv)} had said: {out!r} {err!r}")
            raise
        result = Result(tuple(argv), process.returncode, _text(out), _text(err))
        if check and result.status != 0:
            said = result.stdout + result.stderr
            raise AssertionError(f"{shlex.join(argv)} exited with {result.status}:\n{said}")
        return result

    def popen(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        uid: int = 0,
        **how: Any,
    ) -> subprocess.Popen[bytes]:
        """Start a command; the process is the command itself, so signals reach it. `how` as Popen's."""
        process = subprocess.Popen(self._enter(argv, cwd, uid), env=self._environment(env, uid), **how)
        self._started.append(process)
        return process

    def command(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: str = "", uid: int = 0
    ) -> tuple[list[str], dict[str, str]]:
        """The command line and the whole environment that `popen` would start: for tools that start it themselves."""
        return self._enter(argv, cwd, uid), self._environment(env, uid)

    def pty(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        uid: int = 0,
        **how: Any,
    ) -> pexpect.spawn:
        """Start a command on a terminal of its own, which controls its session. `how` as pexpect.spawn's."""
        how.setdefault("encoding", "utf-8")
        how.setdefault("timeout", TIMEOUT / 2)
        command, *rest = self._enter(argv, cwd, uid)
        terminal = pexpect.spawn(command, rest, env=self._environment(env, uid), **how)
        # pexpect sleeps on every send and close, to spare slow hardware of the past.
        terminal.delaybeforesend = None
        terminal.ptyproc.delayafterclose = terminal.ptyproc.delayafterterminate = 0.01
        return terminal

    def reboot(self, slot: int = 0) -> None:
        """End all that runs; boot what is in `slot` now, with a fresh /run and /tmp."""
        self.shutdown()
        self._holder = self._start(slot)

    def shutdown(self) -> None:
        """Kill what runs and let go of all mounts. Idempotent."""
        while self._started:
            _end(self._started.pop())
        self.kill_strays()
        _end(self._holder)

    def strays(self) -> list[int]:
        """Processes beside the holder that see this volume from a namespace that is not the test's."""
        return [pid for pid in processes_on(self.device) if pid != self.pid]

    def lasting_strays(self, patience: float = 2.0) -> list[int]:
        """Those that are still there after so many seconds: one that is just ending, unreaped, is none."""
        deadline = time.monotonic() + patience
        while (found := self.strays()) and time.monotonic() < deadline:
            time.sleep(0.01)
        return found

    def kill_strays(self) -> None:
        """Kill them all, and wait until none is left."""
        deadline = time.monotonic() + KILL_SECONDS
        while strays := self.strays():
            for pid in strays:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes {strays} survive SIGKILL")
            time.sleep(0.005)

    def _enter(self, argv: Sequence[str], cwd: str, uid: int) -> list[str]:
        command = ["nsenter", f"--target={self.pid}", "--mount"]
        if uid:
            command += [f"--setuid={uid}", f"--setgid={uid}"]
        if cwd:
            argv = ["/bin/sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", cwd, *argv]
        return [*command, "--", *argv]

    def _environment(self, extra: Mapping[str, str] | None, uid: int) -> dict[str, str]:
        user = {"HOME": "/home/user", "USER": "user", "LOGNAME": "user"} if uid == USER_ID else {}
        return ENVIRONMENT | user | dict(extra or {})

    def _start(self, slot: int) -> subprocess.Popen[bytes]:
        script = self._script(slot)
        holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation=private", "/bin/sh", "-euc", script],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"PATH": PATH},
        )  # fmt: skip
        assert holder.stdout is not None
        if holder.stdout.readline() != b"up\n":
            _end(holder)
            raise RuntimeError(f"slot {slot} of {self.device} does not boot")
        return holder

    def _script(self, slot: int) -> str:
        """The shell script that does what kernel, initramfs and boot services do."""
        root = shlex.quote(self._mountpoint)
        device = shlex.quote(self.device)
        options = shlex.quote(f"{self._options},subvol=/current/{slot}/@")
        return (
            f"root={root}\nmount -t btrfs -o {options} {device} $root\n" + BOOT_STEPS.format(device=device) + LAST_STEPS
        )


BOOT_STEPS = """\
mount -t proc proc $root/proc
mount -t sysfs sysfs $root/sys
mount --bind /dev $root/dev
mount --bind /dev/pts $root/dev/pts
mount -t tmpfs -o mode=1777 tmpfs $root/dev/shm
mount -t tmpfs -o mode=755 tmpfs $root/run
mount -t tmpfs -o mode=1777 tmpfs $root/tmp
while read -r source target type options rest; do
	case $type,$target,$options in
	btrfs,/,*|*noauto*) ;;
	btrfs,/*) mount -t btrfs -o "$options" {device} "$root$target" ;;
	esac
done <$root/etc/fstab
"""


def root_of_mountinfo(pid: int) -> str:
    """Field 4 of / in a process's mountinfo: the path of the mounted tree inside its file system."""
    with open(f"/proc/{pid}/mountinfo", errors="surrogateescape") as lines:
        found = [line.split()[3] for line in lines if line.split()[4] == "/"]
    return found[-1]


def processes_on(device: str) -> list[int]:
    """Processes in other mount namespaces than ours in which something of `device` is mounted."""
    ours = os.readlink("/proc/self/ns/mnt")
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and _is_on(name, device, ours)]


def _is_on(pid: str, device: str, ours: str) -> bool:
    try:
        if os.readlink(f"/proc/{pid}/ns/mnt") == ours:
            return False
        with open(f"/proc/{pid}/mountinfo", errors="surrogateescape") as lines:
            return any(f" btrfs {device} " in line for line in lines)
    except OSError:
        return False  # it ended meanwhile, or is a zombie


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill and reap; an exited process is only reaped. Idempotent."""
    process.kill()
    process.wait(KILL_SECONDS)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")
