"""A base whose directories are links to the host, FIFOs or files: the host stays as it is, byte for byte.

"The host" is the booted system: a canary tree in each place where it can be written, and all commons. That nothing
is mounted on it is checked after each command.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.adversity.test_records import bind_socket
from tests.adversity.trial import Trial
from tests.support import oracle
from tests.support.oracle import Fingerprint
from tests.support.packages import File, Package
from tests.support.world import make_volume

DIRECTORIES = ("etc", "dev", "proc", "sys", "run", "tmp", "var/log", "lib/apk", "lib/apk/db", "etc/apk")
FILES = ("etc/fstab", "etc/resolv.conf", "lib/apk/db/installed", "sbin/apk", "etc/apk/world")
LESS = ("var", "home", "boot", "var/cache", "root")
PLACES = ("home", "run", "tmp")
_numbers = itertools.count(1)


def to_canary(prefix: str, kind: str) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(f"{prefix}/canary/{kind}")


SHAPES: dict[str, Callable[[str], Callable[[Path], object]]] = {
    "absolute link": lambda kind: to_canary("/home", kind),
    "climbing link": lambda kind: to_canary("../../../../../../../../../home", kind),
    "link by /proc": lambda kind: to_canary("/proc/1/root/run", kind),
    "FIFO": lambda kind: lambda path: os.mkfifo(path),
    "socket": lambda kind: bind_socket,
    "other kind": lambda kind: (lambda path: path.write_text("x") if kind == "directory" else path.mkdir()),
    "loop": lambda kind: lambda path: path.symlink_to(path.name),
}
CASES = [
    *itertools.product(DIRECTORIES, ("directory",), ("absolute link", "climbing link", "FIFO", "other kind")),
    *itertools.product(FILES, ("file",), ("absolute link", "climbing link", "FIFO", "other kind")),
    *itertools.product(LESS, ("directory",), ("absolute link", "other kind")),
    *itertools.product(("etc", "tmp"), ("directory",), ("link by /proc", "socket", "loop")),
    *itertools.product(("etc/fstab", "etc/resolv.conf"), ("file",), ("link by /proc", "socket", "loop")),
]


@pytest.fixture(scope="module")
def attacked() -> Iterator[Trial]:
    with make_volume() as volume:
        volume.repo.publish(Package("hello", files={"etc/hello": File(b"x"), "usr/bin/hello": File(b"x", 0o755)}))
        trial = Trial(volume, deep=False)
        for place in PLACES:
            canary = Path(trial.guest.root, place, "canary")
            (canary / "directory/apk/db").mkdir(parents=True)
            (canary / "directory/db").mkdir()
            for name in ("file", "directory/fstab", "directory/resolv.conf", "directory/apk/db/installed"):
                (canary / name).write_text(f"canary {name}\n")
        yield trial


def host(trial: Trial) -> list[Fingerprint]:
    """Everything that can be written from the booted system, but the logs and the cache."""
    top = trial.volume.top
    canaries = [oracle.fingerprint(Path(trial.guest.root, place, "canary")) for place in PLACES]
    return [*canaries, oracle.fingerprint(top / "commons/@home"), oracle.fingerprint(top / "commons/@var@cache/repo")]


@pytest.mark.parametrize(("path", "kind", "shape"), CASES, ids=lambda word: word.replace("/", "-"))
def test_host_stays_as_it_is(attacked: Trial, path: str, kind: str, shape: str) -> None:
    def prepare(tree: Path) -> None:
        os.rename(tree / path, tree / f"{path}.aside")
        SHAPES[shape](kind)(tree / path)

    name = f"20240301{next(_numbers):06}hostilex"
    attacked.volume.add_generation(name, prepare)
    attacked.accept()
    before = host(attacked)
    simulated = attacked.run("apk-atomic", "add", "-s", "hello", f"--atomic-base={name}", timeout=20)
    attacked.check_same()
    result = attacked.run("apk-atomic", "add", "hello", f"--atomic-base={name}", timeout=20)
    assert host(attacked) == before
    for said in (simulated, result):
        assert said.status < 100 or "nothing was changed" in said.stderr, said
    if result.status:
        attacked.check_old(result)
    else:
        attacked.check_new(result)
        assert attacked.run("apk-atomic", "discard").status == 0
    if path.startswith("lib"):
        assert attacked.run("apk-atomic", "diff", name).status in (0, 100)
    shutil.rmtree(attacked.volume.top / "snapshots" / name, ignore_errors=True)


@pytest.mark.parametrize("text", ["/run/resolv.conf", "../tmp/x/y/resolv.conf", "/var/run/deep/er/resolv.conf"])
def test_resolv_conf_may_be_a_link(attacked: Trial, text: str) -> None:
    """DNS works inside, the link is left as it was, and nothing appears where it leads to on the host."""

    def prepare(tree: Path) -> None:
        (tree / "etc/resolv.conf").unlink()
        (tree / "etc/resolv.conf").symlink_to(text)

    name = f"20240301{next(_numbers):06}resolver"
    attacked.volume.add_generation(name, prepare)
    attacked.accept()
    before = host(attacked)
    argv = ("sh", "-c", "cat /etc/resolv.conf >/etc/seen")
    if text.startswith("/var/run"):
        argv = ("sh", "-c", "ln -s /run /var/run; cat /etc/resolv.conf >/etc/seen")
    attacked.committed("apk-atomic", "run", f"--atomic-base={name}", "--", *argv)
    tree = attacked.volume.tree()
    assert (tree / "etc/seen").read_text() == "nameserver 127.0.0.1\n"
    assert os.readlink(tree / "etc/resolv.conf") == text
    assert host(attacked) == before
    assert attacked.run("apk-atomic", "discard").status == 0
