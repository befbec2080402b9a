"""The packages, built once for all tests of this directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.package.driver import Built, build
from tests.support.rootfs import PROJECT


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("abuild")


@pytest.fixture(scope="session")
def built(work: Path) -> dict[str, Built]:
    return build(PROJECT, work)
