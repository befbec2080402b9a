"""What the suite itself says at its end."""

from __future__ import annotations

from tests.conftest import named


def test_cases_that_did_not_run_are_named() -> None:
    cases = ["tests/test_a.py::test_x", "tests/b/test_b.py::test_y[1-a::b]", "tests/b/test_b.py::test_y[2]",
             "tests/test_a.py::test_z"]  # fmt: skip
    assert named(cases) == [
        "not run: tests/test_a.py: test_x, test_z",
        "not run: tests/b/test_b.py: test_y (2)",
    ]
    assert named([]) == []
