"""`apk-atomic init` on image files and loop devices: what it makes, what it refuses, what it leaves when it dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from apk_atomic import bootmenu, loaders, loop
from apk_atomic.partition import UNFINISHED
from tests.install.disks import KERNEL, MIB, listing, make_refind, publish, small_packages
from tests.support import engine
from tests.support.apks import which_apk
from tests.support.blockdev import mount_btrfs, unmount
from tests.support.bootpackages import kernel_package
from tests.support.btrfsctl import is_read_only
from tests.support.imagecache import scratch_directory
from tests.support.isolation import session_key
from tests.support.packages import File, Package, Repository

PROJECT = Path(__file__).resolve().parents[2]
PROGRAM = "import sys; from apk_atomic.cli import main; sys.exit(main(['apk-atomic', *sys.argv[1:]]))"
SIZE = 400 * MIB
SMALL = ("--size", "400M", "--esp-size", "40M")
HANGS = "#!/bin/sh\ntouch /var/log/started\nexec sleep 60\n"
GOOD = Package("good", "1.0-r0", files={"usr/bin/good": File(b"#!/bin/sh\n", 0o755)})
BROKEN = Package("broken", "1.0-r0", scripts={"post-install": "#!/bin/sh\necho cannot\nexit 1\n"})
HANGING = Package("hanging", "1.0-r0", scripts={"post-install": HANGS})
TRUNCATED = kernel_package(KERNEL, "virt")


@dataclass(frozen=True, slots=True)
class Said:
    status: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict[str, object]:
        found = json.loads(self.stdout)
        assert isinstance(found, dict)
        return found


class Lab:
    """A place with a repository, keys and rEFInd, in which `init` runs with a /run of its own."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.image = place / "disk.img"
        self.repository = publish(place, GOOD, BROKEN, HANGING, truncated_kernel())
        make_refind(place / "refind")

    def words(self, *words: str, target: str = "") -> list[str]:
        sources = ["--repository", str(self.place / "repo"), "--keys-dir", str(self.place / "keys")]
        tools = ["--apk", which_apk().path, "--refind", str(self.place / "refind"), "--no-nvram"]
        return ["init", target or str(self.image), *sources, *tools, *words]

    def init(self, *words: str, target: str = "", **how: str) -> Said:
        return self.run(self.words("--yes", *words, target=target), **how)

    def run(self, words: Sequence[str], *, input: str = "", **environment: str) -> Said:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *words], input=input, env={**os.environ, **environment}, cwd=PROJECT,
            text=True, capture_output=True, timeout=120, check=False,
        )  # fmt: skip
        return Said(done.returncode, done.stdout, done.stderr)

    def forget(self) -> None:
        self.image.unlink(missing_ok=True)

    def nothing_is_left(self) -> bool:
        """No loop device; mounts go with the namespace of whoever made them, and this one has none."""
        mounted = Path("/proc/self/mountinfo").read_text()
        return not loop.over(str(self.image)) and "/run/apk-atomic" not in mounted

    def part(self, role: str) -> tuple[int, int]:
        """Start and size of a partition, in bytes."""
        table = json.loads(subprocess.check_output(["sfdisk", "--json", self.image]))["partitiontable"]
        found = next(each for each in table["partitions"] if each["name"] == role)
        return found["start"] * 512, found["size"] * 512

    @contextmanager
    def mounted(self, role: str = "ROOT") -> Iterator[Path]:
        """The top level of the volume that was made."""
        start, size = self.part(role) if role else (0, 0)
        with loop.attached(str(self.image), start, size) as device, mounted(device, self.place / "top") as top:
            yield top

    def on_esp(self, path: str) -> bytes:
        return subprocess.check_output(["mtype", "-i", f"{self.image}@@{self.part('ESP')[0]}", f"::/{path}"])


@contextmanager
def mounted(device: str, top: Path) -> Iterator[Path]:
    mount_btrfs(device, top)
    try:
        yield top
    finally:
        unmount(top)


def truncated_kernel() -> Package:
    """linux-virt, whose image misses its end."""
    files = dict(TRUNCATED.files)
    image = files["boot/vmlinuz-virt"]
    assert isinstance(image, File)
    files["boot/vmlinuz-virt"] = File(image.content[:-512])
    return Package("linux-virt", KERNEL, files=files, depends=TRUNCATED.depends)


@pytest.fixture(scope="module")
def world() -> Iterator[Lab]:
    with ExitStack() as stack:
        place = stack.enter_context(scratch_directory("apk-atomic-install-"))
        stack.enter_context(engine.own_run())
        yield Lab(place)


@pytest.fixture
def lab(world: Lab) -> Iterator[Lab]:
    yield world
    assert world.nothing_is_left()
    world.forget()


# ---- what it makes ---------------------------------------------------------------------------------------


def test_a_disk_image_from_nothing(lab: Lab) -> None:
    (lab.place / "password").write_text("open sesame\nnot this\n")
    (lab.place / "key").write_text("ssh-ed25519 AAAA somebody\n")
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
    assert (key.read_text(), key.stat().st_mode & 0o777) == ("ssh-ed25519 AAAA somebody\n", 0o600)
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
        said = lab.init("--esp", str(lab.place / "esp"), "--label", "ALPINE", target=device)
        assert said.status == 0, said.stderr
        with mounted(device, lab.place / "top") as top:
            menu = bootmenu.from_document(json.loads((top / "state/boot.json").read_text()))
            assert "vfat" not in (top / "fstab").read_text()
    assert menu is not None and menu.volume == "ALPINE"
    assert "is not ours and was left alone" in said.stderr
    assert theirs.read_bytes() == b"theirs"
    assert (lab.place / "esp" / loaders.DIRECTORY / "refind.conf").read_text() == bootmenu.render(menu)
    label = subprocess.check_output(["btrfs", "filesystem", "label", lab.image], text=True)
    assert label.strip() == "ALPINE"


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


def test_the_question_is_answered_by_yes_only(lab: Lab) -> None:
    for answer in ("", "y\n", "no\n"):
        said = lab.run(lab.words(*SMALL), input=answer)
        assert (said.status, "Type yes" in said.stderr) == (106, True)
        assert subprocess.run(["blkid", "--probe", lab.image], check=False).returncode == 2
    assert lab.run(lab.words(*SMALL, "--kernel", "none"), input="yes\n").status == 0


# ---- what it refuses -------------------------------------------------------------------------------------


def test_refusals_before_anything_is_touched(lab: Lab) -> None:
    (lab.place / "empty").mkdir(exist_ok=True)
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
        "no apk": (lab.words("--yes", "--apk", "/nowhere/apk"), 100, "--apk"),
        "no rEFInd": (lab.words("--yes", *SMALL, "--refind", str(lab.place / "empty")), 100, "apk add refind"),
        "a wrong size": (lab.words("--yes", "--size", "much"), 100, "such as 512M"),
        "a wrong name": (lab.words("--yes", "--hostname", "a b"), 100, "cannot be the name"),
        "a wrong common": (lab.words("--yes", "--common", "home"), 100, "@var@log"),
        "no key file": (lab.words("--yes", "--root-key", "/nowhere"), 100, "No such file"),
        "a volume": (["--atomic-volume", "/dev/null", *lab.words("--yes")], 100, "as an operand"),
        "no target": (["init", "--yes"], 100, "DEVICE|IMAGE"),
    }
    for case, (words, status, says) in cases.items():
        said = lab.run(words)
        assert (said.status, says in said.stderr) == (status, True), f"{case}: {said}"
        assert "unfinished" not in said.stderr
        lab.forget()
    assert (lab.place / "filled").read_bytes()[:8192] == before


def test_a_device_in_use_cannot_even_be_forced(lab: Lab) -> None:
    with lab.image.open("wb") as file:
        file.truncate(SIZE)
    subprocess.run(["mkfs.btrfs", "--quiet", lab.image], check=True)
    with loop.attached(str(lab.image)) as device:
        with mounted(device, lab.place / "top"):
            assert_in_use(lab.init("--force", "--esp", "none", target=device), f"mounted at {lab.place}/top")
        assert_in_use(lab.init("--force"), f"attached as {device}")


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


# ---- what it leaves --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (("--package", "nowhere"), 1, "the volume holds no system"),
        (("--package", "broken"), 1, "scripts of broken failed"),
        (("--kernel", "virt"), 104, "would not boot"),
    ],
    ids=("no such package", "broken script", "damaged kernel"),
)
def test_a_failure_is_said_and_the_next_run_starts_clean(
    lab: Lab, words: tuple[str, ...], status: int, says: str
) -> None:
    said = lab.init(*SMALL, *words)
    assert (said.status, says in said.stderr) == (status, True), said
    assert "unfinished" in said.stderr
    assert lab.nothing_is_left()
    assert is_unfinished(lab)
    again = lab.init("--esp-size", "40M", "--kernel", "none")
    assert again.status == 0, again.stderr
    assert not is_unfinished(lab)


def is_unfinished(lab: Lab) -> bool:
    return UNFINISHED in subprocess.check_output(["sfdisk", "--dump", lab.image], text=True)


@pytest.mark.parametrize("point", ["locked", "sealed", "renamed"])
def test_a_kill_leaves_nothing_attached(lab: Lab, point: str) -> None:
    said = lab.init(*SMALL, "--kernel", "none", APK_ATOMIC_FAULT=f"{point}:kill")
    assert said.status == -signal.SIGKILL
    released(lab)
    assert is_unfinished(lab)


def test_a_kill_while_file_systems_are_made_and_then_a_run(lab: Lab) -> None:
    tools = lab.place / "tools"
    tools.mkdir()
    (tools / "mkfs.vfat").write_text("#!/bin/sh\nkill -9 $PPID\n")
    (tools / "mkfs.vfat").chmod(0o755)
    assert lab.init(*SMALL, PATH=f"{tools}:{os.environ['PATH']}").status == -signal.SIGKILL
    released(lab)
    again = lab.init("--esp-size", "40M")
    assert again.status == 0, again.stderr
    with lab.mounted() as top:
        assert listing(top / "state")


def released(lab: Lab) -> None:
    """The kernel lets go when the last process is gone, and that may be a moment after its parent."""
    deadline = time.monotonic() + 20
    while not lab.nothing_is_left() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert lab.nothing_is_left()


def test_a_ctrl_c_ends_apk_too(lab: Lab) -> None:
    words = lab.words("--yes", *SMALL, "--kernel", "none", "--package", "hanging")
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words], cwd=PROJECT, stderr=subprocess.PIPE, text=True
    ) as process:  # fmt: skip
        assert process.stderr is not None
        said = ""
        while "Installing hanging" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)  # a second signal ends the patience with apk
        said += process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert "unfinished" in said
    released(lab)


def test_an_apk_that_the_new_system_would_not_understand(lab: Lab) -> None:
    if which_apk().major < 3:
        pytest.skip("what apk 2 writes, every apk reads")
    base = replace(small_packages()[0], version="4.0-r0", depends=("openrc", "apk-tools"))
    other = Repository(lab.place / "other", key=session_key())
    other.publish(base, Package("apk-tools", "2.14.10-r0", files={"sbin/apk": File(b"", 0o755)}))
    said = lab.init(*SMALL, "--repository", str(lab.place / "other"))
    assert (said.status, "which does not understand its database" in said.stderr) == (104, True), said
