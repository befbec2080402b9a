"""When an unattended upgrade may run and reboot: pure, with clocks and sessions as arguments."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apk_atomic.schedule import (
    DAYS,
    Moment,
    Reboot,
    Session,
    Supply,
    Window,
    again_after,
    may_reboot,
    on_mains,
    parse_window,
    why_not_run,
)

MONDAY = datetime(2026, 11, 23, tzinfo=UTC)


def at(day: int, clock: str) -> time.struct_time:
    hour, minute = map(int, clock.split(":"))
    return (MONDAY + timedelta(days=day, hours=hour, minutes=minute)).timetuple()


@pytest.mark.parametrize(
    ("text", "day", "clock", "open_"),
    [
        ("03:00-04:00", 0, "03:00", True),
        ("03:00-04:00", 6, "03:59", True),
        ("03:00-04:00", 6, "04:00", False),
        ("03:00-04:00", 6, "02:59", False),
        ("Sat,Sun 02:00-05:00", 5, "02:00", True),
        ("Sat,Sun 02:00-05:00", 6, "04:59", True),
        ("Sat,Sun 02:00-05:00", 0, "03:00", False),
        ("Sun 23:00-01:00", 6, "23:30", True),
        ("Sun 23:00-01:00", 0, "00:59", True),  # it began on Sunday
        ("Sun 23:00-01:00", 6, "00:30", False),
        ("fri-mon 1:00-2:00", 5, "01:30", True),
        ("fri-mon 1:00-2:00", 0, "01:30", True),
        ("fri-mon 1:00-2:00", 3, "01:30", False),
        ("Mon 00:00-24:00", 0, "23:59", True),
        ("Mon 00:00-24:00", 1, "00:00", False),
        ("00:00-24:00", 3, "12:00", True),
    ],
)
def test_window(text: str, day: int, clock: str, open_: bool) -> None:
    window = parse_window(text)
    assert window is not None
    assert window.contains(at(day, clock)) is open_


@pytest.mark.parametrize(
    "text",
    ["", "Mon", "Mon 3", "03:00", "03:00-", "-04:00", "3-4", "25:00-26:00", "03:60-04:00", "24:00-01:00", "24:01-01:00",
     "Monday 03:00-04:00", "Mon, 03:00-04:00", "Mon-Tuh 03:00-04:00", "Mon 03:00-04:00 x", "03:00 - 04:00",
     "٠٣:00-04:00", "-3:00-4:00", "003:00-04:00", "03:0-04:00", "03:00-03:00",
     "Mon 00:00-00:00"],
)  # fmt: skip
def test_no_window(text: str) -> None:
    assert parse_window(text) is None


@given(st.text())
def test_any_text_is_a_window_or_not(text: str) -> None:
    assert parse_window(text) is None or isinstance(parse_window(text), Window)


MINUTES = st.integers(0, 1439)


@given(st.sets(st.sampled_from(DAYS), min_size=1), MINUTES, MINUTES, st.integers(0, 6), MINUTES)
def test_window_counts_minutes_from_its_opening(days: set[str], start: int, end: int, day: int, minute: int) -> None:
    def clock(value: int) -> str:
        return f"{value // 60:02}:{value % 60:02}"

    window = parse_window(f"{','.join(days)} {clock(start)}-{clock(end)}")
    if start == end:
        assert window is None
        return
    assert window is not None
    length = (end - start) % 1440
    now = MONDAY + timedelta(days=day, minutes=minute)
    numbers = [DAYS.index(name) + week for name in days for week in (-7, 0)]
    openings = [MONDAY + timedelta(days=number, minutes=start) for number in numbers]
    expected = any(timedelta(0) <= now - opening < timedelta(minutes=length) for opening in openings)
    assert window.contains(now.timetuple()) is expected


# ---- may it run? -----------------------------------------------------------------------------------------

NOW = 1_800_000_000.0
BATTERY = Supply("Battery", status="Discharging")


@pytest.mark.parametrize(
    ("supplies", "expected"),
    [
        ([], True),
        ([Supply("Mains", "1")], True),
        ([Supply("USB", "0")], True),  # an empty socket of a desktop
        ([Supply("Mains", "0"), BATTERY], False),
        ([Supply("Mains", "0"), BATTERY._replace(status="Full")], False),  # unplugged a moment ago
        ([Supply("Mains", "0"), Supply("USB", "1"), BATTERY], True),
        ([Supply("Mains", "1"), BATTERY], True),
        ([BATTERY], False),
        ([BATTERY._replace(status="Full")], True),
        ([BATTERY._replace(scope="Device")], True),  # a mouse's
        ([Supply("UPS", status="Discharging")], False),
    ],
)
def test_mains(supplies: list[Supply], expected: bool) -> None:
    assert on_mains(supplies) is expected


@pytest.mark.parametrize(
    ("moment", "now", "says"),
    [
        (Moment(NOW), False, ""),
        (Moment(NOW, NOW - 21 * 3600), False, ""),
        (Moment(NOW, NOW - 19 * 3600), False, "too short"),
        (Moment(NOW, NOW - 19 * 3600), True, ""),
        (Moment(NOW, NOW + 60), False, ""),  # a stamp of the future is none
        (Moment(NOW, inhibited=True), True, "inhibit"),
        (Moment(NOW, on_mains=False), False, "battery"),
        (Moment(NOW, on_mains=False), True, ""),
    ],
)
def test_why_not_run(moment: Moment, now: bool, says: str) -> None:
    why = why_not_run(moment, every_hours=20, only_on_mains=True, now=now)
    assert says in why and bool(why) is bool(says)


def test_battery_counts_only_when_asked() -> None:
    assert why_not_run(Moment(NOW, on_mains=False), every_hours=20, only_on_mains=False, now=False) == ""


# ---- may it reboot? --------------------------------------------------------------------------------------

ANNA, BEN, REMOTE = Session("anna", "/dev/tty1"), Session("ben", ""), Session("anna", "/dev/pts/0")
NIGHT = (Window(frozenset({0}), 120, 60),)


@pytest.mark.parametrize(
    ("when", "clock", "sessions", "warned", "expected"),
    [
        ("never", "02:30", (), (), Reboot("the policy is never to reboot")),
        ("when-needed", "12:00", (), (), Reboot("")),
        (NIGHT, "02:30", (), (), Reboot("")),
        (NIGHT, "03:30", (), (), Reboot("no window is open")),
        ("when-needed", "12:00", (ANNA, REMOTE, ANNA), (), Reboot("", (REMOTE, ANNA))),
        ("when-needed", "12:00", (ANNA, REMOTE), ("/dev/tty1",), Reboot("", (REMOTE,))),
        ("when-needed", "12:00", (ANNA,), ("/dev/tty1",), Reboot("")),
        ("when-needed", "12:00", (ANNA, BEN), (), Reboot("ben is logged in and has no terminal to be warned on")),
    ],
)
def test_may_reboot(
    when: str | tuple[Window, ...], clock: str, sessions: tuple[Session, ...], warned: tuple[str, ...], expected: Reboot
) -> None:
    assert may_reboot(when, at(0, clock), sessions, frozenset(warned), inhibited=False) == expected
    assert may_reboot(when, at(0, clock), sessions, frozenset(warned), inhibited=True).why


POLICIES = st.sampled_from(["never", "when-needed", NIGHT])


@given(POLICIES, st.sets(st.sampled_from([ANNA, BEN, REMOTE])), st.integers(0, 10080))
def test_nobody_is_surprised(when: str | tuple[Window, ...], sessions: set[Session], minute: int) -> None:
    now = (MONDAY + timedelta(minutes=minute)).timetuple()
    verdict = may_reboot(when, now, sessions, frozenset(), inhibited=False)
    if not verdict.why:
        assert set(verdict.warn) == sessions and BEN not in sessions and when != "never"


def test_what_failed_is_tried_again_ever_more_seldom() -> None:
    assert [again_after(failures) / 3600 for failures in (1, 2, 3, 4, 5, 1000)] == [1, 2, 4, 8, 8, 8]
