"""tests/support/setup.sh: what `make demo` and `make test` do to a machine; the package manager only notes it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.boot import kernels

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "tests/support/setup.sh"
PROGRAMS = (
    "sh", "id", "cmp", "cp", "grep", "ldd", "bash", "mkfs.btrfs", "btrfs", "losetup", "strace", "shellcheck", "busybox",
    "openssl", "nsenter", "sfdisk", "wipefs", "mkswap", "mkfs.vfat", "mcopy", "zstd", "lz4", "scdoc", "mandoc",
    "zsh", "fish", "grub-mkimage",
)  # fmt: skip
ORDINARY_USER = (shutil.which("unshare") or "unshare", "--user", "--map-user=1000", "--map-group=1000", "--net")


class Machine:
    """A PATH with exactly the programs that are installed, a package manager among them, and a virtual environment."""

    def __init__(self, place: Path) -> None:
        self.path, self.venv, self.log = place / "path", place / "venv", place / "log"
        self.path.mkdir()
        for name in PROGRAMS:
            self.install(name)
        (self.venv / "bin").mkdir(parents=True)
        (self.venv / "bin/python").symlink_to(sys.executable)
        shutil.copy(ROOT / "pyproject.toml", self.venv)

    def install(self, name: str) -> None:
        found = shutil.which(name)
        assert found, f"{name} is not here"
        (self.path / name).symlink_to(found)

    def script(self, name: str, text: str) -> None:
        (self.path / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.path / name).chmod(0o755)

    def setup(
        self, *before: str, python: str = sys.executable, purpose: str = ""
    ) -> subprocess.CompletedProcess[str]:
        command = [*before, "/bin/sh", str(SCRIPT), str(self.venv), python, purpose]
        environment = {"PATH": str(self.path)}
        return subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, text=True, check=False,
                              capture_output=True)  # fmt: skip


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.script("apt-get", f'echo "$*" >>"{made.log}"')
    return made


def test_does_nothing_when_all_is_there(machine: Machine) -> None:
    done = machine.setup()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not machine.log.exists()


def test_installs_what_is_missing_and_says_so(machine: Machine) -> None:
    (machine.path / "strace").unlink()
    strace = shutil.which("strace")
    machine.script("apt-get", f'echo "$*" >>"{machine.log}"; ln -sf "{strace}" "{machine.path}/strace"')
    machine.script("dpkg", "echo m68k")
    machine.install("ln")
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    assert done.stderr == "setup: installing with apt-get, for want of strace\n"
    update, install = machine.log.read_text().splitlines()
    assert update.startswith("update")
    assert install.startswith("install -y") and {"strace", "grub-efi-m68k-bin"} <= set(install.split())


def test_alpine(machine: Machine) -> None:
    (machine.path / "apt-get").unlink()
    (machine.path / "nsenter").unlink()
    machine.script("apk", f'echo "$*" >>"{machine.log}"')
    done = machine.setup()
    assert done.returncode == 1
    assert "still missing: nsenter" in done.stderr
    assert machine.log.read_text().startswith("add ")


def test_boots_need_more(machine: Machine) -> None:
    machine.script("debconf-set-selections", f'cat >>"{machine.log}"')
    machine.install("cat")
    done = machine.setup(purpose="boot")
    assert done.returncode == 1
    assert "still missing: " in done.stderr and "qemu-system-x86_64" in done.stderr
    answers, update, install = machine.log.read_text().splitlines()
    assert answers == "refind refind/install_to_esp boolean false"
    assert update.startswith("update")
    assert {"qemu-system-x86", "ovmf", "refind"} <= set(install.split())


def test_boots_are_tested_on_debian_only(machine: Machine) -> None:
    (machine.path / "apt-get").unlink()
    done = machine.setup(purpose="boot")
    assert done.returncode == 1
    assert "the boot tests run on Debian only" in done.stderr


def test_package_manager_that_fails_ends_it(machine: Machine) -> None:
    (machine.path / "strace").unlink()
    machine.script("apt-get", "echo no network >&2; exit 100")
    done = machine.setup()
    assert done.returncode == 100
    assert done.stderr.endswith("no network\n")


def test_unknown_system_is_told_what_it_lacks(machine: Machine) -> None:
    (machine.path / "apt-get").unlink()
    (machine.path / "openssl").unlink()
    done = machine.setup()
    assert done.returncode == 1
    assert "openssl is not here, and neither apt-get nor apk is" in done.stderr


def test_old_python_is_refused(machine: Machine) -> None:
    machine.script("python3.9", 'case "$*" in *version_info*) exit 1 ;; --version) echo Python 3.9.2 ;; esac')
    done = machine.setup(python=f"{machine.path}/python3.9")
    assert done.returncode == 1
    assert done.stderr == "setup: Python 3.9.2 is too old: 3.11 is needed\n"


def test_ordinary_user_is_refused(machine: Machine) -> None:
    done = machine.setup(*ORDINARY_USER)
    assert done.returncode == 1
    assert "run make as root" in done.stderr
    assert not machine.log.exists()


def test_incomplete_environment_is_made_again(machine: Machine) -> None:
    """As after a `pip install` that was interrupted: the copy of pyproject.toml comes last."""
    (machine.venv / "pyproject.toml").unlink()
    machine.script("python", f'case "$1" in -m) echo "$*" >>"{machine.log}"; exit 3 ;; esac')
    done = machine.setup(python=f"{machine.path}/python")
    assert done.returncode == 3
    assert "making the virtual environment" in done.stderr
    assert machine.log.read_text() == f"-m venv --clear {machine.venv}\n"
    assert not (machine.venv / "pyproject.toml").exists()


def test_kernels_that_cannot_be_downloaded(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What apt-get said is said, after another look into the archive."""
    old, new = "linux-image-6.12.9-cloud-amd64", "linux-image-6.12.10-cloud-amd64"
    machine.script("apt-cache", f"echo {old}; echo {new}; echo linux-image-cloud-amd64")
    machine.script("apt-get", f'echo "$*" >>"{machine.log}"; echo "E: no network for ${{7:-lists}}" >&2; exit 100')
    monkeypatch.setenv("PATH", str(machine.path))
    with pytest.raises(kernels.NoKernels) as raised:
        kernels._download(tmp_path)
    assert "brought none" in str(raised.value)
    assert [f"no network for {what}" in str(raised.value) for what in ("lists", new, old)] == [True] * 3
    assert [line.split()[5] for line in machine.log.read_text().splitlines()] == [
        "download", "download", "update", "download", "download",
    ]  # fmt: skip
