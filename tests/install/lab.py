"""A place with all that `init` needs, in which it runs as a process of its own; and what can be asked of its disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE

from apk_atomic import loop
from apk_atomic.partition import UNFINISHED
from tests.install.disks import KERNEL, MIB, make_refind, publish
from tests.support import engine
from tests.support.apks import which_apk
from tests.support.blockdev import mount_btrfs, unmount
from tests.support.bootpackages import kernel_package
from tests.support.imagecache import scratch_directory
from tests.support.packages import File, Package

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

    def run(self, words: Sequence[str], *, input: str = "", before: str = "", **environment: str) -> Said:
        """`before` is done first, in a mount namespace for the two."""
        argv = [sys.executable, "-c", PROGRAM, *words]
        if before:
            argv = ["unshare", "--mount", "sh", "-euc", f'{before}\nexec "$@"', "sh", *argv]
        done = subprocess.run(
            argv, input=input, env={**os.environ, **environment}, cwd=PROJECT,
            text=True, capture_output=True, timeout=120, check=False,
        )  # fmt: skip
        return Said(done.returncode, done.stdout, done.stderr)

    def answer_late(self, happens: Callable[[], object], *words: str) -> Said:
        """`happens` while init waits for the answer, which is yes."""
        argv = [sys.executable, "-c", PROGRAM, *self.words(*words)]
        with subprocess.Popen(argv, cwd=PROJECT, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True) as process:
            assert process.stderr is not None
            while "Type yes" not in (line := process.stderr.readline()):
                assert line
            happens()
            stdout, stderr = process.communicate("yes\n", timeout=120)
        return Said(process.returncode, stdout, stderr)

    def tool(self, name: str, script: str) -> str:
        """A PATH on which `script` is found in the place of a program."""
        place = self.place / f"{name}.d"
        place.mkdir(exist_ok=True)
        (place / name).write_text(f"#!/bin/sh\n{script}\n")
        (place / name).chmod(0o755)
        return f"{place}:{os.environ['PATH']}"

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


@contextmanager
def make_lab() -> Iterator[Lab]:
    """A lab with a /run of its own, gone afterwards."""
    with ExitStack() as stack:
        place = stack.enter_context(scratch_directory("apk-atomic-install-"))
        stack.enter_context(engine.own_run())
        yield Lab(place)


def is_unfinished(lab: Lab) -> bool:
    return UNFINISHED in subprocess.check_output(["sfdisk", "--dump", lab.image], text=True)


def released(lab: Lab) -> None:
    """The kernel lets go when the last process is gone, and that may be a moment after its parent."""
    deadline = time.monotonic() + 20
    while not lab.nothing_is_left() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert lab.nothing_is_left()
