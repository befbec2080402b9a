"""Tools outside the root, as real processes: what they see, what they say, how they end."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from apk_atomic import process
from apk_atomic.errors import CannotRun, Interrupted
from apk_atomic.process import Finished
from apk_atomic.signals import Signals


def script(path: Path, text: str, mode: int = 0o755) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(mode)
    return str(path)


def shell(text: str, signals: Signals, timeout: float = process.TIMEOUT) -> Finished:
    return process.run(["/bin/sh", "-c", text], signals, timeout=timeout)


# ---- one process -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 1, 2, 126, 127, 255])
def test_a_status_is_an_answer(signals: Signals, status: int) -> None:
    assert shell(f"exit {status}", signals) == Finished(status, "")


@pytest.mark.parametrize("name", ["KILL", "TERM", "INT", "HUP", "USR1", "PIPE", "SEGV", "ALRM"])
def test_a_signal_is_128_and_more(signals: Signals, name: str) -> None:
    number = getattr(signal, f"SIG{name}")
    assert shell(f"echo before; kill -{name} $$; sleep 10", signals) == Finished(128 + number, "before\n")


def test_output_of_both_kinds_in_order(signals: Signals) -> None:
    text = "echo one; echo two >&2; printf 'three\\377'"
    assert shell(text, signals).output == "one\ntwo\nthree\udcff"


def test_much_output(signals: Signals) -> None:
    assert len(shell("head -c 3000000 /dev/zero", signals).output) == 3_000_000


def test_stdin_is_empty(signals: Signals) -> None:
    assert shell("cat; readlink /proc/self/fd/0", signals).output == "/dev/null\n"


def test_no_terminal_is_pretended(signals: Signals) -> None:
    assert shell("test -t 0 || test -t 1 || test -t 2", signals).status == 1


def test_environment(signals: Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HOME": "/h", "SECRET": "x", "LC_ALL": "de_DE", "LD_PRELOAD": "", "TZ": "UTC"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PATH")
    done = process.run(["/usr/bin/env"], signals, {"APK_ATOMIC_ID": "a b"})
    found = dict(line.split("=", 1) for line in done.output.splitlines())
    assert found == {
        "HOME": "/h", "TZ": "UTC", "LC_ALL": "C", "APK_ATOMIC_ID": "a b",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        **{name: os.environ[name] for name in ("TERM", "http_proxy", "https_proxy", "no_proxy") if name in os.environ},
    }  # fmt: skip


def test_arguments_are_what_they_are(signals: Signals) -> None:
    words = ["a b", "", "*", "$x", "ü", "--", "-x"]
    done = process.run(["/usr/bin/printf", "<%s>", *words], signals)
    assert done.output == "".join(f"<{word}>" for word in words)


def test_signals_reach_it(signals: Signals) -> None:
    """We hold them back, what we run must not."""
    done = shell("grep SigBlk /proc/self/status", signals)
    assert int(done.output.split()[1], 16) == 0
    assert signals.first is None


def test_descriptors_of_ours_stay_ours(signals: Signals) -> None:
    with open("/etc/passwd") as secret:
        os.set_inheritable(secret.fileno(), True)
        assert "passwd" not in shell("ls -l /proc/self/fd", signals).output


def unusable(path: Path, kind: str) -> None:
    if kind == "directory":
        path.mkdir()
    elif kind == "mode":
        script(path, "exit 0", 0o644)
    elif kind != "missing":
        path.write_bytes(b"\0garbage" if kind == "format" else b"#!/nowhere/sh\n")
        path.chmod(0o755)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "not found or not executable"),
        ("directory", "not found or not executable"),
        ("mode", "not found or not executable"),
        ("format", "Exec format error"),
        ("interpreter", "No such file or directory"),
    ],
)
def test_what_cannot_be_run(signals: Signals, tmp_path: Path, kind: str, message: str) -> None:
    path = tmp_path / "tool"
    unusable(path, kind)
    with pytest.raises(CannotRun, match=f"^cannot run {path}: .*{message}"):
        process.run([str(path)], signals)


def test_time_is_limited(signals: Signals, tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match=r"did not end within 0\.1 s and was killed"):
        shell(f"echo $$ > {tmp_path}/pid; exec sleep 1000", signals, timeout=0.1)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_daemon_that_keeps_the_output_is_not_waited_for(signals: Signals, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    try:
        assert shell(f"sleep 1000 & echo $! > {pid}; echo said", signals) == Finished(0, "said\n")
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)


def test_an_ending_signal_ends_it(signals: Signals, tmp_path: Path) -> None:
    """The hook itself sends it, so that it comes while the hook runs."""
    pid = tmp_path / "pid"
    with pytest.raises(Interrupted) as end:
        shell(f"echo $$ > {pid}; kill -TERM {os.getpid()}; exec sleep 1000", signals)
    assert end.value.exit_code == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
