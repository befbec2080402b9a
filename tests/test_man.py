"""The manual pages: they build without a warning, and the tool that apk-atomic-layout(7) shows is one.

What they name is compared with the code in test_documents.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.binaries import add_binary
from tests.support.world import Volume, make_volume

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "doc").glob("*.scd"))
# scdoc's own ways: it puts paragraphs before headings, and keeps the case of a page's name.
OF_SCDOC = ("STYLE:", "skipping paragraph macro")
TOOLS = ("btrfs", "flock", "sync")  # what the tool of the page needs beside busybox
SECTIONS = {"8": "System Manager's Manual", "5": "File Formats Manual", "7": "Miscellaneous Information Manual"}


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
    assert lines[0] == f'{name}({section}) "apk-atomic" "{SECTIONS[section]}"'
    headings = [line.removeprefix("# ") for line in lines if line.startswith("# ")]
    assert headings[0] == "NAME" and headings[-1] == "SEE ALSO"
    assert lines[lines.index("# NAME") + 2].startswith(f"{name} - ")


def literal_blocks(page: str) -> list[str]:
    text = (ROOT / "doc" / page).read_text()
    return re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


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
