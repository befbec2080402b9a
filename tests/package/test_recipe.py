"""APKBUILD as aports wants it: the rules of its linter, in our own words, each of which is seen to bite."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.package.driver import Built
from tests.support.rootfs import PROJECT as ROOT
from tools import aport

RECIPE = (ROOT / "APKBUILD").read_text()
ORDER = (
    "maintainer", "pkgname", "pkgver", "pkgrel", "pkgdesc", "url", "arch", "license", "depends", "makedepends",
    "checkdepends", "install", "subpackages", "source", "builddir", "options", "sha512sums",
)  # fmt: skip
REQUIRED = ("pkgname", "pkgver", "pkgrel", "pkgdesc", "url", "arch", "license", "source")
BARE = ("pkgname", "pkgver", "pkgrel")
FUNCTIONS = ("prepare", "build", "check", "package")
ASSIGNMENT = re.compile(r"^(\w+)=(.*)", re.MULTILINE)
FUNCTION = re.compile(r"^(\w+)\(\) \{$(.*?)^\}$", re.MULTILINE | re.DOTALL)
SUMS = re.compile(r'^sha512sums="\n(?:[0-9a-f]{128}  \S+\n)+"\n\Z', re.MULTILINE)
SCRIPTS = sorted(ROOT.glob("*.post-install"))


def problems(text: str) -> Iterator[str]:
    """What the linter of aports would say."""
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, what in (
            (r"^ | \t|^\t* ", "indented by spaces"), (r"\s$", "white space at the end"), (r"`", "a backquote"),
            (r"\|\| return 1", "|| return 1"), (r"\$\{pkg\w+\}(?!\w)", "braces that are not needed"),
        ):  # fmt: skip
            if re.search(pattern, line):
                yield f"{number}: {what}"
        if len(line) > 80 and not line.startswith("# shellcheck") and not re.match(r"[0-9a-f]{128}  ", line):
            yield f"{number}: longer than 80"
    yield from _variables(text)
    yield from _functions(text)
    if not re.search(r"^# Maintainer:|^maintainer=", text, re.MULTILINE):
        yield "no maintainer"


def _variables(text: str) -> Iterator[str]:
    given = dict(ASSIGNMENT.findall(text))
    names = [name for name in given if not name.startswith("_")]
    yield from (f"{name} is no variable of abuild's" for name in names if name not in ORDER)
    known = [name for name in names if name in ORDER]
    if known != sorted(known, key=ORDER.index):
        yield "variables out of order"
    yield from (f"no {name}" for name in REQUIRED if name not in given)
    for name, value in given.items():
        if name in BARE and not re.fullmatch(r"[\w.+-]+", value):
            yield f"{name} is quoted"
        if name not in BARE and not value.startswith('"'):
            yield f"{name} is not quoted"
        if value in ('""', ""):
            yield f"{name} is empty"


def _functions(text: str) -> Iterator[str]:
    found = [name for name, _ in FUNCTION.findall(text)]
    usual = [name for name in found if name in FUNCTIONS]
    if usual != sorted(usual, key=FUNCTIONS.index):
        yield "functions out of order"
    for name in ("build", "check", "package"):
        if name not in found:
            yield f"no {name}()"
    for name, body in FUNCTION.findall(text):
        if name not in FUNCTIONS and ("amove" not in body or re.search(r"\bmv\b", body)):
            yield f"{name}() does not use amove"
    last = text.rfind("\n}\n")
    if any(match.start() > last for match in ASSIGNMENT.finditer(text) if match[1] != "sha512sums"):
        yield "a variable behind the functions"


def test_recipe() -> None:
    assert list(problems(RECIPE)) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("\tmake check", "    make check", "indented by spaces"),
        ("make check\n", "make check \n", "white space at the end"),
        ("pkgname=apk-atomic", 'pkgname="apk-atomic"', "pkgname is quoted"),
        ('arch="noarch"', "arch=noarch", "arch is not quoted"),
        ('arch="noarch"', 'arch=""', "arch is empty"),
        ("pkgrel=0\n", "", "no pkgrel"),
        ("pkgver=0.1.0\npkgrel=0", "pkgrel=0\npkgver=0.1.0", "variables out of order"),
        ("pkgrel=0\n", "pkgrel=0\nmine=1\n", "mine is no variable of abuild's"),
        ("make check", "make check || return 1", "|| return 1"),
        ("make check", 'make "${pkgname}"', "braces that are not needed"),
        ("make check", "make `echo check`", "a backquote"),
        ("make check", "make check " + "x" * 80, "longer than 80"),
        ("amove etc/periodic", "mv etc/periodic x", "unattended() does not use amove"),
        ("check() {", "chek() {", "no check()"),
        ("# Maintainer:", "# Nobody:", "no maintainer"),
    ],
)
def test_each_rule_bites(old: str, new: str, said: str) -> None:
    assert old in RECIPE
    assert any(said in problem for problem in problems(RECIPE.replace(old, new, 1)))


def test_shellcheck() -> None:
    done = subprocess.run(["shellcheck", "APKBUILD"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_aport(built: dict[str, Built], work: Path) -> None:
    """The checksums come last, and are those of what lies there."""
    place = work / "aport"
    recipe = (place / "APKBUILD").read_text()
    assert list(problems(recipe)) == []
    assert SUMS.search(recipe)
    rows = [line.split() for line in recipe.partition('sha512sums="\n')[2].splitlines()[:-1]]
    sums = {name: digest for digest, name in rows}
    assert {name: hashlib.sha512((place / name).read_bytes()).hexdigest() for name in sums} == sums
    (archive,) = place.glob("*.tar.gz")
    assert set(sums) == {archive.name}
    assert {path.name for path in place.iterdir()} == {"APKBUILD", archive.name, *(path.name for path in SCRIPTS)}


SOMEBODY = "Some O'Body-Else <some.body@example.org>"


def make_aport(place: Path, maintainer: str) -> str:
    """What `make aport` says on stderr; the recipe is in `place`/APKBUILD."""
    command = ["make", "-s", "aport", f"MAINTAINER={maintainer}", f"PYTHON={sys.executable}"]
    shutil.copy(ROOT / "Makefile", place)
    for name in ("tools", "APKBUILD"):
        (place / name).symlink_to(ROOT / name)
    return subprocess.run(command, cwd=place, capture_output=True, text=True, check=False).stderr


@pytest.mark.parametrize("maintainer", ["", SOMEBODY])
def test_who_submits_it_is_its_maintainer(tmp_path: Path, maintainer: str) -> None:
    """In the sources there is none: nobody's name is made up."""
    assert aport.ORPHAN in RECIPE
    assert make_aport(tmp_path, maintainer) == ""
    recipe = (tmp_path / "build/aport/APKBUILD").read_text()
    assert list(problems(recipe)) == []
    assert (f'\nmaintainer="{SOMEBODY}"\npkgname=' in recipe) is bool(maintainer)
    assert (aport.ORPHAN in recipe) is not bool(maintainer)


@pytest.mark.parametrize(
    "wrong",
    ["Some Body", "some@example.org", 'A "B" <a@example.org>', "$(id) <a@example.org>", "A <a@b> <c@d>", " <a@b>"],
)
def test_a_maintainer_that_is_none(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(SystemExit, match="is no maintainer"):
        aport.make(ROOT, tmp_path / "aport", wrong)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_install_script(script: Path) -> None:
    text = script.read_text()
    assert text.startswith("#!/bin/sh\n\n") and text.endswith("\nexit 0\n")
    assert f"\t{script.name.replace('apk-atomic', '$pkgname', 1)}\n" in RECIPE
