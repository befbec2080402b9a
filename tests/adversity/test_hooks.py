"""Executables of hooks.d that refuse, fail, are no hooks at all, or cannot be run; kept failures; commons."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.adversity.trial import Trial, publish_script
from tests.support import btrfsctl, oracle
from tests.support.world import FIRST

CHANGE = ("apk-atomic", "run", "touch", "/etc/made")
BEFORE = ("pre-change.d", "post-change.d", "pre-commit.d")
ALL = (*BEFORE, "post-commit.d", "post-discard.d")


def hook(etc: Path, directory: str, text: str, name: str = "10-test", mode: int = 0o755) -> None:
    path = etc / "hooks.d" / directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}\n")
    path.chmod(mode)


@pytest.mark.parametrize("directory", BEFORE)
def test_hook_that_refuses(trial: Trial, directory: str) -> None:
    with trial.etc() as etc:
        hook(etc, directory, "echo not on a Friday; exit 7")
        hook(etc, directory, "touch /var/log/second", "20-second")
        result = trial.refused(*CHANGE, status=106, says="refused with exit status 7: not on a Friday")
        assert f"hooks.d/{directory}/10-test" in result.stderr
        assert "nothing was changed" in result.stderr
        assert not trial.flag("second").exists()
    trial.works()


@pytest.mark.parametrize("directory", BEFORE)
@pytest.mark.parametrize(
    "text", ["kill -9 $$", "#!/nowhere\n", "#!\n", "yes | head -c 300000; exit 1"], ids=range(4)
)
def test_hook_that_cannot_run(shared: Trial, directory: str, text: str) -> None:
    with shared.etc() as etc:
        hook(etc, directory, text)
        result = shared.refused(*CHANGE)
        assert result.status == 106
        assert f"hooks.d/{directory}/10-test" in result.stderr
        assert "nothing was changed" in result.stderr
        assert len(result.stderr) < 10_000


@pytest.mark.parametrize("directory", ALL)
def test_what_is_no_hook_is_skipped(trial: Trial, directory: str) -> None:
    with trial.etc() as etc:
        hook(etc, directory, "exit 1", "not-executable", 0o644)
        hook(etc, directory, "exit 1", "with.dot")
        hook(etc, directory, "exit 1", "hook.apk-new")
        hook(etc, directory, "exit 1", "backup~")
        (etc / "hooks.d" / directory / "directory").mkdir()
        (etc / "hooks.d" / directory / "dangling").symlink_to("/nowhere")
        os.mkfifo(etc / "hooks.d" / directory / "fifo", 0o755)
        trial.committed(*CHANGE)


def test_hooks_see_what_they_need_and_run_in_order(trial: Trial) -> None:
    text = 'echo "$(basename "$0") $APK_ATOMIC_ID $APK_ATOMIC_BASE $(cat "$APK_ATOMIC_ROOT/etc/made")" >>/var/log/said'
    with trial.etc() as etc:
        for directory in (*BEFORE, "post-commit.d"):
            hook(etc, directory, text.replace("$(basename", f"{directory} $(basename"))
            hook(etc, directory, text.replace("$(basename", f"{directory} $(basename"), "05-early")
        new = trial.committed("apk-atomic", "run", "--", "sh", "-c", "echo content >/etc/made")
    lines = [line.split(" ", 4) for line in trial.flag("said").read_text().splitlines()]
    assert [line[0] for line in lines] == [each for each in (*BEFORE, "post-commit.d") for _ in range(2)]
    assert [line[1] for line in lines] == ["05-early", "10-test"] * 4
    assert {line[2] for line in lines} == {new}
    assert {line[3] for line in lines[:6]} == {FIRST}
    assert [line[4] for line in lines[2:6]] == ["content"] * 4


def test_hooks_after_the_end_cannot_undo_it(trial: Trial) -> None:
    with trial.etc() as etc:
        hook(etc, "post-commit.d", "exit 1")
        hook(etc, "post-discard.d", "touch /var/log/discarded; exit 1")
        result = trial.run(*CHANGE)
        assert "hooks.d/post-commit.d/10-test refused with exit status 1" in result.stderr
        trial.check_new(result)
        assert not trial.flag("discarded").exists()
        trial.refused("apk-atomic", "run", "false", status=1)
        assert trial.flag("discarded").exists()


def test_hooks_after_the_end_are_told_of_it(trial: Trial) -> None:
    text = 'echo "$APK_ATOMIC_ID $APK_ATOMIC_BASE $(cat "$APK_ATOMIC_ROOT/etc/made")" >/var/log/'
    with trial.etc() as etc:
        hook(etc, "post-commit.d", f"{text}commit")
        hook(etc, "post-discard.d", 'echo "$APK_ATOMIC_BASE ${APK_ATOMIC_ROOT-none}" >/var/log/discard; exit 3')
        new = trial.committed("apk-atomic", "run", "--", "sh", "-c", "echo content >/etc/made")
        assert trial.flag("commit").read_text() == f"{new} {FIRST} content\n"
        said = trial.refused("apk-atomic", "run", "false", status=1).stderr
    assert trial.flag("discard").read_text() == f"{new} none\n"
    assert "after the discard: /etc/apk-atomic/hooks.d/post-discard.d/10-test refused with exit status 3" in said


@pytest.mark.parametrize(
    ("point", "status", "directory"), [("renamed", 0, "post-commit.d"), ("hooked", 143, "post-discard.d")]
)
def test_signal_does_not_end_hooks_after_the_end(trial: Trial, point: str, status: int, directory: str) -> None:
    """What has happened is told, whatever ends us; and it is not belied."""
    with trial.etc() as etc:
        hook(etc, directory, "sleep 0.1; touch /var/log/told")
        result = trial.run(*CHANGE, env={"APK_ATOMIC_FAULT": f"{point}:term"})
    assert (result.status, trial.flag("told").exists()) == (status, True), result
    assert ("nothing was changed" in result.stderr) is (status != 0)


def test_hook_that_changes_the_staged_root(trial: Trial) -> None:
    """It may: what it writes there is part of the generation."""
    with trial.etc() as etc:
        hook(etc, "post-change.d", 'echo x >"$APK_ATOMIC_ROOT/etc/by-hook"')
        trial.committed(*CHANGE)
        assert (trial.volume.tree() / "etc/by-hook").exists()


# ---- what is kept on request -----------------------------------------------------------------------------


def test_failed_generation_is_kept_to_look_at(trial: Trial) -> None:
    publish_script(trial.volume, "bad", "touch /etc/half; exit 1")
    result = trial.run("apk-atomic", "add", "--atomic-keep-failed", "bad")
    assert result.status == 1
    kept = next(name for name in trial.volume.generations() if name != FIRST)
    assert f"kept as {kept}" in result.stderr
    tree = trial.volume.top / "snapshots" / kept / "@"
    assert btrfsctl.is_read_only(tree)
    assert (tree / "etc/half").exists()
    assert trial.volume.slots() == [FIRST] * 4
    shown = json.loads(trial.run("apk-atomic", "status", "--all", "--json").stdout)["generations"]
    assert [each["marks"] for each in shown if each["id"] == kept] == [["failed"]]
    record = json.loads((tree.parent / "generation.json").read_text())
    assert (record["id"], record["parent"], record["argv"][-1]) == (kept, FIRST, "bad")
    trial.accept()
    trial.works()
    assert kept in trial.volume.generations(), "the commit of another has collected it"
    trial.accept()
    assert trial.run("apk-atomic", "gc").status == 0
    assert kept not in trial.volume.generations()
    assert oracle.subvolumes(trial.volume.top) == {path for path in trial.view.subvolumes if kept not in path}


# ---- commons ---------------------------------------------------------------------------------------------


def test_what_changed_in_commons_alone_is_named(trial: Trial) -> None:
    result = trial.run("apk-atomic", "run", "touch", "/var/cache/made")
    assert (result.status, trial.volume.generations()) == (0, [FIRST])
    assert "changed meanwhile, shared by all generations: /var/cache/made" in result.stderr
    assert "nothing changed, no generation was made" in result.stderr


def test_what_is_gone_from_commons_is_named_by_its_directory(trial: Trial) -> None:
    trial.run("apk-atomic", "run", "--", "sh", "-c", "mkdir -p /var/cache/a/b; touch /var/cache/a/b/one /var/cache/two")
    result = trial.run("apk-atomic", "run", "rm", "/var/cache/a/b/one")
    assert "changed meanwhile, shared by all generations: /var/cache/a/b/\n" in result.stderr, result
    result = trial.run("apk-atomic", "run", "rm", "-r", "/var/cache/a", "/var/cache/two")
    assert "changed meanwhile, shared by all generations: /var/cache/\n" in result.stderr, result
    assert trial.volume.generations() == [FIRST]


@pytest.mark.parametrize(
    ("wish", "place", "writable"), [("rw", "/home", True), ("ro", "/var/log", False), ("skip", "/var/log", True)]
)
def test_configured_commons(trial: Trial, wish: str, place: str, writable: bool) -> None:
    with trial.etc() as etc:
        (etc / "apk-atomic.toml").write_text(f'[chroot.commons]\n"{place}" = "{wish}"\n')
        result = trial.run("apk-atomic", "run", "--", "sh", "-c", f"touch /etc/made; touch {place}/inside")
        common = trial.volume.top / "commons" / place.replace("/", "@", 1).replace("/", "@") / "inside"
        assert (result.status == 0) is writable, result
        assert common.exists() is (wish == "rw")
        if wish == "skip":
            assert (trial.volume.tree() / "var/log/inside").exists()
