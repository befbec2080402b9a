"""What the whole suite shares: which apk it runs, said first and last, and the throw-away world."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.apks import which_apk
from tests.support.packages import Repository
from tests.support.world import Guest, Volume, make_volume

NEEDS_REAL = pytest.StashKey[int]()
REASON = "needs the real apk"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "real_apk: the case goes beyond what the stand-in for apk can do")
    config.stash[NEEDS_REAL] = 0


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    apk = which_apk()
    what = f"real {apk.version}" if apk.real else f"stand-in for {apk.version}"
    _say(session.config, f"apk: {what} ({apk.path})")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With the stand-in, cases that need the real apk are skipped, and counted."""
    if which_apk().real:
        return
    needy = [item for item in items if item.get_closest_marker("real_apk")]
    config.stash[NEEDS_REAL] = len(needy)
    for item in needy:
        item.add_marker(pytest.mark.skip(reason=REASON))


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """The last line: pytest's own summary must not hide what did not run."""
    _say(config, f"{config.stash[NEEDS_REAL]} cases need the real apk and did not run")


def _say(config: pytest.Config, line: str) -> None:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.ensure_newline()
        reporter.write_line(line)


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
