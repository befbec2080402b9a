"""Our talk to the user on stderr, our answers on stdout, and how sizes, ages and tables look in both.

It writes to the descriptors themselves: no buffer of Python's that fails at exit. Talk never raises: a terminal
that is gone, a full disk behind `2>log` or a closed pipe must not decide about a transaction. Whatever is not
printable is escaped, so no name of a package or generation drives the terminal or fakes a line of ours.
It must not know what is talked about. Nothing here is durable.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterable, Sequence

from apk_atomic.errors import AtomicError, Interrupted

PREFIX = "apk-atomic: "
INDENT = "    "
_PATIENCE_MS = 1000  # for a reader that is slow on a descriptor that somebody made non-blocking
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_AGES = ((86400, "day"), (3600, "hour"), (60, "minute"))


class ReaderGone(Interrupted):
    """Nobody reads our stdout any more, as in `| head -1`: ends us as SIGPIPE would, without a word."""

    def __init__(self) -> None:
        super().__init__(signal.SIGPIPE, "")


class Console:
    """Where a command says what it does; `quiet` keeps it to warnings, errors and answers.

    `out` and `err` are descriptors: stdout and stderr.
    """

    def __init__(self, *, quiet: bool = False, out: int = 1, err: int = 2) -> None:
        self.quiet = quiet
        self._out = out
        self._err = err

    def note(self, text: str) -> None:
        """Something that the user should know."""
        if not self.quiet:
            self._talk(text)

    def step(self, text: str) -> None:
        """What we do now, in the present tense: "building the initramfs for 6.12.1-0-lts"."""
        self.note(text)

    def aside(self, text: str) -> None:
        """A note for a human who watches; a script's log does without."""
        if not self.quiet and _is_terminal(self._err):
            self._talk(text)

    def warn(self, text: str) -> None:
        """Something is not as it should be, and we go on."""
        self._talk(f"warning: {text}")

    def error(self, text: str, *, hint: str = "") -> None:
        """Why we stop, and what to type next. An empty text says nothing."""
        if text:
            self._talk(f"error: {text}")
        if hint:
            self._talk(f"hint: {hint}")

    def answer(self, text: str) -> None:
        """Write `text` and a newline to stdout. Raises ReaderGone, or AtomicError where it cannot be written."""
        try:
            _write(self._out, _escaped_lines(text) + "\n")
        except BrokenPipeError:
            raise ReaderGone from None
        except OSError as error:
            raise AtomicError(f"the answer could not be written: {error.strerror}") from error

    def _talk(self, text: str) -> None:
        """One write for one message, so that messages of several processes do not mix within a line."""
        try:
            _write(self._err, PREFIX + _escaped_lines(text.replace("\n", "\n" + INDENT)) + "\n")
        except OSError:
            return


def printable(text: str) -> str:
    r"""`text` as one line that no terminal acts upon: "a\x1b[2Jb". Undecodable bytes become \xNN too."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escape(each) for each in text)


def columns(rows: Iterable[Sequence[str]]) -> list[str]:
    """The rows as lines, each column as wide as its widest cell; the cells are made printable."""
    cells = [[printable(cell) for cell in row] for row in rows]
    count = max((len(row) for row in cells), default=0)
    widths = [max((len(row[at]) for row in cells if at < len(row)), default=0) for at in range(count)]
    return ["  ".join(cell.ljust(widths[at]) for at, cell in enumerate(row)).rstrip() for row in cells]


def size(count: int) -> str:
    """Bytes for humans: "17 B", "3.4 MiB"."""
    value, unit = float(count), 0
    # From 1023.95 on, one decimal would show "1024.0".
    while abs(value) >= 1023.95 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{count} B" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"


def age(seconds: float) -> str:
    """A span for humans, rounded down: "2 days", "1 hour", "just now"; the clock may have gone backwards."""
    for length, name in _AGES:
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {name}" if count == 1 else f"{count} {name}s"
    return "just now" if seconds > -60 else "in the future"


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8, as os.fsdecode leaves it
        code -= 0xDC00
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _escaped_lines(text: str) -> str:
    """Newlines and tabs are ours, they stay; everything else is made printable."""
    if text.isprintable():
        return text
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def _is_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def _write(descriptor: int, text: str) -> None:
    data = text.encode()
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            if not poll.poll(_PATIENCE_MS):
                raise
