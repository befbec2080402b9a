"""What a change is given beside the terminal: environment, umask, names of hosts, its own name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.dropin.world import BARE, HELLO, is_pending, link_apk
from tests.support.apks import which_apk
from tests.support.guest import USER_ID
from tests.support.packages import File, Package
from tests.support.world import Guest, Volume, make_volume

NAMESERVER = "nameserver 192.0.2.53\n"


@pytest.fixture
def guest(volume: Volume) -> Guest:
    volume.repo.publish(HELLO)
    return volume.boot()


def test_change_by_a_caller_with_a_strict_umask(volume: Volume, guest: Guest) -> None:
    """What other users must see is seen by them, the command has the caller's own umask, and apk sets its own."""
    script = (
        "umask; stat -c '%a %n' /tmp /run /run/apk-atomic; touch /etc/made; "
        "su user -c 'test -e /run/apk-atomic/inside'"
    )
    answer = guest.run(["sh", "-c", 'umask 0077; exec apk-atomic run -- sh -c "$1"', "sh", script], check=True)
    assert answer.stdout == "0077\n1777 /tmp\n755 /run\n755 /run/apk-atomic\n"
    assert (volume.tree() / "etc/made").stat().st_mode & 0o777 == 0o600
    guest.run(["sh", "-c", "umask 0077; exec apk add hello"], check=True)
    assert (volume.tree() / "usr/bin/hello").stat().st_mode & 0o777 == 0o755
    for path in ("etc/fstab", "etc/apk/world", "lib/apk/db/installed"):
        assert (volume.tree() / path).stat().st_mode & 0o777 == 0o644, path
    assert guest.run(["apk", "info", "-e", "hello"], uid=USER_ID).status == 1
    seen = guest.run(["apk-atomic", "status"], uid=USER_ID, check=True).stdout
    assert f"{volume.slots()[0]} is pending" in seen
    guest.run(["cat", "/run/reboot-required", "/run/apk-atomic/next"], uid=USER_ID, check=True)


def test_environment_of_the_command(guest: Guest) -> None:
    foreign = {"LD_PRELOAD": "/nowhere.so", "LD_LIBRARY_PATH": "/nowhere", "TMPDIR": "/nowhere"}
    path = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
    own = {"https_proxy": "http://localhost:1", "LANG": "C", "MORE": "a\nb", "PATH": path}
    # the loader of the host would complain about LD_PRELOAD on behalf of nsenter
    words = [f"{name}={value}" for name, value in (foreign | own).items() if name != "LD_PRELOAD"]
    answer = guest.run(["env", *words, "apk-atomic", "run", "--", "sh", "-c", "env -0"], check=True)
    inside = dict(word.split("=", 1) for word in answer.stdout.split("\0") if word)
    assert set(foreign).isdisjoint(inside)
    assert {name: inside[name] for name in own} == own
    loaded = guest.run(["sh", "-c", "LD_PRELOAD=/nowhere.so exec apk-atomic run -- env"], check=True)
    assert "LD_PRELOAD" not in loaded.stdout


def test_command_is_found_by_the_callers_path_inside(guest: Guest) -> None:
    guest.run(["mkdir", "/tmp/bin"], check=True)
    guest.run(["sh", "-c", "echo '#!/bin/sh' >/tmp/bin/mine; chmod +x /tmp/bin/mine"], check=True)
    outside = guest.run(["apk-atomic", "run", "--", "mine"], env={"PATH": "/tmp/bin:/usr/bin:/bin"})
    assert (outside.status, "cannot execute mine in the new generation" in outside.stderr) == (127, True)
    assert guest.run(["apk-atomic", "run", "--", "./busybox", "true"], cwd="/bin").status == 127
    assert guest.run(["apk-atomic", "run", "--", "bin/busybox", "true"]).status == 0


def test_apk_is_called_by_its_absolute_path(volume: Volume, guest: Guest) -> None:
    """So that what it starts again, after an upgrade of itself, is not a front of ours that comes first in PATH."""
    script = "#!/bin/sh\ntr '\\0' '\\n' </proc/$PPID/cmdline >/var/log/called\n"
    volume.repo.publish(Package("asks", scripts={"post-install": script}))
    guest.run(["apk", "add", "asks"], check=True)
    called = guest.run(["cat", "/var/log/called"], check=True).stdout.splitlines()
    assert called[-3:] == [BARE, "add", "asks"]


@pytest.mark.real_apk
@pytest.mark.parametrize("verb", ["status", "diff", "prove"])
def test_root_of_a_change_is_no_generation_to_ask(guest: Guest, verb: str) -> None:
    asked = guest.run(["apk-atomic", "run", "--", "apk-atomic", verb])
    assert (asked.status, asked.stdout) == (101, "")
    assert "root of a change" in asked.stderr and "hint: leave this shell first" in asked.stderr
    assert "apk-atomic init" not in asked.stderr


def test_apk_upgrades_itself_inside(volume: Volume, guest: Guest) -> None:
    program = Path(which_apk().path).read_bytes()

    def tools(version: str, more: bytes) -> Package:
        return Package("apk-tools", version, files={"sbin/apk": File(program + more, 0o755)})

    volume.repo.publish(tools("0.1-r0", b""))
    guest.run(["apk", "add", "apk-tools", "hello"], check=True)
    volume.repo.publish(tools("0.2-r0", b"newer"), Package("hello", "2.0-r0"))
    answer = guest.run(["apk", "upgrade"], check=True)
    assert answer.stdout.count("Upgrading apk-tools (0.1-r0 -> 0.2-r0)") == 1
    assert answer.stdout.count("Upgrading hello (1.0-r0 -> 2.0-r0)") == 1
    assert (volume.tree() / "sbin/apk").read_bytes().endswith(b"newer")


# ---- names of hosts --------------------------------------------------------------------------------------

READ = "cat /etc/resolv.conf >/var/log/seen; touch /etc/made"


@pytest.mark.parametrize(
    "target",
    ["/run/resolv.conf", "../run/resolv.conf", "/tmp/resolv.conf", "/run/net/a/resolv.conf", "../var/run/resolv.conf"],
)
def test_link_of_resolv_conf_leads_somewhere_inside(target: str) -> None:
    def prepare(tree: Path) -> None:
        link_apk(tree)
        (tree / "var/run").symlink_to("/run")
        (tree / "etc/resolv.conf").unlink()
        (tree / "etc/resolv.conf").symlink_to(target)

    with make_volume(prepare=prepare) as volume:
        guest = volume.boot()
        guest.run(["sh", "-c", f"mkdir -p /run/net/a; printf '{NAMESERVER}' >/etc/resolv.conf"], check=True)
        guest.run(["sh", "-c", f"umask 0077; exec apk-atomic run -- su user -c '{READ}'"])
        guest.run(["apk-atomic", "run", "--", "sh", "-c", READ], check=True)
        assert guest.run(["cat", "/var/log/seen"], check=True).stdout == NAMESERVER
        link = volume.tree() / "etc/resolv.conf"
        assert (link.is_symlink(), str(link.readlink())) == (True, target)
        for name in ("run", "tmp"):
            assert list((volume.tree() / name).iterdir()) == []
        guest.run(["cat", "/etc/resolv.conf"], check=True)


def test_file_stays_as_it_is(volume: Volume, guest: Guest) -> None:
    before = (volume.tree() / "etc/resolv.conf").read_bytes()
    guest.run(["apk-atomic", "run", "--", "sh", "-c", READ], check=True)
    assert guest.run(["cat", "/var/log/seen"], check=True).stdout.encode() == before
    after = volume.tree() / "etc/resolv.conf"
    assert (after.is_symlink(), after.read_bytes()) == (False, before)


@pytest.mark.parametrize("target", [None, "/run/nowhere", "/nowhere/resolv.conf", "resolv.conf"])
def test_without_any_a_change_goes_on(target: str | None) -> None:
    def prepare(tree: Path) -> None:
        link_apk(tree)
        (tree / "etc/resolv.conf").unlink()
        if target is not None:
            (tree / "etc/resolv.conf").symlink_to(target)

    with make_volume(prepare=prepare) as volume:
        volume.repo.publish(HELLO)
        guest = volume.boot()
        guest.run(["apk", "add", "hello"], check=True)
        assert is_pending(guest)
        link = volume.tree() / "etc/resolv.conf"
        assert (str(link.readlink()) if link.is_symlink() else None) == target


def test_what_a_change_writes_there_is_the_new_generations(volume: Volume, guest: Guest) -> None:
    guest.run(["apk-atomic", "run", "--", "sh", "-c", f"printf '{NAMESERVER}' >/etc/resolv.conf"], check=True)
    assert (volume.tree() / "etc/resolv.conf").read_text() == NAMESERVER
    assert guest.run(["cat", "/etc/resolv.conf"], check=True).stdout != NAMESERVER


# ---- waiting ---------------------------------------------------------------------------------------------

HOLD = "touch /var/log/up; until [ -e /var/log/go ]; do sleep 0.02; done; touch /etc/held"


@pytest.mark.parametrize("option", ["--wait=20", "--atomic-wait=20"])
def test_waiting_is_for_the_volume(volume: Volume, guest: Guest, option: str) -> None:
    holder = guest.popen(["apk-atomic", "run", "--", "sh", "-c", HOLD])
    guest.run(["sh", "-c", "until [ -e /var/log/up ]; do sleep 0.02; done"], check=True)
    refused = guest.run(["apk", "add", "hello"])
    assert (refused.status, f"pid {holder.pid}, apk-atomic run" in refused.stderr) == (102, True)
    assert guest.run(["apk", "info", "-e", "hello"]).status == 1
    assert guest.run(["apk", "add", "-s", "hello"], check=True).stdout.startswith("(1/1) Installing hello")
    waiting = guest.popen(["apk", "-q", "add", option, "hello"])
    assert guest.run(["apk", "add", option.replace("20", "0"), "hello"]).status == 102
    guest.run(["touch", "/var/log/go"], check=True)
    assert (holder.wait(30), waiting.wait(30)) == (0, 0)
    guest.run(["apk", "info", "-e", "hello"], check=True)
    assert (volume.tree() / "etc/held").exists()


# ---- a part of apk-atomic that is broken ---------------------------------------------------------------------


def site_of(guest: Guest, name: str) -> str:
    """Where a package of Python is in the guest."""
    program = f"import importlib.util as u; print(u.find_spec({name!r}).submodule_search_locations[0])"
    return guest.run(["python3", "-I", "-c", program], check=True).stdout.strip()


@pytest.mark.parametrize("broken", ["apk_atomic", "filelock"])
def test_a_broken_installation_says_what_to_do(volume: Volume, guest: Guest, broken: str) -> None:
    """As after an upgrade of Python without that of its modules: no traceback, and queries are answered."""
    before = volume.current(), volume.generations()
    place = site_of(guest, broken)
    guest.run(["mount", "-t", "tmpfs", "none", place], check=True)
    result = guest.run(["apk-atomic", "add", "hello"])
    assert (result.status, result.stdout) == (100, "")
    assert re.fullmatch(
        rf"apk-atomic: error: apk-atomic is broken here \(.*{broken}.*\); nothing was changed\n"
        r"apk-atomic: hint: .*apk-atomic rollback\n",
        result.stderr,
    )
    assert guest.run(["apk-atomic", "info", "-v"]).status == 0
    assert (volume.current(), volume.generations()) == before
    guest.run(["umount", place], check=True)
