"""What the whole suite shares: which apk it runs, said first and last, and the throw-away world."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from apk_atomic.signals import Signals
from tests.support import engine
from tests.support.apks import which_apk
from tests.support.packages import Repository
from tests.support.world import Guest, Volume, make_volume

NEEDS_REAL = pytest.StashKey["NotRun"]()
REASON = "needs the real apk"
IGNORED_BY_CALLERS = (
    signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    _notice_signals()
    config.addinivalue_line("markers", "real_apk: the case goes beyond what the stand-in for apk can do")
    config.stash[NEEDS_REAL] = NotRun()
    config.pluginmanager.register(config.stash[NEEDS_REAL])


class NotRun:
    """Takes down which cases need the real apk and were skipped, whichever process they were for."""

    def __init__(self) -> None:
        self.cases: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple) and report.longrepr[2] == f"Skipped: {REASON}":
            self.cases.append(report.nodeid)


def _notice_signals() -> None:
    """What nohup ignores, or a shell for what it starts in the background, everything that we start would ignore."""
    for number in IGNORED_BY_CALLERS:
        signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    apk = which_apk()
    what = f"real {apk.version}" if apk.real else f"stand-in for {apk.version}"
    _say(session.config, f"apk: {what} ({apk.path})")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With the stand-in, cases that need the real apk are skipped, and counted."""
    for item in items:
        if item.get_closest_marker("real_apk") and not which_apk().real:
            item.add_marker(pytest.mark.skip(reason=REASON))


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """The last lines: pytest's own summary must not hide what did not run."""
    cases = config.stash[NEEDS_REAL].cases
    for line in named(cases):
        _say(config, line)
    _say(config, f"{len(cases)} cases need the real apk and did not run")


def named(cases: Sequence[str]) -> list[str]:
    """A line for each file: its tests, and of how many cases each consists where it is not one."""
    files: dict[str, Counter[str]] = {}
    for case in cases:
        file, _, test = case.partition("::")
        files.setdefault(file, Counter())[test.partition("[")[0]] += 1
    return [
        f"not run: {file}: " + ", ".join(f"{test} ({count})" if count > 1 else test for test, count in tests.items())
        for file, tests in files.items()
    ]


def _say(config: pytest.Config, line: str) -> None:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.ensure_newline()
        reporter.write_line(line)


@pytest.fixture(scope="module")
def top() -> Iterator[Path]:
    """A btrfs for the places of a module's tests, see `engine.place`."""
    with engine.file_system() as mounted:
        yield mounted


@pytest.fixture
def signals() -> Iterator[Signals]:
    """The ending signals held back in this process, as in one that changes something."""
    with engine.held_signals() as held:
        yield held


@pytest.fixture
def volume() -> Iterator[Volume]:
    """A fresh volume with one sealed generation and an empty repository."""
    with make_volume() as made:
        yield made


@pytest.fixture
def guest(volume: Volume) -> Guest:
    """`volume`, booted from slot 0."""
    return volume.boot()


@pytest.fixture
def repo(volume: Volume) -> Repository:
    """The repository of `volume`: `repo.publish(Package(…))`."""
    return volume.repo
