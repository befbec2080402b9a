"""What all crash tests share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.imagecache import scratch_base

pytest.register_assert_rewrite("tests.crash.machine")


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory in memory for images: they are big, short-lived, and read again and again."""
    place = Path(tempfile.mkdtemp(prefix="apk-atomic-crash-", dir=scratch_base()))
    try:
        yield place
    finally:
        shutil.rmtree(place)
