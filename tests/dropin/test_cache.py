"""`update` and `cache` on a sealed root: the shared cache changes, and nothing else."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dropin.world import BARE, HELLO, link_apk, make_pending, ours
from tests.support.apks import which_apk
from tests.support.oracle import fingerprint
from tests.support.packages import Package
from tests.support.webserver import serve
from tests.support.world import Guest, Volume, make_volume

only_3 = pytest.mark.skipif(which_apk().major < 3, reason="apk 2.14 has no configuration file")


@contextlib.contextmanager
def sealed(volume: Volume) -> Iterator[None]:
    """What happens inside makes no generation and changes no byte of a root."""
    before = [(name, fingerprint(volume.top / "snapshots" / name / "@")) for name in volume.generations()]
    pointer = volume.current()
    yield
    after = [(name, fingerprint(volume.top / "snapshots" / name / "@")) for name in volume.generations()]
    assert [name for name, _ in after] == [name for name, _ in before]
    for (_, old), (_, new) in zip(before, after, strict=True):
        assert old.differences(new) == []
    assert volume.current() == pointer


def test_update_works_on_the_sealed_root(volume: Volume) -> None:
    volume.repo.publish(HELLO)
    guest = volume.boot()
    assert guest.run([BARE, "update"]).status == 99
    with sealed(volume):
        answer = guest.run(["apk", "update"], check=True)
        assert (answer.stdout.splitlines()[-1], answer.stderr) == ("OK: 1 distinct packages available", "")
        assert not (Path(guest.root) / "run/apk-atomic/next").exists()
    make_pending(guest)
    with sealed(volume):
        assert guest.run(["apk", "update"], check=True).stdout == answer.stdout


def test_update_is_possible_while_a_transaction_waits(volume: Volume) -> None:
    guest = volume.boot()
    lock = volume.tree() / "lib/apk/db/lock"
    with lock.open("rb") as held:  # apk's own lock, in the booted root, keeps nobody from the cache
        fcntl.flock(held, fcntl.LOCK_EX)
        assert guest.run(["apk", "update"], check=True).status == 0


@pytest.mark.real_apk
def test_update_and_cache_fill_and_clean_the_shared_cache(volume: Volume) -> None:
    volume.repo.publish(HELLO)
    cache = volume.top / "commons/@var@cache/apk"
    cache.mkdir()
    guest = volume.boot()
    make_pending(guest, ("sh", "-c", "ln -s /var/cache/apk /etc/apk/cache; apk add hello"))
    guest.reboot()
    with serve(volume.repo.path) as served, sealed(volume):
        repositories = Path(guest.root) / "run/repositories"
        repositories.write_text(f"{served.url}\n")
        option = ["--repositories-file", "/run/repositories"]
        guest.run(["apk", "update", *option], check=True)
        (index,) = cache.glob("APKINDEX.*")
        guest.run(["apk", "cache", "download", *option], check=True)
        assert len(list(cache.glob("hello-*.apk"))) == 1
        volume.repo.publish(Package("other"))
        guest.run(["apk", "-U", "update", *option], check=True)
        assert b"other" in _index_of(index)
        guest.run(["apk", "cache", "purge", *option], check=True)
        assert list(cache.glob("*.apk")) == []


def _index_of(path: Path) -> bytes:
    import io
    import tarfile
    import zlib

    data, plain = path.read_bytes(), b""
    while data:
        stream = zlib.decompressobj(31)
        plain += stream.decompress(data)
        data = stream.unused_data
    with tarfile.open(fileobj=io.BytesIO(plain), ignore_zeros=True) as archive:
        member = archive.extractfile("APKINDEX")
        assert member is not None
        return member.read()


def test_without_a_shared_cache_they_are_refused(volume: Volume) -> None:
    text = (volume.top / "fstab").read_text()
    (volume.top / "fstab").write_text("".join(line for line in text.splitlines(True) if "/var/cache" not in line))
    volume.add_generation("20240102030406abcdefgh")
    volume.point("20240102030406abcdefgh", name="20240102030406abcdefgh")
    guest = volume.boot()
    with sealed(volume):
        for line in ("update", "cache clean", "cache sync", "-q update"):
            answer = guest.run(["apk", *line.split()])
            assert (answer.status, answer.stdout) == (106, "")
            assert [text for text in ours(answer) if "/var/cache" in text and "nothing was changed" in text]
            assert "hint: put a commons subvolume on /var/cache" in answer.stderr
    assert guest.run(["apk", "update", "--help"]).stdout == guest.run([BARE, "update", "--help"]).stdout


def is_writable(guest: Guest) -> bool:
    """Whether the volume's superblock is, which /home shares with every other mount of it."""
    return guest.run(["touch", "/home/user/probe"]).status == 0


CACHES = ("mkdir /etc/apk/cache", "ln -s ../../home/user /etc/apk/cache", "ln -s /usr /etc/apk/cache",
          "ln -s /tmp /etc/apk/cache", "mkdir /etc/cache; ln -s ../cache /etc/apk/cache")  # fmt: skip


@pytest.mark.parametrize("made", CACHES)
def test_cache_that_the_generations_do_not_share_is_refused(volume: Volume, made: str) -> None:
    """Wherever it is in the sealed root, apk would remount that, and leave the whole volume read-only."""
    guest = volume.boot()
    make_pending(guest, ("sh", "-c", made))
    for _ in ("pending", "booted"):
        with sealed(volume):
            for line in ("update", "cache clean", "-s cache clean", "cache download"):
                answer = guest.run(["apk", *line.split()])
                assert (answer.status, answer.stdout) == (106, ""), answer
                assert "/etc/apk/cache" in answer.stderr and "nothing was changed" in answer.stderr
                assert "hint: let /etc/apk/cache lead to /var/cache/apk" in answer.stderr
                assert is_writable(guest)
        guest.reboot()


def test_cache_on_another_writable_common_is_taken(volume: Volume) -> None:
    guest = volume.boot()
    config = "printf '[chroot.commons]\n\"/home\" = \"rw\"\n' >/etc/apk-atomic/apk-atomic.toml"
    make_pending(guest, ("sh", "-c", f"ln -s /home/user /etc/apk/cache; {config}"))
    guest.reboot()
    with sealed(volume):
        guest.run(["apk", "update"], check=True)
    assert is_writable(guest)


def test_link_that_leads_nowhere_is_no_cache(volume: Volume) -> None:
    """Such as to a medium that is not mounted: apk takes /var/cache/apk then."""
    guest = volume.boot()
    make_pending(guest, ("ln", "-s", "/media/usb/cache", "/etc/apk/cache"))
    with sealed(volume):
        guest.run(["apk", "update"], check=True)


REMOUNTS = r"""#!/bin/sh
for flag in ro rw; do
	for place in / /home /var/cache; do
		mount -o "remount,$flag" "$place" 2>/dev/null && echo "remounted $place $flag"
	done
done
mount -t tmpfs tmpfs /mnt 2>/dev/null && echo "mounted"
echo "done"
"""


def test_apk_on_a_sealed_root_mounts_nothing() -> None:
    """Whatever apk it is: queries, simulations, `update` and `cache` have no business with mounts."""

    def prepare(tree: Path) -> None:
        link_apk(tree)
        (tree / "sbin/apk").unlink()
        (tree / "sbin/apk").write_text(REMOUNTS)
        (tree / "sbin/apk").chmod(0o755)

    with make_volume(prepare=prepare) as volume:
        guest = volume.boot()
        make_pending(guest)
        with sealed(volume):
            for line in ("update", "cache clean", "info -e hello", "add -s hello"):
                assert guest.run(["apk", *line.split()], check=True).stdout == "done\n", line
                assert is_writable(guest)


def test_log_needs_no_shared_directory(volume: Volume) -> None:
    text = (volume.top / "fstab").read_text()
    (volume.top / "fstab").write_text("".join(line for line in text.splitlines(True) if "/var/log" not in line))
    volume.add_generation("20240102030406abcdefgh")
    volume.point("20240102030406abcdefgh", name="20240102030406abcdefgh")
    guest = volume.boot()
    with sealed(volume):
        guest.run(["apk", "update"], check=True)


# ---- the configuration file of apk 3 ---------------------------------------------------------------------


@pytest.fixture
def configured() -> Iterator[Guest]:
    """Booted with `simulate` in /etc/apk/config."""

    def prepare(tree: Path) -> None:
        link_apk(tree)
        (tree / "etc/apk/config").write_text("# as an administrator may have it\nsimulate\n")

    with make_volume(prepare=prepare) as made:
        made.repo.publish(HELLO)
        yield made.boot()


@only_3
@pytest.mark.real_apk
def test_simulate_in_the_configuration_makes_every_line_a_simulation(configured: Guest) -> None:
    answer = configured.run(["apk", "add", "hello"], check=True)
    assert answer.stdout.startswith("(1/1) Installing hello")
    assert ours(answer) == []
    assert configured.run(["apk-atomic", "status"], check=True).stdout.count("pending") == 0
    configured.run(["apk", "add", "--no-simulate", "hello"], check=True)
    configured.run(["apk", "info", "-e", "hello"], check=True)
    configured.run(["apk", "del", "hello"], check=True, env={"APK_CONFIG": "/dev/null"})
    assert configured.run(["apk", "info", "-e", "hello"]).status == 1


@only_3
@pytest.mark.real_apk
def test_configuration_of_the_base_counts(configured: Guest) -> None:
    """It is the one that apk reads in the root of a change."""
    make_pending(configured, ("rm", "/etc/apk/config"))
    configured.run(["apk", "add", "hello"], check=True)
    configured.run(["apk", "info", "-e", "hello"], check=True)
    configured.run(["apk", "add", "-s", "hello"], check=True)
    answer = configured.run(["apk", "del", "hello", "--atomic-base", "booted"], check=True)
    assert ours(answer) == []  # of which it does not know, so it simulates
    configured.run(["apk", "info", "-e", "hello"], check=True)


@only_3
@pytest.mark.real_apk
def test_configuration_that_is_pending_makes_simulations(volume: Volume) -> None:
    volume.repo.publish(HELLO)
    guest = volume.boot()
    make_pending(guest, ("sh", "-c", "echo simulate >/etc/apk/config"))
    with sealed(volume):
        answer = guest.run(["apk", "add", "hello"], check=True)
        assert answer.stdout.startswith("(1/1) Installing hello")
        assert ours(answer) == []
    guest.run(["apk", "add", "hello", "--atomic-base", "booted"], check=True)
    guest.run(["apk", "info", "-e", "hello"], check=True)


@only_3
@pytest.mark.real_apk
def test_root_in_the_configuration_leads_elsewhere(volume: Volume) -> None:
    volume.repo.publish(HELLO)
    guest = volume.boot()
    guest.run(["sh", "-c", "mkdir /tmp/other && echo 'root /tmp/other' >/tmp/config"], check=True)
    where = {"APK_CONFIG": "/tmp/config"}
    option = ("--allow-untrusted", "-X", "/var/cache/repo")
    with sealed(volume):
        guest.run(["apk", "add", "--initdb", *option, "hello"], check=True, env=where)
    assert guest.run(["/tmp/other/usr/bin/hello"], check=True).stdout == "hello\n"
    assert guest.run(["apk", "info", "-e", "hello"]).status == 1


@only_3
@pytest.mark.real_apk
def test_named_configuration_counts_inside(volume: Volume) -> None:
    volume.repo.publish(HELLO)
    guest = volume.boot()
    guest.run(["sh", "-c", "mkdir /tmp/mine && echo simulate >/tmp/mine/config"], check=True)
    where = {"APK_CONFIG": "/tmp/mine/config"}
    with sealed(volume):
        guest.run(["apk", "add", "hello"], check=True, env=where)
    quiet = {"APK_CONFIG": "mine/config"}
    guest.run(["sh", "-c", "echo quiet >/tmp/mine/config"], check=True)
    assert guest.run(["apk", "add", "hello"], check=True, env=quiet, cwd="/tmp").stdout == ""
    guest.run(["apk", "info", "-e", "hello"], check=True)
