"""Waiting for an event that has no descriptor to wait on."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(true: Callable[[], bool], patience: float = 20.0) -> None:
    """Returns when it is; AssertionError where that takes longer than `patience`, in seconds."""
    deadline = time.monotonic() + patience
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)
