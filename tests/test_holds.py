"""`holds`: which packages keep a kernel from being upgraded; and that an upgrade says so."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apk_atomic import holds
from apk_atomic.holds import WORLD, Hold
from tests.support.bootpackages import kernel_package
from tests.support.bootworld import KERNEL as OLD
from tests.support.bootworld import install_system
from tests.support.packages import File, Package
from tests.support.world import Volume

NEW = "6.12.2-r0"


def record(name: str, version: str = "1-r0", *, depends: str = "", origin: str = "", kernel: str = "") -> str:
    lines = ["C:Q1x=", f"P:{name}", f"V:{version}", f"o:{origin or name}"]
    lines += [f"D:{depends}"] if depends else []
    lines += ["F:usr"] if not kernel else ["F:usr", f"F:usr/share/kernel/{kernel}", "R:kernel.release"]
    return "\n".join(lines) + "\n\n"


LTS = record("linux-lts", OLD, kernel="lts", depends="initramfs-generator")
ZFS = record("zfs-lts", depends=f"zfs linux-lts={OLD}", origin="zfs")


@pytest.mark.parametrize(
    ("database", "world", "found"),
    [
        ("", "", ()),
        (LTS, "linux-lts", ()),
        (LTS + ZFS, "linux-lts zfs-lts", (Hold("linux-lts", OLD, ("zfs-lts",)),)),
        (ZFS + LTS, "", (Hold("linux-lts", OLD, ("zfs-lts",)),)),
        (ZFS, "", ()),
        ("V:1\nF:usr/share/kernel/lts\n\n" + ZFS, "", ()),
        (LTS + record("b", depends="linux-lts~6.12") + record("a", depends="x linux-lts<7"), "",
         (Hold("linux-lts", OLD, ("a", "b")),)),
        (LTS + record("a", depends="linux-lts>=6") + record("b", depends="linux-lts"), "", ()),
        (LTS + record("linux-lts-dev", depends=f"linux-lts={OLD}", origin="linux-lts"), "", ()),
        (LTS + record("a", depends=f"linux-lts-dev={OLD}"), "", ()),
        (LTS, f"linux-lts={OLD} other", (Hold("linux-lts", OLD, (WORLD,)),)),
        (LTS, "linux-lts@edge", ()),
        (LTS, "linux-lts@edge<7", (Hold("linux-lts", OLD, (WORLD,)),)),
        (LTS + record("linux-virt", OLD, kernel="virt") + record("m", depends=f"linux-virt={OLD}"), "",
         (Hold("linux-virt", OLD, ("m",)),)),
    ],
)  # fmt: skip
def test_what_holds_a_kernel(database: str, world: str, found: tuple[Hold, ...]) -> None:
    assert holds.find_holds(lambda: [database.encode()], world) == found
    records = [record.encode() + b"\n\n" for record in database.split("\n\n") if record]
    assert holds.find_holds(lambda: records, world) == found


ANSWER = f"Installed:                Available:\nlinux-lts-{OLD}    < {NEW} \nmusl-1.2-r0 < 1.3-r0\n"


def test_only_what_could_be_newer_is_said() -> None:
    hold = Hold("linux-lts", OLD, ("zfs-lts", "other"))
    assert holds.sentences([hold], ANSWER) == (
        f"kernel linux-lts is held at {OLD} by zfs-lts, other; {NEW} is to be had",
    )
    assert holds.sentences([hold], "") == ()
    assert holds.sentences([hold._replace(version=NEW)], ANSWER) == ()


@given(st.binary(max_size=300), st.text(max_size=60))
def test_any_database_gives_an_answer(data: bytes, text: str) -> None:
    for hold in holds.find_holds(lambda: [LTS.encode() + data + b"\n\nD:linux-lts=" + data], text):
        holds.newer(text, hold)


def test_an_upgrade_names_what_holds_the_kernel(volume: Volume) -> None:
    tied = Package("zfs-lts", depends=(f"linux-lts={OLD}",), files={"usr/zfs": File(b"zfs")})
    other = Package("other", files={"usr/other": File(b"1")})
    install_system(volume, tied, other)
    guest = volume.boot()
    said = guest.run(["apk-atomic", "add", "zfs-lts", "other"], check=True).stderr
    assert "held" not in said
    assert "held" not in guest.run(["apk-atomic", "upgrade"], check=True).stderr
    volume.repo.publish(kernel_package(NEW))
    sentence = f"apk-atomic: kernel linux-lts is held at {OLD} by zfs-lts; {NEW} is to be had"
    done = guest.run(["apk-atomic", "upgrade"], check=True)
    assert sentence in done.stderr.splitlines()
    assert "to be had" not in done.stdout
    assert "held" not in guest.run(["apk-atomic", "-q", "upgrade"], check=True).stderr
    volume.repo.publish(Package("other", "1.1-r0", files={"usr/other": File(b"2")}))
    before = volume.slots()[0]
    assert sentence in guest.run(["apk-atomic", "upgrade"], check=True).stderr.splitlines()
    assert volume.slots()[0] != before
    guest.run(["apk-atomic", "del", "zfs-lts"], check=True)
    assert "held" not in guest.run(["apk-atomic", "upgrade"], check=True).stderr
