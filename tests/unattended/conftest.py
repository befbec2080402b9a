"""A machine for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unattended.house import House, make_house


@pytest.fixture
def house() -> Iterator[House]:
    with make_house() as made:
        yield made
