"""The machine that an unattended run is a guest of: its priority, its power supply, and who is logged in.

Everything is read where the kernel and elogind show it; what cannot be read counts as not there.
"""

from __future__ import annotations

import ctypes
import os
import pwd
from collections.abc import Iterable, Iterator
from contextlib import suppress

from apk_atomic.schedule import Session, Supply

SUPPLIES = "/sys/class/power_supply"
SESSIONS = "/run/systemd/sessions"  # elogind's too
_CLASSES = {"best-effort": 2, "idle": 3}  # ioprio_set(2)
_IOPRIO_SET = {
    "x86_64": 251, "i386": 289, "i486": 289, "i586": 289, "i686": 289, "aarch64": 30, "riscv64": 30,
    "loongarch64": 30, "armv6l": 314, "armv7l": 314, "armv8l": 314, "ppc64le": 273, "s390x": 282,
}  # fmt: skip
_LOWEST = 7  # of the eight levels within best-effort
_NOBODY = frozenset(("getty", "agetty", "mgetty", "login"))  # wait at a terminal for somebody to come
_NO_SHELLS = ("nologin", "false", "")
_LIMIT = 1 << 16  # bytes


def step_back(nice: int, io: str) -> None:
    """Lowers the priority of this process and of all that it will start; a kernel that refuses is none of our failures.

    `nice` is the value to have, not a difference; `io` is "idle", "best-effort" or "normal".
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, max(nice, os.getpriority(os.PRIO_PROCESS, 0)))
    number = _IOPRIO_SET.get(os.uname().machine)
    if io in _CLASSES and number is not None:
        libc = ctypes.CDLL(None)
        libc.syscall(ctypes.c_long(number), 1, 0, _CLASSES[io] << 13 | (_LOWEST if io == "best-effort" else 0))


def supplies(directory: str = SUPPLIES) -> tuple[Supply, ...]:
    """What /sys/class/power_supply says."""
    return tuple(
        Supply(*(_text(f"{directory}/{name}/{key}").strip() for key in Supply._fields)) for name in _names(directory)
    )


# ---- who is logged in ------------------------------------------------------------------------------------


def sessions(proc: str = "/proc", directory: str = SESSIONS) -> tuple[Session, ...]:
    """Everybody with a login shell who has a process with a controlling terminal, and elogind's sessions.

    What has a mount or PID namespace of its own is a container, and its terminal is nobody's who is logged in here: who
    is and started it has a shell outside of it. Alpine's utmp is usually empty, so nobody asks it.
    """
    return tuple(sorted({*_on_terminals(proc), *_of_elogind(directory)}))


def _on_terminals(proc: str) -> Iterator[Session]:
    terminals: dict[int, str] | None = None
    for name in _names(proc):
        if not name.isdigit():
            continue
        head, _, rest = _text(f"{proc}/{name}/stat").rpartition(")")
        fields = rest.split()
        number = int(fields[4]) if len(fields) > 4 else 0  # field 7 of proc(5): tty_nr
        if number == 0 or head.partition("(")[2] in _NOBODY:
            continue
        user = _login(f"{proc}/{name}")
        if user and not _is_apart(proc, name):
            terminals = _terminals() if terminals is None else terminals
            yield Session(user, terminals.get(_device(number), ""))


def _device(number: int) -> int:
    """The kernel's tty_nr as the st_rdev of the terminal: minor in bits 31 to 20 and 7 to 0, major in 19 to 8."""
    return os.makedev(number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00)


def _login(process: str) -> str:
    """The name of the user whom a process belongs to; '' for one without a login shell."""
    try:
        entry = pwd.getpwuid(os.stat(process).st_uid)
    except (OSError, KeyError):
        return ""
    return "" if os.path.basename(entry.pw_shell) in _NO_SHELLS else entry.pw_name


def _is_apart(proc: str, name: str) -> bool:
    """Whether a process has another mount or PID namespace than init; what cannot be read is not apart."""
    theirs, inits = (f"{proc}/{each}/ns" for each in (name, "1"))
    try:
        return any(os.readlink(f"{theirs}/{kind}") != os.readlink(f"{inits}/{kind}") for kind in ("mnt", "pid"))
    except OSError:
        return False


def _terminals() -> dict[int, str]:
    """Path by device number of everything in /dev and /dev/pts."""
    found = {}
    for directory in ("/dev", "/dev/pts"):
        for name in _names(directory):
            path = f"{directory}/{name}"
            with suppress(OSError):
                found[os.lstat(path).st_rdev] = path
    return found


def _of_elogind(directory: str) -> Iterator[Session]:
    for name in _names(directory):
        lines = (line.partition("=") for line in _text(f"{directory}/{name}").splitlines())
        said = {key: value for key, _, value in lines}
        if said.get("CLASS") != "user" or said.get("STATE") == "closing":
            continue
        terminal = said.get("TTY", "")
        path = terminal if terminal.startswith("/dev/") else f"/dev/{terminal}"
        yield Session(said.get("USER") or said.get("UID", "?"), path if terminal else "")


def warn(found: Iterable[Session], text: str) -> frozenset[str]:
    """Writes a line to the terminals; which of them took it."""
    told = set()
    for terminal in {session.terminal for session in found}:
        with suppress(OSError):
            fd = os.open(terminal, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if os.isatty(fd):
                    os.write(fd, f"\r\n\a{text}\r\n".encode())
                    told.add(terminal)
            finally:
                os.close(fd)
    return frozenset(told)


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(_LIMIT)
    except OSError:
        return ""
