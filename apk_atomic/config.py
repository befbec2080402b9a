"""The configuration file as frozen values (design, section 9). The only module that imports tomli.

`load` is pure: bytes in, `Config` or every mistake at once out; what each key may hold is `config_schema`'s to say. It
must not know where the file lies, nor what the settings do. Nothing here is durable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from apk_atomic.errors import UsageError

if TYPE_CHECKING:
    from typing import Literal

    from apk_atomic.schedule import Window

LIMIT = 1 << 20  # bytes; a file beyond it is not a configuration
MIB = 1 << 20
_MISTAKES_SHOWN = 40


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


def load(data: bytes, name: str) -> Config:
    """The settings in `data`; `name` is what messages call the file.

    Raises UsageError with every mistake in it, one per line as `file: table.key: problem`.
    """
    if _sets_nothing(data):
        return Config()
    from apk_atomic.config_schema import read  # who only needs the defaults does without

    tables, mistakes = read(_parse(data, name))
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


def _sets_nothing(data: bytes) -> bool:
    """Whether there are only comments and empty tables, as in the file that is installed: then tomli is not needed."""
    try:
        lines = [line for each in data[: LIMIT + 1].decode().split("\n") if (line := each.strip(" \t"))]
    except UnicodeDecodeError:
        return False
    if len(data) > LIMIT or not all(line.replace("\t", "").isprintable() for line in lines):
        return False
    tables = [line for line in lines if not line.startswith("#")]
    return len({*tables} & {f"[{name}]" for name in Config._fields}) == len(tables)


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


def _refused(name: str, mistakes: list[str]) -> UsageError:
    shown = [f"{name}: {mistake}" for mistake in mistakes[:_MISTAKES_SHOWN]]
    if len(mistakes) > len(shown):
        shown.append(f"{name}: and {len(mistakes) - len(shown)} more mistakes")
    text = "\n".join([*shown, "nothing was changed"])
    hint = f"where it is sealed: mount --bind a corrected copy over it, then: apk-atomic run -- vi {name}"
    return UsageError(text, hint=hint)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length] + "…"
