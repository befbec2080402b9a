"""`apk-atomic adopt` on systems as setup-disk and people make them: what it makes, what it refuses, what it leaves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apk_atomic import bootmenu, loaders
from tests.install.disks import KERNEL, listing
from tests.install.old import ADOPT, LAYOUT, PROGRAM, OldSystem, old_system
from tests.support import btrfsctl
from tests.support.blockdev import Loop
from tests.support.bootpackages import release_of
from tests.support.guest import Result
from tests.support.isolation import session_key
from tests.support.packages import File, Package, Repository

HELLO = Package("hello", "1.0-r0", files={"usr/bin/hello": File(b"#!/bin/sh\necho hello\n", 0o755)})
README = Path(__file__).parents[2] / "README.md"
SERVICE = "apk-atomic-adopt"
AS_OPENRC = f"""\
ebegin() {{ echo "$@"; }}
eend() {{ return "$1"; }}
. /etc/init.d/{SERVICE}
start
"""
NOCOW, IMMUTABLE = "C", "i"
DIRECTORY_FLAGS = "CmcSDA"


@pytest.fixture(params=["/", "/@"], ids=["top", "subvolume"])
def old(request: pytest.FixtureRequest) -> Iterator[OldSystem]:
    with old_system(request.param) as found:
        yield found


@pytest.fixture
def top() -> Iterator[OldSystem]:
    """One kind is enough where the root's place does not matter."""
    with old_system("/") as found:
        yield found


def done(result: Result) -> Result:
    assert result.status == 0, result.stderr
    return result


def publish(old: OldSystem, *packages: Package) -> None:
    Repository(old.root / "var/cache/repo", key=session_key()).publish(*packages)


# ---- the whole of it -------------------------------------------------------------------------------------


def test_an_old_system_becomes_a_new_one(old: OldSystem) -> None:
    publish(old, HELLO)
    before, loader = old.tree(), listing(old.esp)
    old.boot()
    plan = json.loads(done(old.adopt("--dry-run", "--json", *ADOPT)).stdout)
    assert (plan["blockers"], plan["commons"]) == ([], ["@home", "@var@cache", "@var@log"])
    assert not set(os.listdir(old.top)) & LAYOUT
    said = done(old.adopt(*ADOPT))
    assert "nothing that is in use was changed" in said.stderr
    assert {"snapshots", "links", "state"} <= set(os.listdir(old.top)) and not (old.top / "current").exists()
    assert [os.listdir(old.top / name) for name in ("snapshots", "staging", "commons")] == [[], [], []]
    said = done(old.adopt("--finish", "--json"))
    made = json.loads(said.stdout)
    assert old.tree() == before
    check_layout(old, made["generation"])
    check_commons(old)
    check_esp(old, loader)
    assert made["behind"]["never"] == sorted(LAYOUT)
    live(old, made["generation"])
    assert old.tree() == before


def check_layout(old: OldSystem, name: str) -> None:
    assert {os.readlink(slot) for slot in (old.top / "current").iterdir()} == {f"../../snapshots/{name}"}
    assert [os.listdir(old.top / each) for each in ("staging", "next")] == [[], []]
    root = old.generation()
    assert btrfsctl.is_read_only(root)
    assert not LAYOUT & set(os.listdir(root))
    template = (old.top / "fstab").read_text()
    fstab = (root / "etc/fstab").read_text()
    assert template.replace("CURRENT_SNAPSHOTS_PATH", f"/snapshots/{name}") == fstab
    assert f"UUID={old.fsid} / btrfs ro,noatime,space_cache=v2,subvol=/snapshots/{name}/@ 0 0\n" in fstab
    assert "subvolid" not in fstab and "/dev/cdrom /media/cdrom iso9660 noauto,ro 0 0\n" in fstab
    assert all(os.listdir(root / point) == [] for point in ("home", "var/cache", "var/log", "media/cdrom", "tmp"))
    record = json.loads((root.parent / "generation.json").read_text())
    assert (record["kind"], record["kernels"]) == ("import", {"lts": release_of(KERNEL)})
    assert record["initramfs"][0]["path"] == "boot/initramfs-lts"


def check_commons(old: OldSystem) -> None:
    commons = old.top / "commons"
    assert all(btrfsctl.is_subvolume(commons / name) for name in ("@home", "@var@cache", "@var@log"))
    file = commons / "@home/user/file"
    assert (file.read_text(), file.parent.stat().st_uid) == ("mine", 1000)
    assert (commons / "@var@log/messages").read_text() == "a line\n"
    assert (commons / "@home").stat().st_mode == (old.root / "home").stat().st_mode


def check_esp(old: OldSystem, before: dict[str, bytes]) -> None:
    """What was there is there; nothing of ours is where firmware would find it by itself."""
    found = listing(old.esp)
    assert {path: found[path] for path in before} == before
    assert all(path.startswith(f"{loaders.DIRECTORY}/") for path in set(found) - set(before))
    menu = bootmenu.from_document(json.loads((old.top / "state/boot.json").read_text()))
    assert menu is not None and found[f"{loaders.DIRECTORY}/refind.conf"].decode() == bootmenu.render(menu)
    assert (menu.uuid, menu.volume, menu.append, menu.kernel) == (old.fsid, "ROOT", "quiet", "boot/vmlinuz-lts")
    assert found[PROGRAM] == b"refind 1"


def live(old: OldSystem, name: str) -> None:
    """The new system runs, proves itself, takes a package, and there is nothing to adopt any more."""
    guest = old.boot_new()
    assert guest.booted == name
    assert guest.run(["touch", "/etc/sealed"]).status != 0
    assert guest.run(["cat", "/home/user/file"]).stdout == "mine"
    guest.run(["apk-atomic", "prove"], check=True)
    guest.run(["apk-atomic", "add", "hello"], check=True)
    said = guest.run(["apk-atomic", "adopt", "--finish"])
    assert (said.status, "has the layout already" in said.stderr) == (0, True)
    guest = old.boot_new()
    assert guest.booted != name and guest.run(["hello"], check=True).stdout == "hello\n"
    old.boot()
    said = old.adopt("--finish")
    assert (said.status, "is in use already: it has generations" in said.stderr) == (106, True)


def test_the_service_finishes_at_shutdown(old: OldSystem) -> None:
    """As OpenRC starts it; the new system does not have it in a runlevel."""
    level = old.root / "etc/runlevels/shutdown"
    level.mkdir()
    (level / SERVICE).symlink_to(f"/etc/init.d/{SERVICE}")
    before = old.tree()
    guest = old.boot()
    done(old.adopt(*ADOPT))
    done(guest.run(["sh", "-c", AS_OPENRC]))
    assert old.tree() == before
    assert os.listdir(old.generation() / "etc/runlevels/shutdown") == []
    assert (old.generation() / f"etc/init.d/{SERVICE}").exists()
    assert old.boot_new().run(["apk-atomic", "prove"]).status == 0


def test_a_package_from_the_old_system(old: OldSystem) -> None:
    """The old system can change the new one as any other volume; then there is nothing left to be finished."""
    publish(old, HELLO)
    guest = old.boot()
    done(old.adopt(*ADOPT))
    done(old.adopt("--finish"))
    guest.run(["apk-atomic", "--atomic-volume", old.device, "add", "hello"], check=True)
    guest.run(["apk-atomic", "--atomic-volume", "/", "prove"], check=True)
    assert (old.generation() / "usr/bin/hello").exists() and not (old.root / "usr/bin/hello").exists()
    assert old.adopt("--finish").status == 106


def test_a_finish_may_be_repeated_until_the_new_system_is_used(old: OldSystem) -> None:
    guest = old.boot()
    done(old.adopt(*ADOPT))
    first = json.loads(done(old.adopt("--finish", "--json")).stdout)["generation"]
    guest.run(["sh", "-c", "echo new >/home/user/file; echo box >/etc/hostname; cat /commons/@home/user/* "])
    (old.top / "commons/@home/user/file").read_bytes()
    second = json.loads(done(old.adopt("--finish", "--json")).stdout)["generation"]
    assert os.listdir(old.top / "snapshots") == [second] != [first]
    assert os.listdir(old.top / "links") == [second]
    assert (old.top / "commons/@home/user/file").read_text() == "new\n"
    assert (old.generation() / "etc/hostname").read_text() == "box\n"
    check_layout(old, second)
    done(old.adopt(*ADOPT, "--common", "@home"))
    done(old.adopt("--finish"))
    with (old.top / "commons/@var@log/messages").open("a") as log:
        log.write("booted\n")
    said = old.adopt("--finish")
    assert (said.status, "commons/@var@log has changed" in said.stderr) == (106, True), said.stderr
    assert (old.top / "commons/@var@log/messages").read_text() == "a line\nbooted\n"


def in_home(command: str) -> Callable[[OldSystem], None]:
    """Something done by the new system."""

    def use(old: OldSystem) -> None:
        old.boot_new().run(["sh", "-c", f"cd /home && {command} && sync"], check=True)

    return use


def subvolume_in_home(old: OldSystem) -> None:
    old.boot_new()
    btrfsctl.create_subvolume(old.top / "commons/@home/bob")


def clock_was_ahead(old: OldSystem) -> None:
    """The finish saw a clock that was set right since."""
    path = old.top / "state/adopt.json"
    state = json.loads(path.read_text())
    for each in state["copied"].values():
        each["start"] += 3600
        each["moment"] += 3600
    path.write_text(json.dumps(state))
    in_home("echo new >user/file")(old)


def record_of_once(old: OldSystem) -> None:
    """What was written down by a version that did not look so closely."""
    path = old.top / "state/adopt.json"
    state = json.loads(path.read_text())
    state["copied"] = {
        uuid: {name: each[name] for name in ("transid", "moment")} for uuid, each in state["copied"].items()
    }
    path.write_text(json.dumps(state))


USES = {
    "subvolume": subvolume_in_home,
    "clock": clock_was_ahead,
    "record": record_of_once,
    "removed": in_home("rm secret"),
    "removed directory": in_home("rmdir empty"),
    "mode": in_home("chmod 700 ."),
    "owner": in_home("chown 7:8 ."),
    "moved": in_home("mv secret user/secret"),
    "below": in_home("chmod 600 user/file"),
    "new": in_home("touch user/new"),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_what_the_new_system_did_is_not_made_undone(top: OldSystem, use: Callable[[OldSystem], None]) -> None:
    (top.root / "home/secret").write_text("secret")
    (top.root / "home/empty").mkdir()
    top.boot()
    done(top.adopt(*ADOPT))
    done(top.adopt("--finish"))
    use(top)
    home = top.top / "commons/@home"
    before, state = listing(home), (top.top / "state/adopt.json").read_bytes()
    top.boot()
    for words in ((*ADOPT, "--dry-run"), ADOPT, ("--finish", "--dry-run"), ("--finish",)):
        said = top.adopt(*words)
        assert (said.status, "in use already: commons/@home has changed" in said.stderr) == (106, True), said.stderr
    assert (listing(home), (top.top / "state/adopt.json").read_bytes()) == (before, state)
    assert (home / "bob").exists() == (use is subvolume_in_home)


def test_the_readme(top: OldSystem) -> None:
    """Its commands, in their order; where the ESP is, is added."""
    chapter = README.read_text().partition("## Taking over an existing system\n")[2].partition("\n## ")[0]
    lines = [line.partition("  #")[0].split() for line in chapter.splitlines() if line.startswith("apk-atomic ")]
    assert [line[2:] for line in lines] == [["--dry-run"], [], ["--finish"]]
    top.boot()
    for _, _, *words in lines:
        done(top.adopt(*words, *([] if words == ["--finish"] else ADOPT)))
    assert top.boot_new().run(["apk-atomic", "prove"]).status == 0


def test_options_are_for_the_first_step(top: OldSystem) -> None:
    top.boot()
    for words, status, says in (
        (("--finish",), 101, "apk-atomic adopt comes first"),
        (("--finish", "--dry-run"), 101, "apk-atomic adopt comes first"),
        (("--finish", "--common", "@home"), 100, "no other options"),
        (("--common", "home"), 100, "@var@log"),
        (("--swap", "keep"), 100, "invalid choice"),
        (("--esp", "/boot"), 100, "no file system is mounted at /boot"),
        ((*ADOPT, "--refind", "/nowhere"), 100, "apk add refind"),
        ((*ADOPT, "--kernel", "virt"), 100, "no kernel 'virt'"),
    ):
        said = top.adopt(*words)
        assert (said.status, says in said.stderr) == (status, True), f"{words}: {said}"
    said = top.boot().run(["apk-atomic", "--atomic-volume", top.device, "adopt"])
    assert (said.status, "--atomic-volume" in said.stderr) == (100, True)


# ---- what an old system may be like ----------------------------------------------------------------------


def test_a_boot_of_its_own(old: OldSystem) -> None:
    """The kernel is taken in, the loader's own directories are not; at shutdown nothing may be mounted there."""
    image = old.image.with_name("boot.img")
    with image.open("wb") as file:
        file.truncate(96 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    loop = Loop(image)
    try:
        place = old.image.with_name("boot")
        place.mkdir()
        subprocess.run(["mount", loop.path, place], check=True)
        for path in (old.root / "boot").iterdir():
            if path.is_file():
                shutil.move(path, place)
        (place / "grub").mkdir()
        (place / "grub/grub.cfg").write_text("old menu")
        os.symlink(".", place / "boot")
        (place / "efi").mkdir()
        subprocess.run(["umount", place], check=True)
        old.write_fstab(f"{loop.path} /boot ext4 rw,relatime 0 2")
        before = old.tree()
        mounted = f"mount {loop.path} $root/boot\nmount --bind {old.esp} $root/boot/efi\n"
        guest = old.boot(mounted)
        assert json.loads(done(old.adopt("--json", *ADOPT)).stdout)["separate_boot"] == loop.path
        guest.run(["umount", "/boot/efi"], check=True)
        guest.run(["umount", "/boot"], check=True)
        said = done(old.adopt("--finish"))
        assert f"the old /boot ({loop.path})" in said.stdout
        boot = old.generation() / "boot"
        assert {"vmlinuz-lts", "initramfs-lts", "efi", "boot"} <= set(os.listdir(boot)) and not (boot / "grub").exists()
        assert " /boot " not in (old.top / "fstab").read_text()
        assert old.tree() == before
        assert old.boot_new().run(["apk-atomic", "prove"]).status == 0
    finally:
        old.shutdown()
        loop.detach()


def boot_subvolume(old: OldSystem) -> int:
    """The kernel in a subvolume @boot at the top level; its number."""
    place = old.top / "@boot"
    btrfsctl.create_subvolume(place)
    for path in (old.root / "boot").iterdir():
        if path.is_file():
            shutil.move(path, place)
    (place / "efi").mkdir()
    return int(subprocess.check_output(["btrfs", "inspect-internal", "rootid", place], text=True))


@pytest.mark.parametrize("point", ["/boot", "/boot/"])
def test_a_boot_in_a_subvolume_that_is_named_by_number(old: OldSystem, point: str) -> None:
    """Nothing but that subvolume is copied, and no subvolume inside it."""
    number = boot_subvolume(old)
    btrfsctl.create_subvolume(old.top / "@boot/inner")
    (old.top / "@boot/inner/file").write_text("no kernel")
    old.write_fstab(f"UUID={old.fsid} {point} btrfs rw,subvolid={number} 0 0")
    old.boot(f"mount --bind {old.top}/@boot $root/boot\nmount --bind {old.esp} $root/boot/efi\n")
    done(old.adopt(*ADOPT))
    done(old.adopt("--finish"))
    found = set(os.listdir(old.generation() / "boot"))
    assert "vmlinuz-lts" in found and not found & {"inner", "etc", "staging", "@boot"}
    assert f" {point} " not in (old.top / "fstab").read_text()
    assert old.boot_new().run(["apk-atomic", "prove"]).status == 0


@pytest.mark.parametrize("options", ["rw", "rw,subvolid=5", "rw,subvol=/@"])
def test_a_boot_that_is_the_whole_volume(options: str) -> None:
    """Not copied into itself until the volume is full."""
    with old_system("/@") as old:
        boot_subvolume(old)
        old.boot(f"mount --bind {old.top}/@boot $root/boot\nmount --bind {old.esp} $root/boot/efi\n")
        old.write_fstab(f"UUID={old.fsid} /boot btrfs {options} 0 0")
        before = old.tree()
        said = old.adopt(*ADOPT)
        assert (said.status, "is the whole volume, or its root" in said.stderr) == (104, True), said.stderr
        assert (old.tree(), os.listdir(old.top / "staging")) == (before, [])


def test_a_boot_that_is_too_large(top: OldSystem) -> None:
    boot_subvolume(top)
    with (top.top / "@boot/disk.img").open("wb") as file:
        file.truncate(1 << 40)
    top.write_fstab(f"UUID={top.fsid} /boot btrfs rw,subvol=@boot 0 0")
    top.boot(f"mount --bind {top.top}/@boot $root/boot\nmount --bind {top.esp} $root/boot/efi\n")
    said = top.adopt(*ADOPT)
    assert (said.status, "/boot is larger than what is free" in said.stderr) == (103, True), said.stderr
    assert os.listdir(top.top / "staging") == []


@pytest.mark.parametrize("choice", ["move", "drop"])
def test_a_swap_file(old: OldSystem, choice: str) -> None:
    swap = old.root / "swapfile"
    make_swap_file(swap, 24 << 20)
    old.write_fstab("/swapfile none swap sw 0 0")
    guest = old.boot()
    guest.run(["swapon", "/swapfile"], check=True)
    try:
        said = old.adopt(*ADOPT)
        assert (said.status, "swap file /swapfile is in use" in said.stderr) == (106, True)
        before = old.tree()
        done(old.adopt(*ADOPT, "--swap", choice))
        assert "/swapfile" in Path("/proc/swaps").read_text()
        said = done(old.adopt("--finish"))
        assert "/swapfile is not used for swapping until the reboot" in said.stderr
        assert old.tree() == before
    finally:
        subprocess.run(["swapoff", swap], check=False, capture_output=True)
    assert not (old.generation() / "swapfile").exists()
    fstab = (old.generation() / "etc/fstab").read_text()
    assert "/swapfile none" not in fstab.replace("/swap/swapfile none", "")
    moved = old.top / "commons/@swap/swapfile"
    assert moved.exists() == ("/swap/swapfile none swap sw 0 0" in fstab) == (choice == "move")
    if choice == "move":
        assert (moved.stat().st_size, moved.stat().st_mode & 0o777) == (24 << 20, 0o600)
        assert 'rc_need="localmount"' in (old.generation() / "etc/conf.d/swap").read_text()
        subprocess.run(["swapon", moved], check=True)
        subprocess.run(["swapoff", moved], check=True)
        assert old.boot_new().run(["apk-atomic", "prove"]).status == 0


def test_a_swap_file_on_a_subvolume_that_stays(old: OldSystem) -> None:
    btrfsctl.create_subvolume(old.top / "@vm")
    make_swap_file(old.top / "@vm/swapfile", 24 << 20)
    (old.root / "vm").mkdir()
    lines = f"UUID={old.fsid} /vm btrfs rw,subvol=/@vm 0 0", "/vm/swapfile none swap sw 0 0"
    guest = old.boot(f"mount --bind {old.top}/@vm $root/vm\n")
    old.write_fstab(*lines)
    guest.run(["swapon", "/vm/swapfile"], check=True)
    try:
        done(old.adopt(*ADOPT))
        done(old.adopt("--finish"))
        assert "/vm/swapfile" in Path("/proc/swaps").read_text()
    finally:
        subprocess.run(["swapoff", old.top / "@vm/swapfile"], check=True)
    assert set(lines) <= set((old.generation() / "etc/fstab").read_text().splitlines())
    assert (old.top / "@vm/swapfile").exists() and not (old.top / "commons/@swap").exists()


def make_swap_file(path: Path, size: int) -> None:
    path.touch(0o600)
    subprocess.run(["chattr", "+C", path], check=True)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    subprocess.run(["mkswap", path], check=True, capture_output=True)


def test_subvolumes_in_the_old_root(old: OldSystem) -> None:
    """Copied in a common, mounted where etc/fstab says so, else named; snapshots are left where they are."""
    for path in ("home/alice", "srv/data", "var/lib/docker"):
        btrfsctl.create_subvolume(old.root / path)
        (old.root / path / "file").write_text(path)
    btrfsctl.create_subvolume(old.root / "home/alice/deep")
    (old.root / "home/alice/deep/file").write_text("deep")
    btrfsctl.snapshot(old.root / "home/alice", old.root / "home/snapshot", read_only=True)
    inside = f"{old.subvolume.rstrip('/')}/srv/data"
    number = subprocess.check_output(["btrfs", "inspect-internal", "rootid", old.root / "srv/data"], text=True).strip()
    old.write_fstab(f"UUID={old.fsid} /srv/data btrfs rw,subvolid={number},subvol={inside} 0 0")
    before = old.tree()
    old.boot()
    plan = json.loads(done(old.adopt("--json", *ADOPT)).stdout)
    assert plan["nested"] == {
        "home/alice": "copied", "home/snapshot": "left", "srv/data": "mounted", "var/lib/docker": "left"
    }  # fmt: skip
    said = done(old.adopt("--finish"))
    assert "/var/lib/docker" in said.stdout and "so keep them: /srv/data" in said.stdout
    assert old.tree() == before
    home = old.top / "commons/@home"
    assert ((home / "alice/file").read_text(), (home / "alice/deep/file").read_text()) == ("home/alice", "deep")
    assert os.listdir(home / "snapshot") == [] == os.listdir(old.generation() / "var/lib/docker")
    guest = old.boot_new()
    assert guest.run(["cat", "/srv/data/file"], check=True).stdout == "srv/data"
    guest.run(["apk-atomic", "prove"], check=True)


# ---- the old system is deleted ---------------------------------------------------------------------------


def delete_old(old: OldSystem, said: Result) -> subprocess.CompletedProcess[str]:
    """What the report says, while the new system runs: that mounts the volume; it has no btrfs-progs, the host does."""
    mount, delete = (line.strip() for line in said.stdout.splitlines() if line.startswith("    "))
    guest = old.boot_new()
    guest.run(["mkdir", "/tmp/mnt"], check=True)
    guest.run(["sh", "-c", f"{mount} && umount /mnt".replace("/mnt", "/tmp/mnt")], check=True)
    command = delete.replace("/mnt", str(old.top))
    return subprocess.run(command, shell=True, check=False, capture_output=True, text=True)


def test_deleting_an_old_root_leaves_what_is_nowhere_else(top: OldSystem) -> None:
    """A /home of its own, however its line is written; subvolumes that no line names; snapshots."""
    shutil.move(top.root / "home", top.root / "old-home")
    for path in ("home", "data", "backup", "srv/pool"):
        btrfsctl.create_subvolume(top.root / path)
        (top.root / path / "file").write_text(path)
    btrfsctl.create_subvolume(top.root / "old-home/alice")
    top.write_fstab(
        f"UUID={top.fsid} /home auto defaults,subvol=home 0 0",
        f"UUID={top.fsid} /data btrfs defaults,subvol=./data 0 0",
    )
    top.boot()
    plan = json.loads(done(top.adopt("--json", *ADOPT)).stdout)
    assert plan["nested"] == {
        "backup": "left", "data": "mounted", "home": "mounted", "old-home/alice": "left", "srv/pool": "left"
    }  # fmt: skip
    said = done(top.adopt("--finish"))
    assert "1. wait until the firmware starts the new loader by itself" in said.stdout
    assert "their contents are nowhere else: /backup, /old-home/alice, /srv/pool" in said.stdout
    assert delete_old(top, said).returncode == 0
    assert {"home", "data", "backup", "srv", "old-home"} == set(os.listdir(top.top)) - LAYOUT
    assert all((top.top / path / "file").read_text() == path for path in ("home", "data", "backup", "srv/pool"))
    guest = top.boot_new()  # which mounts the lines for btrfs, as long as they say so
    guest.run(["mount", "-t", "btrfs", "-o", "subvol=home", top.device, "/home"], check=True)
    assert guest.run(["cat", "/home/file", "/data/file"], check=True).stdout == "homedata"
    guest.run(["apk-atomic", "prove"], check=True)


def test_a_subvolume_with_others_in_it_is_not_deleted() -> None:
    with old_system("/@") as old:
        btrfsctl.create_subvolume(old.root / "data")
        (old.root / "data/file").write_text("mine")
        old.boot()
        done(old.adopt(*ADOPT))
        report = done(old.adopt("--finish", "--json"))
        assert json.loads(report.stdout)["behind"]["removable"] == []
        said = done(old.adopt("--finish"))
        assert "their contents are nowhere else: /data" in said.stdout
        assert delete_old(old, said).returncode != 0
        assert (old.top / "@/data/file").read_text() == "mine"
        os.rename(old.top / "@/data", old.top / "data")
        assert delete_old(old, said).returncode == 0
        assert {"data"} == set(os.listdir(old.top)) - LAYOUT
        assert old.boot_new().run(["apk-atomic", "prove"]).status == 0


def test_an_initramfs_without_btrfs_is_made_anew(top: OldSystem) -> None:
    config = top.root / "etc/mkinitfs/mkinitfs.conf"
    config.write_text('features="ata base ext4"\n')
    image = top.root / "boot/initramfs-lts"
    image.write_bytes(b"not an image")
    before = top.tree()
    top.boot()
    assert "building boot/initramfs-lts" in done(top.adopt(*ADOPT)).stderr
    done(top.adopt("--finish"))
    assert top.tree() == before
    root = top.generation()
    assert 'features="ata base ext4 btrfs"' in (root / "etc/mkinitfs/mkinitfs.conf").read_text()
    assert top.boot_new().run(["apk-atomic", "prove"]).status == 0


def test_what_would_not_boot_is_said_before_it_matters(top: OldSystem) -> None:
    kernel = top.root / "boot/vmlinuz-lts"
    kernel.write_bytes(kernel.read_bytes()[:-600])
    top.boot()
    said = top.adopt(*ADOPT)
    assert (said.status, "would not boot" in said.stderr) == (104, True), said.stderr
    assert os.listdir(top.top / "staging") == []


def test_files_keep_all_that_they_have(top: OldSystem) -> None:
    """Owners, modes, times, links, holes, attributes, flags, sockets: what a home may hold."""
    home = top.root / "home/user"
    fill(home)
    before = top.tree()
    top.boot()
    done(top.adopt(*ADOPT))
    done(top.adopt("--finish"))
    assert top.tree() == before
    copy = top.top / "commons/@home/user"
    wanted, found = seen(home), seen(copy)
    assert found == wanted
    assert (copy / "one").stat().st_ino == (copy / "dir/two").stat().st_ino
    flags = subprocess.check_output(["lsattr", copy / "nocow", copy / "fixed"], text=True).split()
    assert NOCOW in flags[0] and IMMUTABLE in flags[2]
    assert flags_of(copy) == flags_of(home)
    assert all(flag in flags_of(copy)[f"flag {flag}"] for flag in DIRECTORY_FLAGS)
    assert shares_data(home / "big", copy / "big")
    subprocess.run(["chattr", "-i", home / "fixed", copy / "fixed"], check=True)


def flags_of(place: Path) -> dict[str, str]:
    """By name, of what chattr can be asked about."""
    names = sorted(path for path in place.iterdir() if path.is_dir() or (path.is_file() and not path.is_symlink()))
    return {path.name: subprocess.check_output(["lsattr", "-d", path]).split()[0].decode() for path in names}


def fill(home: Path) -> None:
    (home / "dir").mkdir(0o2750)
    (home / "one").write_text("linked")
    os.link(home / "one", home / "dir/two")
    (home / "big").write_bytes(os.urandom(1 << 20))
    with (home / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    (home / "setuid").write_text("#!")
    os.chown(home / "setuid", 1000, 1000)
    (home / "setuid").chmod(0o4755)
    os.setxattr(home / "setuid", "user.note", b"kept")
    os.symlink("/etc/passwd", home / "link")
    os.lchown(home / "link", 1000, 5)
    os.mkfifo(home / "fifo", 0o640)
    os.mknod(home / "null", 0o020666, os.makedev(1, 3))
    (home / "nocow").touch()
    subprocess.run(["chattr", "+C", home / "nocow"], check=True)
    (home / "nocow").write_text("in place")
    (home / "fixed").write_text("immutable")
    os.link(home / "fixed", home / "dir/fixed too")
    subprocess.run(["chattr", "+i", home / "fixed"], check=True)
    (home / "name with\nnewline \udcff").write_text("odd")
    os.setxattr(home / "fifo", "trusted.note", b"kept")
    os.setxattr(home / "link", "trusted.note", b"kept", follow_symlinks=False)
    for flag in DIRECTORY_FLAGS:
        (home / f"flag {flag}").mkdir()
        subprocess.run(["chattr", f"+{flag}", home / f"flag {flag}"], check=True)
    (home / "synchronous").touch()
    subprocess.run(["chattr", "+S", home / "synchronous"], check=True)
    os.utime(home / "dir", ns=(1, 2))


def seen(place: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(place.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() and status.st_size < 1 << 24 else b""
        names = os.listxattr(path, follow_symlinks=False)
        attributes = [(name, os.getxattr(path, name, follow_symlinks=False)) for name in names]
        found[str(path.relative_to(place))] = (
            status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_rdev, status.st_nlink,
            status.st_size, status.st_blocks, content, attributes, os.readlink(path) if path.is_symlink() else "",
        )  # fmt: skip
    return found


def shares_data(one: Path, other: Path) -> bool:
    """Whether the first extents of two files lie at the same place."""
    listings = (subprocess.check_output(["filefrag", "-v", path], text=True) for path in (one, other))
    places = {listing.splitlines()[3].split()[3] for listing in listings}
    return len(places) == 1


# ---- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["snapshots", "current", "fstab", "state"])
def test_names_that_are_taken(top: OldSystem, name: str) -> None:
    (top.top / name).mkdir()
    (top.top / name / "something").write_text("of mine")
    before = top.tree()
    top.boot()
    said = top.adopt(*ADOPT)
    assert (said.status, f"{name} at the top level of the volume holds something else" in said.stderr) == (106, True)
    assert (top.top / name / "something").read_text() == "of mine"
    assert (top.tree(), set(os.listdir(top.top)) & LAYOUT) == (before, {name})


@pytest.mark.parametrize("names", [("@etc",), ("@dev",), ("@lib@apk",), ("@var", "@var@log")], ids="".join)
def test_commons_without_which_nothing_boots(top: OldSystem, names: tuple[str, ...]) -> None:
    top.boot()
    before = top.tree()
    words = [word for name in names for word in ("--common", name)]
    for first in ((), ("--dry-run",)):
        said = top.adopt(*first, *ADOPT, *words)
        assert (said.status, f"common {names[-1]}" in said.stderr) == (106, True), said
    assert (top.tree(), set(os.listdir(top.top)) & LAYOUT) == (before, set())
    (top.root / "etc/apk-atomic/apk-atomic.toml").write_text('[volume]\ncommons = ["@lib@apk"]\n')
    assert top.adopt(*ADOPT).status == 106


def test_every_common_is_empty_when_the_boot_is_proved(top: OldSystem) -> None:
    """Here /sbin/init leads into one: what boots only with its commons does not boot, and that is said at once."""
    init = top.root / "sbin/init"
    (top.root / "home/init").write_bytes(init.read_bytes())
    init.unlink()
    init.symlink_to("/home/init")
    top.boot()
    said = top.adopt(*ADOPT)
    assert (said.status, "would not boot" in said.stderr) == (104, True), said.stderr
    assert os.listdir(top.top / "staging") == []


def home_is_a_link(old: OldSystem) -> str:
    (old.root / "home").rename(old.root / "users")
    (old.root / "home").symlink_to("users")
    return ""


def var_is_a_subvolume(old: OldSystem) -> str:
    (old.root / "var").rename(old.root / "old")
    btrfsctl.create_subvolume(old.root / "var")
    subprocess.run(["cp", "-a", f"{old.root}/old/.", old.root / "var"], check=True)
    shutil.rmtree(old.root / "old")
    return ""


def home_is_bound(old: OldSystem) -> str:
    (old.root / "data/home").mkdir(parents=True)
    old.write_fstab("/data/home /home none bind 0 0")
    return ""


def home_is_elsewhere(old: OldSystem) -> str:
    other = old.image.with_name("other")
    (other / "alice").mkdir(parents=True)
    return f"mount --bind {other} $root/home\n"


@pytest.mark.parametrize("name", ["next", "staging"])
def test_an_empty_subvolume_that_is_in_the_way(top: OldSystem, name: str) -> None:
    btrfsctl.create_subvolume(top.top / name)
    top.boot()
    said = top.adopt(*ADOPT)
    assert (said.status, f"{name} at the top level of the volume holds something else" in said.stderr) == (106, True)


def test_a_dry_run_says_that_the_loader_is_missing(top: OldSystem) -> None:
    top.boot()
    said = top.adopt("--dry-run", *ADOPT, "--refind", "/nowhere")
    assert (said.status, "apk add refind" in said.stderr) == (106, True), said.stderr


def test_a_volume_without_room(top: OldSystem) -> None:
    (top.root / "etc/apk-atomic/apk-atomic.toml").write_text('[volume]\nmin_free_data = "1T"\n')
    top.boot()
    said = top.adopt(*ADOPT)
    assert (said.status, "delete files or old snapshots" in said.stderr) == (103, True), said.stderr
    assert "apk-atomic gc" not in said.stderr


def test_a_tree_deeper_than_a_path_can_be(top: OldSystem) -> None:
    part, depth = "ä" * 120, 20
    where = os.open(top.root / "home/user", os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(part, dir_fd=where)
        below = os.open(part, os.O_RDONLY, dir_fd=where)
        os.close(where)
        where = below
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=where))
    os.close(where)
    top.boot()
    done(top.adopt(*ADOPT))
    done(top.adopt("--finish"))
    where = os.open(top.top / "commons/@home/user", os.O_RDONLY)
    for _ in range(depth):
        below = os.open(part, os.O_RDONLY, dir_fd=where)
        os.close(where)
        where = below
    assert os.listdir(where) == ["file"]
    os.close(where)
    assert os.listdir(top.generation() / "home") == []


def bios(old: OldSystem) -> str:
    return "rmdir $root/sys/firmware/efi\n"


def default_subvolume(old: OldSystem) -> str:
    btrfsctl.create_subvolume(old.top / "other")
    subprocess.run(["btrfs", "subvolume", "set-default", old.top / "other"], check=True)
    return ""


def no_kernel(old: OldSystem) -> str:
    (old.root / "boot/vmlinuz-lts").unlink()
    return ""


def two_roots(old: OldSystem) -> str:
    old.write_fstab("/dev/sda1 / ext4 rw 0 0")
    return ""


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (bios, "BIOS"), (default_subvolume, "set-default 5"), (no_kernel, "no kernel"),
        (two_roots, "more than one line"), (home_is_a_link, "/home is a link"),
        (var_is_a_subvolume, "is in subvolume /var"), (home_is_bound, "--common @data@home"),
        (home_is_elsewhere, "something is mounted at /home"),
    ],
)
def test_reasons_on_a_real_system(top: OldSystem, make: Callable[[OldSystem], str], says: str) -> None:
    top.boot(make(top))
    before = top.tree()
    for words in (ADOPT, (*ADOPT, "--dry-run")):
        said = top.adopt(*words)
        assert (said.status, says in said.stderr) == (106, True), said.stderr
    assert (top.tree(), set(os.listdir(top.top)) & LAYOUT) == (before, set())


def test_the_menu_of_another_system(top: OldSystem) -> None:
    """Each in its turn: before anything is made, and when it came meanwhile."""
    menu = top.esp / loaders.DIRECTORY / "refind.conf"
    menu.parent.mkdir(parents=True)
    text = 'options "root=UUID=AAAA-bbbb rootfstype=btrfs"\n'
    menu.write_text(text)
    top.boot()
    said = top.adopt(*ADOPT)
    assert (said.status, "menu of another system, on UUID=aaaa-bbbb" in said.stderr) == (106, True), said.stderr
    assert not set(os.listdir(top.top)) & LAYOUT
    menu.unlink()
    done(top.adopt(*ADOPT))
    menu.write_text(text)
    assert top.adopt("--finish").status == 106
    assert menu.read_text() == text and not (top.top / "current").exists()
    menu.write_text(text.replace("AAAA-bbbb", top.fsid))
    done(top.adopt("--finish"))


def test_two_devices(top: OldSystem) -> None:
    image = top.image.with_name("second.img")
    with image.open("wb") as file:
        file.truncate(256 << 20)
    loop = Loop(image)
    try:
        subprocess.run(["btrfs", "device", "add", loop.path, top.top], check=True, capture_output=True)
        top.boot()
        said = top.adopt(*ADOPT)
        assert (said.status, "2 devices" in said.stderr) == (106, True)
        top.shutdown()
        subprocess.run(["btrfs", "device", "remove", loop.path, top.top], check=True, capture_output=True)
    finally:
        top.shutdown()
        loop.detach()
