"""hooks/apk-guard, the commit hook that refuses plain apk on a generation that happens to be writable."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dropin.world import BARE, GUARD, HELLO, PIVOT
from tests.support import btrfsctl
from tests.support.apks import which_apk
from tests.support.rootfs import PROJECT, install_drop_in
from tests.support.world import Guest, Result, Volume, make_volume

MARK = "/etc/apk-atomic/guard"
COPY = "/etc/apk/commit_hooks.d/apk-atomic"
OTHER = "20250102030405otherone"
ADD = (BARE, "add", "hello")
# In a PID namespace PID 1 is of this machine, as on a real one; the guest's own PID 1 is the host's.
AS_A_MACHINE = ("unshare", "--mount", "--pid", "--fork", "sh", "-ec")
MACHINE = 'mount -t proc proc /proc && exec "$@"\n'
OVERLAY = """\
mkdir -p /tmp/o && mount -t tmpfs tmpfs /tmp/o && cd /tmp/o && mkdir lower upper work new
mount -t btrfs -o ro,noatime,subvol=/snapshots/{booted}/@ {device} lower
mount -t overlay -o lowerdir=/tmp/o/lower,upperdir=upper,workdir=work overlay new
mkdir -p new/tmp/o/lower && mount --move lower new/tmp/o/lower
"""  # mkinitfs's overlaytmpfs
CHROOT = 'mount -t proc proc /proc; mount -t proc proc /mnt/proc; chroot /mnt "$@"; exit $?\n'


def opt_in(tree: Path) -> None:
    """As README says: a file for apk 3, a copy for 2.14."""
    install_drop_in(tree)
    if which_apk().major >= 3:
        (tree / MARK.lstrip("/")).touch()
        return
    copy = tree / COPY.lstrip("/")
    copy.parent.mkdir()
    copy.write_bytes((tree / GUARD.lstrip("/")).read_bytes())
    copy.chmod(0o755)


@pytest.fixture
def volume() -> Iterator[Volume]:
    with make_volume(prepare=opt_in) as made:
        made.repo.publish(HELLO)
        yield made


@pytest.fixture
def writable(volume: Volume) -> Guest:
    """Booted from a generation whose seal was broken."""
    btrfsctl.set_read_only(volume.tree(), False)
    return volume.boot(options="rw,noatime")


@pytest.fixture
def other(volume: Volume) -> Path:
    """Another generation, which somebody has unsealed to repair it."""
    tree = volume.add_generation(OTHER)
    btrfsctl.set_read_only(tree, False)
    return tree


def machine(guest: Guest, *argv: str, script: str = MACHINE) -> Result:
    return guest.run([*AS_A_MACHINE, script, "sh", *argv])


def mounted(volume: Volume, subvolume: str) -> str:
    """The lines that mount it as somebody does who repairs it, with the repository in it."""
    return f"mount -t btrfs -o rw,subvol=/{subvolume} {volume.device} /mnt\nmount --rbind /var/cache /mnt/var/cache\n"


def refused(result: Result, generation: str) -> None:
    said = result.stdout + result.stderr
    assert result.status == 99, said
    assert f"apk-atomic: / is the generation {generation}, and what is changed in place is no part of any" in said
    assert "--no-commit-hooks does it in place" in said


def done(result: Result) -> None:
    assert result.status == 0, result


def has_hello(root: Path | str) -> bool:
    return Path(root, "usr/bin/hello").exists()


def test_writable_generation(writable: Guest) -> None:
    for argv in (ADD, (BARE, "del", "hello"), (BARE, "upgrade"), (BARE, "--root", "/", "add", "hello")):
        refused(machine(writable, *argv), writable.booted)
    assert not has_hello(writable.root)
    done(machine(writable, BARE, "add", "-s", "hello"))
    done(machine(writable, BARE, "info"))
    done(machine(writable, BARE, "add", "--no-commit-hooks", "hello"))
    assert has_hello(writable.root)


def test_opting_in_as_readme_says() -> None:
    with make_volume(prepare=install_drop_in) as volume:
        lines = re.findall(r"^    (apk-atomic run -- .*)$", (PROJECT / "README.md").read_text(), re.MULTILINE)
        (line,) = [line for line in lines if (MARK if which_apk().major >= 3 else "commit_hooks.d") in line]
        volume.repo.publish(HELLO)
        guest = volume.boot()
        guest.run(["sh", "-c", line], check=True)
        volume.shutdown()
        btrfsctl.set_read_only(volume.tree(), False)
        guest = volume.boot(options="rw,noatime")
        refused(machine(guest, *ADD), guest.booted)


def test_overlay_over_a_generation(volume: Volume) -> None:
    guest = volume.boot()
    script = OVERLAY.format(booted=guest.booted, device=volume.device) + PIVOT.format(root="new")
    refused(machine(guest, *ADD, script=script), guest.booted)
    done(machine(guest, "sh", "-ec", f"rm -f {MARK} {COPY}; exec {' '.join(ADD)}", script=script))


def test_change_of_ours(volume: Volume) -> None:
    guest = volume.boot()
    done(machine(guest, "apk-atomic", "add", "hello"))
    guest.reboot()
    assert has_hello(guest.root)
    done(machine(guest, "apk-atomic", "run", "--", BARE, "del", "hello"))
    assert not has_hello(volume.tree())


def test_foreign_root(volume: Volume, writable: Guest, other: Path) -> None:
    script = mounted(volume, f"snapshots/{OTHER}/@") + MACHINE
    done(machine(writable, BARE, "--root", "/mnt", "-X", "/var/cache/repo", "add", "hello", script=script))
    assert has_hello(other) and not has_hello(writable.root)


def test_chroot(volume: Volume, writable: Guest, other: Path) -> None:
    done(machine(writable, *ADD, script=mounted(volume, f"snapshots/{OTHER}/@") + CHROOT))
    assert has_hello(other)


@pytest.mark.real_apk
def test_foreign_root_without_a_chroot(volume: Volume, writable: Guest, other: Path) -> None:
    """apk 3's --force-no-chroot runs the hooks of a foreign root in ours, with that root as their directory."""
    option = ["--force-no-chroot"] if which_apk().major >= 3 else []
    script = mounted(volume, f"snapshots/{OTHER}/@") + MACHINE
    done(machine(writable, BARE, "--root", "/mnt", *option, "-X", "/var/cache/repo", "add", "hello", script=script))
    assert has_hello(other)


@pytest.mark.parametrize(
    "undone",
    [f"rm -f {MARK} {COPY}", "rm /usr/bin/apk-atomic", "mkdir -p /run/apk-atomic; touch /run/apk-atomic/inside"],
    ids=["not opted in", "apk-atomic removed", "inside"],
)
def test_not_in_force(writable: Guest, undone: str) -> None:
    done(machine(writable, "sh", "-ec", f"{undone}\nexec {' '.join(ADD)}"))
    assert has_hello(writable.root)


@pytest.mark.parametrize("place", ["@flat", "snapshots/deep/er/@"])
def test_root_that_is_no_generation(volume: Volume, place: str) -> None:
    guest = volume.boot()
    tree = volume.top / place
    tree.parent.mkdir(parents=True, exist_ok=True)
    btrfsctl.snapshot(volume.tree(), tree, read_only=False)
    script = f"mount -t btrfs -o rw,subvol=/{place} {volume.device} /mnt\n" + PIVOT.format(root="/mnt")
    done(machine(guest, *ADD, script=script))
    assert has_hello(tree)
