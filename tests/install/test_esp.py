"""Files on an ESP: in a directory, and on a FAT that the kernel may not know; what a power cut leaves there."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from apk_atomic import bootinstall, esp, loaders, loop
from apk_atomic.bootinstall import Fallback
from apk_atomic.errors import AtomicError, CheckFailed, NoSpace, UsageError
from apk_atomic.esp_types import Esp
from apk_atomic.loaders import LoaderFiles
from apk_atomic.signals import Signals
from tests.install.disks import DRIVER, MIB, NAME, PROGRAM, listing, make_fat
from tests.support import engine

OURS, FALLBACK = loaders.DIRECTORY, "EFI/BOOT"
FALLBACK_PROGRAM = loaders.fallback_program()


@pytest.fixture(autouse=True)
def run() -> Iterator[Path]:
    with engine.own_run() as directory:
        yield directory


@contextmanager
def fat(tmp_path: Path, signals: Signals, size: int = 40 * MIB) -> Iterator[Esp]:
    """An ESP on a device: mounted where the kernel knows FAT, else by mtools."""
    with loop.attached(str(make_fat(tmp_path / "esp.img", size))) as device, esp.opened(device, signals) as found:
        yield found


@pytest.fixture(params=["directory", "device"])
def place(request: pytest.FixtureRequest, tmp_path: Path, signals: Signals) -> Iterator[Esp]:
    if request.param == "device":
        with fat(tmp_path, signals) as found:
            yield found
    else:
        (tmp_path / "esp").mkdir()
        with esp.opened(str(tmp_path / "esp"), signals) as found:
            yield found


def test_files_are_written_replaced_and_read(place: Esp) -> None:
    assert place.read("EFI/vendor/menu.conf") is None
    place.write("EFI/vendor/menu.conf", b"one")
    place.write("EFI/vendor/menu.conf", b"another")
    place.write("EFI/vendor/drivers_x64/a_long_name_of_a_driver.efi", os.urandom(MIB))
    place.write("startup.nsh", b"")
    assert place.read("EFI/vendor/menu.conf") == b"another"
    assert len(place.read("EFI/vendor/drivers_x64/a_long_name_of_a_driver.efi") or b"") == MIB
    assert place.read("startup.nsh") == b""


def test_what_is_written_is_on_the_disk(tmp_path: Path, signals: Signals) -> None:
    with fat(tmp_path, signals) as found:
        found.write("EFI/vendor/menu.conf", b"there")
        seen = subprocess.run(
            ["mtype", "-i", tmp_path / "esp.img", "::/EFI/vendor/menu.conf"], check=True, capture_output=True
        )
        assert (found.is_fat, seen.stdout) == (True, b"there")
    assert not loop.over(str(tmp_path / "esp.img"))
    subprocess.run(["fsck.vfat", "-n", tmp_path / "esp.img"], check=True, capture_output=True)


def test_a_full_esp_keeps_what_it_had(tmp_path: Path, signals: Signals) -> None:
    with fat(tmp_path, signals, 34 * MIB) as found:
        found.write("EFI/menu.conf", b"old")
        with pytest.raises(NoSpace, match="still boots") as refused:
            found.write("EFI/menu.conf", bytes(35 * MIB))
        why = refused.value.message.partition("cannot be written to the ESP: ")[2].partition(";")[0]
        assert why in ("Disk full", "No space left on device")
        assert found.read("EFI/menu.conf") == b"old"


def test_a_device_that_is_no_esp(tmp_path: Path, signals: Signals) -> None:
    with (tmp_path / "blank").open("wb") as file:
        file.truncate(MIB)
    with loop.attached(str(tmp_path / "blank")) as device, pytest.raises(CheckFailed), esp.opened(device, signals):
        pass


@pytest.mark.parametrize("path", ["nothing", "file"])
def test_a_place_that_is_none(tmp_path: Path, signals: Signals, path: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError), esp.opened(str(tmp_path / path), signals):
        pass


def test_where_it_usually_is(tmp_path: Path, signals: Signals) -> None:
    device = tmp_path / "sda1"
    device.write_text("")
    text = f"tmpfs /tmp tmpfs\n{device} /boot/efi vfat noauto 0 0\n"
    assert esp.usual_place(text, signals, running=False) == str(device)
    assert esp.usual_place("/dev/nothing /boot/efi vfat\n", signals, running=True) == ""
    assert esp.usual_place("UUID=0000-0000 /boot/efi vfat\n", signals, running=False) == ""
    assert esp.usual_place(f"{device} /mnt vfat\n", signals, running=False) == ""


# ---- the loader and its menu -----------------------------------------------------------------------------


def refind(version: str) -> LoaderFiles:
    beside = ((f"drivers_{NAME}/{DRIVER}", f"driver {version}".encode()),)
    return LoaderFiles(PROGRAM, f"refind {version}".encode(), beside, "refind.conf", own_directory=True)


def test_the_loader_is_put_beside_and_at_the_fallback_path(place: Esp) -> None:
    done = bootinstall.put(place, refind("1"), "menu 1")
    assert done.warnings == ()
    for directory, program in ((OURS, f"{OURS}/{PROGRAM}"), (FALLBACK, FALLBACK_PROGRAM)):
        assert place.read(program) == b"refind 1"
        assert place.read(f"{directory}/refind.conf") == b"menu 1"
        assert place.read(f"{directory}/drivers_{NAME}/{DRIVER}") == b"driver 1"
    assert bootinstall.put(place, refind("1"), "menu 1").written == ()
    assert set(bootinstall.put(place, refind("1"), "menu 2").written) == {
        f"{OURS}/refind.conf", f"{FALLBACK}/refind.conf",
    }  # fmt: skip
    assert place.read(f"{FALLBACK}/refind.conf") == b"menu 2"


def test_grub_finds_its_menu_from_the_fallback_path_too(place: Esp) -> None:
    grub = LoaderFiles(f"grub{NAME}.efi", b"grub", (), "grub.cfg", own_directory=False)
    bootinstall.put(place, grub, "menu")
    assert (place.read(FALLBACK_PROGRAM), place.read(f"{OURS}/grub.cfg")) == (b"grub", b"menu")
    assert place.read(f"{FALLBACK}/grub.cfg") is None


@pytest.mark.parametrize("theirs", [FALLBACK_PROGRAM, f"{FALLBACK}/refind.conf", f"{FALLBACK}/drivers_{NAME}/{DRIVER}"])
def test_what_others_put_at_the_fallback_path_stays(tmp_path: Path, signals: Signals, theirs: str) -> None:
    foreign = {theirs: b"theirs", "EFI/Microsoft/Boot/bootmgfw.efi": b"windows", "EFI/refind/refind.conf": b"old"}
    for path, data in foreign.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    with esp.opened(str(tmp_path), signals) as found:
        for version in ("1", "2"):
            done = bootinstall.put(found, refind(version), f"menu {version}")
            assert theirs in done.warnings[0]
    there = listing(tmp_path)
    assert {path: there[path] for path in foreign} == foreign
    assert there[f"{OURS}/refind.conf"] == b"menu 2"
    assert set(there) == {*foreign, *(path for path in there if path.startswith(OURS))}


def test_a_fallback_that_another_system_took_over_is_no_longer_ours(tmp_path: Path, signals: Signals) -> None:
    with esp.opened(str(tmp_path), signals) as found:
        bootinstall.put(found, refind("1"), "menu 1")
        (tmp_path / FALLBACK_PROGRAM).write_bytes(b"another system's")
        assert bootinstall.put(found, refind("2"), "menu 2").warnings
    assert listing(tmp_path)[FALLBACK_PROGRAM] == b"another system's"


def kept(there: dict[str, bytes]) -> dict[str, bytes]:
    """Copies of what was replaced: content by the name that it had."""
    return {path.partition(".kept-")[0]: data for path, data in there.items() if ".kept-" in path}


@pytest.mark.parametrize("before", [False, True], ids=["by hand", "edited"])
def test_a_menu_that_somebody_wrote_is_kept(place: Esp, before: bool) -> None:
    """Also one that names no UUID, so that nobody can say what it boots."""
    if before:
        bootinstall.put(place, refind("1"), "menu 1")
    menu = f"{OURS}/refind.conf"
    copies = []
    for edited in (b"menu of somebody", b"another menu"):
        place.write(menu, edited)
        done = bootinstall.put(place, refind("1"), "menu 2")
        copies += [path for path in done.written if ".kept-" in path]
        assert f"it is kept as {copies[-1]}" in done.warnings[0]
        assert (place.read(copies[-1]), place.read(menu)) == (edited, b"menu 2")
        assert bootinstall.put(place, refind("2"), "menu 3").warnings == ()
    assert place.read(copies[0]) == b"menu of somebody" and len(set(copies)) == 2


def test_another_loader_of_ours_and_back(place: Esp) -> None:
    """Neither is foreign to the other."""
    grub = LoaderFiles(f"grub{NAME}.efi", b"grub", (), "grub.cfg", own_directory=False)
    for loader, menu in ((refind("1"), "1"), (grub, "2"), (refind("2"), "3"), (grub, "4")):
        done = bootinstall.put(place, loader, menu)
        assert (done.warnings, done.fallback) == ((), True)
        assert place.read(FALLBACK_PROGRAM) == loader.content
    assert place.read(f"{FALLBACK}/refind.conf") == b"3"


THEIRS = {FALLBACK_PROGRAM: b"their loader", f"{FALLBACK}/refind.conf": b"their menu"}


def test_the_fallback_path_is_taken_over_where_that_is_wanted(place: Esp) -> None:
    for path, data in THEIRS.items():
        place.write(path, data)
    assert not bootinstall.put(place, refind("1"), "menu 1").fallback
    done = bootinstall.put(place, refind("1"), "menu 1", fallback=Fallback.TAKEN_OVER)
    copies = {path.partition(".kept-")[0]: place.read(path) for path in done.written if ".kept-" in path}
    assert (copies, done.fallback, len(done.warnings)) == (THEIRS, True, 2)
    assert (place.read(FALLBACK_PROGRAM), place.read(f"{FALLBACK}/refind.conf")) == (b"refind 1", b"menu 1")
    again = bootinstall.put(place, refind("2"), "menu 2")  # from now on it is ours
    assert (again.warnings, again.fallback, place.read(FALLBACK_PROGRAM)) == ((), True, b"refind 2")


class Cut(Exception):
    """The power goes."""


class Failing:
    """An ESP on which only so many files get written."""

    def __init__(self, inner: Esp, writes: int) -> None:
        self.inner, self.writes = inner, writes
        self.device, self.is_fat = inner.device, inner.is_fat

    def read(self, path: str) -> bytes | None:
        return self.inner.read(path)

    def tidy(self, path: str) -> None:
        self.inner.tidy(path)

    def free(self) -> int | None:
        return self.inner.free()

    def write(self, path: str, data: bytes) -> None:
        if self.writes == 0:
            raise Cut(path)
        self.writes -= 1
        self.inner.write(path, data)


def boots(there: dict[str, bytes], directory: str, program: str) -> bool:
    """A loader with all that it needs, of whatever version."""
    wanted = (program, f"{directory}/refind.conf", f"{directory}/drivers_{NAME}/{DRIVER}")
    return all(path in there for path in wanted)


@pytest.mark.parametrize("update", [False, True], ids=["first", "update"])
def test_a_power_cut_between_any_two_files_leaves_a_menu_that_boots(
    tmp_path: Path, signals: Signals, update: bool
) -> None:
    cuts = 0
    while True:
        place = tmp_path / str(cuts)
        place.mkdir()
        with esp.opened(str(place), signals) as found:
            if update:
                bootinstall.put(found, refind("1"), "menu 1")
            try:
                bootinstall.put(Failing(found, cuts), refind("2"), "menu 2")
                break
            except Cut:
                there = listing(place)
            for directory, program in ((OURS, f"{OURS}/{PROGRAM}"), (FALLBACK, FALLBACK_PROGRAM)):
                assert boots(there, directory, program) or (program not in there and not update)
                if there.get(f"{directory}/refind.conf") == b"menu 2" and update:
                    assert there[program] == b"refind 2"
            done = bootinstall.put(found, refind("2"), "menu 2")
            assert (done.warnings, listing(place)[FALLBACK_PROGRAM]) == ((), b"refind 2")
        cuts += 1
    assert cuts == 8  # the marker and three files in each directory


def test_a_write_that_died_is_cleaned_up(tmp_path: Path, signals: Signals) -> None:
    (tmp_path / OURS).mkdir(parents=True)
    (tmp_path / OURS / ".tmp-0123456789abcdef").write_bytes(b"half")
    with esp.opened(str(tmp_path), signals) as found:
        found.write(f"{OURS}/refind.conf", b"menu")
    assert list(listing(tmp_path)) == [f"{OURS}/refind.conf"]


def test_errors_are_ours(tmp_path: Path, signals: Signals) -> None:
    (tmp_path / "EFI").write_text("a file")
    with esp.opened(str(tmp_path), signals) as found, pytest.raises((AtomicError, OSError)):
        found.write("EFI/BOOT/x", b"")


@pytest.mark.parametrize("foreign", [{f"{OURS}/refind.conf": b"their menu"}, THEIRS], ids=["menu", "fallback"])
def test_a_cut_between_any_two_files_loses_nothing_of_others(
    tmp_path: Path, signals: Signals, foreign: dict[str, bytes]
) -> None:
    """What is replaced is kept before, and the loader that starts has a menu."""
    for writes in range(20):
        place = tmp_path / str(writes)
        for path, data in foreign.items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_bytes(data)
        with esp.opened(str(place), signals) as found:
            try:
                bootinstall.put(Failing(found, writes), refind("1"), "menu 1", fallback=Fallback.TAKEN_OVER)
                assert writes > 4
                break
            except Cut:
                there = listing(place)
            copies = kept(there)
            for path, data in foreign.items():
                assert data in (there[path], copies.get(path))
            if FALLBACK_PROGRAM in foreign:
                assert there[FALLBACK_PROGRAM] == b"their loader" or boots(there, FALLBACK, FALLBACK_PROGRAM)
            bootinstall.put(found, refind("1"), "menu 1", fallback=Fallback.TAKEN_OVER)
            assert kept(listing(place)) == foreign
    else:
        raise AssertionError("it never came to its end")
