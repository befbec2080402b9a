"""Real boots: firmware, boot loader, kernel, initramfs and init, and apk-atomic at work in what they started.

Each test is the story of one machine, told over several boots: a boot costs 15 to 25 seconds, so each answers many
questions. The guest says which generation it is (field 4 of / in mountinfo), which kernel runs and how / is mounted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.boot.disk import installed_disk, loader_config, wiki_disk
from tests.boot.kernels import Kernel, debian_kernels
from tests.boot.machine import Entry, GrubEntry, Machine, System
from tests.boot.mirror import FETCH, make_mirror
from tests.support.apks import which_apk
from tests.support.imagecache import scratch_directory
from tests.support.packages import File, Package

pytestmark = [pytest.mark.boot, pytest.mark.timeout(1500)]

# Of the menu of boot-config; rEFInd puts `default options` above slot 0.
FIRST_FALLBACK, FIRST_FALLBACK_OF_GRUB = Entry("slot 1 (fallback)", 2), GrubEntry("slot 1 (fallback)", 1)
# In the root of a change /dev is the machine's: a package's script can write to the serial line.
HANGS = "#!/bin/sh\necho @@installing >/dev/ttyS0\nexec sleep 1000\n"
IN_TOP = """\
mkdir -p /run/top
mount -t btrfs -o subvolid=5,ro "$(grep ' / btrfs ' /proc/mounts | cut -d ' ' -f 1)" /run/top
cd /run/top || exit 1
"""
DIGEST = "find . \\( -type f -o -type l \\) -print0 | sort -z | xargs -0 md5sum | md5sum"
# Of a stopped process: the state in /proc/PID/status.
UNTIL_STOPPED = "while ! grep -q '^State:.T' /proc/$!/status; do sleep 0.1; done; echo @@stopped >/dev/ttyS0"
# FS_IOC_FIEMAP; exits with 1 if there is a file of which no extent is compressed.
ARE_COMPRESSED = """python3 - {} <<'END'
import fcntl, struct, sys
for name in sys.argv[1:]:
    answer = bytearray(struct.pack("=QQLLLL", 0, 1 << 62, 1, 0, 500, 0) + bytes(500 * 56))
    with open(name, "rb") as file:
        fcntl.ioctl(file, 0xC020660B, answer)
    count = struct.unpack_from("=L", answer, 20)[0]
    flags = [struct.unpack_from("=L", answer, 32 + 56 * number + 40)[0] for number in range(count)]
    if not any(flag & 8 for flag in flags):
        sys.exit(name)
END
"""


@dataclass(frozen=True, slots=True)
class Status:
    """What `apk-atomic status --json` says, in part."""

    booted: str
    pending: bool
    fallback_booted: bool
    slots: list[str]


@pytest.fixture
def disk() -> Iterator[Path]:
    """Where the test's disk is to be made: in memory, if there is some."""
    with scratch_directory("apk-atomic-boot-") as place:
        yield place / "disk"


@pytest.fixture(scope="module")
def kernels() -> tuple[Kernel, Kernel]:
    return debian_kernels()


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory, kernels: tuple[Kernel, Kernel]) -> Path:
    """What the distribution publishes after the installation: a new kernel, and three more packages."""
    image = tmp_path_factory.mktemp("mirror") / "image"
    hangs = Package("hangs", scripts={"post-install": HANGS})
    make_mirror(image, kernels[1].package(), program("hello"), program("later"), hangs)
    return image


def program(name: str) -> Package:
    return Package(name, files={f"usr/bin/{name}": File(f"#!/bin/sh\necho {name} runs\n".encode(), 0o755)})


def status(system: System) -> Status:
    answer = json.loads(system.run("apk-atomic status --json 2>/dev/null", check=True).text)
    assert answer["booted"] == system.generation
    return Status(*(answer[key] for key in ("booted", "pending", "fallback_booted", "slots")))


def top(system: System, script: str) -> str:
    """What a script says that runs in the top level, which it can only read."""
    return system.run(f"({IN_TOP}{script}\n) && umount /run/top", check=True).text


def left_over(system: System) -> list[str]:
    """What a transaction that did not end leaves in staging/."""
    return top(system, "ls staging 2>/dev/null || true").split()


def test_life_of_a_machine(disk: Path, tmp_path: Path, mirror: Path, kernels: tuple[Kernel, Kernel]) -> None:
    """Installed by `init` on a volume with zstd: upgrades, power cuts amidst, a fallback from the menu, a rollback."""
    old, new = (kernel.release for kernel in kernels)
    installed_disk(disk, "--compress", "zstd")
    machine = Machine(disk, tmp_path, mirror)

    with machine.booted() as system:
        born = system.generation
        assert (system.release, " ro," in system.mount) == (old, True)
        assert system.run("touch /etc/sealed").status != 0
        system.run(f"{FETCH} && apk-atomic run -- sh -c 'echo /var/cache/repo >/etc/apk/repositories'", check=True)
        first = status(system).slots[0]
        system.start("apk-atomic add hangs")
        system.wait_for("@@installing")
        system.cut_power()

    with machine.booted() as system:
        assert (system.generation, system.release) == (first, old)
        assert len(left_over(system)) == 1
        system.run("apk-atomic add hello", check=True)
        assert not left_over(system)
        found = status(system)
        second = found.slots[0]
        assert found == Status(first, True, False, [second, first, born, born])
        system.start(f"APK_ATOMIC_FAULT=renamed:stop apk-atomic upgrade & {UNTIL_STOPPED}")
        system.wait_for("@@stopped")
        system.cut_power()

    with machine.booted() as system:
        # Which one boots is up to what btrfs had written by then. But it is whole: the loader, which knows nothing of
        # the log tree, took the kernel from where the kernel took its root.
        assert system.generation == status(system).slots[0] not in (born, first)
        assert system.release == (old if system.generation == second else new)
        assert system.run("hello", check=True).text == "hello runs\n"
        before = system.generation
        system.run("apk-atomic upgrade && apk-atomic add later", check=True)
        assert status(system).slots[1] == before
        assert not left_over(system)
        system.power_off()

    with machine.booted(FIRST_FALLBACK) as system:
        assert (system.generation, system.run("later").status) == (before, 127)
        assert status(system).fallback_booted
        refused = system.run("apk-atomic add hangs")
        assert refused.status == 106 and "--atomic-base" in refused.text, refused
        system.run("apk-atomic rollback", check=True)
        assert status(system).slots[0] == before
        system.power_off()

    with machine.booted() as system:
        assert (system.generation, system.run("later").status) == (before, 127)
        assert status(system).slots[0] == before
        system.run("apk-atomic prove", check=True)
        system.run(ARE_COMPRESSED.format("$(find /usr/lib -name namespace.py)"), check=True)


def test_wiki(disk: Path, tmp_path: Path, mirror: Path, kernels: tuple[Kernel, Kernel]) -> None:
    """The layout made by hand is taken over as it is and upgraded; what is reported is there after a power cut.

    zstd is forced upon the volume: btrfs by itself leaves most of what the loader reads as it is.
    """
    old, new = (kernel.release for kernel in kernels)
    wiki_disk(disk, "compress-force=zstd")
    menu = loader_config(disk)
    machine = Machine(disk, tmp_path, mirror)

    with machine.booted() as system:
        born = system.generation
        assert (system.release, f"subvol=/snapshots/{born}/@" in system.mount) == (old, True)
        assert status(system) == Status(born, False, False, [born] * 4)
        foreign = top(system, f"md5sum fstab; cd snapshots/{born}/@ && {DIGEST}")
        system.run(f"{FETCH} && apk-atomic add hello", check=True)
        system.start("apk-atomic upgrade && echo @@reported >/dev/ttyS0")
        system.wait_for("@@reported")
        system.cut_power()

    with machine.booted() as system:
        assert (system.generation != born, system.release) == (True, new)
        assert system.run("hello", check=True).text == "hello runs\n"
        assert status(system) == Status(system.generation, False, False, [system.generation, born, born, born])
        # apk 2 reserves the room of large files beforehand, and btrfs does not compress into that.
        kernel = "/boot/vmlinuz-lts" if which_apk().major > 2 else ""
        system.run(ARE_COMPRESSED.format(f"{kernel} /boot/initramfs-lts"), check=True)
        assert top(system, f"md5sum fstab; cd snapshots/{born}/@ && {DIGEST}") == foreign
        assert top(system, "ls").split() == ["commons", "current", "fstab", "links", "next", "snapshots", "staging"]
    assert loader_config(disk) == menu


def test_grub(disk: Path, tmp_path: Path, mirror: Path, kernels: tuple[Kernel, Kernel]) -> None:
    """The second loader, with its menu as `init` writes it: a new kernel, the old one as a fallback, a rollback."""
    old, new = (kernel.release for kernel in kernels)
    installed_disk(disk, "--loader", "grub")
    machine = Machine(disk, tmp_path, mirror)

    with machine.booted() as system:
        assert (system.release, " ro," in system.mount) == (old, True)
        system.run(f"{FETCH} && apk-atomic run -- sh -c 'echo /var/cache/repo >/etc/apk/repositories'", check=True)
        system.run("apk-atomic upgrade", check=True)
        before = status(system)
        system.power_off()

    with machine.booted() as system:
        assert (system.generation, system.release) == (before.slots[0], new)
        second = status(system).slots[1]
        system.power_off()

    with machine.booted(FIRST_FALLBACK_OF_GRUB) as system:
        assert (system.generation, system.release) == (second, old)
        assert status(system).fallback_booted
        system.run("apk-atomic rollback", check=True)
        system.power_off()

    with machine.booted() as system:
        assert (system.generation, system.release) == (second, old)
        assert status(system) == Status(second, False, False, [second, *before.slots[:1] * 3])
