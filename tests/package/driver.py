"""Makes the aport of this checkout, builds it by abuild.sh, and turns what comes of it into .apk files.

    built = build(sources, work)              # APKBUILD's own functions, run by busybox ash
    built["apk-atomic-drop-in"].files         # {"usr/libexec/apk-atomic/bin/apk": 0o755, …}
    repository.publish(*packages(built, site))
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.packages import Entry, File, Package, Symlink
from tests.support.rootfs import PROJECT
from tools import aport

ABUILD = Path(__file__).with_name("abuild.sh")
_SITE = re.compile(r"^usr/lib/python[\d.]+/site-packages/")


@dataclass(frozen=True, slots=True)
class Built:
    """One package: its tree, and what goes into its .PKGINFO. `scripts`: the text of each, by kind."""

    tree: Path
    name: str
    version: str
    description: str
    depends: tuple[str, ...]
    install_if: tuple[str, ...]
    scripts: dict[str, str]

    @property
    def files(self) -> dict[str, int]:
        """All but directories, with their modes; that of a link is 0o777."""
        found = (path for path in self.tree.rglob("*") if path.is_symlink() or not path.is_dir())
        return {str(path.relative_to(self.tree)): path.lstat().st_mode & 0o7777 for path in found}


def abuild(place: Path, work: Path, *function: str, before: Sequence[str] = ()) -> str:
    """What abuild.sh says; `before` are words before its interpreter. AssertionError when it fails."""
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(work),
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTEST_ADDOPTS": "-q -p no:cacheprovider",
    }
    command = [*before, "busybox", "ash", str(ABUILD), str(place), str(work), *function]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, text=True, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def build(sources: Path, work: Path) -> dict[str, Built]:
    """The packages by name. `work/aport` is what aports gets, `work/src` where it was built."""
    aport.make(sources, work / "aport")
    abuild(work / "aport", work)
    return {path.name: _read(path, work) for path in sorted((work / "meta").iterdir())}


def next_version(work: Path, version: str) -> Path:
    """A copy of the sources that calls itself `version`."""
    copy = work / "sources"
    for path in aport.files(PROJECT):
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / path, copy / path)
    for name, pattern, text in (
        ("APKBUILD", r"(?m)^pkgver=.*", f"pkgver={version}"),
        ("pyproject.toml", r'(?m)^version = ".*"', f'version = "{version}"'),
        ("apk_atomic/__init__.py", r'VERSION = ".*"', f'VERSION = "{version}"'),
    ):
        before = (copy / name).read_text()
        after = re.sub(pattern, text, before)
        assert after != before, name
        (copy / name).write_text(after)
    return copy


def packages(built: dict[str, Built], site: str) -> list[Package]:
    """For a repository; the modules go where the root's interpreter looks for them: Debian's looks elsewhere.

    `install_if` is left out: the tests name what they install.
    """
    return [
        Package(
            each.name,
            each.version,
            files={_SITE.sub(f"{site}/", name): _entry(each.tree / name) for name in each.files},
            scripts=each.scripts,
            depends=(*each.depends, *(("/bin/sh",) if each.scripts else ())),
            description=each.description,
            origin="apk-atomic",
        )
        for each in built.values()
    ]


def _read(path: Path, work: Path) -> Built:
    lines = [line.partition("=") for line in path.read_text().splitlines()]
    one = {key: value for key, _, value in lines}
    kinds = [value for key, _, value in lines if key == "script"]
    return Built(
        work / "pkg" / path.name,
        one["name"],
        one["version"],
        one["description"],
        tuple(one["depends"].split()),
        tuple(one["install_if"].split()),
        {kind: (work / "aport" / f"{path.name}.{kind}").read_text() for kind in kinds},
    )


def _entry(path: Path) -> Entry:
    if path.is_symlink():
        return Symlink(os.readlink(path))
    return File(path.read_bytes(), stat.S_IMODE(path.stat().st_mode))
