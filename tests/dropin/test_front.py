"""hooks/apk-front, the `apk` of the drop-in, on split and merged /usr; and where PATH leads to it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from apk_atomic import cmdline
from tests.dropin.world import BARE, FRONT, HELLO, LIBEXEC, PIVOT, is_pending, make_pending, probe_instead_of_apk, told
from tests.support import btrfsctl
from tests.support.guest import PATH, USER_ID
from tests.support.rootfs import PROJECT, install_drop_in
from tests.support.world import Guest, Result, Volume, make_volume

SCRIPT = PROJECT / "hooks/apk-front"
FIRST_IN_PATH = {"PATH": f"{LIBEXEC}/bin:{PATH}"}
PROFILE = """\
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
for script in /etc/profile.d/*.sh; do
	[ ! -r "$script" ] || . "$script"
done
"""  # as Alpine's


def prepare(tree: Path) -> None:
    install_drop_in(tree)
    (tree / "etc/profile").write_text(PROFILE)


def merge_usr(tree: Path) -> None:
    """/bin, /sbin and /lib as links into /usr, as Alpine's merge-usr leaves them."""
    for name in ("bin", "sbin", "lib"):
        shutil.copytree(tree / name, tree / "usr" / name, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(tree / name)
        (tree / name).symlink_to(f"usr/{name}")


def prepare_merged(tree: Path) -> None:
    prepare(tree)
    merge_usr(tree)


def prepare_probe(tree: Path) -> None:
    """With an apk that tells how it was called."""
    prepare(tree)
    probe_instead_of_apk(tree)


def prepare_loop(tree: Path) -> None:
    """With a link to the front in apk's place, an admin's work, and apk where the front looks next."""
    prepare_probe(tree)
    (tree / "sbin/apk").rename(tree / "usr/sbin/apk")
    (tree / "sbin/apk").symlink_to(FRONT)


@pytest.fixture(params=[prepare, prepare_merged], ids=["split", "merged"])
def volume(request: pytest.FixtureRequest) -> Iterator[Volume]:
    with make_volume(prepare=request.param) as made:
        yield made


@pytest.fixture
def probed() -> Iterator[Guest]:
    with make_volume(prepare=prepare_probe) as made:
        yield made.boot()


def apk(guest: Guest, *words: str, uid: int = 0) -> Result:
    return guest.run(["apk", *words], env=FIRST_IN_PATH, uid=uid)


def hide(guest: Guest, path: str) -> None:
    """What is at `path` can no longer be run."""
    guest.run(["mount", "--bind", "/dev/null", path], check=True)


def test_one_table_of_query_words() -> None:
    (row,) = re.findall(r"^\t(audit[a-z| ]*)\)", SCRIPT.read_text(), re.MULTILINE)
    assert set(row.split(" | ")) == cmdline.QUERY_WORDS


def test_apk_tools_own_file_stays(tmp_path: Path) -> None:
    """Neither on a split nor on a merged /usr is a file of ours where apk-tools may have one."""
    install_drop_in(tmp_path)
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_symlink() or path.is_file()}
    assert found == {
        "usr/libexec/apk-atomic/apk", "usr/libexec/apk-atomic/bin/apk", "etc/profile.d/apk-atomic-drop-in.sh",
        "lib/apk/commit_hooks.d/apk-atomic",
    }  # fmt: skip


def test_changes_become_generations(volume: Volume) -> None:
    volume.repo.publish(HELLO)
    guest = volume.boot()
    added = apk(guest, "add", "hello")
    assert (added.status, "Installing hello" in added.stdout) == (0, True)
    assert is_pending(guest) and not Path(guest.root, "usr/bin/hello").exists()
    assert apk(guest, "info", "-e", "hello").stdout == "hello\n"  # of the pending one
    assert guest.run([BARE, "info", "-e", "hello"]).status == 1
    guest.reboot()
    assert apk(guest, "info", "-e", "hello").stdout == "hello\n"
    assert guest.run(["hello"], check=True).stdout == "hello\n"


@pytest.mark.parametrize("word", sorted(cmdline.QUERY_WORDS))
def test_plain_query_is_the_real_apk_without_python(probed: Guest, word: str) -> None:
    hide(probed, "/usr/bin/python3")
    answer = told(apk(probed, word, "a b", "*", ""))
    assert (answer.one("program"), answer.all("word")) == (BARE, [word, "a b", "*", ""])


def test_what_is_no_plain_query_is_apk_atomics(probed: Guest) -> None:
    refused = apk(probed, "info", "--atomic-bogus")
    assert (refused.status, "--atomic-bogus is not an option of apk-atomic" in refused.stderr) == (100, True)
    assert told(apk(probed, "status")).all("word") == ["status"]  # no word of ours: apk is to refuse it
    make_pending(probed)
    assert told(apk(probed, "info", uid=USER_ID)).all("word") == ["info"]


@pytest.mark.parametrize("word", ["info", "add"])
def test_inside_of_a_change_all_is_the_real_apk(probed: Guest, word: str) -> None:
    script = 'mount --bind /dev/null /usr/bin/python3 && exec "$@"'
    command = ["apk-atomic", "run", "--", "sh", "-ec", script, "sh", "apk", word, "x"]
    answer = told(probed.run(command, env=FIRST_IN_PATH))
    assert (answer.one("program"), answer.all("word")) == (BARE, [word, "x"])


@pytest.mark.parametrize("lost", ["/usr/bin/apk-atomic", "/usr/bin/python3"])
def test_sealed_root_without_apk_atomic_is_explained(volume: Volume, lost: str) -> None:
    guest = volume.boot()
    hide(guest, lost)
    # as apk says it, which the stand-in, a Python program itself, cannot without Python
    script = "printf '#!/bin/sh\\necho sealed >&2; exit 99\\n' >/tmp/apk; chmod 755 /tmp/apk"
    guest.run(["sh", "-c", script], check=True)
    guest.run(["mount", "--bind", "/tmp/apk", BARE], check=True)
    failed = apk(guest, "add", "hello")
    assert (failed.status, failed.stderr.startswith("sealed\n")) == (99, True)
    assert failed.stderr.endswith("boot a fallback from the boot menu, then: apk-atomic rollback\n")
    users = apk(guest, "add", "hello", uid=USER_ID)
    assert (users.status, users.stderr) == (99, "sealed\n")


def test_what_changes_nothing_works_without_apk_atomic(volume: Volume) -> None:
    volume.repo.publish(HELLO)
    guest = volume.boot()
    hide(guest, "/usr/bin/apk-atomic")
    failed = apk(guest, "add", "hello")
    assert (failed.status, "Read-only file system" in failed.stderr) == (99, True)
    assert "apk-atomic: hint: this root is sealed" in failed.stderr
    assert (apk(guest, "info").status, apk(guest, "info").stderr) == (0, "")
    simulated = apk(guest, "add", "-s", "hello")
    assert (simulated.status, "Installing hello" in simulated.stdout, "hint" in simulated.stderr) == (0, True, False)


@pytest.mark.parametrize("name", [FRONT, "apk-atomic"])
def test_system_without_generations_is_not_left_without_apk(volume: Volume, name: str) -> None:
    """The drop-in refuses there too, but says who does it."""
    volume.repo.publish(HELLO)
    guest = volume.boot()
    btrfsctl.snapshot(volume.tree(), volume.top / "@flat", read_only=False)
    script = f"mount -t btrfs -o rw,subvol=/@flat {volume.device} /mnt\n" + PIVOT.format(root="/mnt")
    refused = guest.run(["unshare", "--mount", "sh", "-ec", script, "sh", name, "add", "hello"])
    assert (refused.status, "/ is /@flat of its btrfs volume" in refused.stderr) == (101, True)
    assert ("/sbin/apk changes this root in place" in refused.stderr) == (name == FRONT)
    done = guest.run(["unshare", "--mount", "sh", "-ec", script, "sh", BARE, "add", "hello"])
    assert (done.status, (volume.top / "@flat/usr/bin/hello").exists()) == (0, True)


def test_no_apk_at_all(probed: Guest) -> None:
    hide(probed, BARE)
    asked = apk(probed, "info")
    assert (asked.status, "there is no apk on this system" in asked.stderr) == (100, True)
    hide(probed, "/usr/bin/apk-atomic")
    asked = apk(probed, "info")
    assert (asked.status, "neither apk nor apk-atomic is on this system" in asked.stderr) == (127, True)


def test_link_in_apks_place_leads_to_no_loop() -> None:
    with make_volume(prepare=prepare_loop) as volume:
        guest = volume.boot()
        for name in (BARE, FRONT):
            assert told(guest.run([name, "info"])).one("program") == "/usr/sbin/apk"


# ---- where PATH leads to it ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "found"),
    [
        (["sh", "-lc", "command -v apk"], FRONT),
        (["su", "-l", "-c", "command -v apk"], FRONT),
        (["sh", "-lc", "sh -c 'command -v apk'"], FRONT),
        (["sh", "-lc", "printf '#!/bin/sh\\ncommand -v apk\\n' >/tmp/it && chmod +x /tmp/it && /tmp/it"], FRONT),
        (["sh", "-c", "command -v apk"], "/sbin/apk"),  # as by ssh HOST COMMAND, cron and services
    ],
    ids=["login shell", "su", "sh -c", "script", "no login"],
)
def test_who_finds_it(probed: Guest, command: list[str], found: str) -> None:
    assert probed.run(command, check=True).stdout == f"{found}\n"


def test_it_is_in_path_once(probed: Guest) -> None:
    path = probed.run(["sh", "-lc", ". /etc/profile.d/apk-atomic-drop-in.sh; echo $PATH"], check=True).stdout
    assert path.split(":").count(f"{LIBEXEC}/bin") == 1
