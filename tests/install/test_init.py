"""`apk-atomic init` on image files and loop devices: what it makes, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pexpect
import pytest

from apk_atomic import bootmenu, loaders, loop
from tests.install.disks import DRIVER, NAME, PROGRAM, small_packages
from tests.install.lab import PROGRAM as INIT
from tests.install.lab import PROJECT, SIZE, SMALL, Lab, Said, mounted
from tests.support.apks import which_apk
from tests.support.binaries import busybox
from tests.support.bootpackages import kernel_package
from tests.support.btrfsctl import is_read_only
from tests.support.isolation import session_key
from tests.support.packages import File, Package, Repository

# ---- what it makes ---------------------------------------------------------------------------------------


def test_a_disk_image_from_nothing(lab: Lab) -> None:
    (lab.place / "password").write_text("open sesame\nnot this\n")
    (lab.place / "key").write_text("ssh-ed25519 AAAAC3Nz somebody\n")
    said = lab.init(
        *SMALL, "--swap", "16M", "--hostname", "box", "--package", "good", "--compress", "zstd", "--json",
        "--append", "console=ttyS0", "--timeout", "2", "--feature", "cryptsetup", "--common", "@home", "--common",
        "@srv@data", "--root-password-file", f"{lab.place}/password", "--root-key", f"{lab.place}/key",
    )  # fmt: skip
    assert said.status == 0, said.stderr
    name = str(said.document["generation"])
    fsid = str(said.document["uuid"])
    with lab.mounted() as top:
        check_layout(top, name)
        root = top / "snapshots" / name / "@"
        check_system(root)
        fstab = (root / "etc/fstab").read_text()
        menu = bootmenu.from_document(json.loads((top / "state/boot.json").read_text()))
        template = (top / "fstab").read_text()
        assert os.getxattr(root / "usr/bin/good", "btrfs.compression") == b"zstd"
    assert template.replace("CURRENT_SNAPSHOTS_PATH", f"/snapshots/{name}") == fstab
    assert f"UUID={fsid} / btrfs ro,noatime,subvol=/snapshots/{name}/@ 0 0\n" in fstab
    assert f"UUID={fsid} /srv/data btrfs rw,noatime,subvol=/commons/@srv@data 0 0\n" in fstab
    assert " none swap sw 0 0\n" in fstab and " /boot/efi vfat noauto," in fstab
    assert menu is not None and (menu.uuid, menu.append, menu.timeout, menu.slots) == (fsid, "console=ttyS0", 2, 4)
    assert menu.volume == said.document["partitions"]["root"]["guid"]  # type: ignore[index]
    for directory in (loaders.DIRECTORY, "EFI/BOOT"):
        assert lab.on_esp(f"{directory}/refind.conf").decode() == bootmenu.render(menu)
    assert lab.on_esp(loaders.fallback_program()) == b"refind 1"
    subprocess.run(["sfdisk", "--verify", lab.image], check=True, capture_output=True)


def test_a_password_that_begins_as_a_hash_does_is_hashed_and_a_hash_is_kept(lab: Lab) -> None:
    given = (lab.place / "password").write_text
    for password in ("$ecret123", "$6$:x:y", mkpasswd("open sesame", "salt")):
        given(f"{password}\n")
        said = lab.init(*SMALL, "--kernel", "none", "--root-password-file", f"{lab.place}/password")
        assert said.status == 0, said.stderr
        with lab.mounted() as top:
            account = (top / "current/0/@/etc/shadow").read_text().splitlines()[0].split(":")
        typed = "open sesame" if password.startswith("$6$salt$") else password
        assert (account[0], account[1], len(account)) == ("root", mkpasswd(typed, account[1].split("$")[2]), 9)
        lab.forget()


def mkpasswd(password: str, salt: str) -> str:
    argv = [str(busybox()), "mkpasswd", "-m", "sha512", "-S", salt, password]
    return subprocess.check_output(argv, text=True).strip()


def check_layout(top: Path, name: str) -> None:
    assert os.readlink(top / "current") == f"./links/{name}"
    assert {os.readlink(slot) for slot in (top / "current").iterdir()} == {f"../../snapshots/{name}"}
    assert sorted(os.listdir(top / "current")) == ["0", "1", "2", "3"]
    assert sorted(os.listdir(top / "commons")) == ["@home", "@srv@data"]
    assert [os.listdir(top / each) for each in ("staging", "next")] == [[], []]
    assert os.listdir(top / "snapshots") == [name]
    assert is_read_only(top / "snapshots" / name / "@")
    record = json.loads((top / "snapshots" / name / "generation.json").read_text())
    assert (record["kernels"], record["parent"]) == ({"lts": "6.12.1-0-lts"}, None)
    assert ["good", "1.0-r0"] in record["changes"]["added"]
    assert [image["path"] for image in record["initramfs"]] == ["boot/initramfs-lts"]


def check_system(root: Path) -> None:
    assert (root / "etc/hostname").read_text() == "box\n"
    assert os.readlink(root / "etc/resolv.conf") == "/run/resolv.conf"
    assert 'RESOLV_CONF="/run/resolv.conf"' in (root / "etc/udhcpc/udhcpc.conf").read_text().splitlines()
    assert len((root / "etc/machine-id").read_text().strip()) == 32
    assert 'features="base btrfs cryptsetup"' in (root / "etc/mkinitfs/mkinitfs.conf").read_text()
    assert {"devfs", "mdev"} <= set(os.listdir(root / "etc/runlevels/sysinit"))
    account, *others = (root / "etc/shadow").read_text().splitlines()
    assert account.startswith("root:$6$") and others == ["nobody:!::0:::::"]
    assert ((root / "etc/shadow").stat().st_mode & 0o7777, (root / "etc/shadow").stat().st_gid) == (0o640, 42)
    key = root / "root/.ssh/authorized_keys"
    assert (key.read_text(), key.stat().st_mode & 0o777) == ("ssh-ed25519 AAAAC3Nz somebody\n", 0o600)
    assert (root / "etc/apk/keys/test.rsa.pub").is_file()
    assert (root / "srv/data").is_dir() and (root / "boot/efi").is_dir()


def test_a_volume_alone_and_grub(lab: Lab) -> None:
    """With --esp the device is the volume; nothing of another system on that ESP is touched."""
    theirs = lab.place / "esp/EFI/BOOT/BOOTX64.EFI"
    theirs.parent.mkdir(parents=True, exist_ok=True)
    theirs.write_bytes(b"theirs")
    with lab.image.open("wb") as file:
        file.truncate(SIZE)
    with loop.attached(str(lab.image)) as device:
        words = lab.words("--yes", "--esp", str(lab.place / "esp"), "--label", "ALPINE", target=device)
        said = lab.run(words)
        assert (said.status, "nothing is mounted there; nothing was changed" in said.stderr) == (100, True), said
        said = lab.run(words, before=f"mount --bind {lab.place}/esp {lab.place}/esp")
        assert said.status == 0, said.stderr
        assert f"{lab.place}/esp is not on a FAT file system" in said.stderr
        with mounted(device, lab.place / "top") as top:
            menu = bootmenu.from_document(json.loads((top / "state/boot.json").read_text()))
            assert "vfat" not in (top / "fstab").read_text()
    assert menu is not None and menu.volume == "ALPINE"
    assert "is not ours and was left alone" in said.stderr
    assert theirs.read_bytes() == b"theirs"
    assert (lab.place / "esp" / loaders.DIRECTORY / "refind.conf").read_text() == bootmenu.render(menu)
    label = subprocess.check_output(["btrfs", "filesystem", "label", lab.image], text=True)
    assert label.strip() == "ALPINE"


def test_the_menu_of_another_system_is_seen_before_anything_is_destroyed(lab: Lab) -> None:
    """And that of what was on the target is none of another: init may be run there again."""
    place = lab.place / "shared"
    menu = place / loaders.DIRECTORY / "refind.conf"
    menu.parent.mkdir(parents=True)
    menu.write_text("root=UUID=aaaa-bbbb\n")
    with lab.image.open("wb") as file:
        file.truncate(SIZE)
    bind = f"mount --bind {place} {place}"
    with loop.attached(str(lab.image)) as device:
        words = lab.words("--yes", "--force", "--esp", str(place), target=device)
        before = lab.image.read_bytes()
        said = lab.run(words, before=bind)
        assert (said.status, "menu of another system, on UUID=aaaa-bbbb" in said.stderr) == (106, True), said.stderr
        assert "nothing was changed" in said.stderr and "unfinished" not in said.stderr
        assert lab.image.read_bytes() == before
        menu.write_text("menu of somebody\n")
        for first in (True, False):
            said = lab.run(words, before=bind)
            assert said.status == 0, said.stderr
            copies = [path for path in menu.parent.iterdir() if ".kept-" in path.name]
            assert len(copies) == 1 and copies[0].read_text() == "menu of somebody\n"
            assert (f"it is kept as {copies[0].relative_to(place)}" in said.stderr) is first
        uuid = subprocess.check_output(["blkid", "-p", "-s", "UUID", "-o", "value", device], text=True).strip()
    assert f"root=UUID={uuid} " in menu.read_text()


def test_without_kernel_and_loader_on_a_whole_device(lab: Lab) -> None:
    """A loop device without partition nodes: the parts are attached by themselves."""
    with lab.image.open("wb") as file:
        file.truncate(SIZE)
    with loop.attached(str(lab.image)) as device:
        said = lab.init("--esp-size", "40M", "--kernel", "none", target=device)
    assert said.status == 0, said.stderr
    assert "without a boot loader" in said.stderr
    with lab.mounted() as top:
        assert not (top / "state/boot.json").exists()
        assert not (top / "current/0/@/sbin/mkinitfs").exists()
        assert "UUID=" in (top / "fstab").read_text()


def test_a_loader_and_firmware_from_packages(lab: Lab) -> None:
    """Where this system has no rEFInd, the new one's is put on the ESP."""
    files = {f"usr/share/refind/{PROGRAM}": File(b"packed"), f"usr/share/refind/drivers_{NAME}/{DRIVER}": File(b"too")}
    lab.repository.publish(Package("refind", files=files), Package("linux-firmware-none"))
    words = ["--firmware", "none", "--package", "refind", "--refind", str(lab.place / "nowhere")]
    said = lab.init(*SMALL, *words, "--json")
    assert said.status == 0, said.stderr
    assert lab.on_esp(loaders.fallback_program()) == b"packed"
    with lab.mounted() as top:
        record = json.loads((top / "snapshots" / str(said.document["generation"]) / "generation.json").read_text())
    assert {"refind", "linux-firmware-none"} <= {name for name, _ in record["changes"]["added"]}


def test_commons_are_those_of_the_configuration(lab: Lab) -> None:
    """Of this system's: its /etc is another one in a mount namespace. One is mounted in another, whatever the order."""
    etc = lab.place / "etc"
    (etc / "apk-atomic").mkdir(parents=True)
    (etc / "apk-atomic/apk-atomic.toml").write_text('[volume]\ncommons = ["@srv@data@old", "@srv", "@opt"]\n')
    for name in ("passwd", "group", "ld.so.cache", "mke2fs.conf"):
        (etc / name).write_bytes(Path("/etc", name).read_bytes() if Path("/etc", name).exists() else b"")
    said = lab.run(lab.words("--yes", *SMALL, "--kernel", "none"), before=f"mount --bind {etc} /etc")
    assert said.status == 0, said.stderr
    with lab.mounted() as top:
        assert sorted(os.listdir(top / "commons")) == ["@opt", "@srv", "@srv@data@old"]
        points = [line.split()[1] for line in (top / "fstab").read_text().splitlines() if "commons" in line]
        assert points == ["/srv", "/opt", "/srv/data/old"]
        assert (top / "commons/@srv/data/old").is_dir()


@contextmanager
def partitioned(lab: Lab) -> Iterator[str]:
    """A disk with nodes for its partitions, made by partx: not every kernel knows GPT. The first is a FAT."""
    with lab.image.open("wb") as file:
        file.truncate(SIZE)
    table = "label: gpt\nsize=40MiB, type=uefi\nsize=300MiB\n"
    subprocess.run(["sfdisk", "--quiet", lab.image], input=table, text=True, check=True)
    argv = ["losetup", "--find", "--show", "--partscan", str(lab.image)]
    device = subprocess.check_output(argv, text=True).strip()
    try:
        subprocess.run(["partx", "--update", device], check=True)
        subprocess.run(["mkfs.vfat", "-F", "32", f"{device}p1"], check=True, capture_output=True)
        yield device
    finally:
        subprocess.run(["partx", "--delete", device], check=False)
        subprocess.run(["losetup", "--detach", device], check=True)


def test_a_partition_of_a_disk(lab: Lab) -> None:
    """The volume on one, the loader on the FAT of another; neither can go to the wrong place."""
    with partitioned(lab) as disk:
        volume = f"{disk}p2"
        for words, says in (
            ((), "is a partition, and no ESP was named"),
            (("--esp", volume), "it is what is to become the volume"),
            (("--esp", f"{lab.place}/nowhere"), "No such file"),
            (("--esp", "/dev/null"), "neither a block device nor a directory"),
            (("--esp", disk), "it holds no FAT"),
        ):
            said = lab.init(*words, target=volume)
            assert (said.status, says in said.stderr, "unfinished" in said.stderr) == (100, True, False), said
        said = lab.init("--esp", f"{disk}p1", target=volume)
        assert said.status == 0, said.stderr
        with mounted(volume, lab.place / "top") as top:
            assert " /boot/efi vfat noauto," in (top / "fstab").read_text()
            assert_in_use(lab.init("--force", target=disk), f"mounted at {lab.place}/top")
        fat = subprocess.check_output(["mdir", "-b", "-/", "-i", f"{disk}p1", "::/"], text=True)
    assert f"::/{loaders.DIRECTORY}/refind.conf" in fat


def test_a_whole_disk_of_which_the_kernel_makes_partition_nodes(lab: Lab) -> None:
    node = 'for word; do case $word in /dev/loop*) partx --update "$word" ;; esac; done'
    tools = lab.tool("sfdisk", f'{shutil.which("sfdisk")} "$@" || exit\n{node}')
    with partitioned(lab) as disk:
        said = lab.init("--esp-size", "40M", "--force", target=disk, PATH=tools)
        assert said.status == 0, said.stderr
        what = subprocess.check_output(["blkid", "--probe", "-o", "value", "-s", "TYPE", f"{disk}p2"])
        assert what == b"btrfs\n"
        menu = subprocess.check_output(["mtype", "-i", f"{disk}p1", f"::/{loaders.DIRECTORY}/refind.conf"], text=True)
    assert "menuentry" in menu


def test_the_lines_of_readme(lab: Lab) -> None:
    """With the devices, files, apk and repository of this place for those of the reader's."""
    lab.repository.publish(kernel_package("6.12.3-r0", "virt"))
    (lab.place / "id_ed25519.pub").write_text("ssh-ed25519 AAAAC3 me\n")
    (lab.place / "password").write_text("open sesame\n")
    chapter = (PROJECT / "README.md").read_text().partition("## Making a new system\n")[2]
    lines = chapter.partition("```sh\n")[2].partition("```")[0].splitlines()
    disk = lab.place / "vdb.img"
    with disk.open("wb") as file:
        file.truncate(4 << 30)
    with loop.attached(str(disk)) as device:
        for line in lines:
            command, _, target, *words = line.partition(" #")[0].split()
            names = {name: f"{lab.place}/{name}" for name in ("id_ed25519.pub", "password", "tower.img")}
            words = [names.get(word, word) for word in words]
            said = lab.run(lab.words("--yes", *words, target=names.get(target, device)))
            assert (command, said.status) == ("apk-atomic", 0), said.stderr


def test_the_question_is_answered_by_yes_only(lab: Lab) -> None:
    """Until then nothing is made, lost, or even smaller than before."""
    for answer in ("", "y\n", "no\n"):
        said = lab.run(lab.words(*SMALL), input=answer)
        assert (said.status, "Type yes" in said.stderr) == (106, True)
        assert not lab.image.exists()
    lab.image.write_bytes(b"precious")
    said = lab.run(lab.words(*SMALL, "--force"), input="no\n")
    assert (said.status, "is lost (unknown data)" in said.stderr) == (106, True)
    assert lab.image.read_bytes() == b"precious"
    assert lab.run(lab.words(*SMALL, "--kernel", "none", "--force"), input="yes\n").status == 0


def test_a_ctrl_c_at_the_question(lab: Lab) -> None:
    asked = pexpect.spawn("python3", ["-c", INIT, *lab.words(*SMALL)], cwd=PROJECT, timeout=60, encoding="utf-8")
    asked.expect_exact("Type yes to go on:")
    asked.send("ye")
    asked.sendintr()
    asked.expect(pexpect.EOF)
    asked.close()
    assert (asked.exitstatus, "Traceback" in (asked.before or "")) == (130, False), asked.before
    assert not lab.image.exists()


def test_what_was_asked_about_is_what_is_lost(lab: Lab) -> None:
    """Somebody else uses the file while the question stands."""

    def attach() -> None:
        with lab.image.open("wb") as file:
            file.truncate(SIZE)

    def fill() -> None:
        lab.image.write_bytes(b"precious")

    for happens, status, says in ((fill, 106, "--force"), (attach, 0, "")):
        said = lab.answer_late(happens, *SMALL, "--kernel", "none")
        assert (said.status, says in said.stderr) == (status, True), said
        lab.forget()
    lab.image.write_bytes(b"precious" * (1 << 20))
    said = lab.answer_late(lambda: subprocess.run(["mkswap", "--quiet", lab.image], check=True), *SMALL, "--force")
    assert (said.status, "has changed since init looked" in said.stderr) == (106, True), said


# ---- what it refuses -------------------------------------------------------------------------------------


def test_refusals_before_anything_is_touched(lab: Lab) -> None:
    (lab.place / "empty").mkdir(exist_ok=True)
    (lab.place / "nul").write_bytes(b"pass\0word\n")
    (lab.place / "filled").write_bytes(b"")
    os.truncate(lab.place / "filled", SIZE)
    subprocess.run(["mkswap", lab.place / "filled"], check=True, capture_output=True)
    before = (lab.place / "filled").read_bytes()[:8192]
    filled = str(lab.place / "filled")
    cases: Mapping[str, tuple[list[str], int, str]] = {
        "no such file": (lab.words("--yes"), 100, "No such file"),
        "a directory": (lab.words("--yes", target=str(lab.place)), 100, "neither a block device nor an image"),
        "not empty": (lab.words("--yes", "--esp-size", "40M", target=filled), 106, "--force"),
        "not empty, and to be larger": (lab.words("--yes", "--size", "500M", target=filled), 106, "not empty: swap"),
        "too small": (lab.words("--yes", "--size", "100M"), 103, "leaves less than"),
        "ESP too small": (lab.words("--yes", "--size", "400M", "--esp-size", "1M"), 100, "an ESP needs"),
        "no keys": (lab.words("--yes", "--keys-dir", str(lab.place / "empty")), 100, "--keys-dir"),
        "no apk": (lab.words("--yes", "--apk", f"{lab.place}/nowhere/apk"), 100, "--apk"),
        "no rEFInd": (lab.words("--yes", *SMALL, "--refind", str(lab.place / "empty")), 100, "apk add refind"),
        "a wrong size": (lab.words("--yes", "--size", "much"), 100, "such as 512M"),
        "a wrong name": (lab.words("--yes", "--hostname", "a b"), 100, "cannot be the name"),
        "a wrong common": (lab.words("--yes", "--common", "home"), 100, "@var@log"),
        "a common that no root can do without": (lab.words("--yes", "--common", "@etc"), 100, "for itself"),
        "a common with a blank": (lab.words("--yes", "--common", "@a b"), 100, "@var@log"),
        "a private key": (lab.words("--yes", "--root-key", session_key().private), 100, "no SSH public key"),
        "a NUL in the password": (lab.words("--yes", "--root-password-file", f"{lab.place}/nul"), 100, "has a NUL"),
        "a timeout that no menu takes": (lab.words("--yes", *SMALL, "--timeout", "99999"), 100, "-1 to 3600"),
        "words that no loader reads": (lab.words("--yes", *SMALL, "--append", "é"), 100, "boot menu: printable ASCII"),
        "words on two lines": (lab.words("--yes", *SMALL, "--append", "a\nb"), 100, "boot menu: printable ASCII"),
        "an interface on two lines": (lab.words("--yes", *SMALL, "--interface", "eth0\nauto x"), 100, "interface"),
        "an option for apk": (lab.words("--yes", *SMALL, "--package=--no-scripts"), 100, "is no package"),
        "a feature of more than one word": (lab.words("--yes", *SMALL, "--feature=a b"), 100, "is no name"),
        "firmware without a name": (lab.words("--yes", *SMALL, "--firmware=-x"), 100, "is no name"),
        "no password": (lab.words("--yes", "--root-password-file", "/dev/null"), 100, "which is no password"),
        "no directory": (lab.words("--yes", *SMALL, target=f"{lab.place}/no/disk"), 100, "there is no directory"),
        "data that nobody knows": (lab.words("--yes", target=session_key().private), 106, "not empty: unknown data"),
        "no key file": (lab.words("--yes", "--root-key", f"{lab.place}/nowhere"), 100, "No such file"),
        "a volume": (["--atomic-volume", "/dev/null", *lab.words("--yes")], 100, "means nothing to init"),
        "no target": (["init", "--yes"], 100, "DEVICE|IMAGE"),
    }
    for case, (words, status, says) in cases.items():
        said = lab.run(words)
        assert (said.status, says in said.stderr) == (status, True), f"{case}: {said}"
        assert "unfinished" not in said.stderr
        assert not lab.image.exists()
    assert (lab.place / "filled").read_bytes()[:8192] == before


def test_a_device_in_use_cannot_even_be_forced(lab: Lab) -> None:
    with lab.image.open("wb") as file:
        file.truncate(SIZE)
    subprocess.run(["mkfs.btrfs", "--quiet", lab.image], check=True)
    with loop.attached(str(lab.image)) as device:
        with mounted(device, lab.place / "top"):
            assert_in_use(lab.init("--force", "--esp", "none", target=device), f"mounted at {lab.place}/top")
        assert_in_use(lab.init("--force"), f"attached as {device}")


@pytest.mark.parametrize("at", [0, 3 << 20, SIZE - (2 << 20)])
def test_a_device_with_data_of_no_known_kind_has_to_be_forced(lab: Lab, at: int) -> None:
    """As encryption without a header looks; unforced, not a byte of it is changed."""
    data = os.urandom(1 << 20)
    with lab.image.open("wb") as file:
        file.truncate(SIZE)
        file.seek(at)
        file.write(data)
    words = ("--esp", "none", "--kernel", "none")
    with loop.attached(str(lab.image)) as device:
        said = lab.init(*words, target=device)
        assert (said.status, "not empty: unknown data" in said.stderr) == (106, True), said
        with lab.image.open("rb") as file:
            file.seek(at)
            assert file.read(len(data)) == data
        assert lab.init(*words, "--force", target=device).status == 0


def assert_in_use(said: Said, why: str) -> None:
    assert (said.status, why in said.stderr, "unmount it" in said.stderr) == (106, True, True), said


def test_two_at_once(lab: Lab) -> None:
    with lab.image.open("wb") as file:
        file.truncate(SIZE)
    with subprocess.Popen(["flock", lab.image, "cat"], stdin=subprocess.PIPE) as holder:
        while subprocess.run(["flock", "--nonblock", lab.image, "true"], check=False).returncode == 0:
            time.sleep(0.01)
        said = lab.init("--esp-size", "40M")
        holder.communicate(timeout=10)
    assert (said.status, "another program is at work" in said.stderr) == (102, True)


def test_an_apk_that_the_new_system_would_not_understand(lab: Lab) -> None:
    if which_apk().major < 3:
        pytest.skip("what apk 2 writes, every apk reads")
    base = replace(small_packages()[0], version="4.0-r0", depends=("openrc", "apk-tools"))
    other = Repository(lab.place / "other", key=session_key())
    other.publish(base, Package("apk-tools", "2.14.10-r0", files={"sbin/apk": File(b"", 0o755)}))
    said = lab.init(*SMALL, "--repository", str(lab.place / "other"))
    assert (said.status, "which does not understand its database" in said.stderr) == (104, True), said
