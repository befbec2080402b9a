"""Volumes of the drop-in's tests: one for all that leaves it as it was, and one whose apk tells what reaches it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dropin.world import LINK, link_apk, probe_instead_of_apk
from tests.support.world import Guest, Volume, make_volume

__all__ = ["LINK"]


@pytest.fixture
def volume() -> Iterator[Volume]:
    """As everywhere, with a link named apk to apk-atomic that comes first in PATH."""
    with make_volume(prepare=link_apk) as made:
        yield made


@pytest.fixture(scope="module")
def untouched() -> Iterator[Guest]:
    """For the tests of a module that change nothing: booted, with a link named apk."""
    with make_volume(prepare=link_apk) as made:
        yield made.boot()
        assert made.generations() == made.slots()[:1]


@pytest.fixture(scope="module")
def probed() -> Iterator[Volume]:
    """A volume on which /sbin/apk tells how it was called; see `tests.dropin.world.PROBE`. It has not booted yet."""

    def prepare(tree: Path) -> None:
        link_apk(tree)
        probe_instead_of_apk(tree)

    with make_volume(prepare=prepare) as made:
        yield made
