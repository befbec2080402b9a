"""What can go wrong, and the exit status that says so (design, section 8).

    AtomicError                 100…107 or another status; message, and a hint: what to type next
    ├── CannotRun        100    a program of the system is not there, or did not end
    ├── UsageError       100    the command line or the configuration is wrong
    ├── NotSuchRoot      101    this system, or this volume, does not have our layout
    ├── Locked           102    another transaction holds the volume
    ├── NoSpace          103    the volume has no room for a transaction
    ├── CheckFailed      104    the staged root would not boot, or the layout is not as it must be
    ├── BuildFailed      105    the initramfs could not be made
    ├── Refused          106    a hook, a policy or an unanswered question stands against it
    ├── NotDurable       107    the pointer was renamed but the disk did not confirm it
    ├── ChangeFailed     apk's  apk, or the command that ran in its place, failed
    └── Interrupted      128+n  a signal ended it

Whoever raises says what failed and what changed; only `cli.main` prints and exits.
"""

from __future__ import annotations

import errno


class AtomicError(Exception):
    """A failure that the user is told about in one line, with an optional hint on what to do next."""

    exit_code = 100

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class CannotRun(AtomicError):
    exit_code = 100


class UsageError(AtomicError):
    exit_code = 100


class NotSuchRoot(AtomicError):
    exit_code = 101


class Locked(AtomicError):
    exit_code = 102


class NoSpace(AtomicError):
    exit_code = 103


class CheckFailed(AtomicError):
    exit_code = 104


class BuildFailed(AtomicError):
    exit_code = 105


class Refused(AtomicError):
    exit_code = 106


class NotDurable(AtomicError):
    exit_code = 107


class ChangeFailed(AtomicError):
    """The change itself failed; `status` (1…255) is what apk or the command returned, `broken` names the packages
    that apk has flagged for it."""

    def __init__(self, message: str, *, status: int, hint: str = "", broken: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = status
        self.broken = broken


class Interrupted(AtomicError):
    """Signal `signum` arrived; the exit status is the shell's 128 + signum."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


_ROOM = "apk-atomic gc collects old generations; btrfs filesystem usage / shows what is full"
FULL = (errno.ENOSPC, errno.EDQUOT)
_HINTS = {
    errno.EDQUOT: "btrfs qgroup show says which limit it is",
    errno.EPERM: "this needs all that root may do: not a container's root, nor one without CAP_SYS_ADMIN",
    errno.EMFILE: "ulimit -n says how many files a process may open",
    errno.EFBIG: "ulimit -f says how large a file may become",
}


def refusal(error: OSError, room: str = _ROOM) -> AtomicError:
    """What an error of the system means where it ends a command that has changed nothing, or taken it back; `room` is
    the hint for a full volume."""
    text = f"{plain(error)}; nothing was changed"
    if error.errno in FULL:
        return NoSpace(text, hint=hint_for(error, room))
    return CheckFailed(text, hint=hint_for(error, room))


def plain(error: Exception) -> str:
    """What failed, for people: an error of the system without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'the volume'}: {error.strerror}"
    return f"{error}"


def hint_for(error: OSError, room: str = _ROOM) -> str:
    """Where to look after an error of the system; `room`: where the volume is full."""
    if error.errno == errno.ENOSPC:
        return "df /run shows how full it is" if " /run/" in f" {error.filename}" else room
    return _HINTS.get(error.errno or 0, "dmesg may say more")
