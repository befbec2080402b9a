"""What is installed and packaged: APKBUILD's own functions, run as abuild runs them, and `make install`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from apk_atomic import VERSION

ROOT = Path(__file__).parent.parent
MODULES = sorted(path.relative_to(ROOT) for path in (ROOT / "apk_atomic").rglob("*.py"))
DOCUMENTS = ("README.md", "NEWS.md", "HACKING.md")
COMPLETIONS = (
    "usr/share/bash-completion/completions/apk-atomic", "usr/share/zsh/site-functions/_apk-atomic",
    "usr/share/fish/vendor_completions.d/apk-atomic.fish",
)  # fmt: skip
PAGES = sorted(path.stem for path in (ROOT / "doc").glob("*.scd"))
BUILDER = (shutil.which("unshare") or "unshare", "--user", "--map-user=1000", "--map-group=1000", "--net")


def busybox_ash(script: str, *before: str, **variables: str) -> str:
    """What a script says that has sourced APKBUILD, in the shell that abuild uses."""
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONDONTWRITEBYTECODE": "",
        "startdir": str(ROOT),
        **variables,
    }
    command = [*before, "busybox", "ash", "-euc", f"cd '{ROOT}'\n. ./APKBUILD\n{script}"]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, text=True, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def package(tmp_path: Path) -> Path:
    busybox_ash("package", pkgdir=str(tmp_path))
    return tmp_path


def files_of(tree: Path) -> dict[str, int]:
    """The files, with their modes, below a directory."""
    found = (path for path in tree.rglob("*") if not path.is_dir())
    return {str(path.relative_to(tree)): path.stat().st_mode & 0o7777 for path in found}


def test_files_and_modes(package: Path) -> None:
    site = f"usr/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    tag = sys.implementation.cache_tag
    expected = {
        "usr/bin/apk-atomic": 0o755,
        "etc/apk-atomic/apk-atomic.toml": 0o644,
        "etc/init.d/apk-atomic-adopt": 0o755,
        f"{site}/apk_atomic/py.typed": 0o644,
        **dict.fromkeys(COMPLETIONS, 0o644),
        **{f"usr/share/doc/apk-atomic/{name}": 0o644 for name in DOCUMENTS},
        **{f"usr/share/man/man{name[-1]}/{name}": 0o644 for name in PAGES},
        **{f"{site}/{module}": 0o644 for module in MODULES},
        **{f"{site}/{module.parent}/__pycache__/{module.stem}.{tag}.pyc": 0o644 for module in MODULES},
    }
    assert files_of(package) == expected


def test_command_is_our_script_isolated(package: Path) -> None:
    installed = (package / "usr/bin/apk-atomic").read_text()
    first, _, rest = installed.partition("\n")
    assert first == "#!/usr/bin/python3 -I"
    assert rest == (ROOT / "apk_atomic/front.py").read_text().partition("\n")[2]


def test_installed_command_answers(tmp_path: Path) -> None:
    """Installed for this interpreter, it finds its modules without help."""
    place = [f"DESTDIR={tmp_path}", "PREFIX=/usr", f"PYTHON={sys.executable}"]
    subprocess.run(["make", "--silent", "-C", ROOT, "install", *place], check=True)
    site = next(tmp_path.glob("usr/lib/python*/site-packages"))
    command = [sys.executable, str(tmp_path / "usr/bin/apk-atomic"), "--help"]
    done = subprocess.run(command, env={"PYTHONPATH": str(site)}, cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: apk-atomic")


def test_check_needs_neither_root_nor_network() -> None:
    """As abuild runs it: an ordinary user (here with root's name for files), and no network."""
    output = busybox_ash("check", *BUILDER, PYTEST_ADDOPTS="-q -p no:cacheprovider")
    assert " passed" in output
    assert "failed" not in output and "skipped" not in output


def test_what_it_depends_on() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {requirement.partition(">")[0] for requirement in project["dependencies"]}
    assert set(busybox_ash("echo $depends").split()) == {f"py3-{name}" for name in names} | {"python3", "btrfs-progs"}


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    newest = next(line for line in (ROOT / "NEWS.md").read_text().splitlines() if line.startswith("## "))
    assert busybox_ash("echo $pkgver").strip() == project["version"] == newest.split()[1] == VERSION


def test_linted() -> None:
    done = subprocess.run(["shellcheck", "APKBUILD"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_hacking_names_what_is_there() -> None:
    text = (ROOT / "HACKING.md").read_text()
    assert len(text.splitlines()) <= 80
    layers = text.partition("## Layers")[2].partition("\n\n1. ")[2].partition("\n\n")[0]
    for name in layers.replace("`commands/`", "").split("`")[1::2]:
        assert list((ROOT / "apk_atomic").glob(f"{name}.py")), name
    for name in text.partition("| where |")[2].split("`tests/")[1:]:
        path = name.partition("`")[0]
        assert "MODULE" in path or (ROOT / "tests" / path).exists(), path
