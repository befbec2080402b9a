"""The manual pages: they build without a warning, and the tool that apk-atomic-layout(7) shows is one.

What they name is compared with the code in test_documents.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from apk_atomic import config
from apk_atomic.commands import init
from tests.support.binaries import add_binary
from tests.support.packages import Package
from tests.support.world import FIRST, Volume, make_volume

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "doc").glob("*.scd"))
# scdoc's own ways: it puts paragraphs before headings, and keeps the case of a page's name.
OF_SCDOC = ("STYLE:", "skipping paragraph macro")
SETTINGS = "apk-atomic.toml.5.scd"
HOOK = "etc/apk-atomic/hooks.d/pre-commit.d/10-quota"
TOOLS = ("btrfs", "flock", "sync")  # what the tool of the page needs beside busybox
TITLES = {"8": "System Manager's Manual", "5": "File Formats Manual", "7": "Miscellaneous Information Manual"}


def built(page: Path) -> str:
    """The page in troff's language. scdoc fails for what it does not understand."""
    done = subprocess.run(["scdoc"], input=page.read_text(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_makefile_names_every_page() -> None:
    named = re.search(r"^MAN = (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert named
    assert sorted(named[1].split()) == [f"doc/{page.stem}" for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_builds_without_warnings(page: Path) -> None:
    done = subprocess.run(["mandoc", "-T", "lint"], input=built(page), capture_output=True, text=True, check=False)
    said = done.stdout.splitlines()
    assert [line for line in said if not any(word in line for word in OF_SCDOC)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_heads(page: Path) -> None:
    """Name, section and title are those of the file's name; the sections begin as in every manual."""
    lines = page.read_text().splitlines()
    name, section = page.stem.rsplit(".", 1)
    assert lines[0] == f'{name}({section}) "apk-atomic" "{TITLES[section]}"'
    headings = [line.removeprefix("# ") for line in lines if line.startswith("# ")]
    assert headings[0] == "NAME" and headings[-1] == "SEE ALSO"
    assert lines[lines.index("# NAME") + 2].startswith(f"{name} - ")


def literal_blocks(page: str) -> list[str]:
    text = (ROOT / "doc" / page).read_text()
    return re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def example(page: str, introduction: str) -> str:
    """The block below the line that has these words."""
    _, found, rest = (ROOT / "doc" / page).read_text().partition(introduction)
    assert found, introduction
    return rest.partition("```\n")[2].partition("```\n")[0]


# ---- the examples of the other pages ------------------------------------------------------------------------

OTHER_DEVICE = "/dev/sda2"
EDITOR = "#!/bin/sh\nmkdir -p \"${1%/*}\" && echo edited >>\"$1\"\n"
RC_UPDATE = "#!/bin/sh\nmkdir -p /etc/runlevels/default && ln -s \"/etc/init.d/$2\" /etc/runlevels/default\n"


def add_programs(tree: Path) -> None:
    for name, text in (("vi", EDITOR), ("rc-update", RC_UPDATE)):
        (tree / "sbin" / name).unlink(missing_ok=True)
        (tree / "sbin" / name).write_text(text)
        (tree / "sbin" / name).chmod(0o755)


def test_examples_of_the_command() -> None:
    """Each of them, in order; but for `init`, whose line is only read: tests/install has its disks."""
    blocks = literal_blocks("apk-atomic.8.scd")
    with make_volume(prepare=add_programs) as volume, make_volume() as other:
        other_guest = other.boot()
        other_guest.run(["apk-atomic", "run", "--", "touch", "/etc/new"], check=True)
        other.shutdown()
        volume.repo.publish(Package("nginx"))
        guest = volume.boot()
        guest.run(["apk-atomic", "add", "nginx"], check=True)
        guest.reboot()
        volume.repo.publish(Package("nginx", "2.0-r0"))
        for block in blocks:
            lines = [line.removeprefix("# ") for line in block.splitlines()] if block.startswith("# ") else [block]
            for line in lines:
                if line.startswith("apk-atomic init "):
                    assert init._parser().parse(shlex.split(line)[2:])
                else:
                    guest.run(["sh", "-c", line.replace(OTHER_DEVICE, other.device)], check=True)
        assert (volume.tree() / "etc/ssh/sshd_config").read_text() == "edited\n"
        assert (volume.tree() / "etc/runlevels/default/nginx").is_symlink()
        assert other.slots()[0] == FIRST


def test_examples_of_settings() -> None:
    found = [config.load(block.encode(), "F") for block in literal_blocks(SETTINGS) if block.startswith("[")]
    assert found and all(each != config.Config() for each in found)


def test_example_of_a_notifier(tmp_path: Path) -> None:
    (tmp_path / "sendmail").write_text(f'#!/bin/sh\n{{ echo "to $1"; cat; }} >{tmp_path}/mail\n')
    (tmp_path / "sendmail").chmod(0o755)
    script = example(SETTINGS, "_notify.d/mail_")
    subprocess.run(["sh", "-c", script, "mail", "a line"], check=True, input=b'{"version": 1}',
                   env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})  # fmt: skip
    assert (tmp_path / "mail").read_text() == 'to root\nSubject: a line\n\n{"version": 1}\n'


def test_example_of_a_hook() -> None:
    hook = example(SETTINGS, f"_{HOOK.removeprefix('etc/apk-atomic/hooks.d/')}_")

    def prepare(tree: Path) -> None:
        place = tree / HOOK
        place.parent.mkdir(parents=True)
        place.write_text(hook)
        place.chmod(0o755)

    with make_volume(prepare=prepare) as volume:
        guest = volume.boot()
        guest.run(["apk-atomic", "run", "--", "touch", "/small"], check=True)
        guest.run(["apk-atomic", "discard"], check=True)
        guest.run(["apk-atomic", "run", "--", "sed", "-i", "s/8192/1/", f"/{HOOK}"], check=True)
        guest.reboot()
        refused = guest.run(["apk-atomic", "run", "--", "touch", "/large"])
        assert refused.status == 106 and "more than 8 GiB" in refused.stderr


# ---- a tool written against apk-atomic-layout(7) -----------------------------------------------------------


@pytest.fixture
def volume() -> Iterator[Volume]:
    def prepare(tree: Path) -> None:
        for name in TOOLS:
            add_binary(tree, Path(shutil.which(name) or name), f"usr/bin/{name}")

    with make_volume(prepare=prepare) as made:
        yield made


def mkgen() -> str:
    return next(block for block in literal_blocks("apk-atomic-layout.7.scd") if "# mkgen " in block)


def test_other_tool_makes_a_generation(volume: Volume) -> None:
    guest = volume.boot()
    first = guest.booted
    guest.run(["sh", "-s", volume.device, "touch", "/made-by-mkgen"], input=mkgen(), check=True)
    new = volume.slots()[0]
    assert volume.slots() == [new, first, first, first]
    status = guest.run(["apk-atomic", "status"], check=True).stdout
    assert f"{new} is pending" in status and "foreign" in status
    assert guest.run(["apk-atomic", "prove"]).status == 0
    guest.run(["apk-atomic", "run", "--", "touch", "/made-by-us"], check=True)  # on top of it
    guest.reboot()
    guest.run(["ls", "/made-by-mkgen", "/made-by-us"], check=True)


def test_other_tool_that_died_is_cleaned_up_after(volume: Volume) -> None:
    guest = volume.boot()
    script = mkgen().replace('mv -T "next/current-$id" current', "exit 9")
    assert script != mkgen()
    assert guest.run(["sh", "-s", volume.device, "touch", "/made-by-mkgen"], input=script).status == 9
    assert len(volume.generations()) == 2
    guest.run(["apk-atomic", "run", "--", "touch", "/made-by-us"], check=True)
    new = volume.slots()[0]
    assert volume.generations() == sorted((guest.booted, new))
    assert not (volume.tree() / "made-by-mkgen").exists() and (volume.tree() / "made-by-us").exists()
    assert list((volume.top / "staging").iterdir()) == [] == list((volume.top / "next").iterdir())


def test_other_tool_keeps_us_out(volume: Volume) -> None:
    guest = volume.boot()
    lock = next(line for line in mkgen().splitlines() if line.startswith("exec 9>>")).replace("$fsid", volume.fsid)
    held = guest.run(["sh", "-c", f"mkdir -p -m 755 /run/apk-atomic; {lock}; flock -n 9; apk-atomic gc"])
    assert held.status == 102
