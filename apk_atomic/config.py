"""The configuration file as frozen values (design, section 9). The only module that imports tomli.

`load` is pure: bytes in, `Config` or every mistake at once out. It must not know where the file lies, nor what the
settings do. Nothing here is durable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from apk_atomic.errors import UsageError

if TYPE_CHECKING:
    from typing import Literal

    from apk_atomic.schedule import Window

LIMIT = 1 << 20  # bytes; a file beyond it is not a configuration
MIB = 1 << 20
_MISTAKES_SHOWN = 40
_TEXT_SHOWN = 60
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_LARGEST = 1 << 62
_GENERATORS = ("auto", "mkinitfs", "dracut", "booster")
# What a generation is made of, or the kernel: it cannot be shared by all generations.
_OF_A_ROOT = frozenset(("bin", "boot", "dev", "etc", "lib", "lib64", "proc", "run", "sbin", "sys", "tmp", "usr"))
_PACKAGE_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-._")


class Volume(NamedTuple):
    """Room that a transaction wants before it starts, in bytes; and the commons that `init` makes."""

    min_free_data: int = 64 * MIB
    min_free_metadata: int = 16 * MIB
    commons: tuple[str, ...] = ("@home", "@var@cache", "@var@log")


class Generations(NamedTuple):
    """`slots` in the boot menu; besides, the newest `keep` generations and those younger than `keep_days` stay."""

    slots: int = 4
    keep: int = 0
    keep_days: int = 0


class Chroot(NamedTuple):
    """`commons`: (mountpoint, "rw" | "ro" | "skip"); `accept`: packages that may stay broken."""

    commons: tuple[tuple[str, str], ...] = ()
    accept: tuple[str, ...] = ()


class Initramfs(NamedTuple):
    """A generator by name ("auto" takes the one that is installed), or the argv of a command."""

    generator: str | tuple[str, ...] = "auto"


class Proof(NamedTuple):
    """What the boot proof lets pass: a kernel, initramfs or microcode image of base that is gone."""

    allow_removed_kernel: bool = False


class Queries(NamedTuple):
    """Which generation answers apk's queries while something is pending."""

    answer_from: Literal["next", "booted"] = "next"


class Auto(NamedTuple):
    """The unattended upgrade. `policy`: nothing, report what would change, make the generation, or also reboot into it
    as `reboot` says: "never", "when-needed", or in windows of time. `exclude` are names, or patterns with * and ?."""

    policy: Literal["none", "check", "stage", "apply"] = "stage"
    exclude: tuple[str, ...] = ()
    every_hours: int = 20
    delay_minutes: int = 120
    inhibit: str = "/run/apk-atomic.inhibit"
    only_on_mains: bool = False
    min_free: int = 256 * MIB
    nice: int = 10
    io: Literal["idle", "best-effort", "normal"] = "idle"
    lock_minutes: int = 30
    notify_seconds: int = 60
    reboot: str | tuple[Window, ...] = "never"
    reboot_warning_seconds: int = 600


class Config(NamedTuple):
    """Every setting; `Config()` is what counts without a file."""

    volume: Volume = Volume()
    generations: Generations = Generations()
    chroot: Chroot = Chroot()
    initramfs: Initramfs = Initramfs()
    proof: Proof = Proof()
    queries: Queries = Queries()
    auto: Auto = Auto()


class _Wrong(ValueError):
    """What a value should have been."""


def load(data: bytes, name: str) -> Config:
    """The settings in `data`; `name` is what messages call the file.

    Raises UsageError with every mistake in it, one per line as `file: table.key: problem`.
    """
    document = _parse(data, name)
    mistakes: list[str] = []
    tables = {table: dict(_settings(document, table, mistakes)) for table in _TABLES}
    mistakes += [f"{_shown(table)}: unknown table" for table in document if table not in _TABLES]
    if mistakes:
        raise _refused(name, mistakes)
    return Config(
        volume=Volume(**tables["volume"]),
        generations=Generations(**tables["generations"]),
        chroot=Chroot(**tables["chroot"]),
        initramfs=Initramfs(**tables["initramfs"]),
        proof=Proof(**tables["proof"]),
        queries=Queries(**tables["queries"]),
        auto=Auto(**tables["auto"]),
    )


def _parse(data: bytes, name: str) -> dict[str, Any]:
    """TOML to plain values. What tomli raises beside its own error: RecursionError for what is nested too deep,
    ValueError for a number of too many digits."""
    if len(data) > LIMIT:
        raise _refused(name, [f"larger than {LIMIT >> 20} MiB"])
    import tomli  # costs 10 ms, and most machines have no file

    try:
        return tomli.loads(data.decode())
    except UnicodeDecodeError as error:
        raise _refused(name, [f"not UTF-8 text at byte {error.start}"]) from error
    except (ValueError, RecursionError) as error:
        raise _refused(name, [_cut(str(error), 200)]) from error


def _settings(document: Mapping[str, Any], table: str, mistakes: list[str]) -> Iterator[tuple[str, Any]]:
    """The valid settings of one table; what is wrong with the others goes to `mistakes`."""
    values = document.get(table, {})
    if not isinstance(values, dict):
        mistakes.append(f"{table}: must be a table, not {_kind(values)}")
        return
    for key, value in values.items():
        parser = _TABLES[table].get(key)
        if parser is None:
            mistakes.append(f"{table}.{_shown(key)}: unknown key")
            continue
        try:
            yield key, parser(value)
        except _Wrong as wrong:
            mistakes.append(f"{table}.{key}: {wrong}")


def _refused(name: str, mistakes: list[str]) -> UsageError:
    shown = [f"{name}: {mistake}" for mistake in mistakes[:_MISTAKES_SHOWN]]
    if len(mistakes) > len(shown):
        shown.append(f"{name}: and {len(mistakes) - len(shown)} more mistakes")
    text = "\n".join([*shown, "nothing was changed"])
    hint = f"where it is sealed: mount --bind a corrected copy over it, then: apk-atomic run -- vi {name}"
    return UsageError(text, hint=hint)


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
    from apk_atomic.schedule import parse_window

    if isinstance(value, str) and value in ("never", "when-needed"):
        return value
    if not isinstance(value, list) or not value:
        raise _Wrong(f'must be "never", "when-needed" or an array of windows of time, not {_seen(value)}')
    found = []
    for text in value:
        window = parse_window(text) if isinstance(text, str) else None
        if window is None:
            raise _Wrong(f'{_seen(text)} is not a window such as "Sat,Sun 02:00-05:00" or "03:00-04:00"')
        found.append(window)
    return tuple(found)


_TABLES: Mapping[str, Mapping[str, Callable[[object], object]]] = {
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


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length] + "…"


def _or(words: tuple[str, ...]) -> str:
    quoted = [f'"{word}"' for word in words]
    return f"{', '.join(quoted[:-1])} or {quoted[-1]}"
