"""Files of the caller's that a changing line names mean inside what they mean to the caller."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dropin.world import HELLO, Told, told
from tests.support.packages import Package, Repository, write_package
from tests.support.world import Guest, Volume

# where: a directory, made for the test; "the caller's" is its content
PLACES = ("/tmp/a", "/tmp/b/c/d", "/run/a", "/run/user/1", "/home/user/a", "/var/cache/a", "/mnt", "/media/disk")
CONTENT = "the caller's"


@pytest.fixture(scope="module")
def guest(probed: Volume) -> Guest:
    """Booted, with other file systems on /mnt and /media."""
    booted = probed.boot()
    for point in ("/mnt", "/media"):
        booted.run(["mount", "-t", "tmpfs", "tmpfs", point], check=True)
    return booted


@pytest.fixture
def place(guest: Guest, request: pytest.FixtureRequest) -> str:
    where: str = request.param
    guest.run(["sh", "-c", f'mkdir -p {where} && printf "%s" "{CONTENT}" >{where}/x.apk'], check=True)
    return where


def add(guest: Guest, *words: str, cwd: str = "/", env: dict[str, str] | None = None) -> Told:
    return told(guest.run(["apk", "add", *words], cwd=cwd, env=env))


everywhere = pytest.mark.parametrize("place", PLACES, indirect=True)


@everywhere
def test_package_file_is_seen_by_each_of_its_names(guest: Guest, place: str) -> None:
    names = (f"{place}/x.apk", f"{place}/../{os.path.basename(place)}/x.apk", f"/{place}//./x.apk")
    for name in names:
        assert add(guest, name).all("file") == [f"{name}={CONTENT}"]
    for name in ("x.apk", "./x.apk", f"../{os.path.basename(place)}/x.apk"):
        assert add(guest, name, cwd=place).all("file") == [f"{name}={CONTENT}"]
    answer = add(guest, "x.apk", f"{place}/x.apk", "nosuch.apk", cwd=place)
    assert answer.one("cwd") == place
    assert answer.all("file") == [f"x.apk={CONTENT}", f"{place}/x.apk={CONTENT}"]


@everywhere
def test_directory_is_seen_whole_and_read_only(guest: Guest, place: str) -> None:
    for name, cwd in ((place, "/"), (f"{place}/", "/"), (".", place), (f"../{os.path.basename(place)}", place)):
        answer = add(guest, "-X", name, "y", cwd=cwd)
        assert [line for line in answer.all("directory") if line.startswith(f"{name}=")] == [f"{name}=x.apk"]
        assert answer.all("writable") == ([name] if place.startswith("/var/") else [])


@pytest.mark.parametrize("option", ["--repositories-file", "--keys-dir", "--cache-dir", "-X"])
def test_options_that_name_files(guest: Guest, option: str) -> None:
    guest.run(["sh", "-c", f'mkdir -p /tmp/opt/d && printf "%s" "{CONTENT}" >/tmp/opt/x'], check=True)
    for words in ([option, "/tmp/opt"], [f"{option}=/tmp/opt"] if option != "-X" else ["-X/tmp/opt", "/tmp/opt"]):
        answer = add(guest, *words, "y")
        assert [line.partition("=")[2] for line in answer.all("directory")] == ["d"]
        assert answer.all("writable") == (["/tmp/opt"] if option == "--cache-dir" else [])


def test_links_are_followed_from_place_to_place(guest: Guest) -> None:
    script = f"""
        mkdir -p /tmp/real /media/real /home/user/links
        for place in /tmp/real /media/real; do printf '%s' "{CONTENT}" >$place/x.apk; done
        cd /home/user/links
        ln -sf /tmp/real/x.apk to-tmp.apk; ln -sf /media/real/x.apk to-disk.apk; ln -sfn /media/real directory
        ln -sf /media/real/x.apk /tmp/to-disk.apk; ln -sf /tmp/real/x.apk /media/to-tmp.apk
    """
    guest.run(["sh", "-ec", script], check=True)
    relative = ("to-tmp.apk", "to-disk.apk", "directory/x.apk", "directory/../real/x.apk")
    for name in (*relative, "/tmp/to-disk.apk", "/media/to-tmp.apk"):
        assert add(guest, name, cwd="/home/user/links").all("file") == [f"{name}={CONTENT}"], name


def test_directories_that_are_new_inside_are_refused(guest: Guest) -> None:
    for name, cwd in (("/tmp", "/"), (".", "/tmp"), ("/run/", "/"), ("../tmp", "/tmp")):
        answer = guest.run(["apk", "add", "-X", name, "y"], cwd=cwd)
        assert (answer.status, answer.stdout) == (100, "")
        assert "cannot be shown in the new root" in answer.stderr and "nothing was changed" in answer.stderr


def test_file_in_the_shared_memory_or_from_a_pipe(guest: Guest) -> None:
    guest.run(["sh", "-c", f'printf "%s" "{CONTENT}" >/dev/shm/x.apk'], check=True)
    assert add(guest, "/dev/shm/x.apk").all("file") == [f"/dev/shm/x.apk={CONTENT}"]


def test_binds_are_for_this_line_only(guest: Guest) -> None:
    guest.run(["sh", "-c", "mkdir -p /tmp/secret && echo x >/tmp/secret/x && echo y >/tmp/y.apk"], check=True)
    answer = add(guest, "/tmp/y.apk", "/tmp/secret/x", "/tmp/secret", "--allow-untrusted")
    assert answer.all("file") == ["/tmp/y.apk=y"]
    assert answer.all("directory") == []


def test_named_configuration_is_seen(guest: Guest) -> None:
    guest.run(["sh", "-c", "mkdir -p /tmp/conf && echo no-cache >/tmp/conf/file.x"], check=True)
    answer = add(guest, "file.x", cwd="/tmp/conf", env={"APK_CONFIG": "file.x"})
    assert answer.all("file") == ["file.x=no-cache"]
    assert "APK_CONFIG=file.x" in answer.all("env")


def test_simulations_and_queries_see_them_too(guest: Guest) -> None:
    guest.run(["sh", "-c", f'mkdir -p /tmp/seen; printf "%s" "{CONTENT}" >/tmp/seen/x.apk'], check=True)
    for line in (["add", "-s", "x.apk"], ["-q", "manifest", "./x.apk"]):
        answer = told(guest.run(["apk", *line], cwd="/tmp/seen"))
        assert answer.all("file") == [f"{line[-1]}={CONTENT}"]


# ---- the real thing --------------------------------------------------------------------------------------


@pytest.fixture
def machine(volume: Volume) -> Iterator[Guest]:
    volume.repo.publish(HELLO)
    guest = volume.boot()
    guest.run(["mkdir", "/tmp/p"], check=True)
    yield guest


@pytest.mark.real_apk
def test_local_package_is_installed(machine: Guest) -> None:
    for place in ("tmp/p", "home/user"):
        write_package(Package(f"local-{place[:3]}"), Path(machine.root) / place)
    machine.run(["apk", "add", "--allow-untrusted", "local-tmp-1.0-r0.apk"], cwd="/tmp/p", check=True)
    machine.run(["apk", "add", "--allow-untrusted", "/home/user/local-hom-1.0-r0.apk"], check=True)
    machine.run(["apk", "info", "-e", "local-tmp", "local-hom"], check=True)


@pytest.mark.real_apk
def test_local_repositories_are_used(machine: Guest) -> None:
    for name in ("one", "two", "three"):
        Repository(Path(machine.root) / f"tmp/p/{name}").publish(Package(name))
    machine.run(["sh", "-c", "echo /tmp/p/two >/tmp/p/list; echo /tmp/p/three >>/tmp/p/list"], check=True)
    machine.run(["apk", "add", "--allow-untrusted", "-X", "/tmp/p/one", "one"], check=True)
    listed = ["--repositories-file", "list"]
    machine.run(["apk", "add", "--allow-untrusted", *listed, "two", "three"], cwd="/tmp/p", check=True)
    machine.run(["apk", "info", "-e", "one", "two", "three"], check=True)


def test_configured_repository_on_another_medium_is_used(volume: Volume) -> None:
    guest = volume.boot()
    guest.run(["mount", "-t", "tmpfs", "tmpfs", "/media"], check=True)
    key = volume.repo.key
    Repository(Path(guest.root) / "media/medium/apks", key=key).publish(HELLO)
    guest.run(["apk-atomic", "run", "--", "sh", "-c", "echo /media/medium/apks >/etc/apk/repositories"], check=True)
    assert "Installing hello" in guest.run(["apk", "add", "-s", "hello"], check=True).stdout
    guest.run(["apk", "add", "hello"], check=True)
    assert "/media" not in (volume.tree() / "etc/fstab").read_text()
