"""The demo runs to its end, says so when a promise is broken, and leaves nothing however it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import demo

ROOT = Path(__file__).parent.parent
IMAGE = re.compile(r"which is (/\S+)\.$", re.MULTILINE)
MIDDLE = "# apk-atomic upgrade"


def start(*argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *argv], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def nothing_is_left(output: str) -> bool:
    """An image that is mounted anywhere is attached: its device goes with the last mount."""
    found = IMAGE.search(output)
    assert found, output
    image = Path(found[1])
    return not demo.is_attached(image) and not image.parent.exists()


def test_runs_to_its_end() -> None:
    with start("-m", "tests.demo") as process:
        output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    titles = re.findall(r"^\d\. ", output, re.MULTILINE)
    assert len(titles) == len(demo.PLAY)
    for verb in ("add", "upgrade", "status", "diff", "rollback"):
        assert f"# apk-atomic {verb}" in output
    assert output.endswith("Nothing is left mounted or attached.\n")
    assert nothing_is_left(output)


def test_broken_promise_is_reported() -> None:
    """Without the act before it, there is no older hello that the upgrade could replace."""
    program = "import sys; from tests import demo; demo.PLAY = (demo.sealed_root, demo.upgrade); sys.exit(demo.main())"
    with start("-c", program) as process:
        output = process.communicate(timeout=120)[0]
    assert process.returncode == 1, output
    assert "demo: not as promised: apk-atomic upgrade: does not say" in output
    assert nothing_is_left(output)


@pytest.mark.parametrize("whom", ["the terminal's processes", "the demo alone"])
@pytest.mark.parametrize("number", demo.SIGNALS)
def test_signal_in_the_middle(number: signal.Signals, whom: str) -> None:
    with start("-m", "tests.demo") as process:
        assert process.stdout is not None
        seen = ""
        for line in process.stdout:
            seen += line
            if line.startswith(MIDDLE):
                break
        kill = os.kill if whom == "the demo alone" else os.killpg
        kill(process.pid, number)
        seen += process.communicate(timeout=60)[0]
    assert process.returncode == 130, seen
    assert "interrupted" in seen
    assert nothing_is_left(seen)
