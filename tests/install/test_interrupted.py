"""`init` that fails, is killed or interrupted: what it says, that nothing stays attached, that the next run goes on."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from itertools import cycle
from pathlib import Path

import pytest

from tests.install.disks import make_refind
from tests.install.lab import PROGRAM, PROJECT, SMALL, Lab, Said, is_unfinished, released
from tests.support.keys import make_key_pair
from tests.support.packages import Package

# Every point of faults.POINTS that init passes, in its order.
POINTS = (
    "locked", "mounted", "recovered", "journal", "changed", "proved", "links", "laid-out", "sealed", "checked",
    "pending", "renamed", "unstaged", "unlocked",
)  # fmt: skip
GREEDY = "#!/bin/sh\nexec head -c 600M /dev/zero >/usr/greedy\n"


def require_end(lab: Lab, said: Said, *statuses: int) -> None:
    """It ended like that, told what the disk is now, and left nothing; SIGKILL leaves no time to tell."""
    assert said.status in statuses, said
    released(lab)
    assert "Traceback" not in said.stderr
    if said.status != -signal.SIGKILL:
        assert "holds an unfinished system" in said.stderr and "error: " in said.stderr, said


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (("--package", "nowhere"), 1, "the volume holds no system"),
        (("--package", "broken"), 1, "scripts of broken failed"),
        (("--kernel", "virt"), 104, "would not boot"),
        (("--package", "greedy"), 1, "scripts of greedy failed"),
    ],
    ids=("no such package", "broken script", "damaged kernel", "a full volume"),
)
def test_a_failure_is_said_and_the_next_run_starts_clean(
    lab: Lab, words: tuple[str, ...], status: int, says: str
) -> None:
    lab.repository.publish(Package("greedy", scripts={"post-install": GREEDY}))
    said = lab.init(*SMALL, *words)
    require_end(lab, said, status)
    assert says in said.stderr
    assert is_unfinished(lab)
    again = lab.init("--esp-size", "40M", "--kernel", "none")
    assert again.status == 0, again.stderr
    assert not is_unfinished(lab)


def test_no_point_at_which_it_dies_hinders_the_next_run(lab: Lab) -> None:
    """Killed, interrupted, or refused by a full or failing disk: at each point in turn. None needs --force."""
    endings = cycle((("kill", -signal.SIGKILL), ("int", 130), ("full", 103), ("term", 143), ("fail", 104)))
    for point, (action, status) in zip(POINTS, endings, strict=False):
        said = lab.init(*SMALL, "--kernel", "none", APK_ATOMIC_FAULT=f"{point}:{action}")
        require_end(lab, said, status, *((104,) if action == "full" else ()))
        assert is_unfinished(lab)
    last = lab.init(*SMALL)
    assert last.status == 0, last.stderr
    assert not is_unfinished(lab)


@pytest.mark.parametrize("tool", ["mkfs.btrfs", "mkfs.vfat", "mkswap", "mcopy", "sfdisk"])
def test_a_kill_while_a_tool_works(lab: Lab, tool: str) -> None:
    """sfdisk at the end, when it gives the volume its name: before, there is a disk with nothing on it."""
    real = shutil.which(tool)
    when = '*--part-label*' if tool == "sfdisk" else "*"
    script = f'case "$*" in {when}) kill -9 $PPID; exit 1 ;; esac\nexec {real} "$@"'
    said = lab.init(*SMALL, "--swap", "16M", PATH=lab.tool(tool, script))
    if tool == "mcopy" and said.status == 0:
        pytest.skip("this kernel mounts a FAT by itself")
    require_end(lab, said, -signal.SIGKILL)
    assert is_unfinished(lab)
    again = lab.init(*SMALL)
    assert again.status == 0, again.stderr


def test_a_tool_that_fails(lab: Lab) -> None:
    for tool in ("sfdisk", "mkfs.btrfs", "mkfs.vfat"):
        said = lab.init(*SMALL, PATH=lab.tool(tool, "echo cannot >&2; exit 3"))
        require_end(lab, said, 104)
        assert f"{tool} failed with exit status 3: cannot" in said.stderr


@pytest.mark.parametrize(
    ("signals", "status"),
    [((signal.SIGINT, signal.SIGTERM), 130), ((signal.SIGHUP,), 129), ((signal.SIGKILL,), -signal.SIGKILL)],
    ids=("ctrl-c", "hangup", "kill"),
)
def test_what_ends_init_ends_apk_too(lab: Lab, signals: tuple[signal.Signals, ...], status: int) -> None:
    """A second signal ends the patience with apk."""
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
        for number in signals:
            process.send_signal(number)
        said += process.communicate(timeout=60)[1]
    require_end(lab, Said(process.returncode, "", said), status)


def test_a_repository_that_is_gone(lab: Lab) -> None:
    words = [f"{lab.place}/nowhere" if word == f"{lab.place}/repo" else word for word in lab.words("--yes", *SMALL)]
    said = lab.run(words)
    assert said.status != 0 and "the volume holds no system" in said.stderr, said
    require_end(lab, said, said.status)


@pytest.mark.real_apk
def test_keys_that_did_not_sign_the_repository(lab: Lab) -> None:
    (lab.place / "others").mkdir()
    (lab.place / "none").mkdir()
    make_key_pair(lab.place / "others", "other.rsa.pub")
    said = lab.init(*SMALL, "--kernel", "none", "--keys-dir", str(lab.place / "others"))
    assert said.status != 0 and "UNTRUSTED" in said.stderr, said
    require_end(lab, said, said.status)
    trusting = ["--keys-dir", str(lab.place / "none"), "--allow-untrusted"]
    said = lab.init(*SMALL, "--kernel", "none", *trusting)
    assert said.status == 0, said.stderr


def test_an_esp_that_is_too_small_for_the_loader(lab: Lab) -> None:
    make_refind(lab.place / "large", version="0" * (45 << 20))
    said = lab.init(*SMALL, "--refind", str(lab.place / "large"))
    assert said.status != 0 and "cannot be written to the ESP" in said.stderr, said
    require_end(lab, said, said.status)


@pytest.mark.parametrize("size", ["1M", "4M", "8M"])
def test_a_file_system_that_is_too_small_for_the_image(lab: Lab, size: str) -> None:
    """The image is sparse, and what it lies on fills up: to the new volume, or to mkfs, that is a disk which fails."""
    small = lab.place / "small"
    small.mkdir(exist_ok=True)
    image = small / "disk.img"
    said = lab.run(lab.words("--yes", *SMALL, target=str(image)), before=f"mount -t tmpfs -o size={size} none {small}")
    assert (said.status, f"the file system at {small} is full, where {image} lies" in said.stderr) == (103, True), said
    assert "holds an unfinished system" in said.stderr and "Traceback" not in said.stderr, said
    assert str(image) not in Path("/proc/self/mountinfo").read_text()
