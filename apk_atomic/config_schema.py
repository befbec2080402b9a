"""Every table and key that may stand in the configuration file, and the parser of its value (design, section 9).

Pure: plain values as TOML has them go in, ours come out, and a sentence for each that is wrong. It must not know which
file that is, nor what the settings do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from apk_atomic.schedule import Window

_TEXT_SHOWN = 60
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_LARGEST = 1 << 62
_GENERATORS = ("auto", "mkinitfs", "dracut", "booster")
# What a generation is made of, or the kernel: it cannot be shared by all generations.
_OF_A_ROOT = frozenset(("bin", "boot", "dev", "etc", "lib", "lib64", "proc", "run", "sbin", "sys", "tmp", "usr"))
_PACKAGE_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-._")


class _Wrong(ValueError):
    """What a value should have been."""


def read(document: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The settings of each table that are valid, and all that is wrong, as `table.key: problem`."""
    mistakes: list[str] = []
    tables = {table: dict(_settings(document, table, mistakes)) for table in TABLES}
    mistakes += [f"{_shown(table)}: unknown table" for table in document if table not in TABLES]
    return tables, mistakes


def _settings(document: Mapping[str, Any], table: str, mistakes: list[str]) -> Iterator[tuple[str, Any]]:
    """The valid settings of one table; what is wrong with the others goes to `mistakes`."""
    values = document.get(table, {})
    if not isinstance(values, dict):
        mistakes.append(f"{table}: must be a table, not {_kind(values)}")
        return
    for key, value in values.items():
        parser = TABLES[table].get(key)
        if parser is None:
            mistakes.append(f"{table}.{_shown(key)}: unknown key")
            continue
        try:
            yield key, parser(value)
        except _Wrong as wrong:
            mistakes.append(f"{table}.{key}: {wrong}")


def _number(least: int, most: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        # bool is an int to Python, not to the user.
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise _Wrong(f"must be a whole number from {least} to {most}, not {_seen(value)}")
        return value

    return parse


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise _Wrong(f"must be true or false, not {_seen(value)}")
    return value


def _size(value: object) -> int:
    """Bytes from "512M"; K, M, G and T are powers of 1024."""
    digits = value[:-1] if isinstance(value, str) and value[-1:] in _UNITS else value
    if isinstance(value, str) and isinstance(digits, str) and digits.isdecimal() and digits.isascii():
        # Past 18 digits it is too large in any unit, and Python may refuse to convert it.
        count = int(digits) * _UNITS.get(value[-1:], 1) if len(digits) < 19 else _LARGEST
        if count < _LARGEST:
            return count
    raise _Wrong(f'must be a size such as "512M" or "2G", not {_seen(value)}')


def _choice(*choices: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise _Wrong(f"must be {_or(choices)}, not {_seen(value)}")
        return value

    return parse


def _packages(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _Wrong(f"must be an array of package names, not {_kind(value)}")
    for name in value:
        if not isinstance(name, str) or not name or not _PACKAGE_CHARACTERS.issuperset(name):
            raise _Wrong(f"{_seen(name)} is not the name of a package")
    return tuple(value)


def _subvolumes(value: object) -> tuple[str, ...]:
    """Names such as @var@log, which stands for /var/log."""
    if not isinstance(value, list):
        raise _Wrong(f"must be an array of names such as \"@var@log\", not {_kind(value)}")
    for name in value:
        if why := why_not_common(name if isinstance(name, str) else ""):
            raise _Wrong(f"{_seen(name)} {why}")
    return tuple(dict.fromkeys(value))


def why_not_common(name: str) -> str:
    """Why a subvolume of this name cannot be shared by all generations; "" where it can, as @var@log."""
    first, *parts = name.split("@")
    if first or not parts or not all(map(_is_component, parts)):
        return 'is not a name such as "@var@log"'
    return "is what each generation has for itself" if parts[1:] == [] and parts[0] in _OF_A_ROOT else ""


def _is_component(text: str) -> bool:
    return bool(text) and text[0] not in "-." and _PACKAGE_CHARACTERS.issuperset(text)


def _commons(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        raise _Wrong(f"must be a table of mountpoints, not {_kind(value)}")
    for mountpoint, wish in value.items():
        parts = mountpoint.split("/")
        if parts[0] or not any(parts) or {".", ".."} & set(parts) or "\0" in mountpoint:
            raise _Wrong(f"{_shown(mountpoint)} is not the absolute path of a mountpoint")
        if wish not in ("rw", "ro", "skip"):
            raise _Wrong(f"{_shown(mountpoint)} must be {_or(('rw', 'ro', 'skip'))}, not {_seen(wish)}")
    return tuple(value.items())


def _generator(value: object) -> str | tuple[str, ...]:
    if isinstance(value, str) and value in _GENERATORS:
        return value
    if isinstance(value, list) and value and all(isinstance(word, str) and "\0" not in word for word in value):
        if not value[0].startswith("/"):
            raise _Wrong(f"the command must be an absolute path, not {_seen(value[0])}")
        return tuple(value)
    raise _Wrong(f"must be {_or(_GENERATORS)}, or a command as an array of strings, not {_seen(value)}")


def _patterns(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _Wrong(f"must be an array of package names, not {_kind(value)}")
    for name in value:
        if not isinstance(name, str) or not name or not (_PACKAGE_CHARACTERS | {"*", "?"}).issuperset(name):
            raise _Wrong(f"{_seen(name)} is not the name of a package, nor a pattern such as \"linux-*\"")
    return tuple(value)


def _absolute(value: object) -> str:
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise _Wrong(f"must be an absolute path, not {_seen(value)}")
    return value


def _reboot(value: object) -> str | tuple[Window, ...]:
    if isinstance(value, str) and value in ("never", "when-needed"):
        return value
    from apk_atomic.schedule import parse_window  # every transaction reads the shipped file, which has no window

    if not isinstance(value, list) or not value:
        raise _Wrong(f'must be "never", "when-needed" or an array of windows of time, not {_seen(value)}')
    found = []
    for text in value:
        window = parse_window(text) if isinstance(text, str) else None
        if window is None:
            raise _Wrong(f'{_seen(text)} is not a window such as "Sat,Sun 02:00-05:00" or "03:00-04:00"')
        found.append(window)
    return tuple(found)


TABLES: Mapping[str, Mapping[str, Callable[[object], object]]] = {
    "volume": {"min_free_data": _size, "min_free_metadata": _size, "commons": _subvolumes},
    "generations": {"slots": _number(3, 9), "keep": _number(0, 10_000), "keep_days": _number(0, 36_500)},
    "chroot": {"commons": _commons, "accept": _packages},
    "initramfs": {"generator": _generator},
    "proof": {"allow_removed_kernel": _truth},
    "queries": {"answer_from": _choice("next", "booted")},
    "auto": {
        "policy": _choice("none", "check", "stage", "apply"),
        "exclude": _patterns,
        "every_hours": _number(0, 8760),
        "delay_minutes": _number(0, 1440),
        "inhibit": _absolute,
        "only_on_mains": _truth,
        "min_free": _size,
        "nice": _number(0, 19),
        "io": _choice("idle", "best-effort", "normal"),
        "lock_minutes": _number(0, 1440),
        "notify_seconds": _number(1, 3600),
        "reboot": _reboot,
        "reboot_warning_seconds": _number(1, 86_400),
    },
    "health": {},
    "boot": {},
}
"""Every table and key that may stand in the file, with the parser of its value."""


def _seen(value: object) -> str:
    """A value as the user wrote it, more or less; a compound one by its kind."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, int) and abs(value) >= _LARGEST:
        return "a huge number"  # which Python may refuse to print
    return str(value) if isinstance(value, int | float) else _kind(value)


def _kind(value: object) -> str:
    kinds = (
        (bool, "a truth value"), (int, "a number"), (float, "a number"), (str, "a string"), (list, "an array"),
        (dict, "a table"),
    )  # fmt: skip
    return next((name for kind, name in kinds if isinstance(value, kind)), "a date or time")


def _shown(key: str) -> str:
    """A key as it may stand in a message: plain, or quoted with all that a terminal would act upon escaped."""
    return key if len(key) <= _TEXT_SHOWN and _PACKAGE_CHARACTERS.issuperset(key) and key else _quoted(key)


def _quoted(text: str) -> str:
    inner = repr(text if len(text) <= _TEXT_SHOWN else text[:_TEXT_SHOWN] + "…")[1:-1]
    return f'"{inner}"'


def _or(words: tuple[str, ...]) -> str:
    quoted = [f'"{word}"' for word in words]
    return f"{', '.join(quoted[:-1])} or {quoted[-1]}"
