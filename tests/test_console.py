"""`console`: real descriptors, real terminals, real failures of both."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import select
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apk_atomic.console import Console, ReaderGone, age, columns, printable, size
from apk_atomic.errors import AtomicError

ROOT = Path(__file__).parents[1]


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            try:
                os.close(end)
            except OSError as error:
                assert error.errno == errno.EBADF


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a terminal that does not echo and leaves newlines alone."""
    ours, theirs = pty.openpty()
    settings = termios.tcgetattr(theirs)
    settings[1] &= ~termios.OPOST
    termios.tcsetattr(theirs, termios.TCSANOW, settings)
    try:
        yield ours, theirs
    finally:
        os.close(ours)
        os.close(theirs)


def said(method: str, *args: str, quiet: bool = False, hint: str = "") -> str:
    """What a method writes to a stderr that is a pipe."""
    with pipe() as (reader, writer):
        how = {"hint": hint} if hint else {}
        getattr(Console(quiet=quiet, err=writer), method)(*args, **how)
        os.close(writer)
        return os.read(reader, 65536).decode()


def test_talk_is_prefixed() -> None:
    assert said("note", "n") == "apk-atomic: n\n"
    assert said("step", "s") == "apk-atomic: s\n"
    assert said("warn", "w") == "apk-atomic: warning: w\n"
    assert said("error", "e") == "apk-atomic: error: e\n"
    assert said("error", "e", hint="h") == "apk-atomic: error: e\napk-atomic: hint: h\n"
    assert said("error", "") == ""


def test_quiet_keeps_warnings_and_errors() -> None:
    assert said("note", "n", quiet=True) == said("step", "s", quiet=True) == ""
    assert said("warn", "w", quiet=True).endswith("w\n")
    assert said("error", "e", quiet=True).endswith("e\n")


def test_aside_is_for_terminals_only() -> None:
    assert said("aside", "a") == ""
    with terminal() as (ours, theirs):
        Console(quiet=True, err=theirs).aside("not this")
        Console(err=theirs).aside("a")
        assert os.read(ours, 100) == b"apk-atomic: a\n"


def test_terminal_gets_no_control_sequences() -> None:
    with terminal() as (ours, theirs):
        Console(err=theirs).warn("x \x1b[31mred\x07 \x9b2J \u202egnp.exe\r\x00\udcff é")
        shown = os.read(ours, 1000).decode()
    assert shown == "apk-atomic: warning: x \\x1b[31mred\\x07 \\x9b2J \\u202egnp.exe\\x0d\\x00\\xff é\n"


def test_a_name_cannot_fake_a_line_of_ours() -> None:
    assert said("note", "collected a\napk-atomic: all is well").split("\n")[1].startswith("    ")


def test_answer_goes_to_stdout_line_by_line() -> None:
    with pipe() as (reader, writer):
        Console(out=writer, err=-1).answer("a\tb\nc\x1b\udc80")
        assert os.read(reader, 100) == b"a\tb\nc\\x1b\\x80\n"


def test_answer_without_a_reader_ends_quietly() -> None:
    with pipe() as (reader, writer):
        os.close(reader)
        with pytest.raises(ReaderGone) as caught:
            Console(out=writer).answer("a")
    assert (caught.value.exit_code, caught.value.message) == (141, "")


def test_answer_that_cannot_be_written_is_an_error() -> None:
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(AtomicError, match="No space left"):
        Console(out=full.fileno()).answer("a")


def test_large_answers_arrive_whole() -> None:
    text = "\n".join(f"line {number}" for number in range(50_000))
    with pipe() as (reader, writer):
        received: list[bytes] = []

        def drain() -> None:
            while data := os.read(reader, 65536):
                received.append(data)

        thread = threading.Thread(target=drain)
        thread.start()
        Console(out=writer).answer(text)
        os.close(writer)
        thread.join()
    assert b"".join(received).decode() == text + "\n"


def test_talk_survives_every_broken_stderr() -> None:
    with pipe() as (reader, writer):
        os.close(reader)
        Console(err=writer).error("e", hint="h")  # EPIPE
    Console(err=-1).warn("w")  # EBADF
    Console(err=-1).aside("a")
    with open("/dev/full", "wb", buffering=0) as full:
        Console(err=full.fileno()).note("n")  # ENOSPC
    ours, theirs = pty.openpty()
    os.close(ours)
    try:
        with pytest.raises(OSError, match="Input/output"):
            os.write(theirs, b"x")
        Console(err=theirs).warn("w")  # EIO
    finally:
        os.close(theirs)


def test_slow_reader_of_a_nonblocking_stderr() -> None:
    with pipe() as (reader, writer):
        os.set_blocking(writer, False)
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        os.write(writer, b"x" * 4096)

        def read_later() -> None:
            time.sleep(0.05)
            os.read(reader, 4096)

        thread = threading.Thread(target=read_later)
        thread.start()
        Console(err=writer).note("late")
        thread.join()
        assert os.read(reader, 100) == b"apk-atomic: late\n"


def test_reader_that_never_reads_a_nonblocking_stderr_is_given_up() -> None:
    with pipe() as (reader, writer):
        os.set_blocking(writer, False)
        with pytest.raises(BlockingIOError):
            while os.write(writer, b"x" * 4096):
                pass
        Console(err=writer).note("lost")
        assert select.select([reader], [], [], 0)[0] == [reader]


def test_closed_stderr_of_a_whole_process() -> None:
    program = "from apk_atomic.console import Console\nc = Console()\nc.error('e')\nc.answer('a')"
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, program],
        cwd=ROOT, stdout=subprocess.PIPE, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b"a\n")


@given(st.text(st.characters(exclude_categories=()), max_size=30))
def test_printable_is_printable_and_plain_text_is_kept(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert shown.encode().decode() == shown
    assert (shown == text) == text.isprintable()


def test_printable_by_example() -> None:
    assert printable("a-1.0-r0 é 漢") == "a-1.0-r0 é 漢"
    assert printable("a\nb\tc") == "a\\x0ab\\x09c"
    assert printable("\ud800\U000e0001") == "\\ud800\\U000e0001"


def test_columns() -> None:
    assert columns([]) == []
    assert columns([("a", "bb", "c"), ("aaa", "b"), ("", "", "x\n")]) == ["a    bb  c", "aaa  b", "         x\\x0a"]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 << 20, "3.0 MiB"), ((1 << 20) - 1, "1.0 MiB"),
     (1536, "1.5 KiB"), (5 << 60, "5120.0 PiB"), (-2048, "-2.0 KiB")],
)  # fmt: skip
def test_size(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "just now"), (59.9, "just now"), (60, "1 minute"), (3599, "59 minutes"), (3600, "1 hour"),
     (86400, "1 day"), (200_000, "2 days"), (-59, "just now"), (-3600, "in the future")],
)  # fmt: skip
def test_age(seconds: float, text: str) -> None:
    assert age(seconds) == text
