"""What is written into a root of packages, whatever they left there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from apk_atomic import fstab, layout, newroot
from apk_atomic.errors import CheckFailed, UsageError
from apk_atomic.newroot import Identity


@pytest.fixture
def top(tmp_path: Path) -> Path:
    (tmp_path / "root/etc").mkdir(parents=True)
    return tmp_path / "root"


@pytest.fixture
def root(top: Path) -> Iterator[int]:
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_mount_points(top: Path, root: int) -> None:
    newroot.make_mount_points(root, ("/home", "/var/log", "/boot/efi", "/"))
    assert (top / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert all((top / name).is_dir() for name in ("proc", "sys", "dev", "run", "home", "var/log", "boot/efi"))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, 'features="ata base ide keymap kms mmc nvme scsi usb virtio btrfs raid"\n'),
        ('features="base ext4"\n', 'features="base ext4 btrfs raid"\n'),
        ("initfscomp=zstd\nfeatures='base raid'\n# end\n", 'initfscomp=zstd\n# end\nfeatures="base raid btrfs"\n'),
    ],
)
def test_features_keep_what_was_there(top: Path, root: int, before: str | None, after: str) -> None:
    config = top / "etc/mkinitfs/mkinitfs.conf"
    if before is not None:
        config.parent.mkdir()
        config.write_text(before)
    newroot.set_features(root, ("raid",))
    assert config.read_text() == after


def test_runlevels_have_what_is_installed_and_nothing_twice(top: Path, root: int) -> None:
    scripts = top / "etc/init.d"
    scripts.mkdir()
    for name in ("devfs", "sshd", "mount-ro"):
        (scripts / name).write_text("")
    (top / "etc/runlevels/sysinit").mkdir(parents=True)
    (top / "etc/runlevels/sysinit/devfs").symlink_to("/etc/init.d/own")
    newroot.configure(root, Identity())
    found = {path.name: os.readlink(path) for path in (top / "etc/runlevels").rglob("*") if path.is_symlink()}
    assert found == {"devfs": "/etc/init.d/own", "sshd": "/etc/init.d/sshd", "mount-ro": "/etc/init.d/mount-ro"}


def test_resolvers_write_where_it_can_be_written(top: Path, root: int) -> None:
    (top / "etc/resolv.conf").write_text("nameserver 192.0.2.1\n")
    (top / "etc/udhcpc").mkdir()
    (top / "etc/udhcpc/udhcpc.conf").write_text('# RESOLV_CONF="/etc/resolv.conf"\nIF_METRIC=1')
    for _ in range(2):
        newroot.configure(root, Identity())
    assert os.readlink(top / "etc/resolv.conf") == newroot.RESOLV
    text = (top / "etc/udhcpc/udhcpc.conf").read_text()
    assert text == f'# RESOLV_CONF="/etc/resolv.conf"\nIF_METRIC=1\nRESOLV_CONF="{newroot.RESOLV}"\n'
    assert (top / "etc/resolvconf.conf").read_text() == f"resolv_conf={newroot.RESOLV}\n"


@pytest.mark.parametrize(("interface", "dhcp"), [("wlan0", True), ("", False)])
def test_network(top: Path, root: int, interface: str, dhcp: bool) -> None:
    newroot.configure(root, Identity(interface=interface))
    text = (top / "etc/network/interfaces").read_text()
    assert ("iface lo inet loopback" in text, "iface wlan0 inet dhcp" in text) == (True, dhcp)
    (top / "etc/network/interfaces").write_text("own")
    newroot.configure(root, Identity(interface=interface))
    assert (top / "etc/network/interfaces").read_text() == "own"


def test_a_password_where_there_is_no_shadow_file(top: Path, root: int) -> None:
    (top / "etc/passwd").write_text("root::0:0:root:/root:/bin/sh\nuser:x:1:1::/:/bin/sh\n")
    newroot.configure(root, Identity(password="$6$hash"))
    assert (top / "etc/passwd").read_text() == "root:x:0:0:root:/root:/bin/sh\nuser:x:1:1::/:/bin/sh\n"
    account = (top / "etc/shadow").read_text().rstrip("\n").split(":")
    assert (account[:2], len(account)) == (["root", "$6$hash"], 9)


def test_no_link_leads_out_of_the_root(tmp_path: Path, top: Path, root: int) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (top / "root").symlink_to(outside)
    with pytest.raises(CheckFailed, match="is not a directory"):
        newroot.configure(root, Identity(authorized_keys=b"key"))
    (top / "root").unlink()
    (top / "etc/hostname").symlink_to(outside / "hostname")
    newroot.configure(root, Identity(hostname="box"))
    assert list(outside.iterdir()) == []
    assert (top / "etc/hostname").read_text() == "box\n" and not (top / "etc/hostname").is_symlink()


@pytest.mark.parametrize("name", ["box", "a.example.org", "x-1"])
def test_names_of_machines(name: str) -> None:
    assert newroot.valid_hostname(name) == name


@pytest.mark.parametrize("name", ["", "a b", "-a", "a..b", "a/b", "x" * 64, "ä", "a\n"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(UsageError):
        newroot.valid_hostname(name)


@pytest.mark.parametrize("line", ["ssh-rsa AAAAB3 me", 'from="10.0.0.1" ssh-rsa AAAAB3', "# mine\n\nssh-rsa AAAAB3"])
def test_keys_that_let_in(line: str) -> None:
    assert newroot.valid_keys(line.encode(), "key") == line.encode()


@pytest.mark.parametrize("text", ["", "\n", "# ssh-rsa AAAA", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n", "me"])
def test_what_is_no_public_key(text: str) -> None:
    with pytest.raises(UsageError, match="holds no SSH public key"):
        newroot.valid_keys(text.encode(), "id_rsa")


def test_the_fstab_template_is_one() -> None:
    text = layout.template("11-22", ("@home", "@var@log"), "1234-ABCD", "33-44")
    entries = {entry.mountpoint: entry for entry in fstab.parse(fstab.render(text, "/snapshots/ID"))}
    assert entries["/"].options == ("ro", "noatime", "subvol=/snapshots/ID/@")
    assert entries["/var/log"].value("subvol") == "/commons/@var@log"
    assert entries["/boot/efi"].device == "UUID=1234-ABCD"
    assert entries["none"].fstype == "swap"
    assert fstab.garbage(text) == ()
    assert set(entries) == {"/", "/home", "/var/log", "/boot/efi", "none", "/tmp"}
    bare = layout.template("11-22", (), "", "")
    assert [entry.mountpoint for entry in fstab.parse(bare)] == ["/", "/tmp"]


@pytest.mark.parametrize(
    ("password", "found"),
    [("$1$salt$" + "x" * 22, True), ("$5$rounds=5000$salt$" + "x" * 43, True), ("$6$salt$" + "./" * 43, True),
     ("$2b$10$" + "x" * 53, True), ("$y$j9T$salt$" + "x" * 43, True), ("", False), ("plain", False), ("$", False),
     ("$ecret", False), ("$6$salt$short", False), ("$6$:$" + "x" * 86, False), ("a$6$salt$" + "x" * 86, False),
     ("$6$salt$" + "x" * 85 + ":", False), ("$6$" + "x" * 86, False)],
)  # fmt: skip
def test_what_is_a_hash(password: str, found: bool) -> None:
    assert newroot.is_hash(password) is found


@pytest.mark.parametrize("name", ["", "eth0", "enp3s0f1", "wlan0.100", "x" * 15])
def test_names_of_interfaces(name: str) -> None:
    assert newroot.valid_interface(name) == name


@pytest.mark.parametrize("name", ["x" * 16, "eth0\nauto x", "a b", "a/b", "a\\", "ä", "..", "a:1", "#", "\t"])
def test_what_is_no_name_of_an_interface(name: str) -> None:
    with pytest.raises(UsageError, match="network interface"):
        newroot.valid_interface(name)
