"""Reading a volume that others change: what `steadily` repeats, and what it does not."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apk_atomic.context import steadily
from apk_atomic.errors import AtomicError, CheckFailed, Interrupted
from apk_atomic.volume import Volume


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Volume]:
    top = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    (tmp_path / "current").symlink_to("./links/0")
    yield Volume("", "", None, top, read_only=True)
    os.close(top)


class Reader:
    """Comes to the number of its call; in the first `moved` calls the pointer moves, and `error` is raised."""

    def __init__(self, top: Path, moved: int, error: Callable[[], Exception] | None = None) -> None:
        self.calls = 0
        self._top, self._moved, self._error = top, moved, error

    def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self._moved:
            (self._top / "current").unlink()
            (self._top / "current").symlink_to(f"./links/{self.calls}")
            if self._error:
                raise self._error()
        return self.calls


def gone() -> Exception:
    return CheckFailed("cannot open it")


def no_directory() -> Exception:
    return FileNotFoundError("links")


@pytest.mark.parametrize("error", [None, gone, no_directory])
@pytest.mark.parametrize("moved", [0, 1, 4])
def test_repeated_until_nobody_moved_it(
    opened: Volume, tmp_path: Path, moved: int, error: Callable[[], Exception] | None
) -> None:
    assert steadily(opened, Reader(tmp_path, moved, error)) == moved + 1


def test_last_answer_counts(opened: Volume, tmp_path: Path) -> None:
    assert steadily(opened, Reader(tmp_path, 99)) == 5
    with pytest.raises(CheckFailed):
        steadily(opened, Reader(tmp_path, 99, gone))


def test_failure_of_what_nobody_moved(opened: Volume) -> None:
    calls = []

    def fails() -> None:
        calls.append(1)
        raise AtomicError("as it is")

    with pytest.raises(AtomicError):
        steadily(opened, fails)
    assert len(calls) == 1


def test_interrupted_is_over(opened: Volume, tmp_path: Path) -> None:
    """Whoever is stopped does not begin anew because somebody moved the pointer."""
    reader = Reader(tmp_path, 99, lambda: Interrupted(signal.SIGTERM, "interrupted"))
    with pytest.raises(Interrupted):
        steadily(opened, reader)
    assert reader.calls == 1
