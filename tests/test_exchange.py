"""Two names exchanged in one step."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from apk_atomic.exchange import exchange


def test_directories_change_places(tmp_path: Path) -> None:
    for place, name in (("a", "one"), ("b", "two")):
        (tmp_path / place / name).mkdir(parents=True)
        (tmp_path / place / name / "file").write_text(name)
    one, two = (os.open(tmp_path / place, os.O_RDONLY | os.O_DIRECTORY) for place in "ab")
    try:
        exchange(one, "one", two, "two")
        assert (tmp_path / "a/one/file").read_text() == "two"
        assert (tmp_path / "b/two/file").read_text() == "one"
        with pytest.raises(FileNotFoundError, match="three"):
            exchange(one, "one", two, "three")
        assert os.listdir(one) == ["one"] and os.listdir(two) == ["two"]
    finally:
        os.close(one)
        os.close(two)
