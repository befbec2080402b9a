"""Hooks around a transaction: which files are, in which order they run, and what the failure of one means."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from apk_atomic import hooks
from apk_atomic.errors import Interrupted, Refused
from apk_atomic.signals import Signals
from tests.support import engine
from tests.test_process import script


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "hooks.d"
    path.mkdir()
    return path


def test_which_files_are_hooks(directory: Path) -> None:
    for name in ("20-b", "10-a", "Z", "backup~", "new.apk-new", ".hidden", "10-a.disabled"):
        script(directory / name, "exit 0")
    script(directory / "plain", "exit 0", 0o644)
    (directory / "folder").mkdir()
    (directory / "link").symlink_to("10-a")
    (directory / "dangling").symlink_to("nowhere")
    assert [os.path.basename(path) for path in hooks.listed(str(directory))] == ["10-a", "20-b", "Z", "link"]
    assert hooks.listed(str(directory / "nowhere")) == []


def test_hooks_run_in_order_with_what_they_need(directory: Path, signals: Signals, tmp_path: Path) -> None:
    for name in ("20-b", "10-a"):
        script(directory / name, f'echo "$0 $# $APK_ATOMIC_ID $(pwd)" >> {tmp_path}/notes')
    hooks.run(str(directory), {"APK_ATOMIC_ID": "x"}, signals)
    place = os.getcwd()
    expected = [f"{directory}/{name} 0 x {place}" for name in ("10-a", "20-b")]
    assert (tmp_path / "notes").read_text().splitlines() == expected


def test_the_first_that_fails_refuses(directory: Path, signals: Signals, tmp_path: Path) -> None:
    script(directory / "10-a", "echo not today >&2; exit 3")
    script(directory / "20-b", f"touch {tmp_path}/ran")
    with pytest.raises(Refused, match="10-a refused with exit status 3: not today") as refusal:
        hooks.run(str(directory), {}, signals)
    assert refusal.value.exit_code == 106
    assert not (tmp_path / "ran").exists()


def test_a_signal_between_hooks_ends_them(directory: Path, signals: Signals, tmp_path: Path) -> None:
    script(directory / "10-a", f"kill -INT {os.getpid()}")
    script(directory / "20-b", f"touch {tmp_path}/ran")
    with pytest.raises(Interrupted):
        hooks.run(str(directory), {}, signals)
    assert not (tmp_path / "ran").exists()


def test_no_child_and_no_descriptor_is_left(directory: Path, signals: Signals) -> None:
    script(directory / "10-a", "exit 0")
    hooks.run(str(directory), {}, signals)
    before = len(os.listdir("/proc/self/fd")), engine.children()
    hooks.run(str(directory), {}, signals)
    assert (len(os.listdir("/proc/self/fd")), engine.children()) == before
