"""The packages' life on a system: installed by apk, at work, upgraded by themselves, removed without a trace."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apk_atomic import VERSION
from tests.package.driver import Built, build, next_version, packages
from tests.support.apks import which_apk
from tests.support.isolation import session_key
from tests.support.packages import File, Package, Repository
from tests.support.pythontree import site_packages
from tests.support.rootfs import CLEAN
from tests.support.world import Guest, Volume, make_volume

NEXT = f"{VERSION.rpartition('.')[0]}.99"
NEEDED = ("btrfs-progs", "py3-filelock", "py3-sh", "py3-tomli", "python3")
TOOL = Package("tool", files={"usr/bin/tool": File(b"#!/bin/sh\necho tool\n", 0o755)})
OTHER = Package("other", files={"usr/bin/other": File(b"#!/bin/sh\necho other\n", 0o755)})
FIRST_IN_PATH = {"PATH": "/usr/libexec/apk-atomic/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
WHICH_VERSION = ("python3", "-I", "-c", "import apk_atomic; print(apk_atomic.VERSION)")


def needed() -> list[Package]:
    """What apk-atomic depends on is in the tree, but as no package. Here are those, empty."""
    return [*(Package(name) for name in NEEDED), Package("busybox", provides=("/bin/sh",), provider_priority=100)]


def site_of(root: Path) -> str:
    return str(site_packages(root).relative_to(root))


@pytest.fixture(scope="session")
def newer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Built]:
    """The same sources as version N+1."""
    work = tmp_path_factory.mktemp("newer")
    return build(next_version(work, NEXT), work)


def with_apk(repository: Repository, *names: str) -> Callable[[Path], None]:
    """For `make_volume`: a tree into which apk has put packages of a repository outside."""

    def prepare(tree: Path) -> None:
        (tree / "before").write_text("\n".join(files_of(tree)))
        command = [which_apk().path, "--root", str(tree), "-X", repository.path, "add", *names]
        subprocess.run(command, check=True, env=CLEAN, stdout=subprocess.DEVNULL)

    return prepare


def files_of(tree: Path) -> list[str]:
    """Every path in a tree, but what apk keeps of its own."""
    found = (str(path.relative_to(tree)) for path in tree.rglob("*"))
    return sorted(name for name in found if not name.startswith(("lib/apk/db/", "var/cache/", "etc/apk/", "var/log/")))


@pytest.fixture
def volume(built: dict[str, Built], tmp_path: Path) -> Iterator[Volume]:
    """All our packages, installed by apk into a tree that knew nothing of apk-atomic; nothing else changed it."""
    outside = Repository(tmp_path / "repository", key=session_key())

    def prepare(tree: Path) -> None:
        outside.publish(*needed(), *packages(built, site_of(tree)))
        with_apk(outside, *built)(tree)

    with make_volume(prepare=prepare, installed=False) as made:
        made.repo.publish(*needed(), *packages(built, site_of(made.tree())), TOOL, OTHER)
        yield made


def test_installed_modes_and_owners(volume: Volume, built: dict[str, Built]) -> None:
    site = site_of(volume.tree())
    for package in packages(built, site):
        for name, entry in package.files.items():
            status = (volume.tree() / name).lstat()
            assert (status.st_uid, status.st_gid) == (0, 0), name
            assert not isinstance(entry, File) or status.st_mode & 0o7777 == entry.mode, name
    assert os.readlink(volume.tree() / "usr/libexec/apk-atomic/apk") == "../../bin/apk-atomic"


def test_life(volume: Volume, newer: dict[str, Built]) -> None:
    guest = volume.boot()
    before = set(Path(guest.root, "before").read_text().splitlines())
    _works(guest)
    _upgrades_itself(volume, guest, newer)
    _newer_works(volume, guest)
    names = " ".join(newer)
    removed = guest.run(["apk-atomic", *f"del {names}".split()], check=True)
    assert f"removed apk-atomic-{NEXT}-r0" in removed.stderr
    guest.reboot()
    after = set(files_of(volume.tree()))
    assert after - before == {"before", "usr/bin/tool", "usr/bin/other"}
    assert before - after <= {"etc/init.d", "usr/share"}  # which were empty, and no other package's
    assert guest.run(["/sbin/apk", "info", "-e", "tool"], check=True).stdout == "tool\n"


def _works(guest: Guest) -> None:
    assert guest.run([*WHICH_VERSION], check=True).stdout == f"{VERSION}\n"
    added = guest.run(["apk", "add", "tool"], env=FIRST_IN_PATH, check=True)
    assert "apk-atomic" not in added.stdout
    guest.reboot()
    assert guest.run(["tool"], check=True).stdout == "tool\n"


def _upgrades_itself(volume: Volume, guest: Guest, newer: dict[str, Built]) -> None:
    """The old code finishes the commit; until the reboot it is the old one that runs."""
    volume.repo.publish(*packages(newer, site_of(volume.tree())))
    upgraded = guest.run(["apk-atomic", "upgrade"], check=True)
    assert f"upgraded apk-atomic {VERSION}-r0 -> {NEXT}-r0" in upgraded.stderr
    assert guest.run([*WHICH_VERSION], check=True).stdout == f"{VERSION}\n"
    assert "is pending" in guest.run(["apk-atomic", "status"], check=True).stdout
    guest.reboot()
    assert guest.run([*WHICH_VERSION], check=True).stdout == f"{NEXT}\n"


def _newer_works(volume: Volume, guest: Guest) -> None:
    """It reads the records that the old version wrote, and makes one more."""
    shown = json.loads(guest.run(["apk-atomic", "status", "--all", "--json"], check=True).stdout)
    commands = {tuple(each.get("command", ())) for each in shown["generations"]}
    assert {("apk", "add", "tool"), ("apk-atomic", "upgrade")} <= commands
    guest.run(["apk-atomic", "add", "other"], check=True)
    guest.reboot()
    assert guest.run(["other"], check=True).stdout == "other\n"
    for record in (volume.top / "snapshots").glob("*/generation.json"):
        assert json.loads(record.read_text())["version"] == 1


@pytest.mark.real_apk
def test_configuration_that_was_edited_survives_an_upgrade(volume: Volume, newer: dict[str, Built]) -> None:
    edited = "[generations]\nslots = 3\n"
    guest = volume.boot()
    script = f"printf '{edited}' >/etc/apk-atomic/apk-atomic.toml"
    guest.run(["apk-atomic", "run", "--", "sh", "-c", script], check=True)
    different = newer["apk-atomic"].tree / "etc/apk-atomic/apk-atomic.toml"
    shipped = different.read_text()
    different.write_text(f"# newer\n{shipped}")
    try:
        volume.repo.publish(*packages(newer, site_of(volume.tree())))
    finally:
        different.write_text(shipped)
    guest.run(["apk-atomic", "upgrade"], check=True)
    assert (volume.tree() / "etc/apk-atomic/apk-atomic.toml").read_text() == edited
    assert (volume.tree() / "etc/apk-atomic/apk-atomic.toml.apk-new").read_text().startswith("# newer\n")


def test_newer_version_that_is_broken_is_left_by_a_rollback(volume: Volume, newer: dict[str, Built]) -> None:
    """Its own command cannot run, so the way back is the boot menu, and the old command from the fallback."""
    site = site_of(volume.tree())
    broken = packages(newer, site)
    command = broken[0]
    assert command.name == "apk-atomic"
    wrong = {name: File(b"raise SystemExit(70)\n") if name.endswith("cli.py") else entry
             for name, entry in command.files.items()}  # fmt: skip
    without = [package for package in broken[1:] if package.name != "apk-atomic-pyc"]
    volume.repo.publish(Package("apk-atomic", command.version, files=wrong, depends=command.depends), *without)
    guest = volume.boot()
    guest.run(["apk-atomic", "del", "apk-atomic-pyc"], check=True)
    guest.run(["apk-atomic", "upgrade"], check=True)
    fallback = volume.slots().index(guest.booted)
    guest.reboot()
    assert guest.run(["apk-atomic", "status"]).status == 70
    assert guest.run(["apk-atomic", "info", "-e", "apk-atomic"], check=True).stdout == "apk-atomic\n"
    guest.reboot(fallback)
    guest.run(["apk-atomic", "rollback"], check=True)
    guest.reboot()
    assert guest.run(["apk-atomic", "add", "tool"], check=True).status == 0
