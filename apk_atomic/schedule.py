"""When the unattended upgrade may run and may reboot: pure decisions, the clock and the sessions are arguments.

It must not know how a time is read, a session is found or a machine is restarted. Nothing here is durable.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import time

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY = 24 * 60  # minutes
_WEEK = 7 * _DAY
HOUR = 3600.0
_DOUBLINGS = 3  # of the time between two tries: 8 hours at last
_BATTERIES = ("Battery", "UPS")


class Window(NamedTuple):
    """`days` (0 is Monday) on which it opens, `start` in minutes of the day, `length` in minutes; it may pass midnight.

    The times are those of the wall clock: on the night in which the clock is put forward an hour may be missing.
    """

    days: frozenset[int]
    start: int
    length: int

    def contains(self, at: time.struct_time) -> bool:
        """Whether it is open at a local time, as time.localtime gives it."""
        now = at.tm_wday * _DAY + at.tm_hour * 60 + at.tm_min
        return any((now - day * _DAY - self.start) % _WEEK < self.length for day in self.days)


def parse_window(text: str) -> Window | None:
    """`Sat,Sun 02:00-05:30`, `Mon-Fri 23:00-01:00`, or `03:00-04:00` for every day; None for what is none of these.

    What closes when it opens is refused, for it could mean a minute or a day; that is `00:00-24:00`.
    """
    words = text.lower().split()
    if len(words) not in (1, 2):
        return None
    days = _days(words[0]) if len(words) == 2 else frozenset(range(7))
    start, dash, end = words[-1].partition("-")
    opens, closes = _minutes(start), _minutes(end)
    if not days or not dash or opens is None or closes is None or opens in (_DAY, closes):
        return None
    return Window(days, opens, (closes - opens) % _DAY or _DAY)


def _days(text: str) -> frozenset[int]:
    """Empty for what names no days."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            return frozenset()
        start = DAYS.index(first)
        span = (DAYS.index(last) - start) % 7 if dash else 0
        found |= {(start + step) % 7 for step in range(span + 1)}
    return frozenset(found)


def _minutes(text: str) -> int | None:
    hours, colon, minutes = text.partition(":")
    if not (colon and hours.isdecimal() and minutes.isdecimal() and text.isascii()):
        return None
    if not (0 < len(hours) < 3 and len(minutes) == 2 and int(minutes) < 60):
        return None
    total = int(hours) * 60 + int(minutes)
    return total if total <= _DAY else None


# ---- may it run? -----------------------------------------------------------------------------------------


class Supply(NamedTuple):
    """One entry of /sys/class/power_supply: its `type`, what `online` and `status` say ("" where there is none), and
    its `scope`: a battery of "Device" scope is a mouse's."""

    type: str
    online: str = ""
    status: str = ""
    scope: str = ""


def on_mains(supplies: Iterable[Supply]) -> bool:
    """Whether the machine runs on mains power; one without a battery does, whatever its sockets say."""
    found = [supply for supply in supplies if supply.scope != "Device"]
    batteries = [supply for supply in found if supply.type in _BATTERIES]
    sources = [supply for supply in found if supply.type not in _BATTERIES and supply.online in ("0", "1")]
    if not batteries or any(supply.online == "1" for supply in sources):
        return True
    return not sources and all(supply.status != "Discharging" for supply in batteries)


class Moment(NamedTuple):
    """`finished`: when the last successful run ended, in Unix seconds; None where none is known."""

    now: float
    finished: float | None = None
    inhibited: bool = False
    on_mains: bool = True


def why_not_run(moment: Moment, *, every_hours: int, only_on_mains: bool, now: bool) -> str:
    """Why the upgrade must not run at this moment, '' when it may.

    `now`: the user wants it now, whatever the time since the last run and the power say. A last run that is still to
    come is none: the clock was wrong then, or is now.
    """
    if moment.inhibited:
        return "the inhibit file is there"
    if now:
        return ""
    if moment.finished is not None and 0 <= moment.now - moment.finished < every_hours * HOUR:
        return "the last run was too short a time ago"
    if only_on_mains and not moment.on_mains:
        return "the machine runs on its battery"
    return ""


def again_after(failures: int) -> float:
    """Seconds until an upgrade that has failed so many times in a row is tried again: most of what stands in the way of
    one, a network that is away above all, is over in an hour, and a mirror must not be asked for ever."""
    return (1 << min(max(failures - 1, 0), _DOUBLINGS)) * HOUR


# ---- may it reboot? --------------------------------------------------------------------------------------


class Session(NamedTuple):
    """Somebody who is logged in; `terminal` is where he can be told ("/dev/pts/3"), "" where he has none."""

    user: str
    terminal: str


class Reboot(NamedTuple):
    """`why`: what stands against a reboot, '' when nothing does; `warn`: who has to be told before it."""

    why: str
    warn: tuple[Session, ...] = ()


def may_reboot(
    when: str | tuple[Window, ...], at: time.struct_time, sessions: Iterable[Session], warned: frozenset[str],
    *, inhibited: bool,
) -> Reboot:  # fmt: skip
    """What the policy says at local time `at`; that a generation waits for the reboot is the caller's to know.

    `when` is "never", "when-needed" or windows; `warned` are terminals whose users were told long enough ago. Nobody
    loses his work unwarned: a session without a terminal stands against the reboot.
    """
    if when == "never":
        return Reboot("the policy is never to reboot")
    if inhibited:
        return Reboot("the inhibit file is there")
    if not isinstance(when, str) and not any(window.contains(at) for window in when):
        return Reboot("no window is open")
    found = sorted(set(sessions))
    deaf = [session.user for session in found if not session.terminal]
    if deaf:
        return Reboot(f"{deaf[0]} is logged in and has no terminal to be warned on")
    return Reboot("", tuple(session for session in found if session.terminal not in warned))
