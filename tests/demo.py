"""The main job, for real, for a reader at a terminal: `make demo`.

A btrfs image on a loop device with the layout of a real machine, a small root with apk, a kernel and a repository in
it, and the installed `apk-atomic` at work there. What is printed after a `#` is what was run, and below it is what it
said. Each step knows what was promised: the exit status is 1 when one is not kept. Nothing stays mounted or attached,
whatever happens.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.support.apks import which_apk
from tests.support.bootpackages import kernel_package, release_of
from tests.support.bootworld import KERNEL as OLD_KERNEL
from tests.support.bootworld import install_system
from tests.support.packages import File, Package
from tests.support.world import FIRST, Guest, Volume, make_volume

NEW_KERNEL = "6.12.2-r0"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LIMIT = 60.0  # seconds, for any one command
WIDTH = 100
STARTED = "var/log/hello.started"  # in commons, so that it is seen outside of the root of a change
FAILS = '#!/bin/sh\necho "hello: cannot convert its data"\nexit 1\n'
HANGS = f"#!/bin/sh\ntouch /{STARTED}\nexec sleep {LIMIT:.0f}\n"


class BrokenPromise(Exception):
    """A step did not do what the demo says that it does."""


class Show:
    """The machine on stage: runs what a user would type, prints what he would see, checks what was promised."""

    def __init__(self, volume: Volume, guest: Guest) -> None:
        self.volume = volume
        self.guest = guest
        self.steps = 0

    def title(self, text: str) -> None:
        self.steps += 1
        print(f"\n{self.steps}. {text}\n", flush=True)

    def why(self, text: str) -> None:
        print(textwrap.fill(" ".join(text.split()), WIDTH, initial_indent="   ", subsequent_indent="   "))
        print(flush=True)

    def run(self, line: str, *, status: int = 0, says: Sequence[str] = ()) -> None:
        """Run a line as root's shell would; BrokenPromise when the status or the words are not those promised."""
        process = self.start(line)
        try:
            output = process.communicate(timeout=LIMIT)[0].decode(errors="replace")
        finally:
            process.kill()
        ended = f"[exit status {process.returncode}]\n" if process.returncode else ""
        print(output + ended, flush=True)
        promise(process.returncode == status, f"{line}: exit status {process.returncode}, not {status}")
        for words in says:
            promise(words in output, f"{line}: does not say {words!r}")

    def start(self, line: str) -> subprocess.Popen[bytes]:
        print(f"# {line}", flush=True)
        command = ["/bin/sh", "-c", line]
        return self.guest.popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def reboot(self) -> None:
        print("# reboot\n", flush=True)
        self.guest.reboot()
        promise(self.guest.booted == self.volume.slots()[0], "the reboot does not lead to slot 0")

    def next_is(self, generations: int, *, booted: bool) -> None:
        """What is on disk: so many generations, and slot 0 is, or is not, what runs."""
        promise(len(self.volume.generations()) == generations, f"there are not {generations} generations")
        promise((self.volume.slots()[0] == self.guest.booted) == booted, "slot 0 is not as it was promised")
        staging = self.volume.top / "staging"
        promise(not staging.exists() or not list(staging.iterdir()), "something is left in staging/")


def promise(kept: bool, what: str) -> None:
    if not kept:
        raise BrokenPromise(what)


# ---- the play ----------------------------------------------------------------------------------------------


def sealed_root(show: Show) -> None:
    show.title("What runs is sealed")
    show.why("""The root is a read-only btrfs snapshot, a generation. Nothing can change it, so nothing can leave it
        half changed. Four slots lead to generations: slot 0 boots by default, the others are the fallbacks of the
        boot menu.""")
    show.run("touch /usr/bin/tool", status=1, says=["Read-only file system"])
    show.run("apk-atomic status", says=[f"{FIRST} is booted and boots next", release_of(OLD_KERNEL)])


def add(show: Show) -> None:
    show.title("Add a package: it runs after the reboot")
    show.why("""apk itself works, but in a fresh snapshot. When all went well that becomes the next generation by one
        rename. Until the reboot the running system stays exactly as it is.""")
    show.run("apk-atomic add hello", says=["Installing hello (1.0-r0)", "added hello-1.0-r0", "after the reboot"])
    show.run("hello", status=127)
    show.why("Queries look ahead, so that a script which adds a package and asks for it then gets what it expects.")
    show.run("apk-atomic info -e hello", says=["hello"])
    show.run("apk-atomic diff", says=["+ hello 1.0-r0"])
    show.next_is(2, booted=False)
    show.reboot()
    show.run("hello", says=["hello, this is 1.0"])


def upgrade(show: Show) -> None:
    show.volume.repo.publish(hello("2.0-r0"), kernel_package(NEW_KERNEL))
    show.title("Upgrade everything, the kernel too")
    show.why("""Kernel, modules and initramfs are parts of the generation: they change together with the rest, and
        only at the reboot. The running kernel keeps its modules meanwhile.""")
    kernels = f"linux-lts {OLD_KERNEL} -> {NEW_KERNEL}"
    show.run("apk-atomic upgrade", says=[f"upgraded hello 1.0-r0 -> 2.0-r0, upgraded {kernels}", "after the reboot"])
    show.run("ls /lib/modules", says=[release_of(OLD_KERNEL)])
    show.next_is(3, booted=False)
    show.reboot()
    show.run("ls /lib/modules", says=[release_of(NEW_KERNEL)])
    show.run("hello", says=["hello, this is 2.0"])


def failing_upgrade(show: Show) -> None:
    show.volume.repo.publish(hello("3.0-r0", FAILS))
    pointer = show.volume.current()
    show.title("An upgrade that fails has never happened")
    show.why("""A script of the new package fails when its files are in place already. On a usual system that is what
        you would be left with. Here the snapshot is discarded.""")
    show.run("apk-atomic upgrade", status=1, says=["hello: cannot convert its data", "apk-atomic: error:"])
    show.run("hello", says=["hello, this is 2.0"])
    promise(show.volume.current() == pointer, "the pointer moved")
    show.next_is(3, booted=True)


def killed_upgrade(show: Show) -> None:
    show.volume.repo.publish(hello("3.0-r1", HANGS))
    pointer = show.volume.current()
    show.title("Neither has one that was killed in the middle")
    show.why("""The script of this package hangs, and apk-atomic is ended by SIGKILL. What it had started dies with
        it, and what it left is swept up by the next transaction.""")
    process = show.start("apk-atomic upgrade")
    wait_until((show.volume.top / "commons/@var@log" / Path(STARTED).name).exists)
    process.kill()
    print(process.communicate()[0].decode(errors="replace") + "Killed\n", flush=True)
    wait_until(lambda: not show.guest.strays())
    promise(show.volume.current() == pointer, "the pointer moved")
    show.volume.repo.publish(hello("3.0-r2"))
    show.run("apk-atomic upgrade", says=["upgraded hello 2.0-r0 -> 3.0-r2"])
    show.next_is(4, booted=False)
    show.reboot()
    show.run("hello", says=["hello, this is 3.0"])


def rollback(show: Show) -> None:
    show.title("Back to any generation that is there")
    show.why("""Each generation knows what made it. A rollback moves the same pointer by the same rename, and makes
        nothing new.""")
    show.run("apk-atomic status", says=["apk-atomic upgrade", "apk-atomic add hello"])
    show.run("apk-atomic diff 2 0", says=["! hello 1.0-r0 -> 3.0-r2", f"! linux-lts {OLD_KERNEL} -> {NEW_KERNEL}"])
    show.run("apk-atomic rollback 2", says=["it runs after the reboot"])
    show.next_is(4, booted=False)
    show.reboot()
    show.run("hello", says=["hello, this is 1.0"])
    show.run("ls /lib/modules", says=[release_of(OLD_KERNEL)])
    show.run("apk-atomic status", says=["is booted and boots next"])


PLAY = (sealed_root, add, upgrade, failing_upgrade, killed_upgrade, rollback)


# ---- the stage ---------------------------------------------------------------------------------------------


def hello(version: str, script: str = "") -> Package:
    text = f"#!/bin/sh\necho hello, this is {version.partition('-')[0]}\n"
    scripts = {"post-upgrade": script} if script else {}
    return Package("hello", version, files={"usr/bin/hello": File(text.encode(), 0o755)}, scripts=scripts)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not true():
        promise(time.monotonic() < deadline, "nothing happens any more")
        time.sleep(0.01)


@contextlib.contextmanager
def signals_end_it() -> Iterator[None]:
    """Signals end the play as Ctrl-C does; when it is over, they do not disturb the cleaning up."""
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def perform() -> None:
    apk = which_apk()
    named = f"the real apk-tools {apk.version} ({apk.path})" if apk.real else "a stand-in (set APK=… for a real one)"
    print("apk-atomic: upgrades that happen as a whole, or not at all\n")
    with make_volume() as volume, signals_end_it():
        print(f"   apk here is {named}.")
        print(f"   The machine is a small system on a btrfs volume: {volume.device}, which is {volume.image}.")
        started = time.monotonic()
        install_system(volume, hello("1.0-r0"))
        show = Show(volume, volume.boot())
        for act in PLAY:
            act(show)
        image, seconds = volume.image, time.monotonic() - started
    promise(not is_attached(image) and not image.exists(), f"{image} is still attached or there")
    print(f"All {show.steps} parts went as promised, in {seconds:.0f} s. Nothing is left mounted or attached.")


def is_attached(image: Path) -> bool:
    names = Path("/sys/block").glob("loop*/loop/backing_file")
    return any(_first_line(name) == str(image) for name in names)


def _first_line(path: Path) -> str:
    try:
        return path.read_text().rstrip("\n")
    except OSError:  # detached meanwhile, by somebody else
        return ""


def main() -> int:
    try:
        perform()
    except BrokenPromise as broken:
        print(f"\ndemo: not as promised: {broken}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; nothing is left mounted or attached", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
