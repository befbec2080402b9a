"""What APKBUILD makes: each package's files, modes, owners, dependencies and scripts; and `make install`."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from apk_atomic import VERSION
from tests.package.driver import Built, abuild
from tests.support.rootfs import PROJECT as ROOT
from tools import aport

NAME = "apk-atomic"
SAME = f"{NAME}={VERSION}-r0"
MODULES = sorted(path.relative_to(ROOT) for path in (ROOT / "apk_atomic").rglob("*.py"))
PAGES = sorted(path.stem for path in (ROOT / "doc").glob("*.scd"))
SITE = f"usr/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
TAG = sys.implementation.cache_tag
# An ordinary user, here with root's name for files, and no network.
BUILDER = (shutil.which("unshare") or "unshare", "--user", "--map-user=1000", "--map-group=1000", "--net")


def pages(ending: str) -> dict[str, int]:
    return {f"usr/share/man/man{name[-1]}/{name}{ending}": 0o644 for name in PAGES}


MEANT = {
    NAME: {
        "usr/bin/apk-atomic": 0o755,
        "etc/apk-atomic/apk-atomic.toml": 0o644,
        f"{SITE}/apk_atomic/py.typed": 0o644,
        **{f"{SITE}/{module}": 0o644 for module in MODULES},
    },
    f"{NAME}-doc": {
        **{f"usr/share/doc/{NAME}/{name}": 0o644 for name in ("README.md", "NEWS.md", "HACKING.md")},
        **pages(".gz"),
    },
    f"{NAME}-openrc": {"etc/init.d/apk-atomic-adopt": 0o755},
    f"{NAME}-pyc": {
        f"{SITE}/{module.parent}/__pycache__/{module.stem}.{TAG}{level}.pyc": 0o644
        for module in MODULES
        for level in ("", ".opt-1")
    },
    f"{NAME}-bash-completion": {"usr/share/bash-completion/completions/apk-atomic": 0o644},
    f"{NAME}-zsh-completion": {"usr/share/zsh/site-functions/_apk-atomic": 0o644},
    f"{NAME}-fish-completion": {"usr/share/fish/vendor_completions.d/apk-atomic.fish": 0o644},
    f"{NAME}-drop-in": {
        "usr/libexec/apk-atomic/apk": 0o777,
        "usr/libexec/apk-atomic/bin/apk": 0o755,
        "etc/profile.d/apk-atomic-drop-in.sh": 0o644,
        "lib/apk/commit_hooks.d/apk-atomic": 0o755,
    },
    f"{NAME}-unattended": {
        "etc/periodic/daily/apk-atomic": 0o755,
        "etc/periodic/15min/apk-atomic-reboot": 0o755,
    },
}
INSTALL_IF = {"doc": "docs", "openrc": "openrc", "pyc": "pyc", "bash-completion": "bash-completion",
              "zsh-completion": "zsh", "fish-completion": "fish"}  # fmt: skip


def test_split(built: dict[str, Built]) -> None:
    assert set(built) == set(MEANT)


def files_in(tree: Path) -> dict[str, int]:
    found = (path for path in tree.rglob("*") if path.is_symlink() or not path.is_dir())
    return {str(path.relative_to(tree)): path.lstat().st_mode & 0o7777 for path in found}


@pytest.mark.parametrize("name", MEANT)
def test_files_and_modes(built: dict[str, Built], name: str) -> None:
    found = {path: mode for path, mode in built[name].files.items() if ".dist-info/" not in path}
    assert found == MEANT[name]
    about = {path for path in built[name].files if path.startswith(f"{SITE}/apk_atomic-{VERSION}.dist-info/")}
    assert set(built[name].files) - set(found) == about
    assert bool(about) == (name == NAME)


@pytest.mark.parametrize("name", MEANT)
def test_directories_and_owners(built: dict[str, Built], name: str) -> None:
    tree = built[name].tree
    for path in tree.rglob("*"):
        status = path.lstat()
        assert (status.st_uid, status.st_gid) == (os.getuid(), os.getgid()), path
        assert not path.is_dir() or status.st_mode & 0o7777 == 0o755, path
        assert not path.is_dir() or any(path.iterdir()), f"{path} is empty"


def test_what_each_depends_on(built: dict[str, Built]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    libraries = {f"py3-{requirement.partition('>')[0]}" for requirement in project["dependencies"]}
    assert set(built[NAME].depends) == libraries | {"python3", "btrfs-progs"}
    for name, each in built.items():
        kind = name.removeprefix(f"{NAME}-")
        assert set(each.install_if) == ({SAME, INSTALL_IF[kind]} if kind in INSTALL_IF else set()), name
        if name != NAME:
            assert each.depends == (() if kind in INSTALL_IF else (SAME,)), name


def test_install_scripts_only_speak(built: dict[str, Built], tmp_path: Path) -> None:
    """Run by busybox ash in an empty directory: exit status 0, some lines, and nothing else."""
    assert {name for name, each in built.items() if each.scripts} == {NAME, f"{NAME}-drop-in", f"{NAME}-unattended"}
    for each in built.values():
        for kind, text in each.scripts.items():
            assert kind == "post-install"
            command = ["busybox", "ash", "-c", text, kind, each.version]
            done = subprocess.run(command, cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
                                  check=False)  # fmt: skip
            assert (done.returncode, done.stderr) == (0, "")
            assert "apk-atomic " in done.stdout and "apk-cron" not in done.stdout
            assert not list(tmp_path.iterdir())


def test_apk_cron_is_pointed_out(built: dict[str, Built], tmp_path: Path) -> None:
    job = tmp_path / "etc/periodic/daily/apk"
    job.parent.mkdir(parents=True)
    job.touch()
    command = ["busybox", "ash", "-c", built[f"{NAME}-unattended"].scripts["post-install"]]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "apk-atomic del apk-cron" in said


def test_command_is_our_script_isolated(built: dict[str, Built]) -> None:
    """No entry point that the wheel generates."""
    first, _, rest = (built[NAME].tree / "usr/bin/apk-atomic").read_text().partition("\n")
    assert first == "#!/usr/bin/python3 -I"
    assert rest == (ROOT / "apk_atomic/front.py").read_text().partition("\n")[2]
    assert not list(built[NAME].tree.rglob("entry_points.txt"))


def test_manual_pages_are_pages(built: dict[str, Built]) -> None:
    for path in (built[f"{NAME}-doc"].tree / "usr/share/man").rglob("*.gz"):
        assert gzip.decompress(path.read_bytes()).startswith(b".\\\" Generated by scdoc"), path


def test_check_needs_neither_root_nor_network(built: dict[str, Built], work: Path) -> None:
    """As abuild runs it, in the unpacked archive."""
    output = abuild(work / "aport", work, "check", before=BUILDER)
    assert " passed" in output
    assert "failed" not in output and "skipped" not in output


@pytest.mark.skipif(not shutil.which("abuild"), reason="abuild is not here: it is Alpine's own")
def test_abuild_itself(built: dict[str, Built], work: Path, tmp_path: Path) -> None:
    place = tmp_path / "aport"
    shutil.copytree(work / "aport", place)
    steps = ("validate", "verify", "unpack", "prepare", "build", "package", "prepare_subpackages", "prepare_package")
    subprocess.run(["abuild", "-F", "-d", *steps], cwd=place, check=True)
    for name, files in MEANT.items():
        made = files_in(place / "pkg" / name)
        assert {path: mode for path, mode in made.items() if ".dist-info/" not in path} == files, name


def test_the_same_sources_make_the_same_aport(work: Path, built: dict[str, Built], tmp_path: Path) -> None:
    aport.make(ROOT, tmp_path / "again")
    for path in (tmp_path / "again").iterdir():
        assert path.read_bytes() == (work / "aport" / path.name).read_bytes(), path.name


# ---- without a package ------------------------------------------------------------------------------------


def test_installed_command_answers(tmp_path: Path) -> None:
    """`make install` for this interpreter: it finds its modules without help."""
    place = [f"DESTDIR={tmp_path}", "PREFIX=/usr", f"PYTHON={sys.executable}"]
    subprocess.run(["make", "--silent", "-C", ROOT, "install", *place], check=True)
    site = next(tmp_path.glob("usr/lib/python*/site-packages"))
    command = [sys.executable, str(tmp_path / "usr/bin/apk-atomic"), "--help"]
    done = subprocess.run(command, env={"PYTHONPATH": str(site)}, cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: apk-atomic")


def test_make_install_is_the_package(built: dict[str, Built], tmp_path: Path) -> None:
    """And, unasked, neither the drop-in nor the periodic jobs."""
    place = [f"DESTDIR={tmp_path}", "PREFIX=/usr", f"PYTHON={sys.executable}"]
    subprocess.run(["make", "--silent", "-C", ROOT, "install", *place], check=True)
    asked = {name: mode for each in MEANT if not each.endswith(("-drop-in", "-unattended", "-doc", "-pyc"))
             for name, mode in MEANT[each].items()}  # fmt: skip
    found = {name: mode for name, mode in files_in(tmp_path).items() if not name.endswith(".pyc")}
    assert found == asked | pages("")


def test_versions_agree(built: dict[str, Built]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    newest = next(line for line in (ROOT / "NEWS.md").read_text().splitlines() if line.startswith("## "))
    assert built[NAME].version.partition("-r")[0] == project["version"] == newest.split()[1] == VERSION


def test_hacking_names_what_is_there() -> None:
    text = (ROOT / "HACKING.md").read_text()
    assert len(text.splitlines()) <= 100
    layers = text.partition("## Layers")[2].partition("\n\n1. ")[2].partition("\n\n")[0]
    for name in layers.replace("`commands/`", "").split("`")[1::2]:
        assert list((ROOT / "apk_atomic").rglob(f"{name}.py")), name  # a module, or a verb
    for name in text.partition("| where |")[2].split("`tests/")[1:]:
        path = name.partition("`")[0]
        assert "MODULE" in path or (ROOT / "tests" / path).exists(), path
