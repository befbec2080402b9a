"""`apk-atomic boot-config` on a real volume, with the ESP as a directory of the guest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from apk_atomic import bootmenu, loaders
from tests.install.disks import NAME, make_refind
from tests.support import bootfiles
from tests.support.bootpackages import kernel_package
from tests.support.bootworld import KERNEL, install_system
from tests.support.packages import File, Package
from tests.support.world import Guest, Volume, make_volume

REFIND, ESP = "/var/cache/refind", "/var/cache/esp"  # commons: what lies there, the test sees as well
INSTALL = ("boot-config", "--install", "--esp", ESP, "--refind", REFIND, "--no-nvram")
FALLBACK = loaders.fallback_program()


@contextmanager
def bootable() -> Iterator[Volume]:
    with make_volume() as made:
        install_system(made)
        commons = made.top / "commons/@var@cache"
        make_refind(commons / "refind")
        (commons / "esp").mkdir()
        yield made


@pytest.fixture
def volume() -> Iterator[Volume]:
    with bootable() as made:
        yield made


@pytest.fixture(scope="module")
def untouched() -> Iterator[Volume]:
    """For tests that change nothing."""
    with bootable() as made:
        yield made


@pytest.fixture
def esp(volume: Volume) -> Path:
    return volume.top / "commons/@var@cache/esp"


def state(volume: Volume) -> dict[str, object]:
    found = json.loads((volume.top / "state/boot.json").read_text())
    assert isinstance(found, dict)
    return found


def ours(guest: Guest, *words: str, status: int = 0) -> str:
    """Runs apk-atomic; what it said on stdout and stderr."""
    result = guest.run(["apk-atomic", *words])
    assert result.status == status, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_it_shows_what_it_would_write_and_writes_nothing(volume: Volume, esp: Path) -> None:
    guest = volume.boot()
    shown = guest.run(["apk-atomic", "boot-config"], check=True)
    document = json.loads(guest.run(["apk-atomic", "boot-config", "--json"], check=True).stdout)
    assert document["menu"] == shown.stdout
    assert f"root=UUID={volume.fsid} rootfstype=btrfs" in shown.stdout
    assert 'volume "' in shown.stdout
    assert (document["version"], document["loader"], document["slots"]) == (1, "refind", 4)
    assert document["paths"] == ["boot/vmlinuz-lts", "boot/initramfs-lts"]
    assert "menuentry" in ours(guest, "boot-config", "--loader", "grub")
    assert not (volume.top / "state").exists() and not list(esp.iterdir())


def test_the_menu_of_another_system_is_not_replaced(volume: Volume, esp: Path) -> None:
    menu = esp / loaders.DIRECTORY / "refind.conf"
    menu.parent.mkdir(parents=True)
    menu.write_text('options "root=UUID=aaaa-bbbb rootfstype=btrfs"\n')
    said = ours(volume.boot(), *INSTALL, status=106)
    assert "menu of another system, on UUID=aaaa-bbbb" in said and "nothing was changed" in said
    assert [path.name for path in menu.parent.iterdir()] == ["refind.conf"]
    assert not (volume.top / "state/boot.json").exists()


def test_install_writes_the_loader_the_menu_and_the_state(volume: Volume, esp: Path) -> None:
    guest = volume.boot()
    result = guest.run(["apk-atomic", *INSTALL, "--append", "quiet", "--timeout", "3", "--json"], check=True)
    document = json.loads(result.stdout)
    menu = bootmenu.from_document(state(volume))
    assert menu is not None and (menu.append, menu.timeout) == ("quiet", 3)
    for directory, program in ((loaders.DIRECTORY, f"{loaders.DIRECTORY}/refind_{NAME}.efi"), ("EFI/BOOT", FALLBACK)):
        assert (esp / program).read_text() == "refind 1"
        assert (esp / directory / "refind.conf").read_text() == bootmenu.render(menu) == document["menu"]
    assert f"{loaders.DIRECTORY}/refind.conf" in document["written"]
    again = json.loads(guest.run(["apk-atomic", *INSTALL, "--json"], check=True).stdout)
    assert (again["written"], again["append"]) == ([], "quiet")


def test_the_next_transactions_keep_what_the_menu_names(volume: Volume, esp: Path) -> None:
    """`add linux-virt; del linux-lts` is what a static menu does not survive, before it was written anew."""
    volume.repo.publish(kernel_package(KERNEL, "virt"))
    guest = volume.boot()
    ours(guest, *INSTALL)
    ours(guest, "add", "linux-virt")
    assert "boot/vmlinuz-lts" in ours(guest, "del", "linux-lts", status=104)
    said = ours(guest, *INSTALL, "--kernel", "virt")
    assert "cannot be booted by this menu: no boot/vmlinuz-virt" in said  # slots with older generations
    assert state(volume)["paths"] == ["boot/vmlinuz-virt", "boot/initramfs-virt"]
    ours(guest, "del", "linux-lts")
    assert ours(guest, "boot-config").count("/boot/vmlinuz-virt") == 5


def test_a_cut_between_two_menus_keeps_the_paths_of_both(volume: Volume, esp: Path) -> None:
    volume.repo.publish(kernel_package(KERNEL, "virt"))
    guest = volume.boot()
    ours(guest, *INSTALL)
    ours(guest, "add", "linux-virt")
    (esp / loaders.DIRECTORY / "refind.conf").unlink()
    (esp / loaders.DIRECTORY / "refind.conf").mkdir()  # where nothing can be written
    assert "refind.conf of the ESP cannot be read" in ours(guest, *INSTALL, "--kernel", "virt", status=104)
    assert set(state(volume)["paths"]) == {  # type: ignore[call-overload]
        "boot/vmlinuz-virt", "boot/initramfs-virt", "boot/vmlinuz-lts", "boot/initramfs-lts",
    }  # fmt: skip


def with_two_kernels(volume: Volume) -> Guest:
    volume.repo.publish(kernel_package(KERNEL, "virt"))
    guest = volume.boot()
    ours(guest, "add", "linux-virt")
    return guest


def test_an_installation_that_failed_leaves_nothing_behind(volume: Volume, esp: Path) -> None:
    """The menu that boots was made by hand, and may name any kernel."""
    guest = with_two_kernels(volume)
    (esp / "EFI").write_text("a file")
    ours(guest, *INSTALL, "--kernel", "lts", "--append", "quiet", status=104)
    assert not list((volume.top / "state").iterdir())
    assert "boot/vmlinuz-virt is gone" in ours(guest, "del", "linux-virt", status=104)
    (esp / "EFI").unlink()
    ours(guest, *INSTALL)
    menu = bootmenu.from_document(state(volume))
    assert menu is not None and (menu.append, menu.paths) == ("", ("boot/vmlinuz-lts", "boot/initramfs-lts"))
    ours(guest, "del", "linux-virt")


def test_an_installation_that_failed_changes_no_value_of_the_menu(volume: Volume, esp: Path) -> None:
    guest = volume.boot()
    ours(guest, *INSTALL, "--append", "quiet", "--timeout", "3")
    before = state(volume)
    (esp / loaders.DIRECTORY / "refind.conf").unlink()
    (esp / loaders.DIRECTORY / "refind.conf").mkdir()
    ours(guest, *INSTALL, "--append", "loud", "--timeout", "9", status=104)
    assert state(volume) == before


def test_beside_a_loader_that_boots_by_its_own_menu(volume: Volume, esp: Path) -> None:
    """Nothing says that the firmware will ever start ours, so what the other may name has to stay."""
    guest = with_two_kernels(volume)
    (esp / FALLBACK).parent.mkdir(parents=True)
    (esp / FALLBACK).write_text("another system's")
    for _ in range(2):
        assert "all that boot/ holds now has to stay" in ours(guest, *INSTALL, "--kernel", "lts")
        assert "boot/vmlinuz-virt is gone" in ours(guest, "del", "linux-virt", status=104)
    (esp / FALLBACK).unlink()
    ours(guest, *INSTALL)
    assert state(volume)["paths"] == ["boot/vmlinuz-lts", "boot/initramfs-lts"]
    ours(guest, "del", "linux-virt")


def test_the_fallback_path_is_taken_over(volume: Volume, esp: Path) -> None:
    """Then firmware starts ours, so that nothing but what its menu names has to stay; the other is kept, and named."""
    guest = with_two_kernels(volume)
    theirs = {FALLBACK: "another system's", "EFI/BOOT/refind.conf": "their menu", "EFI/BOOT/grub.cfg": "their script"}
    (esp / FALLBACK).parent.mkdir(parents=True)
    for path, content in theirs.items():
        (esp / path).write_text(content)
    assert "boot-config --install --fallback takes its place" in ours(guest, *INSTALL, "--kernel", "lts")
    done = guest.run(["apk-atomic", *INSTALL, "--kernel", "lts", "--fallback", "--json"], check=True)
    document = json.loads(done.stdout)
    copies = {path.partition(".kept-")[0]: path for path in document["written"] if ".kept-" in path}
    assert {path: (esp / copy).read_text() for path, copy in copies.items()} == {
        path: content for path, content in theirs.items() if not path.endswith("grub.cfg")
    }
    assert all(f"it is kept as {copy}" in done.stderr for copy in copies.values())
    assert ((esp / FALLBACK).read_text(), (esp / "EFI/BOOT/grub.cfg").read_text()) == ("refind 1", "their script")
    assert (esp / "EFI/BOOT/refind.conf").read_text() == document["menu"]
    assert state(volume)["paths"] == ["boot/vmlinuz-lts", "boot/initramfs-lts"]
    ours(guest, "del", "linux-virt")
    assert "kept" not in ours(guest, *INSTALL, "--fallback", "--append", "quiet")  # it is ours from then on
    (esp / FALLBACK).write_text(theirs[FALLBACK])  # as the manual says: to give it back its place, copy it there
    assert "is not ours and was left alone" in ours(guest, *INSTALL)
    assert (esp / FALLBACK).read_text() == theirs[FALLBACK]


def test_a_menu_that_could_not_boot_what_it_names_is_refused(volume: Volume, esp: Path) -> None:
    """Damage to a kernel that the menu does not name is but a warning, until it shall name it."""
    volume.repo.publish(kernel_package(KERNEL, "virt"), Package("hello", files={"usr/hello": File(b"x")}))
    guest = volume.boot()
    ours(guest, *INSTALL)
    ours(guest, "add", "linux-virt")
    assert "warning" in ours(guest, "run", "--", "truncate", "-s", "1000", "/boot/initramfs-virt")
    before = state(volume), (esp / loaders.DIRECTORY / "refind.conf").read_text()
    said = ours(guest, *INSTALL, "--kernel", "virt", status=104)
    assert "would not boot by this menu: boot/initramfs-virt" in said and "nothing was changed" in said
    assert (state(volume), (esp / loaders.DIRECTORY / "refind.conf").read_text()) == before
    ours(guest, "add", "hello")


def test_another_menu_makes_a_proof_worth_nothing(volume: Volume, esp: Path) -> None:
    """Whoever wrote it: what was a warning under the old one is a failure under the new."""
    volume.repo.publish(kernel_package(KERNEL, "virt"), Package("hello", files={"usr/hello": File(b"x")}))
    guest = volume.boot()
    ours(guest, *INSTALL)
    ours(guest, "add", "linux-virt")
    ours(guest, "run", "--", "truncate", "-s", "1000", "/boot/initramfs-virt")
    changed = {**state(volume), "paths": ["boot/vmlinuz-virt", "boot/initramfs-virt"]}
    (volume.top / "state/boot.json").write_text(json.dumps(changed))
    assert "boot/initramfs-virt" in ours(guest, "add", "hello", status=104)


def test_the_init_of_the_menu_is_proved(volume: Volume, esp: Path) -> None:
    guest = volume.boot()
    ours(guest, *INSTALL)
    word = "init=/usr/bin/myinit"
    said = ours(guest, *INSTALL, "--append", f"quiet {word}", status=104)
    assert "usr/bin/myinit is missing" in said and "nothing was changed" in said
    assert state(volume)["append"] == ""
    ours(guest, "run", "--", "sh", "-c", "mkdir -p /usr/bin; cp /bin/busybox /usr/bin/myinit")
    ours(guest, *INSTALL, "--append", f"quiet {word}")
    for line in ("rm /usr/bin/myinit", "chmod 644 /usr/bin/myinit", ": > /usr/bin/myinit"):
        assert "usr/bin/myinit" in ours(guest, "run", "--", "sh", "-c", line, status=104)
    ours(guest, "run", "--", "touch", "/usr/bin/other")
    assert "usr/bin/myinit" in ours(guest, "run", "--", "rm", "/usr/bin/myinit", status=104)
    ours(guest, *INSTALL, "--append", "quiet")
    ours(guest, "run", "--", "rm", "/usr/bin/myinit")


def test_microcode_comes_first_and_only_where_all_slots_have_it(volume: Volume) -> None:
    def with_microcode(tree: Path) -> None:
        (tree / "boot/intel-ucode.img").write_bytes(bootfiles.microcode())

    volume.add_generation("newer", with_microcode)
    volume.point("newer", volume.slots()[0], name="two")
    guest = volume.boot()
    said = ours(guest, "boot-config")
    assert "left out of the menu, since slots 1, 2, 3 lack it" in said
    assert "initrd=" not in said
    volume.point("newer", name="all")
    assert "initrd=\\current\\2\\@\\boot\\intel-ucode.img" in ours(guest, "boot-config")


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (("boot-config", "--kernel", "rpi"), 100, "there is lts"),
        (("boot-config", "--loader", "lilo"), 100, "invalid choice"),
        (("boot-config", "--instal"), 100, "--instal"),
        (("boot-config", "--fallback"), 100, "--fallback goes with --install"),
        (("boot-config", "--append", "a\nb"), 100, "cannot stand in a boot menu"),
        (("boot-config", "--timeout", "soon"), 100, "invalid int"),
        (("boot-config", "--install", "--refind", REFIND), 100, "--esp"),
        (("boot-config", "--install", "--esp", ESP), 100, "apk add refind"),
        (("boot-config", "--install", "--esp", "/usr", "--refind", REFIND), 100, "/usr: nothing is mounted there"),
        (("boot-config", "--install", "--esp", "/usr", "--refind", REFIND), 100, "mount /usr"),
        (("boot-config", "--install", "--esp", "/", "--refind", REFIND), 100, "mount -o remount,rw /"),
        (("boot-config", "--install", "--esp", "/nowhere", "--refind", REFIND), 100, "No such file"),
    ],
    ids=str,
)
def test_refusals_name_what_to_do(untouched: Volume, words: tuple[str, ...], status: int, says: str) -> None:
    guest = untouched.boot()
    assert says in ours(guest, *words, status=status)
    assert not (untouched.top / "state").exists()


def test_help(untouched: Volume) -> None:
    assert "--esp DIR|DEVICE" in untouched.boot().run(["apk-atomic", "boot-config", "--help"], check=True).stdout
