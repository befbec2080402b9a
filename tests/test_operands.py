"""Which files of the caller's are bound into the root of a change: by where they really are."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from apk_atomic import mounts, operands
from apk_atomic.chroot import Bind
from apk_atomic.errors import UsageError
from apk_atomic.mounts import Mount
from tests.support.isolation import private_mounts

INSIDE = frozenset({"/home", "/var/cache"})


@pytest.fixture
def fresh() -> Iterator[Path]:
    """A directory below /tmp, whatever TMPDIR says: the new root has none of it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        yield Path(path)


@pytest.fixture
def disk(fresh: Path) -> Iterator[Path]:
    """A mount of its own, with a file in it."""
    private_mounts()
    point = fresh / "disk"
    point.mkdir()
    mounts.mount("disk", str(point), "tmpfs")
    (point / "x.apk").write_bytes(b"x")
    yield point
    mounts.unmount(str(point))


def mount_at(point: str) -> Mount:
    return Mount("0:1", "/", point, "tmpfs", "tmpfs", ("rw",))


TABLE = tuple(map(mount_at, ("/", "/home", "/var/cache", "/proc", "/dev", "/run", "/srv")))


def binds(*paths: str, cwd: str = "/") -> tuple[Bind, ...]:
    return operands.binds(paths, cwd, TABLE, INSIDE)


@pytest.mark.parametrize(
    ("path", "cwd", "expected"),
    [
        ("/root/x.apk", "/", ()),
        ("x.apk", "/root", ()),
        ("/home/user/x.apk", "/", ()),
        ("../x.apk", "/home/user", ()),
        ("/proc/self/fd/3", "/", ()),
        ("/dev/stdin", "/", ()),
        ("/srv/x.apk", "/", (Bind("/srv", "/srv"),)),
        ("x.apk", "/srv/packages", (Bind("/srv", "/srv"),)),
        ("/srv", "/", (Bind("/srv", "/srv"),)),
        ("/home/../srv/./x.apk", "/", (Bind("/srv", "/srv"),)),
        ("/run/x.apk", "/", (Bind("/run/x.apk", "/run/x.apk"),)),
        ("/tmp/repo", "/", (Bind("/tmp/repo", "/tmp/repo"),)),
    ],
)
def test_by_place(path: str, cwd: str, expected: tuple[Bind, ...]) -> None:
    assert binds(path, cwd=cwd) == expected


@pytest.mark.parametrize(("path", "cwd"), [("/tmp", "/"), ("/run/", "/"), ("..", "/tmp/x"), (".", "/run")])
def test_a_directory_that_the_new_root_has_of_its_own(path: str, cwd: str) -> None:
    with pytest.raises(UsageError, match="as a whole cannot be shown"):
        binds(path, cwd=cwd)


def test_a_relative_path_also_needs_the_directory_that_it_counts_from() -> None:
    assert binds("a.apk", "b.apk", cwd="/run/work") == (Bind("/run/work", "/run/work"),)
    assert binds("a.apk", cwd="/tmp") == (Bind("/tmp/a.apk", "/tmp/a.apk"),)
    assert binds("/srv/a.apk", "b", cwd="/run/work") == (Bind("/run/work", "/run/work"), Bind("/srv", "/srv"))


def test_one_bind_for_what_lies_in_it() -> None:
    assert binds("/srv/a", "/srv/b", "/srv") == (Bind("/srv", "/srv"),)
    assert binds("/tmp/repo/x/a.apk", "/tmp/repo") == (Bind("/tmp/repo", "/tmp/repo"),)
    assert binds("/tmp/repository", "/tmp/repo") == (
        Bind("/tmp/repo", "/tmp/repo"), Bind("/tmp/repository", "/tmp/repository"),
    )  # fmt: skip


def test_what_apk_writes_to_is_writable_inside() -> None:
    """A cache below a directory that is bound read-only gets a bind of its own."""
    found = operands.binds(["/tmp/a", "/tmp/a/cache", "/srv/x"], "/", TABLE, INSIDE, ["/tmp/a/cache"])
    assert found == (Bind("/srv", "/srv"), Bind("/tmp/a", "/tmp/a"), Bind("/tmp/a/cache", "/tmp/a/cache", True))
    found = operands.binds(["/tmp/a", "/tmp/a/x"], "/", TABLE, INSIDE, ["/tmp/a", "/tmp/a/x"])
    assert found == (Bind("/tmp/a", "/tmp/a", True),)


def test_a_link_below_tmp_shows_what_it_leads_to(fresh: Path, disk: Path) -> None:
    """Its name stays, for that is what apk is told; the file behind it is what is shown."""
    link = fresh / "link.apk"
    link.symlink_to(disk / "x.apk")
    assert operands.binds([str(link)], "/", mounts.mount_table(), frozenset()) == (
        Bind(str(disk / "x.apk"), str(link)),
    )


def test_a_link_of_the_root_into_another_place(disk: Path) -> None:
    """The new root has the link, so what it leads to has to be there too."""
    place = Path("/var/lib") / f"{disk.parent.name}.link"
    place.symlink_to(disk / "x.apk")
    try:
        found = operands.binds([str(place)], "/", (*TABLE, mount_at(str(disk))), INSIDE)
    finally:
        place.unlink()
    assert found == (Bind(str(disk / "x.apk"), str(disk / "x.apk")),)


def test_a_name_below_a_linked_directory(fresh: Path) -> None:
    (fresh / "real").mkdir()
    (fresh / "real/x.apk").touch()
    (fresh / "linked").symlink_to("real")
    place = str(fresh / "real/x.apk")
    assert binds(str(fresh / "linked/x.apk")) == (Bind(place, place),)
