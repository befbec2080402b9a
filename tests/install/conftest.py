"""The lab of a module's tests of `init`, and the lab as each test finds and leaves it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.install.lab import Lab, make_lab


@pytest.fixture(scope="module")
def world() -> Iterator[Lab]:
    with make_lab() as made:
        yield made


@pytest.fixture
def lab(world: Lab) -> Iterator[Lab]:
    yield world
    assert world.nothing_is_left()
    world.forget()
