"""What the whole suite shares: the throw-away world."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.packages import Repository
from tests.support.world import Guest, Volume, make_volume


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "real_apk: the case goes beyond what the stand-in for apk can do")


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
