"""What all crash tests share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.imagecache import scratch_base

pytest.register_assert_rewrite("tests.crash.machine")


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Writes a line to the report of the session: how much was tried is part of the result."""

    def write(line: str) -> None:
        plugins = request.config.pluginmanager
        reporter, capture = plugins.get_plugin("terminalreporter"), plugins.get_plugin("capturemanager")
        if reporter is not None and capture is not None:
            with capture.global_and_fixture_disabled():
                reporter.ensure_newline()
                reporter.write_line(f"{request.node.name}: {line}")

    return write


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory in memory for images: they are big, short-lived, and read again and again."""
    place = Path(tempfile.mkdtemp(prefix="apk-atomic-crash-", dir=scratch_base()))
    try:
        yield place
    finally:
        shutil.rmtree(place)
