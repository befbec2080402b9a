"""The root of a change, entered for real: its mounts, DNS, the caller's files, and which apk it has."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from apk_atomic import chroot, faults, namespace
from apk_atomic.chroot import Bind, Common, RootPlan, find_apk
from apk_atomic.errors import CheckFailed
from apk_atomic.namespace import Command
from apk_atomic.signals import Signals
from tests.support import btrfsctl, engine
from tests.support.binaries import busybox
from tests.support.engine import Place

POINTS = ("proc", "sys", "dev", "run", "tmp", "etc", "bin", "home", "var/log", "var/lib/data", "mnt", "lib/apk/db")
NAMES = itertools.count(1)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with engine.volume_at_top_level() as made:
        made.generation("base", fill, sealed=False)
        for name in ("home", "data", "log"):
            btrfsctl.create_subvolume(made.top / "commons" / name)
            (made.top / "commons" / name / "file").write_text(name)
        yield made


def fill(root: Path) -> None:
    for name in POINTS:
        (root / name).mkdir(parents=True)
    shutil.copy2(busybox(), root / "bin/busybox")
    (root / "bin/sh").symlink_to("busybox")
    (root / "lib/apk/db/installed").write_text("db")
    (root / "var/log/old").write_text("old")


@pytest.fixture
def signals() -> Iterator[Signals]:
    with engine.own_run(), engine.held_signals() as held:
        yield held


class Root:
    """A fresh copy of the base, and a shell in the root that is made of it."""

    def __init__(self, place: Place, signals: Signals, capfd: pytest.CaptureFixture[str]) -> None:
        self.name = f"root{next(NAMES)}"
        self.tree = place.top / self.name
        btrfsctl.snapshot(place.top / "snapshots/base/@", self.tree, read_only=False)
        self.device = place.volume.device
        self._signals = signals
        self._capfd = capfd

    def run(self, script: str, **how: Any) -> str:
        """What a script says in it; it must succeed. `how`: fields of the plan."""
        plan = RootPlan(self.device, f"/{self.name}", **how)
        call = Command("/bin/busybox", ("busybox", "sh", "-euc", script), {"PATH": "/bin"})
        status = namespace.run(call, lambda: chroot.enter(plan), self._signals)
        out, err = self._capfd.readouterr()
        assert (status, err) == (0, ""), out + err
        return out


@pytest.fixture
def root(place: Place, signals: Signals, capfd: pytest.CaptureFixture[str]) -> Root:
    return Root(place, signals, capfd)


# ---- apk, environment --------------------------------------------------------------------------------------


def make_program(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)


def make_socket(path: Path) -> None:
    place = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{place}/{path.name}")
    os.close(place)
    path.chmod(0o755)


def found(root: Path) -> str | None:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return find_apk(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("path", ["sbin/apk", "usr/sbin/apk", "usr/bin/apk", "bin/apk"])
def test_apk_is_found_where_it_may_be(tmp_path: Path, path: str) -> None:
    make_program(tmp_path / path)
    assert found(tmp_path) == f"/{path}"
    assert (tmp_path / path).read_text() == "#!/bin/sh\n"


def test_apk_of_the_package_comes_first(tmp_path: Path) -> None:
    for path in ("usr/bin/apk", "sbin/apk"):
        make_program(tmp_path / path)
    assert found(tmp_path) == "/sbin/apk"


def test_apk_by_links_inside_the_root(tmp_path: Path) -> None:
    make_program(tmp_path / "usr/bin/apk-tools")
    (tmp_path / "sbin").symlink_to("/usr/bin")
    (tmp_path / "usr/bin/apk").symlink_to("/../../../usr/bin/apk-tools")
    assert found(tmp_path) == "/sbin/apk"


def make_front(path: Path) -> None:
    make_program(path.parents[1] / "usr/libexec/apk-atomic/apk")
    path.symlink_to("../usr/libexec/apk-atomic/apk")


def make_ourselves(path: Path) -> None:
    make_program(path.with_name("apk-atomic"))
    path.symlink_to("apk-atomic")


NO_APK: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "directory": lambda path: path.mkdir(),
    "no program": lambda path: path.write_text(""),
    "fifo": lambda path: os.mkfifo(path, 0o755),
    "socket": make_socket,
    "loop": lambda path: path.symlink_to("apk"),
    "host": lambda path: path.symlink_to("/bin/sh"),
    "ourselves": make_ourselves,
    "front": make_front,
}


@pytest.mark.parametrize("kind", NO_APK)
def test_what_is_no_apk(tmp_path: Path, kind: str) -> None:
    (tmp_path / "sbin").mkdir()
    NO_APK[kind](tmp_path / "sbin/apk")
    assert found(tmp_path) is None


def test_environment() -> None:
    kept = {"PATH": "/x", "HOME": "/root", "http_proxy": "p", "APK_CONFIG": "/c", "LANG": "C", "LDAP": "x", "TMP": "t"}
    dropped = {"LD_PRELOAD": "x", "LD_LIBRARY_PATH": "x", "TMPDIR": "/t", "PYTHONPATH": "x", "": "x"}
    dropped[faults.VARIABLE] = "x:kill"
    assert chroot.environment({**kept, **dropped}) == kept


# ---- DNS ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "/run/resolv.conf", "../run/resolv.conf", "/run/systemd/resolve/stub.conf", "../../../run/x/resolv.conf",
        "/tmp/resolv.conf", "../tmp/a/b", "/var/run/resolv.conf", "../var/run/resolvconf/resolv.conf", "/run//./x/y",
    ],
)  # fmt: skip
def test_a_name_server_by_a_link(root: Root, text: str) -> None:
    """Alpine's /var/run is a link to /run. The link itself stays as it was."""
    (root.tree / "var/run").symlink_to("../run")
    (root.tree / "etc/resolv.conf").symlink_to(text)
    said = root.run("cat /etc/resolv.conf; readlink /etc/resolv.conf", resolv=b"nameserver ::1\n")
    assert said == f"nameserver ::1\n{text}\n"
    assert os.readlink(root.tree / "etc/resolv.conf") == text
    assert os.listdir(root.tree / "run") == os.listdir(root.tree / "tmp") == []


@pytest.mark.parametrize("text", ["/etc/other", "other", "/nowhere/x", "/run", "/run/", "/", "..", "/proc/mounts"])
def test_a_link_that_leads_elsewhere_is_left_alone(root: Root, text: str) -> None:
    (root.tree / "etc/resolv.conf").symlink_to(text)
    before = sorted(os.listdir(root.tree / "etc"))
    assert root.run("readlink /etc/resolv.conf", resolv=b"x") == f"{text}\n"
    assert sorted(os.listdir(root.tree / "etc")) == before


def make_what_blocks(path: Path, kind: str, outside: Path) -> None:
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        (path / "inside").mkdir(parents=True)
    else:
        path.symlink_to(outside)


@pytest.mark.parametrize(
    ("text", "name", "kind", "said"),
    [
        ("/tmp/made/deep/resolv.conf", "made", "link", ""), ("/tmp/made/resolv.conf", "made", "fifo", ""),
        ("/tmp/resolv.conf", "resolv.conf", "directory", ""), ("/tmp/resolv.conf", "resolv.conf", "link", "x"),
        ("/tmp/resolv.conf", "resolv.conf", "fifo", "x"),
    ],
)  # fmt: skip
def test_what_a_change_left_in_tmp(
    root: Root, place: Place, tmp_path: Path, text: str, name: str, kind: str, said: str
) -> None:
    """The build has the same /tmp: no link in it leads us to the host, and nobody waits for the reader of a FIFO."""
    directory = place.top / f"{root.name}-tmp"
    directory.mkdir()
    make_what_blocks(directory / name, kind, tmp_path)
    (root.tree / "etc/resolv.conf").symlink_to(text)
    script = "[ ! -f /etc/resolv.conf ] || cat /etc/resolv.conf"
    assert root.run(script, resolv=b"x", tmp=str(directory)) == said
    assert os.listdir(tmp_path) == []


def test_a_file_counts_as_it_is(root: Root) -> None:
    (root.tree / "etc/resolv.conf").write_text("own\n")
    assert root.run("cat /etc/resolv.conf", resolv=b"host's\n") == "own\n"
    (root.tree / "etc/resolv.conf").unlink()
    assert root.run("ls /etc", resolv=b"host's\n") == ""


# ---- mounts ------------------------------------------------------------------------------------------------


def test_what_is_mounted(root: Root) -> None:
    commons = (
        Common("/home", "/commons/home", False, ("nodev", "nosuid")),
        Common("/var/lib/data", "/commons/data", True),
    )
    lines = root.run("cat /proc/self/mountinfo", commons=commons).splitlines()
    points = {line.split()[4]: line for line in lines}
    assert [line.split()[4] for line in lines].count("/") == 1
    assert points["/"].split()[3] == f"/{root.name}"
    assert set(points) >= {"/", "/proc", "/proc/sys", "/sys", "/dev", "/run", "/tmp", "/home", "/var/lib/data"}
    assert all(name in points["/home"].split()[5] for name in ("ro", "nodev", "nosuid", "noatime"))
    assert "rw" in points["/var/lib/data"].split()[5].split(",")


def test_what_can_be_written(root: Root) -> None:
    commons = (Common("/home", "/commons/home", False), Common("/var/lib/data", "/commons/data", True))
    said = root.run(
        "for path in / /tmp /run /home /var/lib/data /proc/sys/kernel /proc/sys/vm /sys /etc; do"
        " if (: >$path/probe) 2>/dev/null; then echo $path; fi; done;"
        " if (echo h >/proc/sysrq-trigger) 2>/dev/null; then echo sysrq; fi",
        commons=commons,
    )
    assert said.split() == ["/", "/tmp", "/run", "/var/lib/data", "/etc"]
    assert (root.tree / "probe").exists()
    assert not (root.tree / "run/probe").exists()


def test_a_sealed_root(root: Root) -> None:
    script = "(: >/probe) 2>/dev/null || echo sealed; : >/tmp/probe; : >/run/probe"
    assert root.run(script, read_only=True) == "sealed\n"


def test_a_copy_of_the_database(root: Root) -> None:
    """For `update` on a sealed root: written to and forgotten. The log goes nowhere too."""
    script = "cat /lib/apk/db/installed; echo new >/lib/apk/db/installed; echo line >/var/log/apk.log; ls /var/log"
    assert root.run(script, read_only=True, copied_database=True) == "dbapk.log\n"
    assert (root.tree / "lib/apk/db/installed").read_text() == "db"
    assert os.listdir(root.tree / "var/log") == ["old"]
    shared = (Common("/var/log", "/commons/log", True),)
    assert root.run("ls /var/log", read_only=True, copied_database=True, commons=shared) == "file\n"


def test_nothing_of_the_host_has_a_path(root: Root) -> None:
    """No way up, none through init, none by a descriptor; of /run only our mark."""
    said = root.run("cd /; cd ..; pwd; ls /proc/1/root /proc/1/cwd/../..; ls -A /run /run/apk-atomic")
    names = sorted([*{name.split("/")[0] for name in POINTS}])
    listing = "\n".join(names)
    assert said == (
        f"/\n/proc/1/cwd/../..:\n{listing}\n\n/proc/1/root:\n{listing}\n"
        "/run:\napk-atomic\n\n/run/apk-atomic:\ninside\n"
    )


def test_tmp_on_the_volume(root: Root, place: Place) -> None:
    directory = place.top / f"{root.name}-tmp"
    directory.mkdir()
    root.run("echo x >/tmp/file", tmp=str(directory))
    assert (directory / "file").read_text() == "x\n"


@pytest.mark.parametrize("umask", [0o077, 0o777, 0])
def test_a_strange_umask_is_apks_and_not_ours(root: Root, umask: int) -> None:
    previous = os.umask(umask)
    try:
        said = root.run("umask; stat -c %a /run /run/apk-atomic /run/apk-atomic/inside")
    finally:
        os.umask(previous)
    assert said.split() == [f"{umask:04o}", "755", "755", "444"]


@pytest.mark.parametrize("name", ["proc", "sys", "dev", "run", "tmp", "home", "var/log"])
def test_a_mount_point_that_is_none(root: Root, name: str) -> None:
    path = root.tree / name
    shutil.rmtree(path)
    path.symlink_to("/tmp")
    commons = (Common("/home", "/commons/home", False), Common("/var/log", "/commons/log", True))
    with pytest.raises(CheckFailed, match=f"^/{name} in the generation is not a plain directory to mount on"):
        root.run("exit 0", commons=commons)


# ---- the caller's files ------------------------------------------------------------------------------------


def test_files_and_directories_of_the_caller(root: Root, tmp_path: Path) -> None:
    (tmp_path / "x.apk").write_text("x")
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo/y.apk").write_text("y")
    binds = (
        Bind(str(tmp_path / "repo"), "/tmp/deep/repo"),
        Bind(str(tmp_path / "x.apk"), "/run/a/b/x.apk"),
        Bind(str(tmp_path), "/mnt"),
        Bind(str(tmp_path / "repo"), "/run/cache", True),
    )
    said = root.run(
        "cat /tmp/deep/repo/y.apk /run/a/b/x.apk /mnt/x.apk; echo; "
        "for path in /tmp/deep/repo /run/a/b/x.apk /mnt /run/cache; do"
        " if [ -d $path ]; then path=$path/probe; fi; if (: >>$path) 2>/dev/null; then echo $path; fi; done",
        binds=binds,
    )
    assert said == "yxx\n/run/cache/probe\n"
    assert os.listdir(root.tree / "mnt") == []


def test_a_place_that_the_root_does_not_have(root: Root, tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="cannot be shown in the new root, where /data/x is no plain path"):
        root.run("exit 0", binds=(Bind(str(tmp_path), "/data/x"),))
    (root.tree / "mnt").rmdir()
    (root.tree / "mnt").symlink_to("/tmp")
    with pytest.raises(CheckFailed, match="no plain path"):
        root.run("exit 0", binds=(Bind(str(tmp_path), "/mnt"),))
