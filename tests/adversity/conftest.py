"""Volumes under attack: a fresh one for each test, or one for all refusals of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.adversity.trial import Trial
from tests.support import oracle
from tests.support.world import Volume, make_volume


@pytest.fixture
def trial(volume: Volume) -> Trial:
    """A fresh volume, booted."""
    return Trial(volume)


@pytest.fixture(scope="module")
def shared() -> Iterator[Trial]:
    """One volume for a module whose tests all leave it as it was; its tree is compared once, at the end."""
    with make_volume() as volume:
        before = oracle.fingerprint(volume.tree())
        yield Trial(volume, deep=False)
        assert before.differences(oracle.fingerprint(volume.tree())) == []
