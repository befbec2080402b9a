"""Names of generations, how paths lie to each other, times as we write them, and arguments without their secrets.

Pure text: no clock, no randomness (both are arguments), no idea of what a name stands for on disk. `model`
offers all of it again, and that is where other modules take it from.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_LAST_SECOND = 253402300799  # 9999-12-31T23:59:59Z; one more and the year has five digits
_ID_DIGITS, _ID_LETTERS = 14, 8
_REDACTED = "***"
_SECRET_WORDS = ("token", "secret", "passw", "auth", "signature", "apikey", "api_key", "api-key")


def new_id(now: float, random: Callable[[int], bytes]) -> str:
    """YYYYmmddHHMMSS in UTC and 8 letters, as the wiki makes them; `random` is os.urandom or acts like it."""
    number = int.from_bytes(random(8), "big")
    letters = ""
    for _ in range(_ID_LETTERS):
        number, digit = divmod(number, 26)
        letters += chr(ord("a") + digit)
    return time.strftime("%Y%m%d%H%M%S", _utc(now)) + letters


def is_below(path: str, *directories: str) -> bool:
    """Whether `path` is one of the directories or lies in one, by the text of both: normalised, of the same kind."""
    return any(path == each or path.startswith(f"{each.rstrip('/')}/") for each in directories)


def iso_utc(now: float) -> str:
    """Unix seconds as `YYYY-mm-ddTHH:MM:SSZ`."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", _utc(now))


def _utc(now: float) -> time.struct_time:
    """Clamped, because a machine without a clock battery must still be able to make a generation."""
    return time.gmtime(min(max(now, 0), _LAST_SECOND) if now == now else 0)


def is_own_id(name: str) -> bool:
    """Whether `name` has the form of our IDs, or of the wiki's, which have capitals too."""
    digits, letters = name[:_ID_DIGITS], name[_ID_DIGITS:]
    right_size = len(name) == _ID_DIGITS + _ID_LETTERS and name.isascii()
    return right_size and digits.isdigit() and letters.isalpha()


_UNSAFE = frozenset(" /,\\")


def is_safe_name(name: str) -> bool:
    """Whether a directory of this name may be taken for a generation at all.

    Liberal, since people name theirs by hand; but what passes is one path component, looks like no option,
    hides nothing on a terminal, and stands unescaped in fstab, mount options and mountinfo (no space, comma,
    backslash).
    """
    return (
        name.isprintable()  # false for control characters and for the surrogates of bytes that are not UTF-8
        and 0 < len(name.encode("utf-8")) <= 255
        and name[0] not in ".-"
        and _UNSAFE.isdisjoint(name)
    )


# Secrets


def redact_argv(argv: Iterable[str]) -> tuple[str, ...]:
    """The arguments with the credentials in their URLs replaced; user names go too: tokens stand there."""
    return tuple(_redact(argument) for argument in argv)


def _redact(text: str) -> str:
    head, *urls = text.split("://")
    return "://".join([head, *(_redact_url(url) for url in urls)])


def _redact_url(url: str) -> str:
    """`url` begins at the authority, which only `/` ends: apk takes `?` and `#` in a password as they are."""
    authority, slash, path = url.partition("/")
    _, at, host = authority.rpartition("@")
    location, question, query = ((_REDACTED + at if at else "") + host + slash + path).partition("?")
    return location + question + "&".join(_redact_parameter(each) for each in query.split("&"))


def _redact_parameter(parameter: str) -> str:
    name, equals, _ = parameter.partition("=")
    secret = equals and any(word in name.lower() for word in _SECRET_WORDS)
    return f"{name}={_REDACTED}" if secret else parameter
