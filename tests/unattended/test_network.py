"""Packages from elsewhere: all of them are here before anything is changed, whatever the network does."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.isolation import session_key
from tests.support.packages import Repository, build
from tests.support.webserver import Served, serve
from tests.unattended.house import House, make_house, package

pytestmark = pytest.mark.real_apk  # the stand-in has no cache


@contextmanager
def far_house(place: Path, **settings: object) -> Iterator[tuple[House, Served]]:
    repo = Repository(place / "far", key=session_key())
    with serve(repo.path) as served, make_house(repo, served.url, **settings) as house:  # type: ignore[arg-type]
        repo.publish(package("other"))
        house.guest.run(["apk-atomic", "-U", "add", "other"], check=True)
        house.trial.reboot()
        house.trial.accept()
        served.requests.clear()
        yield house, served


@pytest.fixture
def far(tmp_path: Path) -> Iterator[tuple[House, Served]]:
    with far_house(tmp_path) as made:
        yield made


def fetched(served: Served) -> list[str]:
    return [os.path.basename(path) for path in served.requests if not path.endswith("APKINDEX.tar.gz")]


def cached(house: House) -> list[str]:
    return sorted(path.name for path in (house.volume.top / "commons/@var@cache/apk").glob("*.apk"))


def failed(house: House, says: str, *words: str) -> str:
    """The run fails, and the volume is what it was."""
    result = house.trial.refused("apk-atomic", "auto", *words, says=says)
    assert "nothing was changed" in result.stderr and result.stdout == ""
    return result.stderr


def test_everything_is_downloaded_once_and_only_what_is_new(far: tuple[House, Served]) -> None:
    house, served = far
    house.nothing()
    assert fetched(served) == []
    house.release("hello", "2.0-r0", depends=("helper",))
    house.release("helper", "1.0-r0")
    house.committed()
    assert sorted(fetched(served)) == ["hello-2.0-r0.apk", "helper-1.0-r0.apk"]
    assert cached(house) == []  # the machine keeps no packages, so neither do we
    house.nothing()
    assert len(fetched(served)) == 2


def test_network_is_lost_behind_the_download(far: tuple[House, Served]) -> None:
    """Stopped between the download and the transaction, a dead network does not matter any more."""
    house, served = far
    house.release("hello", "2.0-r0")
    process = house.trial.start("apk-atomic", "auto", env={"APK_ATOMIC_FAULT": "downloaded:stop"})
    house.trial.wait_stopped(process)
    served.dead = True
    house.trial.go_on(process)
    house.trial.check_new(house.trial.finish(process))
    assert house.content("hello") == "2.0-r0"


def test_generation_is_collected_before_the_download(far: tuple[House, Served]) -> None:
    """The plan's base is gone: it is made anew."""
    house, _ = far
    house.release("hello", "2.0-r0")
    old = house.committed()
    house.release("hello", "3.0-r0")
    process = house.trial.start("apk-atomic", "auto", env={"APK_ATOMIC_FAULT": "chosen:stop"})
    house.trial.wait_stopped(process)
    house.trial.go_on(process)
    house.trial.wait_stopped(process)  # before the download
    house.guest.run(["apk-atomic", "run", "--", "touch", "/etc/meanwhile"], check=True)
    assert old not in house.volume.generations()
    house.trial.accept()
    while process.poll() is None:
        house.trial.go_on(process)
        time.sleep(0.01)
    house.trial.check_new(house.trial.finish(process))
    assert house.content("hello") == "3.0-r0"


def test_no_network(far: tuple[House, Served]) -> None:
    house, served = far
    house.release("hello", "2.0-r0")
    served.dead = True
    said = failed(house, "the indexes could not be refreshed")
    assert "WARNING: " in said  # apk's own words
    served.dead = False
    house.committed()


def test_server_dies_in_the_middle_of_a_package(far: tuple[House, Served]) -> None:
    house, served = far
    house.release("hello", "2.0-r0")
    house.release("other", "2.0-r0")
    served.dies_at = "other-2.0"
    failed(house, "the packages could not be downloaded")
    assert cached(house)[:1] in ([], [name for name in cached(house) if name.startswith("hello-2.0-r0.")])
    assert not [name for name in cached(house) if name.startswith("other")]
    served.dies_at, served.dead = "", False
    house.committed()
    assert fetched(served).count("hello-2.0-r0.apk") == 1  # what was here already was not fetched again
    assert (house.content("hello"), house.content("other")) == ("2.0-r0", "2.0-r0")
    assert cached(house) == []  # also what an earlier run has downloaded is gone


def test_server_dies_in_the_middle_of_the_index(far: tuple[House, Served]) -> None:
    house, served = far
    house.release("hello", "2.0-r0")
    served.dies_at = "APKINDEX"
    failed(house, "the indexes could not be refreshed")
    served.dies_at, served.dead = "", False
    house.committed()


@pytest.mark.parametrize("damage", ["flipped", "short", "garbage", "other build", "missing"])
def test_mirror_serves_a_broken_package(far: tuple[House, Served], damage: str) -> None:
    house, _ = far
    new = package("hello", "2.0-r0")
    house.repo.publish(new)
    path = Path(house.repo.file_of(new))
    good = path.read_bytes()
    half = len(good) // 2
    bad = {
        "flipped": good[:half] + bytes([good[half] ^ 255]) + good[half + 1 :],
        "short": good[:half],
        "garbage": b"x" * len(good),
        "other build": build(package("hello", "2.0-r0", builddate=7), house.repo.arch, house.repo.key).blob,
    }
    path.unlink()
    if damage in bad:
        path.write_bytes(bad[damage])
    failed(house, "the packages could not be downloaded")
    assert not (house.volume.top / "state/denied.json").exists()  # it was not the packages' fault
    path.write_bytes(good)
    house.committed()


def test_unsigned_index(far: tuple[House, Served]) -> None:
    house, _ = far
    house.release("hello", "2.0-r0")
    signed, house.repo.key = house.repo.key, None
    house.repo.write_index()
    failed(house, "the indexes could not be refreshed")
    house.repo.key = signed
    house.repo.write_index()
    house.committed()


def test_index_older_than_the_packages(far: tuple[House, Served]) -> None:
    """A mirror that lags behind: its index has what the machine had before, and nothing is taken back."""
    house, _ = far
    index = Path(house.repo.directory, "APKINDEX.tar.gz")
    old = index.read_bytes()
    house.release("hello", "2.0-r0")
    house.committed()
    index.write_bytes(old)
    house.nothing()
    assert house.content("hello") == "2.0-r0"


def test_cache_of_the_machine_is_left_as_it_is(tmp_path: Path) -> None:
    def keeps_packages(tree: Path) -> None:
        (tree / "etc/apk/cache").symlink_to("/var/cache/apk")

    with far_house(tmp_path, prepare=keeps_packages) as (house, served):
        assert [name.split("-1.0")[0] for name in cached(house)] == ["other"]
        house.release("hello", "2.0-r0")
        house.committed()
        assert [name for name in cached(house) if name.startswith("hello-2.0-r0.")]
        assert fetched(served) == ["hello-2.0-r0.apk"]


def test_cache_of_the_machine_that_only_the_common_has(tmp_path: Path) -> None:
    """Looked at in the sealed root alone, the link leads nowhere."""

    def keeps_packages(tree: Path) -> None:
        (tree / "etc/apk/cache").symlink_to("/var/cache/kept")

    with far_house(tmp_path, prepare=keeps_packages) as (house, served):
        kept = house.volume.top / "commons/@var@cache/kept"
        kept.mkdir()
        assert not (house.volume.tree() / "var/cache/kept").exists()
        house.release("hello", "2.0-r0")
        house.trial.committed("apk-atomic", "auto")  # apk 2.14 alters a file in the cache itself, and that is said
        assert [path.name for path in kept.glob("hello-2.0-r0.*")] and cached(house) == []
        assert fetched(served) == ["hello-2.0-r0.apk"]


def test_cache_that_a_common_covers_is_none(tmp_path: Path) -> None:
    """What is below the mount point of the sealed root is not what apk sees: nothing is kept."""

    def keeps_packages(tree: Path) -> None:
        (tree / "var/cache/covered").mkdir()
        (tree / "etc/apk/cache").symlink_to("/var/cache/covered")

    with far_house(tmp_path, prepare=keeps_packages) as (house, served):
        house.release("hello", "2.0-r0")
        house.committed()
        assert fetched(served) == ["hello-2.0-r0.apk"]
        assert cached(house) == []


# ---- exclude ---------------------------------------------------------------------------------------------


def test_excluded_packages_stay(tmp_path: Path) -> None:
    with far_house(tmp_path, exclude=["hell*", "not-installed"]) as (house, served):
        house.release("hello", "2.0-r0")
        house.nothing()
        house.release("other", "2.0-r0")
        house.committed()
        assert (house.content("hello"), house.content("other")) == ("1.0-r0", "2.0-r0")
        house.release("other", "3.0-r0", depends=("hello>=2.0",))
        house.nothing()  # apk leaves it out as well
        assert fetched(served) == ["other-2.0-r0.apk"]


