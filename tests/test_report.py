"""Sentences about package changes, as a table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from apk_atomic.model import PackageChanges
from apk_atomic.report import lines, short, summary
from apk_atomic.transaction import Done
from tests.support import engine
from tests.support.engine import Place

ALL = PackageChanges(
    added=(("nginx", "1.26-r0"),),
    removed=(("lighttpd", "1.4-r1"),),
    upgraded=(("musl", "1.2.4-r0", "1.2.5-r0"), ("zlib", "1.3-r0", "1.2-r0")),
    rebuilt=("busybox",),
)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (PackageChanges(), ""),
        (PackageChanges(added=(("a", "1"),)), "added a-1"),
        (PackageChanges(removed=(("a", "1"),)), "removed a-1"),
        (PackageChanges(upgraded=(("a", "1", "2"),)), "upgraded a 1 -> 2"),
        (PackageChanges(rebuilt=("a",)), "rebuilt a"),
        (PackageChanges(added=tuple((name, "1") for name in "abcd")), "added a-1, added b-1, added c-1, added d-1"),
        (
            ALL,
            "added nginx-1.26-r0, removed lighttpd-1.4-r1, upgraded musl 1.2.4-r0 -> 1.2.5-r0, "
            "upgraded zlib 1.3-r0 -> 1.2-r0 and 1 more",
        ),
    ],
)
def test_short(changes: PackageChanges, text: str) -> None:
    assert short(changes) == text


def test_lines_are_sorted_by_package() -> None:
    assert lines(ALL) == [
        "= busybox rebuilt",
        "- lighttpd 1.4-r1",
        "! musl 1.2.4-r0 -> 1.2.5-r0",
        "+ nginx 1.26-r0",
        "! zlib 1.3-r0 -> 1.2-r0",
    ]
    assert lines(PackageChanges()) == []


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with engine.file_system() as top, engine.place(top, booted="one") as made:
        yield made


@pytest.mark.parametrize(
    ("done", "running", "said"),
    [
        (Done(""), True, "apk-atomic: nothing changed, no generation was made\n"),
        (Done("x"), True, "apk-atomic: generation x is next; it runs after the reboot\n"),
        (Done("x", ALL), False, f"apk-atomic: generation x is next: {short(ALL)}; it boots next\n"),
        (
            Done("x", warnings=("no swap", "old\nkernel")), True,
            "apk-atomic: warning: no swap\napk-atomic: warning: old\n    kernel\n"
            "apk-atomic: generation x is next; it runs after the reboot\n",
        ),
    ],
)  # fmt: skip
def test_summary(place: Place, done: Done, running: bool, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    volume = place.volume if running else place.volume._replace(booted=None)
    with engine.working(volume) as work:
        summary(work, done)
    assert capfd.readouterr() == ("", said)


def test_quiet_keeps_warnings(place: Place, tmp_path: Path) -> None:
    with open(tmp_path / "said", "w") as file, engine.working(place.volume, err=file.fileno()) as work:
        work.console.quiet = True
        summary(work, Done("x", warnings=("no swap",)))
    assert (tmp_path / "said").read_text() == "apk-atomic: warning: no swap\n"
