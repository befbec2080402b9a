"""The completions, in the shells themselves: every option of every word, and what a booted system tells.

The shells run on this machine; the `apk-atomic` that they ask is in the guest.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from apk_atomic import cli, cmdline, verbs
from apk_atomic.applets import APPLETS, Version, has_applet, options
from apk_atomic.commands import usage
from tests.support.guest import USER_ID
from tests.support.packages import File, Package
from tests.support.world import FIRST, Guest, Volume, make_volume
from tools import completions

ROOT = Path(__file__).parent.parent
TAB = "\t"
# An answer for each line of stdin, whose last word is to be completed.
BASH = """\
. "$0"
while IFS= read -r line; do
	IFS='|' read -ra COMP_WORDS <<<"$line|"
	COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
	_apk_atomic </dev/null
	printf '%s\\n' "${COMPREPLY[*]}"
done
"""
FISH = """\
source $argv[1]
while read -l line
	set -l found (complete -C (string replace -a '|' ' ' -- $line) </dev/null | string split -f1 \\t)
	echo $found
end
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where they are installed, below usr/share."""
    place = tmp_path_factory.mktemp("completions")
    command = ["make", "--silent", "-C", str(ROOT), "install-completions", f"DESTDIR={place}", "PREFIX=/usr"]
    subprocess.run(command, check=True)
    return place / "usr/share"


@pytest.fixture(scope="module")
def volume() -> Iterator[Volume]:
    """Booted; hello is pending."""
    with make_volume() as made:
        made.repo.publish(
            Package("hello", files={"usr/bin/hello": File(b"x")}), Package("hello-more"), Package("other")
        )
        made.boot().run(["apk-atomic", "add", "hello"], check=True)
        yield made


@pytest.fixture(scope="module", params=[0, USER_ID], ids=["root", "user"])
def path(request: pytest.FixtureRequest, volume: Volume, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH on which `apk-atomic` is the guest's."""
    return _path(volume, tmp_path_factory.mktemp("path"), request.param)


def _path(volume: Volume, place: Path, uid: int = 0) -> str:
    guest: Guest = volume._guest or volume.boot()
    command, _ = guest.command(["apk-atomic"], uid=uid)
    front = place / "apk-atomic"
    front.write_text(f"#!/bin/sh\nexec {' '.join(command)} \"$@\"\n")
    front.chmod(0o755)
    return f"{place}:/usr/bin:/bin:/usr/sbin:/sbin"


def file_of(scripts: Path, shell: str) -> Path:
    return scripts / {
        "bash": "bash-completion/completions/apk-atomic", "zsh": "zsh/site-functions/_apk-atomic",
        "fish": "fish/vendor_completions.d/apk-atomic.fish",
    }[shell]  # fmt: skip


def completed(scripts: Path, shell: str, path: str, *lines: str, cwd: Path | None = None) -> list[set[str]]:
    """What the shell offers for each line, whose words are separated by `|`."""
    script = str(file_of(scripts, shell))
    command = ["bash", "-c", BASH, script] if shell == "bash" else ["fish", "--no-config", "-c", FISH, script]
    environment = {"PATH": path, "HOME": str(scripts / "home"), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, input="".join(f"apk-atomic|{line}\n" for line in lines), text=True, check=True,
                          env=environment, stdout=subprocess.PIPE, cwd=cwd)  # fmt: skip
    return [set(answer.split()) for answer in done.stdout.splitlines()]


# ---- the tables ------------------------------------------------------------------------------------------


def known(name: str) -> set[str]:
    """The long options of a word, from what reads them."""
    if name in APPLETS:
        versions = [version for version in Version if has_applet(version, name)]
        return {f"--{option.name}" for version in versions for option in options(version, name) if option.name}
    flags = usage.VERBS[name].flags
    if flags is not None:
        return {f"--{flag}" for flag in flags} | {usage.HELP}
    return {option for action in completions._actions(name) for option in action.option_strings}


def test_words_are_those_that_there_are() -> None:
    assert set(completions.words()) == set(verbs.VERBS) | set(APPLETS)
    assert set(verbs.VERBS) <= set(cmdline.VERBS)


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_every_option_of_every_word(scripts: Path, shell: str) -> None:
    names = list(completions.words())
    found = completed(scripts, shell, os.environ["PATH"], *(f"{name}|--" for name in names))
    for name, offered in zip(names, found, strict=True):
        missing = known(name) - offered
        assert missing == set(), f"{name}: {missing}"
        strange = {each for each in offered if each.startswith("--") and not each.startswith("--atomic-")} - known(name)
        assert {each for each in strange if each.replace("--no-", "--") not in known(name)} == set(), name
        takes = cli._OF_APK[APPLETS[name].kind] if name in APPLETS else verbs.VERBS[name].takes
        atomic = {each.removeprefix("--atomic-") for each in offered if each.startswith("--atomic-")}
        assert {each.replace("-", "_") for each in atomic} == set(takes), name


@pytest.mark.parametrize("shell", completions.SHELLS)
def test_is_a_script_of_that_shell(scripts: Path, shell: str) -> None:
    subprocess.run([shell, "-n", file_of(scripts, shell)], check=True)


def test_shellcheck(scripts: Path) -> None:
    command = ["shellcheck", "--shell=bash", "--exclude=SC2034", str(file_of(scripts, "bash"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# ---- what a system tells ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_of_a_system(scripts: Path, volume: Volume, path: str, shell: str, tmp_path: Path) -> None:
    (tmp_path / "local.apk").touch()
    pending = volume.slots()[0]
    lines = {
        "sta": {"status", "stats"},
        "rollback|": {"booted", "next", FIRST, pending},
        "diff|" + FIRST + "|n": {"next"},
        "--atomic-base|ne": {"next"},
        "add|--atomic-base|bo": {"booted"},
        "boot-config|--loader|": {"refind", "grub"},
        "cache|": {"clean", "purge", "download", "sync"},
        "add|lo": {"local.apk"},
        "init|lo": {"local.apk"},
        "run|--|mkfs.btr": {"mkfs.btrfs"},
        "discard|": set(),
    }  # fmt: skip
    found = completed(scripts, shell, path, *lines, cwd=tmp_path)
    for (line, expected), offered in zip(lines.items(), found, strict=True):
        if line == "rollback|":
            offered = {word for word in offered if not word.isdigit()}
        assert offered == expected, line


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_slots_and_installed_packages(scripts: Path, volume: Volume, tmp_path: Path, shell: str) -> None:
    found = completed(scripts, shell, _path(volume, tmp_path), "rollback|", "del|hel", "info|-e|oth")
    assert {word for word in found[0] if word.isdigit()} == {"0", "1", "2", "3"}
    assert found[1:] == [{"hello"}, set()]


@pytest.mark.real_apk
@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_packages_of_the_repositories(scripts: Path, path: str, shell: str, tmp_path: Path) -> None:
    """By `apk search`, which the stand-in does not have."""
    found = completed(scripts, shell, path, "add|hel", "add|", cwd=tmp_path)
    assert found == [{"hello", "hello-more"}, set()]


# ---- with a key ------------------------------------------------------------------------------------------


def start(shell: str, scripts: Path, path: str) -> pexpect.spawn:
    """An interactive shell with nothing but the completion."""
    script = file_of(scripts, shell)
    first = {
        "bash": (["--norc", "--noprofile", "-i"], f"PS1='@@ '; bind 'set enable-bracketed-paste off'; . {script}"),
        "zsh": (["-f", "-i"], f"unset zle_bracketed_paste; PS1='@@ '; fpath=({script.parent} $fpath); "
                              "autoload -Uz compinit; compinit -D -u"),
    }  # fmt: skip
    words, setup = first[shell]
    environment = {"PATH": path, "HOME": str(scripts / "home"), "TERM": "dumb", "LC_ALL": "C.UTF-8"}
    terminal = pexpect.spawn(shutil.which(shell) or shell, words, env=environment, encoding="utf-8", timeout=30,
                             dimensions=(24, 200))  # fmt: skip
    terminal.sendline(setup)
    terminal.sendline("echo rea''dy")
    terminal.expect("\nready")
    return terminal


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_typed(scripts: Path, volume: Volume, tmp_path: Path, shell: str) -> None:
    pending = volume.slots()[0]
    terminal = start(shell, scripts, _path(volume, tmp_path))
    try:
        for typed, whole in (
            ("apk-atomic disc", "apk-atomic discard"),
            ("apk-atomic status --js", "apk-atomic status --json"),
            (f"apk-atomic rollback {pending[:10]}", f"apk-atomic rollback {pending}"),
            ("apk-atomic --atomic-base boo", "apk-atomic --atomic-base booted"),
            ("apk-atomic boot-config --loader gr", "apk-atomic boot-config --loader grub"),
            ("apk-atomic boot-config --loader=gr", "apk-atomic boot-config --loader=grub"),
            ("apk-atomic del hel", "apk-atomic del hello"),
            ("apk-atomic run -- mkfs.btr", "apk-atomic run -- mkfs.btrfs"),
        ):
            terminal.send(f"{typed}{TAB}")
            terminal.expect_exact(whole)
            terminal.send("\x03")
            terminal.sendline("echo do''ne")
            terminal.expect("\ndone")
    finally:
        terminal.close(force=True)
