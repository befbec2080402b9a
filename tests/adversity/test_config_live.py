"""A configuration that cannot be used: every mistake is named at once, and nothing is changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.adversity.trial import Trial, publish_script

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


def test_change_that_would_lock_us_out(trial: Trial) -> None:
    """In a sealed root nobody could correct it: each command that changes something wants it to be right."""
    write = f"mkdir -p /etc/apk-atomic; echo '[generations]' >{NAME}; echo 'slots = {{}}' >>{NAME}"
    for verb in (("run", "--", "sh", "-c"), ("shell",)):
        argv, end = ["apk-atomic", *verb], write.format(99)
        how = {} if verb[0] == "run" else {"input": f"{end}\n"}
        result = trial.refused(*argv, *([end] if verb[0] == "run" else []), status=100, says="generations.slots", **how)
        assert "put it right within the same change" in result.stderr
    trial.committed("apk-atomic", "run", "--", "sh", "-c", write.format(5))


def test_wrong_configuration_in_a_sealed_root_can_be_mended(trial: Trial) -> None:
    """As the hint says. A package may have brought it."""
    publish_script(trial.volume, "wrong", f"mkdir -p /etc/apk-atomic; echo 'x = 1' >{NAME}")
    trial.committed("apk-atomic", "add", "wrong")
    trial.reboot()
    refused = trial.refused("apk-atomic", "run", "true", status=100, says="x: unknown table")
    assert f"mount --bind a corrected copy over it, then: apk-atomic run -- vi {NAME}" in refused.stderr
    bind = f"touch /tmp/good && mount --bind /tmp/good {NAME}"
    mend = f"{bind} && apk-atomic run -- rm {NAME}; status=$?; umount {NAME}; exit $status"
    assert trial.run("sh", "-c", mend).status == 0
    trial.reboot()
    trial.works()
