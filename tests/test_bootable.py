"""Initramfs and boot proof through whole transactions: what is built, kept, refused and inherited."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import bootfiles
from tests.support.binaries import needed_libraries
from tests.support.bootpackages import GENERATOR, TRIGGER, generator_package, kernel_package, release_of
from tests.support.bootworld import KERNEL, install_system
from tests.support.packages import Entry, File, Package, Symlink
from tests.support.world import FIRST, Guest, Result, Volume, make_volume

NEWER = "6.12.2-r0"
ZSTD = shutil.which("zstd")
MINE_ZSTD = sys.version_info < (3, 14)  # later ones unpack it themselves
BUILDING = "apk-atomic: building boot/initramfs-"
GENERATED = "==> initramfs: creating"
UCODE = Package("intel-ucode", files={"boot/intel-ucode.img": File(bootfiles.microcode())})


class Machine:
    """A booted volume whose first generation boots, and what its transactions leave."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        install_system(volume)
        self.guest: Guest = volume.boot()

    def publish(self, *packages: Package) -> None:
        self.volume.repo.publish(*packages)

    def commit(self, *argv: str) -> str:
        """A transaction that makes a generation; all that was said."""
        before = self.volume.slots()[0]
        done = self.guest.run(["apk-atomic", *argv], check=True)
        assert self.volume.slots()[0] != before, done.stderr
        return done.stdout + done.stderr

    def refused(self, *argv: str, status: int) -> str:
        """One that is discarded without a trace."""
        before = self.volume.current(), self.volume.generations()
        done: Result = self.guest.run(["apk-atomic", *argv])
        assert done.status == status, done.stdout + done.stderr
        assert (self.volume.current(), self.volume.generations()) == before
        assert not list((self.volume.top / "staging").iterdir())
        assert "nothing was changed" in done.stderr
        return done.stderr

    def record(self) -> dict[str, Any]:
        """Of the next generation."""
        path = self.volume.tree().parent / "generation.json"
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def image(self, name: str = "boot/initramfs-lts") -> bytes:
        return (self.volume.tree() / name).read_bytes()


@pytest.fixture
def machine() -> Iterator[Machine]:
    with make_volume() as volume:
        yield Machine(volume)


@pytest.fixture(scope="module")
def steady() -> Iterator[Machine]:
    """One for all tests in which nothing is ever committed."""
    with make_volume() as volume:
        yield Machine(volume)


def generator(script: str = "", *, trigger: str = TRIGGER, depends: tuple[str, ...] = ()) -> Package:
    """A newer `mkinitfs` package, with another generator or trigger."""
    package = generator_package("3.13.0-r1")
    files: dict[str, Entry] = dict(package.files)
    if script:
        files["sbin/mkinitfs"] = File(script.encode(), 0o755)
    return replace(package, files=files, scripts={"trigger": trigger}, depends=depends)


IDLE_TRIGGER = "#!/bin/sh\nexit 0\n"


# ---- built, kept, inherited --------------------------------------------------------------------------------


def test_the_image_that_a_trigger_made_is_kept(machine: Machine) -> None:
    machine.publish(kernel_package(NEWER))
    said = machine.commit("upgrade")
    assert said.count(GENERATED) == 1
    assert BUILDING not in said
    record = machine.record()
    assert record["kernels"] == {"lts": release_of(NEWER)}
    (image,) = record["initramfs"]
    assert (image["path"], image["release"], image["generator"]) == (
        "boot/initramfs-lts", release_of(NEWER), "mkinitfs",
    )  # fmt: skip
    assert f"usr/lib/modules/{release_of(NEWER)}/{bootfiles.BTRFS}.gz" in image["members"]
    assert record["proof"]["of"] == record["id"]
    machine.guest.reboot()
    assert machine.guest.booted == record["id"]


def test_a_trigger_that_does_nothing_is_made_up_for_once(machine: Machine) -> None:
    machine.publish(generator(trigger=IDLE_TRIGGER), kernel_package(NEWER))
    before = machine.image()
    said = machine.commit("upgrade")
    assert said.count(GENERATED) == said.count(BUILDING) == 1
    assert f"{BUILDING}lts: kernel {release_of(NEWER)} in place of {release_of(KERNEL)}" in said
    assert machine.image() != before
    assert machine.record()["kernels"] == {"lts": release_of(NEWER)}


def test_what_the_generator_says_is_not_the_callers_output(machine: Machine) -> None:
    machine.publish(generator(trigger=IDLE_TRIGGER), kernel_package(NEWER))
    done = machine.guest.run(["apk-atomic", "upgrade"], check=True)
    assert GENERATED not in done.stdout
    assert GENERATED in done.stderr


def test_only_the_flavor_concerned(machine: Machine) -> None:
    """A second kernel comes; then the first one changes alone. A generator that is the same again is no reason."""
    machine.publish(generator(trigger=IDLE_TRIGGER), kernel_package(KERNEL, "virt"))
    assert GENERATED not in machine.commit("upgrade")
    said = machine.commit("add", "linux-virt")
    assert f"{BUILDING}virt: new kernel" in said
    assert f"{BUILDING}lts" not in said
    virt = machine.image("boot/initramfs-virt")
    machine.publish(kernel_package(NEWER))
    said = machine.commit("upgrade")
    assert f"{BUILDING}lts" in said
    assert f"{BUILDING}virt" not in said
    assert machine.image("boot/initramfs-virt") == virt
    assert machine.record()["kernels"] == {"lts": release_of(NEWER), "virt": release_of(KERNEL, "virt")}


def test_a_member_of_the_image_that_changed(machine: Machine) -> None:
    """Alpine itself would boot the old one for ever."""
    said = machine.commit("run", "--", "sh", "-c", TOUCH)
    assert f"{BUILDING}lts: members of the image changed: " in said
    assert "nlplug-findfs" in said


def test_a_proof_is_inherited_until_something_of_the_boot_changes(machine: Machine) -> None:
    machine.publish(*(Package(name, files={f"usr/{name}": File(b"x")}) for name in ("a", "b")), kernel_package(NEWER))
    machine.commit("add", "a")
    proved = machine.record()
    assert proved["proof"]["of"] == proved["id"]  # base was foreign, so nobody had proved it
    machine.commit("add", "b")
    heir = machine.record()
    assert heir["proof"] == proved["proof"]
    assert heir["initramfs"] == proved["initramfs"]
    assert heir["kernels"] == proved["kernels"]
    machine.commit("upgrade")
    assert machine.record()["proof"]["of"] == machine.record()["id"]


def test_an_inherited_proof_still_looks_at_the_fstab(machine: Machine) -> None:
    machine.publish(Package("a", files={"usr/a": File(b"x")}))
    machine.commit("add", "a")
    said = machine.refused("run", "--", "sh", "-c", "echo '/dev/sda1 / ext4 rw 0 0' > /etc/fstab", status=104)
    assert "etc/fstab" in said


def test_what_breaks_a_link_to_what_init_needs_is_not_inherited(machine: Machine) -> None:
    init = bootfiles.elf("/lib64/ld-link.so")
    files: dict[str, Entry] = {"usr/init": File(init, 0o755), "lib64/ld-link.so": Symlink("ld-real.so"),
                               "lib64/ld-real.so": File(bootfiles.elf(), 0o755)}  # fmt: skip
    machine.publish(Package("init", files=files))
    machine.commit("add", "init")
    machine.commit("run", "--", "ln", "-sf", "/usr/init", "/sbin/init")
    said = machine.refused("run", "--", "rm", "/lib64/ld-link.so", status=104)
    assert "/lib64/ld-link.so, which usr/init needs, is missing" in said


SCRIPTS = {
    "dracut": ("usr/bin/dracut", 'exec mkinitfs -o "$2" "$3"'),
    "booster": ("usr/bin/booster", 'exec mkinitfs -o "$5" "$4"'),
    "configured": ("usr/local/bin/mkimage", 'exec mkinitfs -o "$2" "$1"'),
}


@pytest.mark.parametrize("kind", SCRIPTS)
def test_the_generator_that_the_configuration_wants(machine: Machine, kind: str) -> None:
    path, script = SCRIPTS[kind]
    wanted = '["/usr/local/bin/mkimage", "{release}", "{output}"]' if kind == "configured" else f'"{kind}"'

    def configure(root: Path) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f"#!/bin/sh\necho {kind} is at work\n{script}\n")
        (root / path).chmod(0o755)
        (root / "etc/apk-atomic").mkdir(exist_ok=True)
        (root / "etc/apk-atomic/apk-atomic.toml").write_text(f"[initramfs]\ngenerator = {wanted}\n")

    machine.volume.add_generation("20250101000000abcdefgh", configure)
    machine.volume.point("20250101000000abcdefgh", FIRST, name="20250101000001abcdefgh")
    machine.guest.reboot()
    machine.publish(generator(trigger=IDLE_TRIGGER), kernel_package(NEWER))
    said = machine.commit("upgrade")
    assert said.count(f"{kind} is at work") == 1
    image = machine.record()["initramfs"][0]
    assert (image["generator"], image["path"], image["release"]) == (kind, "boot/initramfs-lts", release_of(NEWER))


def test_every_flavor_is_a_kernel(machine: Machine) -> None:
    """Several come at once, one of them a Raspberry Pi's, whose image is a gzip'd Image."""
    rpi = kernel_package(KERNEL, "rpi")
    packed = File(gzip.compress(bootfiles.arm64_image(release_of(KERNEL, "rpi")), mtime=0))
    rpi = replace(rpi, files={**rpi.files, "boot/vmlinuz-rpi": packed})
    machine.publish(*(kernel_package(KERNEL, name) for name in ("virt", "stable")), rpi)
    said = machine.commit("add", "linux-virt", "linux-stable", "linux-rpi")
    assert said.count(GENERATED) == 3
    assert machine.record()["kernels"] == {name: release_of(KERNEL, name) for name in ("lts", "rpi", "stable", "virt")}
    assert "boot/vmlinuz-rpi is no EFI program" in said


def test_the_driver_of_this_disk(machine: Machine) -> None:
    """A loop device has none, so this one gets one, in the guest's /sys."""
    name = Path(machine.volume.device).name
    driven = "devices/virtio0/block"
    script = f"""\
mkdir -p /tmp/sys/{driven}/{name} /tmp/sys/drivers/virtio_blk /tmp/sys/module/virtio_blk /tmp/block
ln -s /tmp/sys/drivers/virtio_blk /tmp/sys/devices/virtio0/driver
ln -s /tmp/sys/module/virtio_blk /tmp/sys/drivers/virtio_blk/module
ln -s /tmp/sys/{driven}/{name} /tmp/block/{name}
mount --bind /tmp/block /sys/class/block"""
    machine.guest.run(["/bin/sh", "-ec", script], check=True)
    machine.publish(kernel_package(NEWER))
    assert "warning" not in machine.commit("upgrade")
    machine.publish(generator(altered(f'rm {COPIED}/kernel/drivers/block/virtio_blk.ko.gz"')))
    said = machine.commit("upgrade")
    assert "boot/initramfs-lts holds no virtio_blk module, which this disk needs" in said
    assert machine.guest.run(["apk-atomic", "prove"], check=True).stdout.startswith("warning  initramfs-no-driver: ")


def test_a_root_without_a_kernel_is_allowed_and_named(volume: Volume) -> None:
    volume.repo.publish(Package("a", files={"usr/a": File(b"x")}))
    done = volume.boot().run(["apk-atomic", "add", "a"], check=True)
    assert "no kernel: this root cannot boot by itself" in done.stderr


# ---- refused -----------------------------------------------------------------------------------------------

COPIED = '"$tree/usr/lib/modules/$release'


def altered(line: str) -> str:
    """The generator with a line more, between its collecting of files and its packing of them."""
    packing = 'rm -f "$image"\n'
    assert GENERATOR.read_text().count(packing) == 1
    return GENERATOR.read_text().replace(packing, f"{line}\n{packing}")


LIES = {
    "no btrfs": altered(f'rm {COPIED}/{bootfiles.BTRFS}.gz"'),
    "another kernel": altered(f'mv {COPIED}" "$tree/usr/lib/modules/{release_of("6.1.1-r0")}"'),
    "cut short": GENERATOR.read_text() + 'truncate -s 1000 "$image"\n',
    "empty": GENERATOR.read_text() + ': > "$image"\n',
    "garbage": GENERATOR.read_text() + 'echo "no image" > "$image"\n',
    "nothing": "#!/bin/sh\nexit 0\n",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_generator_that_lies(steady: Machine, lie: str) -> None:
    """It exits with 0, whether the trigger calls it or we do."""
    steady.publish(generator(LIES[lie]), kernel_package(NEWER))
    said = steady.refused("upgrade", status=105)
    assert "would not boot: boot/initramfs-lts" in said or "initramfs" in said
    assert "generator" in said


def test_a_generator_that_fails(steady: Machine) -> None:
    script = "#!/bin/sh\necho no room >&2\nexit 3\n"
    steady.publish(generator(script, trigger=IDLE_TRIGGER), kernel_package(NEWER))
    said = steady.refused("upgrade", status=105)
    assert f"/sbin/mkinitfs failed with exit status 3 for kernel {release_of(NEWER)}" in said
    assert "no room" in said


TOUCH = "printf changed >> /sbin/nlplug-findfs"


@pytest.mark.parametrize("lie", ["#!/bin/sh\nexit 0\n", '#!/bin/sh\nexec mkinitfs.real -o "/boot/initramfs-$3" "$3"\n'])
def test_a_generator_that_leaves_the_old_image_there(steady: Machine, lie: str) -> None:
    """The old one would pass the proof, and no later change would find it out of date."""
    script = f"mv /sbin/mkinitfs /sbin/mkinitfs.real; printf '%s' '{lie}' > /sbin/mkinitfs; chmod 755 /sbin/mkinitfs"
    said = steady.refused("run", "--", "sh", "-c", f"{script}; {TOUCH}", status=105)
    assert "did not write boot/initramfs-lts" in said


def test_a_generator_that_gives_the_old_image_again(steady: Machine) -> None:
    lie = '#!/bin/sh\ncp "$2" /tmp/old && rm "$2" && cp /tmp/old "$2"\n'
    script = f"printf '%s' '{lie}' > /sbin/mkinitfs"
    said = steady.refused("run", "--", "sh", "-c", f"{script}; {TOUCH}", status=105)
    assert "boot/initramfs-lts with the old usr/sbin/nlplug-findfs" in said


def test_an_image_that_a_package_spoils(steady: Machine) -> None:
    steady.publish(Package("spoiler", scripts={"post-install": "#!/bin/sh\necho x > /boot/initramfs-lts\n"}))
    assert "boot/initramfs-lts" in steady.refused("add", "spoiler", status=104)


def test_a_kernel_that_is_cut_short(steady: Machine) -> None:
    line = "truncate -s 2000 /boot/vmlinuz-lts"
    assert "boot/vmlinuz-lts" in steady.refused("run", "--", "sh", "-c", line, status=104)


def test_the_last_kernel_stays_unless_it_is_said_so(machine: Machine) -> None:
    said = machine.refused("del", "linux-lts", status=104)
    assert "boot/vmlinuz-lts is gone" in said
    assert "apk-atomic boot-config --install --kernel FLAVOR" in said and "allow_removed_kernel" in said

    def allow(root: Path) -> None:
        (root / "etc/apk-atomic").mkdir(exist_ok=True)
        (root / "etc/apk-atomic/apk-atomic.toml").write_text("[proof]\nallow_removed_kernel = true\n")

    machine.volume.add_generation("20250101000000abcdefgh", allow)
    machine.volume.point("20250101000000abcdefgh", FIRST, name="20250101000001abcdefgh")
    machine.guest.reboot()
    machine.commit("del", "linux-lts")
    assert machine.record()["kernels"] == {}


def test_init_may_not_go(steady: Machine) -> None:
    assert "sbin/init" in steady.refused("run", "--", "rm", "/sbin/init", status=104)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (": > /sbin/openrc", "sbin/openrc is no ELF file (etc/inittab runs it)"),
        ("echo '# nothing' > /etc/inittab", "etc/inittab has no line for sysinit"),
        ("rm -rf /etc/init.d/*", "all of etc/runlevels/sysinit leads nowhere"),
        ("rm -rf /etc/init.d", "all of etc/runlevels/boot leads nowhere"),
    ],
)
def test_what_init_starts_may_not_go(steady: Machine, line: str, says: str) -> None:
    assert says in steady.refused("run", "--", "sh", "-c", line, status=104)


def test_what_init_starts_may_not_go_where_a_proof_is_inherited(machine: Machine) -> None:
    machine.publish(Package("a", files={"usr/a": File(b"x")}))
    machine.commit("add", "a")
    for line in (": > /sbin/openrc", "rm -rf /etc/init.d/*"):
        machine.refused("run", "--", "sh", "-c", line, status=104)


def test_microcode_that_the_menu_may_name_may_not_go(machine: Machine) -> None:
    """Without a state/boot.json whatever was there may be named; with one, what it names."""
    machine.publish(UCODE)
    machine.commit("add", "intel-ucode")
    assert "boot/intel-ucode.img is gone" in machine.refused("del", "intel-ucode", status=104)
    state = machine.volume.top / "state"
    state.mkdir()
    names = ["boot/vmlinuz-lts", "boot/initramfs-lts"]
    (state / "boot.json").write_text(json.dumps({"paths": names}))
    machine.publish(Package("a", files={"boot/a": File(b"x")}))
    assert "the boot menu does not load boot/intel-ucode.img" in machine.commit("add", "a")
    machine.commit("del", "intel-ucode")
    assert "intel-ucode.img" not in "".join(machine.record()["proof"]["inputs"])
    (state / "boot.json").write_text(json.dumps({"paths": [*names, "boot/dtb"]}))
    machine.publish(Package("b", files={"usr/b": File(b"x")}))
    assert "boot/dtb" in machine.refused("add", "b", status=104)


def test_the_kernel_that_the_menu_names(machine: Machine) -> None:
    machine.publish(kernel_package(KERNEL, "virt"))
    machine.commit("add", "linux-virt")
    (machine.volume.top / "state").mkdir()
    (machine.volume.top / "state/boot.json").write_text('{"paths": ["boot/vmlinuz-lts", "boot/initramfs-lts"]}')
    said = machine.refused("del", "linux-lts", status=104)
    assert "apk-atomic boot-config --install --kernel virt" in said
    assert "allow_removed_kernel" not in said


def test_images_that_are_left_to_others(machine: Machine) -> None:
    machine.publish(generator(trigger=IDLE_TRIGGER))
    machine.commit("upgrade")
    machine.commit("run", "--", "sh", "-c", "echo disable_trigger=yes >> /etc/mkinitfs/mkinitfs.conf")
    machine.publish(kernel_package(NEWER))
    assert "disable_trigger=yes in /etc/mkinitfs/mkinitfs.conf" in machine.refused("upgrade", status=104)


def test_an_inherited_proof_still_looks_for_file_systems(machine: Machine) -> None:
    machine.publish(*(Package(name, files={f"usr/{name}": File(b"x")}) for name in ("a", "b")))
    assert "12345678-" not in machine.commit("add", "a")
    template = machine.volume.top / "fstab"
    template.write_text(template.read_text() + "UUID=12345678-dead-beef-dead-123456789abc /mnt ext4 ro 0 0\n")
    proved = machine.record()["proof"]
    assert "there is no file system UUID=12345678-dead-beef" in machine.commit("add", "b")
    assert machine.record()["proof"] == proved
    found = machine.guest.run(["apk-atomic", "doctor"])
    assert "the fstab template names UUID=12345678-dead-beef" in found.stdout


@pytest.mark.parametrize("damage", ["{", "[]", '{"paths": 1}', '{"paths": null}', "[" * 100_000])
def test_a_menu_file_that_is_damaged_is_as_if_there_were_none(steady: Machine, damage: str) -> None:
    (steady.volume.top / "state").mkdir(exist_ok=True)
    (steady.volume.top / "state/boot.json").write_text(damage)
    try:
        assert "boot/vmlinuz-lts is gone" in steady.refused("del", "linux-lts", status=104)
    finally:
        (steady.volume.top / "state/boot.json").unlink()


def test_a_ctrl_c_ends_the_proof_in_the_middle_of_an_image(machine: Machine) -> None:
    """Base's decompressor sends it, and then waits for ever."""
    waiting = File(b"#!/bin/sh\nkill -INT $PPID\nexec sleep 1000\n", 0o755)
    image = bootfiles.initramfs_image(release_of(KERNEL), compression="lz4")
    machine.publish(Package("lz4", files={"usr/bin/lz4": waiting, "usr/share/image": File(image)}))
    machine.commit("add", "lz4")
    said = machine.refused("run", "--", "cp", "/usr/share/image", "/boot/initramfs-lts", status=130)
    assert "interrupted by SIGINT" in said


@pytest.mark.parametrize("menu", [{"paths": ["boot/\ud800"]}, {"paths": ["boot/\0"]},
                                  {"paths": ["boot/vmlinuz-lts"], "append": "init=/\ud800"}])  # fmt: skip
def test_a_menu_that_names_what_no_file_can_be_called(steady: Machine, menu: dict[str, Any]) -> None:
    """It is missing, then: nothing would boot."""
    (steady.volume.top / "state").mkdir(exist_ok=True)
    (steady.volume.top / "state/boot.json").write_text(json.dumps(menu))
    try:
        steady.refused("run", "--", "touch", "/usr/x", status=104)
        done = steady.guest.run(["apk-atomic", "prove"])
        assert (done.status, "Traceback" in done.stderr) == (104, False), done.stdout + done.stderr
    finally:
        (steady.volume.top / "state/boot.json").unlink()


# ---- zstd --------------------------------------------------------------------------------------------------


def zstd_package() -> Package:
    """This machine's zstd with the libraries that a small root does not have."""
    assert ZSTD is not None
    files: dict[str, Entry] = {"usr/bin/zstd": File(Path(ZSTD).read_bytes(), 0o755)}
    for library in needed_libraries(Path(ZSTD)):
        if not library.name.startswith(("ld-", "libc.", "libc-")):
            files[str(library).lstrip("/")] = File(library.resolve().read_bytes(), 0o755)
    return Package("zstd", files=files)


ZSTD_GENERATOR = GENERATOR.read_text().replace("gzip -1 <", "zstd -1 -q -c <")
def test_generator_that_cannot_run(machine: Machine) -> None:
    """The program is there, but not the interpreter of its script: no fault of the proof's."""
    said = machine.refused("run", "--", "sh", "-c", "sed -i '1s|.*|#!/nowhere|' /sbin/mkinitfs", status=105)
    assert "cannot execute /sbin/mkinitfs" in said


needs_zstd = pytest.mark.skipif(ZSTD is None or not MINE_ZSTD, reason="needs zstd, and a Python without it")


@needs_zstd
def test_zstd_by_the_program_of_base(machine: Machine) -> None:
    machine.publish(zstd_package(), generator(ZSTD_GENERATOR, depends=("zstd",)))
    machine.commit("add", "zstd")
    machine.publish(kernel_package(NEWER))
    said = machine.commit("upgrade")
    assert BUILDING not in said
    assert machine.image()[:4] == b"\x28\xb5\x2f\xfd"
    assert machine.record()["initramfs"][0]["release"] == release_of(NEWER)


@needs_zstd
def test_zstd_that_base_lacks_is_asked_for(machine: Machine) -> None:
    """What the change itself brings is not trusted with it: the package comes first."""
    machine.publish(zstd_package(), generator(ZSTD_GENERATOR, depends=("zstd",)), kernel_package(NEWER))
    said = machine.refused("upgrade", status=104)
    assert "boot/initramfs-lts cannot be unpacked: the base has no zstd; add the package zstd" in said
    machine.commit("add", "zstd")
    machine.commit("upgrade")


@needs_zstd
def test_zstd_that_is_damaged(machine: Machine) -> None:
    script = ZSTD_GENERATOR + 'truncate -s $(($(stat -c %s "$image") - 100)) "$image"\n'
    machine.publish(zstd_package(), generator(script, depends=("zstd",)))
    machine.commit("add", "zstd")
    machine.publish(kernel_package(NEWER))
    assert "initramfs-lts" in machine.refused("upgrade", status=105)
