"""A system that init made lives as any other: it boots, and apk-atomic, which init installed in it, changes it."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

from apk_atomic import loop
from tests.boot import distribution
from tests.install.lab import Lab, mounted
from tests.support import engine
from tests.support.bootpackages import kernel_package
from tests.support.guest import Guest
from tests.support.imagecache import scratch_directory
from tests.support.packages import File, Package

SIZE = ("--size", "700M", "--esp-size", "40M")
HELLO = Package("hello", "1.0-r0", files={"usr/bin/hello": File(b"#!/bin/sh\necho hello\n", 0o755)})
REPOSITORY = "/var/cache/repo"
NEW_KERNEL = "6.12.2-r0"


def test_add_and_a_new_kernel() -> None:
    with ExitStack() as stack:
        place = stack.enter_context(scratch_directory("apk-atomic-life-"))
        stack.enter_context(engine.own_run())
        lab = Lab(place)
        lab.repository.publish(*distribution.packages("gzip"))
        said = lab.init(*SIZE, "--hostname", "box", "--json")
        assert said.status == 0, said.stderr
        assert "lacks apk-atomic" not in said.stderr
        start, size = lab.part("ROOT")
        device = stack.enter_context(loop.attached(str(lab.image), start, size))
        lab.repository.publish(HELLO, kernel_package(NEW_KERNEL))
        with mounted(device, place / "top") as top:
            shutil.copytree(place / "repo", top / "commons/@var@cache/repo")
        live(device, place, str(said.document["generation"]))


def live(device: str, place: Path, first: str) -> None:
    (place / "guest").mkdir()
    guest = Guest(device, str(place / "guest"), 0, "ro,noatime")
    try:
        assert guest.booted == first
        guest.run(["apk-atomic", "prove"], check=True)
        guest.run(["apk-atomic", "run", "--", "sh", "-c", f"echo {REPOSITORY} > /etc/apk/repositories"], check=True)
        guest.run(["apk-atomic", "add", "hello"], check=True)
        guest.run(["apk-atomic", "upgrade"], check=True)
        guest.reboot()
        assert guest.booted != first
        assert guest.run(["hello"], check=True).stdout == "hello\n"
        status = guest.run(["apk-atomic", "status"], check=True).stdout
        assert f"{NEW_KERNEL.replace('-r', '-')}-lts" in status
        assert "the boot menu names" in guest.run(["apk-atomic", "del", "linux-lts"]).stderr
        assert f"root=UUID={fsid(guest)}" in guest.run(["apk-atomic", "boot-config"], check=True).stdout
        guest.reboot(1)
        assert guest.booted == first
    finally:
        guest.shutdown()


def fsid(guest: Guest) -> str:
    text = Path(guest.root, "etc/fstab").read_text()
    return text.split()[0].removeprefix("UUID=")
