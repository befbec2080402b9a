"""The stand-in and every real apk at hand do the same: the table of cases, and what does not fit a table.

With $APK naming a 3.x and a 2.14 (separated by a colon) all three are held against the same expectations, and
what they leave behind is compared byte by byte.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conformance.cases import BEYOND, CASES, Case, Do, Publish, Spoil, Step, Write, noting
from tests.conformance.lab import Lab
from tests.support.apks import Apk, real_apks, stand_in
from tests.support.keys import make_key_pair
from tests.support.packages import File, Package, Repository, machine_arch, write_package
from tests.support.waiting import until
from tests.support.webserver import serve

BASE = Package("base", files={"etc/base.conf": File(b"base=1\n")})

# Without a real apk at hand its share of the cases is counted as not run.
ABSENT = pytest.param(stand_in(), marks=pytest.mark.real_apk, id="real")
STAND_IN = pytest.param(stand_in(), id=f"stand-in-{stand_in().version}")
REAL = [pytest.param(apk, id=f"real-{apk.version}") for apk in real_apks()] or [ABSENT]
every_apk = pytest.mark.parametrize("apk", [STAND_IN, *REAL])
every_real_apk = pytest.mark.parametrize("apk", REAL)  # for what is more than the stand-in knows


@pytest.fixture
def lab(apk: Apk, tmp_path: Path) -> Lab:
    return Lab(apk, tmp_path)


def perform(lab: Lab, step: Step) -> None:
    match step:
        case Do():
            check(lab, step)
        case Publish(packages):
            lab.repository.publish(*packages)
        case Write(path, text, mode):
            target = lab.root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
            target.chmod(mode)
        case Spoil(package, gone):
            file = Path(lab.repository.file_of(package))
            content = file.read_bytes()
            file.unlink()
            if not gone:
                file.write_bytes(content[:-20])


def check(lab: Lab, step: Do) -> None:
    run = lab.run(*step.line.split(), stdin=step.stdin)
    context = f"apk {step.line}\n{run.stdout}{run.stderr}"
    assert run.status == step.status_of(lab.apk.major), context
    assert run.steps == step.steps, context
    lines = (run.stdout + run.stderr).splitlines()
    for text in step.says:
        assert text.replace("ARCH", machine_arch()) in lines, context


@pytest.fixture(scope="module")
def first_states() -> dict[str, tuple[Apk, dict[str, object]]]:
    """What the first apk left behind in each case, for the next ones to be held against."""
    return {}


@every_apk
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case, lab: Lab, first_states: dict[str, tuple[Apk, dict[str, object]]]) -> None:
    """Exit status, steps and the end are as the table says; database and files the same for every apk."""
    play(case, lab, first_states)


@every_real_apk
@pytest.mark.parametrize("case", BEYOND, ids=lambda case: case.name)
def test_case_beyond(case: Case, lab: Lab, first_states: dict[str, tuple[Apk, dict[str, object]]]) -> None:
    play(case, lab, first_states)


def play(case: Case, lab: Lab, first_states: dict[str, tuple[Apk, dict[str, object]]]) -> None:
    for step in case.steps:
        perform(lab, step)
    assert lab.world() == case.world
    assert lab.installed() == case.installed
    other, state = first_states.setdefault(case.name, (lab.apk, lab.state()))
    assert lab.state() == state, f"{lab.apk} differs from {other}"


@every_apk
def test_nothing_to_do_keeps_every_byte(lab: Lab) -> None:
    """world, installed, scripts and triggers are written anew by a run that changes nothing, with the same bytes."""
    trigger = Package("watcher", triggers=("/usr",), scripts={"trigger": noting("t"), "post-install": noting("p")})
    lab.repository.publish(BASE, trigger)
    assert lab.run("add", "watcher", "base").status == 0

    def state() -> list[object]:
        return [lab.world(), lab.database("installed"), lab.database("triggers"), lab.scripts()]

    before, inode = state(), os.stat(lab.root / "lib/apk/db/installed").st_ino
    assert lab.run("upgrade").status == 0
    assert state() == before
    assert os.stat(lab.root / "lib/apk/db/installed").st_ino != inode


@every_apk
def test_scripts_get_their_arguments_and_an_empty_environment(lab: Lab) -> None:
    report = '#!/bin/sh\necho "$PATH ${HOME-none} $* $(pwd)" > /report\n'
    lab.repository.publish(Package("a", files={"a": File()}, scripts={"post-install": report}))
    assert lab.run("add", "a").status == 0
    assert (lab.root / "report").read_text() == "/usr/sbin:/usr/bin:/sbin:/bin none 1.0-r0 /\n"
    newer = Package("a", "2.0-r0", files={"a": File()}, scripts={"post-upgrade": report})
    lab.repository.publish(newer)
    assert lab.run("upgrade").status == 0
    assert (lab.root / "report").read_text() == "/usr/sbin:/usr/bin:/sbin:/bin none 2.0-r0 1.0-r0 /\n"


@every_real_apk
def test_edited_configuration_gets_a_neighbour(lab: Lab) -> None:
    lab.repository.publish(BASE)
    lab.run("add", "base")
    (lab.root / "etc/base.conf").write_text("edited\n")
    lab.repository.publish(Package("base", "2.0-r0", files={"etc/base.conf": File(b"base=2\n")}))
    assert lab.run("upgrade").status == 0
    assert (lab.root / "etc/base.conf").read_text() == "edited\n"
    neighbour = lab.root / "etc/base.conf.apk-new"
    assert neighbour.read_text() == "base=2\n"
    assert lab.run("del", "base").status == 0
    assert (lab.root / "etc/base.conf").read_text() == "edited\n"
    assert neighbour.exists() == (lab.apk.major == 2)


@every_apk
def test_fix_restores_a_file_without_a_trace_in_the_database(lab: Lab) -> None:
    tool = Package("tool", files={"usr/tool": File(b"tool")})
    lab.repository.publish(tool)
    lab.run("add", "tool")
    before = lab.database("installed")
    (lab.root / "usr/tool").unlink()
    run = lab.run("fix", "tool")
    assert (run.status, run.steps) == (0, ("Reinstalling tool (1.0-r0)",))
    assert (lab.root / "usr/tool").read_bytes() == b"tool"
    assert lab.database("installed") == before


@every_real_apk
def test_a_local_file_is_pinned_by_its_identity(lab: Lab, tmp_path: Path) -> None:
    path = write_package(BASE, tmp_path)
    run = lab.run("add", path)
    assert (run.status, run.steps) == (0, ("Installing base (1.0-r0)",))
    identity = lab.database("installed").split("\n")[0].removeprefix("C:")
    assert lab.world() == f"base><{identity}"
    assert lab.run("del", "base").steps == ("Purging base (1.0-r0)",)


@every_real_apk
def test_a_virtual_package_is_versioned_by_the_clock(lab: Lab) -> None:
    lab.repository.publish(BASE)
    assert lab.run("add", "-t", ".group", "base").status == 0
    name, version = lab.world().split("=")
    assert name == ".group"
    assert lab.installed() == f".group-{version} base-1.0-r0"
    assert time.strptime(version, "%Y%m%d.%H%M%S")


@every_real_apk
def test_signatures(apk: Apk, tmp_path: Path) -> None:
    """Unsigned, or signed by somebody unknown, is as if it were not there; a known key opens the repository."""
    lab = Lab(apk, tmp_path)
    key = make_key_pair(tmp_path)
    signed = Repository(tmp_path / "signed", key=key)
    signed.publish(BASE)
    lab.repository.publish(Package("unsigned"))

    def trusting(*arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [word for word in lab.argv("-X", signed.path, *arguments) if word != "--allow-untrusted"]
        return subprocess.run(argv, capture_output=True, text=True)

    refused = trusting("add", "base")
    assert refused.returncode == 1
    assert "UNTRUSTED signature" in refused.stderr
    key.trust(lab.root)
    assert trusting("add", "base").returncode == 0
    assert trusting("add", "unsigned").returncode == 1
    assert trusting("add", lab.repository.file_of(Package("unsigned"))).returncode == 99
    assert lab.world() == "base"


@every_real_apk
def test_indexes_from_the_net_are_cached(lab: Lab) -> None:
    """`update` fills the cache; add downloads nothing but the package; del asks for nothing at all."""
    lab.repository.publish(BASE)
    with serve(lab.repository.path) as served:
        (lab.root / "etc/apk/repositories").write_text(f"{served.url}\n")
        assert lab.run("update").status == 0
        assert [path.name[:9] for path in (lab.root / "var/cache/apk").iterdir()] == ["APKINDEX."]
        served.requests.clear()
        assert lab.run("add", "base").status == 0
        assert lab.run("del", "base").status == 0
    assert served.requests == [f"/{machine_arch()}/base-1.0-r0.apk"]
    broken = lab.run("update", "-U")
    assert broken.status == 1, broken.stdout
    assert lab.run("-U", "upgrade").status == 99
    assert lab.run("-s", "add", "base").steps == ("Installing base (1.0-r0)",)
    assert lab.run("add", "base").status == 1  # the index is known, the package cannot be had
    assert lab.world() == "base"


@every_apk
def test_the_lock(lab: Lab) -> None:
    """A second change is refused at once, or after --wait; who only asks does not care."""
    ready = lab.root / "ready"
    script = "#!/bin/sh\ntouch /ready\nwhile [ ! -e /go ]; do sleep 0.02; done\n"
    lab.repository.publish(Package("slow", scripts={"post-install": script}, files={"usr/s": File()}), BASE)
    first = subprocess.Popen(lab.argv("add", "slow"), stdout=subprocess.DEVNULL)
    try:
        until(ready.exists, 10)
        refused = lab.run("add", "base")
        assert refused.status == 99
        assert "Unable to lock database" in refused.stderr
        assert lab.run("add", "--wait", "1", "base").status == 99
        assert lab.run("add", "--wait", "x", "base").status == 99
        assert lab.run("-s", "add", "base").status == 0
        assert lab.run("info").status == 0
        waiting = subprocess.Popen(lab.argv("add", "--wait", "20", "base"), stdout=subprocess.DEVNULL)
    finally:
        (lab.root / "go").touch()
    assert first.wait() == 0
    assert waiting.wait() == 0
    assert lab.world() == "base slow"


@every_apk
def test_interrupted(lab: Lab) -> None:
    """Ctrl-C ends apk at once with 130; files are there, database and world are the old ones."""
    script = "#!/bin/sh\necho $$ > /pid\ntouch /ready\nwhile [ ! -e /go ]; do sleep 0.02; done\n"
    lab.repository.publish(Package("slow", scripts={"post-install": script}, files={"usr/s": File()}))
    running = subprocess.Popen(lab.argv("add", "slow"), stdout=subprocess.DEVNULL)
    try:
        until((lab.root / "ready").exists, 10)
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=5) == 130
    finally:
        (lab.root / "go").touch()  # the script goes on without apk: let it end
    assert (lab.world(), lab.installed()) == ("", "")
    assert (lab.root / "usr/s").exists()


@every_apk
def test_a_read_only_root(lab: Lab) -> None:
    """Changes end with 99 before anything else; questions and simulations work."""
    lab.repository.publish(BASE)
    lab.run("add", "base")

    def sealed(*arguments: str) -> subprocess.CompletedProcess[str]:
        seal = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
        argv = ["unshare", "-m", "sh", "-c", seal, str(lab.root), *lab.argv(*arguments)]
        return subprocess.run(argv, capture_output=True, text=True)

    for change in (["add", "base"], ["del", "base"], ["upgrade"], ["fix"], ["update"]):
        done = sealed(*change)
        assert (done.returncode, done.stdout) == (99, "")
        assert "Read-only file system" in done.stderr
    if lab.apk.real and lab.apk.major > 2:
        assert "Unable to lock database: Read-only file system" in sealed("add", "--no-logfile", "base").stderr
    assert sealed("info", "-e", "base").stdout == "base\n"
    assert sealed("-s", "del", "base").returncode == 0


@every_apk
def test_the_prompt_without_a_stdin(lab: Lab) -> None:
    """A closed stdin is like one at its end, and that means yes."""
    lab.repository.publish(BASE)
    argv = ["sh", "-c", 'exec "$0" "$@" <&-', *lab.argv("-i", "add", "base")]
    assert subprocess.run(argv, stdout=subprocess.DEVNULL).returncode == 0
    assert lab.world() == "base"


@every_real_apk
def test_progress_on_a_descriptor(lab: Lab) -> None:
    lab.repository.publish(BASE)
    reader, writer = os.pipe()
    done = subprocess.run(
        lab.argv("--progress-fd", str(writer), "add", "base"), pass_fds=[writer], stdout=subprocess.DEVNULL
    )
    os.close(writer)
    with open(reader) as pipe:
        lines = pipe.read().splitlines()
    assert done.returncode == 0
    count, _, stage = lines[-1].partition(" ")
    now, total = count.split("/")
    assert now == total
    assert stage == ("install" if lab.apk.major > 2 else "")


@every_apk
def test_hooks_run_by_name_and_etc_wins(lab: Lab) -> None:
    """Only apk 3 sorts them and looks below lib; both hand them nothing but PATH and the stage."""
    if lab.apk.major == 2:
        pytest.skip("2.14 runs hooks in the order of the directory, and only those of etc")
    for path, text in (("etc/{}/b", "etc b"), ("etc/{}/a", "etc a"), ("lib/{}/b", "lib b"), ("lib/{}/aa", "lib aa")):
        perform(lab, Write(path.format("apk/commit_hooks.d"), noting(text), 0o755))
    assert lab.run("add").status == 0
    stages = [f"{name} {stage}" for stage in ("pre-commit", "post-commit") for name in ("etc a", "lib aa", "etc b")]
    assert (lab.root / "notes").read_text().splitlines() == stages


@every_real_apk
def test_the_log_of_version_3(lab: Lab) -> None:
    lab.repository.publish(BASE)
    lab.run("add", "nosuch")
    log = lab.root / "var/log/apk.log"
    if lab.apk.major == 2:
        assert not log.exists()
        return
    entry = log.read_text().rpartition("\n\n")[2].splitlines()
    assert entry[0].startswith(f"Running `{lab.apk.path} --root")
    assert entry[1].startswith("apk-tools 3.")
    assert entry[2:4] == ["ERROR: unable to select packages:", "  nosuch (no such package):"]


@every_apk
def test_no_space_leaves_the_package_out_but_in_world(lab: Lab) -> None:
    big = Package("big", files={"usr/big": File(os.urandom(3 << 20))})
    lab.repository.publish(big)
    (lab.root / "usr").mkdir()
    tight = 'mount -t tmpfs -o size=1m tight "$0/usr" && exec "$@"'
    argv = ["unshare", "-m", "sh", "-c", tight, str(lab.root), *lab.argv("add", "big")]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert (lab.world(), lab.installed()) == ("big", "")


@every_apk
def test_a_script_killed_by_a_signal(lab: Lab) -> None:
    lab.repository.publish(Package("suicide", scripts={"post-install": "#!/bin/sh\nkill -9 $$\n"}))
    assert lab.run("add", "suicide").status == 1
    assert lab.installed() == "suicide-1.0-r0[s]"


def test_the_stand_in_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    """Silence would let a test pass for the wrong reason."""
    lab = Lab(stand_in(), tmp_path)
    lab.repository.publish(Package("odd", "1.0_rc1-r0"), Package("needy", depends=("odd>1",)))
    for line in (
        "cache clean", "search x", "add --force-broken-world x", "upgrade --prune", "del -r x", "list", "info x",
        "add odd", "add needy", "add -t .v x", "-X http://localhost add x",
    ):  # fmt: skip
        assert lab.run(*line.split()).status in (1, 99), line


def test_a_wrong_name_in_the_environment_is_not_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APK", "/nowhere/apk")
    with pytest.raises(FileNotFoundError):
        real_apks.__wrapped__()
