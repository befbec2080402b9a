"""A configuration that cannot be used: every mistake is named at once, and nothing is changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.adversity.trial import Trial

NAME = "/etc/apk-atomic/apk-atomic.toml"


def data(content: str | bytes) -> Callable[[Path], object]:
    raw = content.encode() if isinstance(content, str) else content
    return lambda path: path.write_bytes(raw)


WRONG: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "wrong types": (
        data('[generations]\nslots = "4"\nkeep = true\n[volume]\nmin_free_data = -1\n[queries]\nanswer_from = 3\n'),
        ("generations.slots", "generations.keep", "volume.min_free_data", "queries.answer_from"),
    ),
    "unknown": (
        data("[generatoins]\nslots = 4\n[volume]\nsize = 1\n"),
        ("generatoins: unknown table", "volume.size: unknown"),
    ),
    "no TOML": (data("slots: 4\n"), ("line 1",)),
    "tables that are none": (
        data("volume = 3\ngenerations = []\n"),
        ("volume: must be a table", "generations: must be"),
    ),
    "not UTF-8": (data(b"# \xff\n"), ("not UTF-8 text at byte 2",)),
    "huge": (data("# x\n" * 300_000), ("larger than 1048576 bytes",)),
    "huge number": (data("[generations]\nslots = " + "9" * 5000 + "\n"), ("5000 digits",)),
    "nan": (data("[generations]\nslots = nan\n"), ("generations.slots",)),
    "nested": (data("x = " + "[" * 50_000), (NAME,)),
    "nested tables": (data("x." * 50_000 + "y = 1"), (NAME,)),
    "a directory": (lambda path: path.mkdir(), ("Is a directory",)),
    "a FIFO": (lambda path: os.mkfifo(path), ("Not a regular file",)),
    "a loop": (lambda path: path.symlink_to(path.name), ("symbolic links",)),
    "a device": (lambda path: path.symlink_to("/dev/zero"), ("Not a regular file",)),
    "dangling": (lambda path: path.symlink_to("/nowhere"), (NAME,)),
    "control characters": (data('[generations]\n"\\u001b[2J" = 1\n'), ("unknown key",)),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_unusable_configuration(shared: Trial, mistake: str) -> None:
    make, words = WRONG[mistake]
    with shared.etc() as etc:
        make(etc / "apk-atomic.toml")
        for argv in (("apk-atomic", "add", "x"), ("apk-atomic", "gc")):
            result = shared.refused(*argv, status=100, says=NAME)
            assert all(word in result.stderr for word in words), result.stderr
            assert "nothing was changed" in result.stderr
            assert "\x1b" not in result.stderr
            assert len(result.stderr) < 10_000
        assert shared.run("apk-atomic", "status").status == 0


def test_mended_configuration_counts_at_once(trial: Trial) -> None:
    with trial.etc() as etc:
        (etc / "apk-atomic.toml").write_text("[generations]\nslots = 3\n")
        trial.works()
        assert len(trial.volume.slots()) == 3
        (etc / "apk-atomic.toml").write_text("[generations]\nslots = 9\n")
        trial.works()
        assert len(trial.volume.slots()) == 9
    trial.works()
    assert len(trial.volume.slots()) == 4
