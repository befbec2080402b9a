"""`hibernation`: what the next boot resumes from, and that no transaction changes a volume under a sleeping system."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apk_atomic import hibernation, loop
from apk_atomic.hibernation import Resume
from tests.support.packages import File, Package
from tests.support.world import FIRST, Guest, Volume

MIB = 1 << 20
UUID = "0123cafe-4567-89ab-cdef-0123456789ab"
SECOND = "20250101000000abcdefgh"
PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("", None),
        ("root=UUID=1 ro quiet", None),
        ("root=UUID=1 resume=UUID=2", Resume("UUID=2")),
        ("resume=/dev/sda1 resume=/dev/sda2", Resume("/dev/sda2")),
        ("resume=/dev/sda1 resume_offset=4711", Resume("/dev/sda1", 4711)),
        ("resume=/dev/sda1 resume_offset=x", Resume("/dev/sda1")),
        ("resume= resume_offset=1", None),
        ("resume=/dev/sda1 noresume", None),
    ],
)
def test_what_a_kernel_resumes_from(words: str, found: Resume | None) -> None:
    assert hibernation.resume_of(words) == found


@given(st.text(max_size=80))
def test_any_command_line_gives_an_answer(words: str) -> None:
    hibernation.resume_of(f"resume={words} resume_offset={words}")


@pytest.mark.parametrize(
    ("menu", "running", "words"),
    [
        (None, True, "resume=LABEL=here"),
        (None, False, ""),
        ('{"resume": "UUID=1", "append": "resume_offset=5"}', True, "resume=UUID=1 resume_offset=5"),
        ('{"resume": "UUID=1", "append": ""}', False, "resume=UUID=1 "),
        ('{"resume": "", "append": "quiet"}', True, "quiet"),
        ('{"resume": 1, "append": ""}', True, "resume=LABEL=here"),
        ("{", True, "resume=LABEL=here"),
        ("[]", False, ""),
    ],
)
def test_the_menu_counts_before_this_boot(tmp_path: Path, menu: str | None, running: bool, words: str) -> None:
    (tmp_path / "cmdline").write_text("resume=LABEL=here")
    (tmp_path / "state").mkdir()
    if menu is not None:
        (tmp_path / "state/boot.json").write_text(menu)
    top = os.open(tmp_path, os.O_RDONLY)
    cmdline = str(tmp_path / "cmdline")
    assert hibernation.words_of_next_boot(top, running=running, cmdline=cmdline) == words
    os.close(top)


@pytest.mark.parametrize(
    ("signature", "page"), [(b"S1SUSPEND\0", 4096), (b"S2SUSPEND\0", 65536), (b"LINHIB0001", 16384)]
)
def test_hibernated_system(tmp_path: Path, signature: bytes, page: int) -> None:
    swap = bytearray(1 << 17)
    for content, answer in ((b"SWAPSPACE2", False), (signature, True)):
        swap[page - 10 : page] = content
        (tmp_path / "swap").write_bytes(swap)
        fd = os.open(tmp_path / "swap", os.O_RDONLY)
        assert hibernation.holds_hibernated_system(fd) is answer
        os.close(fd)


def test_a_swap_file_by_its_offset(tmp_path: Path) -> None:
    data = bytearray(8 * PAGE)
    data[5 * PAGE - 10 : 5 * PAGE] = b"S1SUSPEND\0"
    (tmp_path / "disk").write_bytes(data)
    path = str(tmp_path / "disk")
    assert hibernation.is_waiting(Resume(path, 4))
    assert not hibernation.is_waiting(Resume(path, 3)) and not hibernation.is_waiting(Resume(path))
    assert not hibernation.is_waiting(Resume(path, 1000)) and not hibernation.is_waiting(Resume("/dev/none"))


# ---- for real ----------------------------------------------------------------------------------------------


@pytest.fixture
def swap(tmp_path: Path) -> Iterator[str]:
    """An attached swap area in which a system sleeps."""
    with (tmp_path / "swap").open("wb") as file:
        file.truncate(16 * MIB)
    subprocess.run(["mkswap", "--uuid", UUID, tmp_path / "swap"], check=True, capture_output=True)
    with loop.attached(str(tmp_path / "swap")) as device:
        sleep(device)
        yield device


def sleep(device: str) -> None:
    disk = os.open(device, os.O_RDWR)
    os.pwrite(disk, b"S1SUSPEND\0", PAGE - 10)
    os.close(disk)


def test_nothing_changes_under_a_system_that_sleeps(volume: Volume, guest: Guest, swap: str) -> None:
    volume.repo.publish(Package("hello", files={"usr/hello": File(b"1")}))
    (volume.top / "state").mkdir()
    menu = {"paths": [], "resume": f"UUID={UUID}", "append": "quiet"}
    (volume.top / "state/boot.json").write_text(json.dumps(menu))
    for argv in (["add", "hello"], ["run", "--", "touch", "/x"]):
        done = guest.run(["apk-atomic", *argv])
        assert (done.status, volume.generations()) == (104, [FIRST])
        assert f"resume=UUID={UUID} holds a hibernated system" in done.stderr
        assert "nothing was changed" in done.stderr and "mkswap" in done.stderr
    volume.add_generation(SECOND)
    done = guest.run(["apk-atomic", "rollback", SECOND], check=True)  # what must work in an emergency
    assert f"warning: resume=UUID={UUID} holds a hibernated system" in done.stderr
    guest.run(["apk-atomic", "rollback", FIRST], check=True)
    proved = json.loads(guest.run(["apk-atomic", "prove", "--json"]).stdout)
    assert "resume" in [row["code"] for row in proved["warnings"]]
    subprocess.run(["mkswap", "--uuid", UUID, swap], check=True, capture_output=True)
    guest.run(["apk-atomic", "add", "hello"], check=True)


def test_without_a_menu_this_boots_command_line_counts(volume: Volume, guest: Guest, swap: str) -> None:
    volume.repo.publish(Package("hello", files={"usr/hello": File(b"1")}))
    line = f"echo 'root=x resume={swap}' >/tmp/cmdline; mount --bind /tmp/cmdline /proc/cmdline"
    guest.run(["/bin/sh", "-ec", line], check=True)
    assert guest.run(["apk-atomic", "add", "hello"]).status == 104
    guest.run(["/bin/sh", "-ec", "echo 'resume=/dev/none' >/tmp/cmdline"], check=True)
    guest.run(["apk-atomic", "add", "hello"], check=True)
