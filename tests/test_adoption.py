"""What is decided about an old system, from facts: tables, no volume."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from apk_atomic import adoptreport, fstab, oldfstab
from apk_atomic.adoption import Choices, OldSystem, Plan, decide
from apk_atomic.bootmenu import Loader
from apk_atomic.oldfstab import Separate, Volume, convert

FSID = "11111111-2222-3333-4444-555555555555"
ROOT = f"UUID={FSID} / btrfs rw,relatime,compress=zstd:3,space_cache=v2,subvolid=5,subvol=/ 0 1"
ESP = "UUID=ABCD-1234 /boot/efi vfat rw,relatime 0 2"
COMMONS = ("@home", "@var@cache", "@var@log")
NAMES = frozenset({f"UUID={FSID}", "LABEL=ROOT"})
OURS = Volume(FSID, NAMES)
FACTS = OldSystem(
    device="/dev/vda2", fsid=FSID, fstab=f"{ROOT}\n{ESP}\n", names=NAMES, esp="UUID=ABCD-1234", kernels=("lts",),
    cmdline="BOOT_IMAGE=/boot/vmlinuz-lts root=UUID=1 modules=sd-mod,btrfs quiet rootfstype=btrfs",
)  # fmt: skip
CHOICES = Choices(COMMONS)


def plan(choices: Choices = CHOICES, **facts: Any) -> Plan:
    return decide(replace(FACTS, **facts), choices)


def entries(text: str) -> dict[str, fstab.Entry]:
    return {entry.mountpoint: entry for entry in fstab.parse(text)}


# ---- the fstab template ----------------------------------------------------------------------------------


def test_the_template_of_what_setup_disk_makes() -> None:
    swap, cdrom = "UUID=77 swap swap defaults 0 0", "/dev/cdrom\t/media/cdrom\tiso9660\tnoauto,ro 0 0"
    text = f"# mine\n{ROOT}\n{ESP}\n{swap}\n{cdrom}\ntmpfs\t/tmp\ttmpfs\tnosuid 0 0\n"
    found = convert(text, OURS, COMMONS, swap=False)
    assert found.text.splitlines() == [
        f"UUID={FSID} / btrfs ro,noatime,compress=zstd:3,space_cache=v2,subvol=CURRENT_SNAPSHOTS_PATH/@ 0 0",
        f"UUID={FSID} /home btrfs rw,noatime,subvol=/commons/@home 0 0",
        f"UUID={FSID} /var/cache btrfs rw,noatime,subvol=/commons/@var@cache 0 0",
        f"UUID={FSID} /var/log btrfs rw,noatime,subvol=/commons/@var@log 0 0",
        "# mine", ESP, swap, cdrom, "tmpfs\t/tmp\ttmpfs\tnosuid 0 0",
    ]  # fmt: skip
    assert (found.commons, found.shared, found.separate, found.problems) == (COMMONS, (), None, ())


def test_an_fstab_that_is_empty() -> None:
    found = entries(convert("", replace(OURS, esp="UUID=ABCD-1234"), (), swap=False).text)
    assert set(found) == {"/", "/tmp", "/boot/efi"}
    assert "noauto" in found["/boot/efi"].options


@pytest.mark.parametrize(
    ("line", "kept", "shared"),
    [
        ("/dev/sdb1 /home ext4 defaults 0 2", ("@var@cache", "@var@log"), ("/home",)),
        ("LABEL=ROOT /home btrfs subvol=@home 0 0", ("@var@cache", "@var@log"), ("/home",)),
        ("/dev/sdb1 /var/ ext4 defaults 0 2", ("@home",), ()),
        ("/dev/sdb1 /var/lo ext4 defaults 0 2", COMMONS, ()),
        ("/dev/sdb1 /home/data ext4 defaults 0 2", COMMONS, ()),
    ],
)
def test_what_is_mounted_already_is_no_common(line: str, kept: tuple[str, ...], shared: tuple[str, ...]) -> None:
    found = convert(f"{ROOT}\n{line}\n", OURS, COMMONS, swap=False)
    assert (found.commons, found.shared) == (kept, shared)
    assert line in found.text.splitlines()


@pytest.mark.parametrize(
    ("options", "after"),
    [
        ("rw,subvolid=257,subvol=/@home", "rw,subvol=/@home"),
        ("subvol=@home", "subvol=@home"),
        ("subvolid=5", "subvol=/"),
        ("subvolid=0,noatime", "noatime,subvol=/"),
    ],
)
def test_other_subvolumes_are_found_by_path_alone(options: str, after: str) -> None:
    found = convert(f"{ROOT}\nLABEL=ROOT /mnt/my\\040data btrfs {options} 0 2\n", OURS, COMMONS, swap=False)
    assert f"LABEL=ROOT /mnt/my\\040data btrfs {after} 0 0" in found.text.splitlines()
    assert not found.problems


def test_a_subvolume_of_another_volume_is_not_ours_to_change() -> None:
    line = "UUID=99 /srv btrfs subvolid=300 0 2"
    found = convert(f"{ROOT}\n{line}\n", OURS, COMMONS, swap=False)
    assert line in found.text.splitlines() and not found.problems


def test_what_cannot_be_converted() -> None:
    text = f"{ROOT}\n{ROOT}\nLABEL=ROOT /srv btrfs subvolid=300 0 0\nhalf a\n"
    found = convert(text, OURS, COMMONS, swap=False)
    assert found.problems == (
        "etc/fstab names /srv by subvolid=300 alone: write subvol=PATH there",
        "etc/fstab has more than one line for /: leave one",
    )
    assert found.warnings == ("etc/fstab, line 4: half a: not understood, and kept",)
    assert "half a" in found.text.splitlines()


@pytest.mark.parametrize("point", ["/boot", "/boot/", "//boot/."])
def test_a_boot_of_its_own_goes(point: str) -> None:
    found = convert(f"{ROOT}\nUUID=b {point} ext4 rw 0 2\n{ESP}\n", replace(OURS, esp="UUID=ABCD-1234"), (), swap=False)
    assert found.separate == Separate("UUID=b", "ext4", ("rw",))
    assert point not in entries(found.text) and found.text.count("ABCD-1234") == 1


def test_an_esp_at_boot_moves() -> None:
    text = f"{ROOT}\nUUID=ABCD-1234 /boot vfat rw 0 2\n"
    found = convert(text, replace(OURS, esp="UUID=ABCD-1234"), (), swap=False)
    assert found.separate == Separate("UUID=ABCD-1234", "vfat", ("rw",))
    assert entries(found.text)["/boot/efi"].device == "UUID=ABCD-1234"


@pytest.mark.parametrize("swap", [False, True])
def test_swap_files_go_and_swap_partitions_stay(swap: bool) -> None:
    text = f"{ROOT}\n/swapfile none swap sw 0 0\n/dev/sda3 none swap sw 0 0\n"
    found = convert(text, replace(OURS, swap_files=frozenset({"/swapfile"})), (), swap=swap)
    lines = found.text.splitlines()
    assert "/dev/sda3 none swap sw 0 0" in lines and "/swapfile none swap sw 0 0" not in lines
    assert ("/swap/swapfile none swap sw 0 0" in lines, "/swap" in entries(found.text)) == (swap, swap)


def test_a_swap_file_needs_a_place() -> None:
    found = convert(f"{ROOT}\n/dev/sdb1 /swap ext4 rw 0 0\n", OURS, (), swap=True)
    assert found.problems == ("/swap, where the swap file would be, is a mount point of etc/fstab already",)


def test_lines_are_written_as_they_are_read() -> None:
    entry = fstab.Entry("/dev/a b", "/mnt/c\td\\e", "ext4", ("ro", "x=y"), 1, 2)
    assert fstab.parse(oldfstab.line_of(entry)) == (entry,)


# ---- what speaks against it ------------------------------------------------------------------------------


def test_a_plain_system_can_be_adopted() -> None:
    found = plan()
    assert (found.blockers, found.warnings, found.commons) == ((), (), COMMONS)
    assert (found.append, found.resume, found.at_top) == ("modules=sd-mod,btrfs quiet", "", True)


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"is_subvolume": False, "subvolume": "/@/root"}, "no subvolume"),
        ({"efi": False}, "BIOS"),
        ({"machine_known": False}, "no UEFI boot loader is known"),
        ({"devices": 2}, "2 devices"),
        ({"stack": "crypt"}, "encrypted (LUKS)"),
        ({"stack": "lvm"}, "on LVM"),
        ({"stack": "raid"}, "on RAID"),
        ({"stack": "mapper"}, "device mapper"),
        ({"default_subvolume": 257}, "set-default 5"),
        ({"checksum": "blake2b"}, "blake2b checksums"),
        ({"fstab": ROOT.replace("zstd:3", "lzo")}, "compress=lzo"),
        ({"fstab": f"{ROOT}\nLABEL=ROOT /srv btrfs subvol=srv,compress-force=lzo 0 0\n"}, "compress=lzo"),
        ({"options": ("rw", "compress=lzo", "subvol=/")}, "compress=lzo"),
        ({"cmdline": "quiet rootflags=subvol=@,compress=lzo"}, "compress=lzo"),
        ({"volume_name": ""}, "btrfs filesystem label"),
        ({"taken": ("snapshots",)}, "snapshots at the top level"),
        ({"swap_files": {"/swapfile": 1}, "swapping": frozenset({"/swapfile"})}, "--swap move"),
        ({"esp": ""}, "--esp DEVICE"),
        ({"mounted": frozenset({"/boot"})}, "write a line for it"),
        ({"kernels": ()}, "no kernel in /boot"),
        ({"fstab": f"{ROOT}\n{ROOT}"}, "more than one line for /"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_reason_against_it(facts: dict[str, Any], says: str) -> None:
    (reason,) = plan(**facts).blockers
    assert says in reason


def test_all_reasons_at_once() -> None:
    found = plan(efi=False, devices=3, stack="crypt", default_subvolume=256, esp="", kernels=())
    assert len(found.blockers) == 6


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("@etc",), "@etc is what each"),
        (("@usr",), "@usr is what each"),
        (("@lib64",), "@lib64 is what each"),
        (("@lib32",), "/lib32 is what each"),
        (("@lib@apk",), "/lib/apk is what each"),
        (("@usr@lib",), "/usr/lib is what each"),
        (("@etc@runlevels@default",), "/etc/runlevels/default is what each"),
        (("@run@x",), "/run/x is what each"),
        (("@",), "is not a name such as"),
        (("@..@etc",), "is not a name such as"),
        (("@var@@log",), "is not a name such as"),
        (("@var", "@var@log"), "common @var@log is in common @var"),
        (("@var@log", "@var"), "common @var@log is in common @var"),
    ],
)
def test_what_cannot_be_a_common(names: tuple[str, ...], says: str) -> None:
    for loader in Loader:
        (reason,) = plan(replace(CHOICES, commons=names, loader=loader)).blockers
        assert says in reason


def test_what_else_can_be_a_common() -> None:
    names = ("@usr@local", "@etc@wireguard", "@root", "@var@log", "@var@lo", "@swap")
    assert plan(replace(CHOICES, commons=names)).blockers == ()


@pytest.mark.parametrize("name", ["@swap", "@swap@old"])
def test_a_common_where_the_swap_file_goes(name: str) -> None:
    found = plan(replace(CHOICES, commons=(name,), swap="move"), swap_files={"/a": 1})
    assert f"common {name} is in common @swap" in found.blockers[0]


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"odd": frozenset({"/home"})}, "/home is a link, or no directory"),
        (
            {"nested": ("var",), "fstab": f"{ROOT}\nLABEL=ROOT /mnt btrfs subvol=/var 0 0\n"},
            "common @var@log is in subvolume /var",
        ),
        ({"nested": ("home",), "sealed": frozenset({"home"})}, "common @home is in subvolume /home"),
        ({"nested": ("var",)}, "common @var@cache is in subvolume /var"),
        ({"mounted": frozenset({"/", "/dev", "/home"})}, "something is mounted at /home that etc/fstab does not name"),
        ({"mounted": frozenset({"/var"})}, "what would be copied to /var/log is not"),
    ],
)
def test_places_that_are_not_what_they_seem(facts: dict[str, Any], says: str) -> None:
    assert any(says in reason for reason in plan(**facts).blockers)


def test_mounts_inside_a_common() -> None:
    mounted = frozenset({"/home/data", "/home/gvfs", "/homes"})
    found = plan(fstab=f"{ROOT}\n/dev/sdb1 /home/data/ ext4 rw 0 0\n", mounted=mounted, nested=("home",))
    (warning,) = found.warnings
    assert (found.blockers, warning.partition(": ")[2]) == ((), "/home/gvfs")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/data/home /home none bind 0 0", "mounts /data/home at /home"),
        ("/data/home/ /home none rw,rbind 0 0", "--common @data@home"),
        ("/data/disk.img /srv ext4 rw 0 0", "--common @data makes"),
        ("/data/disk.img /srv udf loop=/dev/loop3 0 0", "mounts /data/disk.img at /srv"),
        ("/data/home /home none bind,ro 0 0", ""),
        ("/home/user/www /srv/www none bind 0 0", ""),
        ("/media/disk/home /home none bind 0 0\n/dev/sdb1 /media/disk ext4 rw 0 0", ""),
        ("/run/x /srv none bind 0 0", ""),
        ("/dev/sdb1 /srv auto rw 0 0", ""),
        ("//server/share /srv cifs rw 0 0", ""),
        ("/mnt/a:/mnt/b /srv fuse.mergerfs rw 0 0", ""),
    ],
)
def test_lines_that_mount_what_is_in_the_root(line: str, says: str) -> None:
    found = plan(fstab=f"{ROOT}\n{line}\n").blockers
    assert len(found) == bool(says) and all(says in reason for reason in found)


@pytest.mark.parametrize(
    "facts", [{"checksum": "blake2b"}, {"fstab": ROOT.replace("zstd:3", "lzo")}, {"volume_name": ""}]
)
def test_what_stands_against_refind_does_not_against_grub(facts: dict[str, Any]) -> None:
    assert plan(replace(CHOICES, loader=Loader.GRUB), **facts).blockers == ()


def test_what_is_only_said_of_lzo() -> None:
    text = f"# once compress=lzo\n{ROOT}\n/dev/sdb1 /srv btrfs compress=lzo 0 0\n"
    assert plan(fstab=text, options=("rw", "compress=zstd:3")).blockers == ()


def test_at_shutdown_a_boot_of_its_own_cannot_be_looked_into() -> None:
    assert plan(kernels=None, fstab=f"{ROOT}\n/dev/vda3 /boot ext4 rw 0 0\n").blockers == ()


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"secure_boot": True}, "Secure Boot"),
        ({"cmdline": "quiet single init=/bin/sh"}, "the new command line: single init=/bin/sh;"),
        ({"has_apk_atomic": False}, "/usr/bin/apk-atomic"),
        ({"state_directories": ("var/lib/a", "var/lib/b")}, "(--common @var@lib@a): /var/lib/a, /var/lib/b"),
        ({"fstab": f"{ROOT}\nhalf a\n"}, "half a"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_each_warning(facts: dict[str, Any], says: str) -> None:
    (warning,) = plan(**facts).warnings
    assert says in warning


def test_state_that_is_in_a_common_is_no_reason_to_warn() -> None:
    assert plan(Choices(("@var@lib",)), state_directories=("var/lib/chrony",)).warnings == ()


# ---- swap, menu, subvolumes ------------------------------------------------------------------------------


@pytest.mark.parametrize(("swap", "size"), [("move", 7), ("drop", 0), ("", 0)])
def test_swap_files(swap: str, size: int) -> None:
    found = plan(replace(CHOICES, swap=swap), swap_files={"/a": 3, "/b": 7})
    assert (found.swap_files, found.swap_size, found.blockers) == (("/a", "/b"), size, ())


@pytest.mark.parametrize("swap", ["", "move", "drop"])
def test_a_swap_file_that_stays_where_it_is(swap: str) -> None:
    lines = ("LABEL=ROOT /swap btrfs subvol=@swap 0 0", "/swap/file none swap sw 0 0")
    found = plan(
        replace(CHOICES, swap=swap), swap_files={"/swap/file": 7}, swapping=frozenset({"/swap/file"}),
        fstab="\n".join((ROOT, *lines, "")), cmdline="resume=UUID=5 resume_offset=9",
    )  # fmt: skip
    assert (found.blockers, found.swap_files, found.swap_size) == ((), (), 0)
    assert set(lines) <= set(found.template.splitlines())
    assert (found.resume, found.append) == ("UUID=5", "resume_offset=9")


def test_no_swap_file_is_made_where_there_was_none() -> None:
    found = plan(replace(CHOICES, swap="move"))
    assert found.swap_size == 0 and "/swap" not in found.template


@pytest.mark.parametrize(
    ("cmdline", "append", "resume"),
    [
        ("", "", ""),
        ("ro root=LABEL=x rootflags=subvol=@ quiet resume=UUID=5 initrd=\\i panic=3", "quiet", "UUID=5"),
        ("quiet single S 1 s emergency rescue init=/bin/sh rdinit=/x break=nlplug nr=1", "quiet nr=1", ""),
        ("overlaytmpfs overlaytmpfs=y break quiet", "quiet", ""),
        ("console=ttyS0,115200 resume=/dev/a resume=/dev/b", "console=ttyS0,115200", "/dev/b"),
    ],
)
def test_words_of_the_command_line_go_on(cmdline: str, append: str, resume: str) -> None:
    found = plan(cmdline=cmdline)
    assert (found.append, found.resume) == (append, resume)


def test_a_swap_file_is_not_resumed_from_any_more() -> None:
    found = plan(cmdline="quiet resume=UUID=5 resume_offset=44", swap_files={"/swapfile": 1})
    assert (found.append, found.resume) == ("quiet", "")


def test_words_that_were_asked_for() -> None:
    assert plan(replace(CHOICES, append="")).append == ""


@pytest.mark.parametrize(
    ("subvolume", "path", "line", "fate"),
    [
        ("/", "home/alice", "", "copied"),
        ("/", "home/.snapshots/1", "", "left"),
        ("/", "var/lib/docker/btrfs/subvolumes/abc", "", "left"),
        ("/", "@data", "LABEL=ROOT /data btrfs subvol=@data 0 0", "mounted"),
        ("/", "data", "LABEL=ROOT /data auto defaults,subvol=data 0 0", "mounted"),
        ("/", "data", "/dev/disk/by-label/ROOT /data btrfs subvol=./data/ 0 0", "mounted"),
        ("/", "data", "LABEL=ROOT /data btrfs subvol=//data/inside 0 0", "mounted"),
        ("/", "home/alice", "LABEL=ROOT /home/alice btrfs subvol=home/alice 0 0", "mounted"),
        ("/@", "srv", "LABEL=ROOT /srv btrfs subvol=/@/srv 0 0", "mounted"),
        ("/@", "srv", "LABEL=ROOT /srv btrfs subvol=/srv 0 0", "left"),
    ],
)
def test_subvolumes_in_the_old_root(subvolume: str, path: str, line: str, fate: str) -> None:
    sealed = frozenset({"home/.snapshots/1"})
    found = plan(subvolume=subvolume, nested=(path,), sealed=sealed, fstab=f"{ROOT}\n{line}\n")
    assert [(each.path, each.fate) for each in found.nested] == [(path, fate)]


# ---- what stays behind -----------------------------------------------------------------------------------

NEVER = ("commons", "current", "fstab", "links", "next", "snapshots", "staging", "state")


def behind(found: Plan, *names: str, order: str = "0001") -> adoptreport.Behind:
    return adoptreport.stays_behind(found, "/dev/vda2", names, order)


def test_an_old_root_at_the_top_level() -> None:
    found = plan(fstab=f"{ROOT}\nLABEL=ROOT /data btrfs subvol=@data 0 0\n")
    said = behind(found, *sorted((*NEVER, "bin", "my files", "@data", "usr")))
    assert said.never == (*NEVER, "@data")
    assert said.removable == ("bin", "my files", "usr")
    assert said.commands == ("mount -o subvolid=5 /dev/vda2 /mnt", "cd /mnt && rm -rf -- bin 'my files' usr")


@pytest.mark.parametrize(
    "line",
    [
        "LABEL=ROOT /home auto defaults,subvol=home 0 0",
        "LABEL=ROOT /home btrfs subvol=./home 0 0",
        "LABEL=ROOT /home btrfs subvol=//home/./user/.. 0 0",
        "LABEL=ROOT /home btrfs,ext4 subvol=home/deep 0 0",
        "PARTUUID=5 /home auto subvol=/home 0 0",
    ],
)
def test_what_the_new_system_mounts_is_not_to_be_deleted(line: str) -> None:
    said = behind(plan(fstab=f"{ROOT}\n{line}\n"), "bin", "home")
    assert (said.removable, "home" in said.never) == (("bin",), True)


@pytest.mark.parametrize("path", ["data", "srv/data", "home/alice", ".snapshots/1/snapshot"])
def test_what_holds_a_subvolume_is_not_to_be_deleted(path: str) -> None:
    said = behind(plan(nested=(path,)), "bin", path.split("/")[0])
    assert said.removable == ("bin",)
    assert any(f"/{path}" in step for step in said.first)


def test_an_old_root_in_a_subvolume() -> None:
    found = plan(subvolume="/@", fstab=f"{ROOT}\nLABEL=ROOT /data btrfs subvol=@data 0 0\n")
    said = behind(found, *NEVER, "@", "@data")
    assert (said.removable, said.never) == (("@",), (*NEVER, "@data"))
    assert said.commands[1] == "btrfs subvolume delete /mnt/@"
    assert behind(plan(subvolume="/@", nested=("data",)), "@").removable == ()


def test_what_comes_before_any_deletion() -> None:
    lines = "LABEL=ROOT /srv btrfs subvol=srv 0 0\nLABEL=ROOT /all btrfs rw 0 0\nUUID=9 /other btrfs rw 0 0\n"
    found = plan(nested=("docker", "srv", "home/alice"), fstab=f"{ROOT}\n{lines}")
    steps = behind(found, order="0003,0001").first
    for step, words in zip(
        steps,
        ("efibootmgr --bootorder 0003,0001", "nowhere else: /docker", "keep them: /srv", "/home/alice", "through /all",
         "btrfs subvolume list"),
        strict=True,
    ):  # fmt: skip
        assert words in step
    assert found.whole == ("/all",)


def test_without_an_entry_of_the_firmware_deletion_has_to_wait() -> None:
    said = behind(plan(), "bin", order="")
    assert "boot-config --install has to end without a warning" in said.first[0]
    text = "\n".join(adoptreport.tell_behind(said))
    assert text.index("boot-config --install") < text.index("not before:") < text.index("rm -rf")


def test_what_else_stays_behind() -> None:
    found = plan(
        replace(CHOICES, swap="move"), swap_files={"/swapfile": 1}, nested=("var/lib/docker/x", "srv"),
        fstab=f"{ROOT}\nUUID=b /boot ext4 rw 0 2\nLABEL=ROOT /srv btrfs subvol=/srv 0 0\n",
    )  # fmt: skip
    text = "\n".join(adoptreport.tell_behind(behind(found)))
    for words in ("the old /boot (UUID=b)", "/swap/swapfile takes its place", "/var/lib/docker/x", "keep them: /srv"):
        assert words in text
    assert "srv" in behind(found).never


def test_the_plan_for_people_and_programs() -> None:
    choices = replace(CHOICES, swap="move")
    words = "quiet resume=UUID=5"
    found = plan(choices, swap_files={"/swapfile": 8 << 20}, nested=("home/a",), subvolume="/@", cmdline=words)
    text = "\n".join(adoptreport.describe(found, choices, "/dev/vda2"))
    shown = ("subvolume @ of /dev/vda2", "/home, /var/cache, /var/log", "/swap/swapfile, 8 MiB", "subvolume /home/a",
             "options   resume=UUID=5 quiet")  # fmt: skip
    for words in shown:
        assert words in text
    document = adoptreport.document(found, choices)
    assert (document["version"], document["nested"], document["fstab"]) == (1, {"home/a": "copied"}, found.template)
