"""Each real apk at hand reads a line as `grammar` says it does.

The witness is the lock file: apk creates it exactly when it opens the database for writing, which is what a changing
line (or `update`) does and a simulation, a query, a usage text or a refusal does not. Everything happens below a
scratch directory given by --root in front, so no line with a root of its own is used.
"""

from __future__ import annotations

import os
import random
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from apk_atomic.applets import APPLETS, Kind, Mode, Version, options
from apk_atomic.grammar import Outcome, Reading, read
from tests.support.apks import Apk, real_apks
from tests.test_cmdline import LINES

EMPTY = ("lib/apk/db/installed", "lib/apk/db/triggers", "etc/apk/world", "etc/apk/repositories")
CHANGING = sorted(name for name, applet in APPLETS.items() if applet.kind is Kind.CHANGE)


def _scratch_root(path: Path) -> Path:
    for directory in ("lib/apk/db", "etc/apk", "var/cache/apk", "var/log", "proc"):
        (path / directory).mkdir(parents=True)
    for name in EMPTY:
        (path / name).write_bytes(b"")
    (path / "lib/apk/db/scripts.tar").write_bytes(bytes(1024))
    return path


def _names_a_root(argv: Sequence[str]) -> bool:
    return any(word.startswith("--r") or (word[:1] == "-" and word[:2] != "--" and "p" in word) for word in argv)


def _random_lines(version: Version, count: int) -> list[list[str]]:
    """Lines of words that mean something to some version, cut and combined at random; the same ones every time."""
    choose = random.Random(version.value)
    known = [option for name in ("", *CHANGING, "info") for option in options(version, name)]
    names = sorted({o.name for o in known if o.name not in ("wait", "timeout", "progress-fd")})
    letters = "".join(sorted({letter for o in known for letter in o.letters})) + "ssttXz"

    def long() -> str:
        name = choose.choice(names)
        cut = name[: choose.randint(2, len(name))] if choose.random() < 0.3 else name
        return choose.choice(["--", "--", "--no-"]) + cut + choose.choice(["", "", "", "=yes", "=no", "=x"])

    def word() -> str:
        return choose.choice([
            choose.choice(CHANGING), choose.choice(["info", "list", "update"]), long(), long(),
            choose.choice(["-s", "--simulate", "--simulate=no", "--no-simulate", "--sim", "--help", "-V", "--bogus"]),
            "-" + "".join(choose.choice(letters) for _ in range(choose.randint(1, 3))),
            choose.choice(["x", ".v", "", "-", "--", "yes", "no"]),
        ])  # fmt: skip

    return [[choose.choice(CHANGING), *(word() for _ in range(choose.randint(0, 4)))] for _ in range(count)]


def _opens_for_writing(reading: Reading) -> bool:
    changes = reading.applet in CHANGING and not reading.is_on("simulate")
    return reading.outcome is Outcome.READ and (changes or reading.applet == "update")


@pytest.mark.real_apk
@pytest.mark.parametrize("apk", real_apks() or [None], ids=str)
def test_real_apk_writes_when_the_reading_says_so(apk: Apk, tmp_path: Path) -> None:
    root = _scratch_root(tmp_path / "root")
    lock = root / "lib/apk/db/lock"
    version = Version(apk.major)
    lines = [shlex.split(row[0]) for row in LINES] + _random_lines(version, 400)
    lines = [argv for argv in lines if not _names_a_root(argv)]
    seen = {True: 0, False: 0}
    for argv in lines:
        lock.unlink(missing_ok=True)
        given = ["--root", str(root), *argv]
        reading = read(version, given)
        if reading.is_on("initdb") or reading.is_on("initramfs-diskless-boot"):
            continue  # to create a database apk 3 has conditions on the user
        done = subprocess.run(
            ["apk", *given], executable=apk.path, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True,
            env={"PATH": os.defpath, "APK_CONFIG": "/dev/null"}, timeout=20,
        )  # fmt: skip
        assert lock.exists() is _opens_for_writing(reading), (argv, reading, done.stdout, done.stderr)
        seen[lock.exists()] += 1
    assert min(seen.values()) > 100


@pytest.mark.real_apk
@pytest.mark.parametrize("apk", [apk for apk in real_apks() if apk.major == 3] or [None], ids=str)
@pytest.mark.parametrize(
    "config",
    ["simulate", "simulate yes", "simulate no", "simulate  yes", " simulate", "--simulate", "sim", "simulate # why",
     "# simulate", "simulate\nno-simulate", "no-simulate\nsimulate", "simulate auto", "help\nsimulate"],
)  # fmt: skip
def test_configuration_file_of_a_real_apk_3(apk: Apk | None, config: str, tmp_path: Path) -> None:
    if apk is None:
        pytest.skip("no real apk 3 at hand")
    root = _scratch_root(tmp_path / "root")
    file = tmp_path / "config"
    file.write_text(config + "\n")
    for argv in (["add"], ["add", "--no-simulate"], ["add", "-s"], ["update"]):
        lock = root / "lib/apk/db/lock"
        lock.unlink(missing_ok=True)
        given = ["--root", str(root), *argv]
        environment = {"PATH": os.defpath, "APK_CONFIG": str(file)}
        subprocess.run(["apk", *given], executable=apk.path, capture_output=True, env=environment, timeout=20)
        reading = read(Version.V3, given, config=config.split("\n"))
        assert lock.exists() is _opens_for_writing(reading), (argv, reading)


def test_the_random_lines_reach_what_they_are_meant_to_reach() -> None:
    for version in Version:
        readings = [read(version, argv) for argv in _random_lines(version, 400)]
        assert {reading.outcome for reading in readings} >= {Outcome.READ, Outcome.HELP, Outcome.REFUSED}
        values = {o.name for o in options(version, "add") if o.mode is Mode.VALUE}
        assert len({item.name for reading in readings for item in reading.given} & values) > 5
