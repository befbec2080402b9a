"""`config`: what is accepted, what is refused and how it is said; the shipped file."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from subprocess import run

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apk_atomic import config, config_schema
from apk_atomic.config import LIMIT, Chroot, Config, Generations, Volume, load
from apk_atomic.config_schema import TABLES
from apk_atomic.errors import UsageError

SHIPPED = Path(__file__).parents[1] / "config" / "apk-atomic.toml"


def mistakes(text: str | bytes) -> list[str]:
    """The lines of the refusal, without the file's name and the closing sentence."""
    with pytest.raises(UsageError) as caught:
        load(text.encode() if isinstance(text, str) else text, "F")
    assert caught.value.exit_code == 100
    assert "F" in caught.value.hint
    *lines, last = caught.value.message.split("\n")
    assert last == "nothing was changed"
    assert all(line.startswith("F: ") for line in lines)
    return [line.removeprefix("F: ") for line in lines]


def test_empty_file_means_defaults() -> None:
    assert load(b"", "F") == Config()


def with_every_key(shipped: str) -> str:
    """The file that is installed, as if the user had taken away each `#` in front of a setting."""
    return re.sub(r"^#(?=[a-z_]+ = )", "", shipped, flags=re.MULTILINE)


def test_shipped_file_sets_nothing_and_shows_the_defaults() -> None:
    shipped = SHIPPED.read_text()
    assert all(keys == {} for keys in tomllib.loads(shipped).values())
    assert load(shipped.encode(), "F") == load(with_every_key(shipped).encode(), "F") == Config()


@pytest.mark.parametrize("line", [
    "[volume]", " [volume]\t", "# ü\t…", "", "[volumes]", "[volume] # x", "[auto.reboot]", "x", "slots = 4", "[[auto]]",
    "[volume]\n[volume]", "# \x00", "# \x7f", "\r", "# x\r", "#\x0bx = 1", "# \u2028", "[\"volume\"]", "\ufeff[volume]",
])  # fmt: skip
def test_a_file_that_sets_nothing_is_read_as_any_other(line: str) -> None:
    """The way without tomli never accepts what tomli and the schema would refuse."""
    text = f"# first\n{line}\n\n[auto]\n"
    quick = config._sets_nothing(text.encode())
    try:
        tables, wrong = config_schema.read(tomllib.loads(text))
    except tomllib.TOMLDecodeError:
        assert not quick
        return
    assert not quick or (not wrong and not any(tables.values()))
    if not wrong:
        load(text.encode(), "F")


@given(st.binary(max_size=60))
def test_no_bytes_set_nothing_that_are_no_toml(data: bytes) -> None:
    if config._sets_nothing(b"[auto]\n# " + data):
        assert set(tomllib.loads((b"[auto]\n# " + data).decode())) <= set(Config._fields)


def test_shipped_file_has_every_key_once_with_a_comment() -> None:
    table, seen, lines = "", [], with_every_key(SHIPPED.read_text()).splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        if line.startswith("["):
            table = line.strip("[]")
        elif line and not line.startswith("#"):
            seen.append((table, line.split(" = ")[0]))
            assert above.startswith("# "), f"no comment above: {line}"
    assert seen == [(table, key) for table, keys in TABLES.items() for key in keys]


def test_every_key_has_a_field() -> None:
    config = Config()
    for table, keys in TABLES.items():
        names = list(getattr(config, table)._fields) if keys else []
        assert names == list(keys)


def test_everything_set() -> None:
    text = """
        volume = { min_free_data = "2G", min_free_metadata = "0" }
        generations.slots = 9
        generations.keep = 3
        generations.keep_days = 30
        initramfs.generator = ["/bin/x", "-o", "@OUT@"]
        queries.answer_from = "booted"
        [chroot]
        accept = ["a", "so-1.2+_"]
        [chroot.commons]
        "/home" = "rw"
        "/var/log" = "skip"
    """
    config = load(text.encode(), "F")
    assert config.volume == Volume(2 << 30, 0)
    assert config.generations == Generations(9, 3, 30)
    assert config.chroot == Chroot((("/home", "rw"), ("/var/log", "skip")), ("a", "so-1.2+_"))
    assert config.initramfs.generator == ("/bin/x", "-o", "@OUT@")
    assert config.queries.answer_from == "booted"


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("512K", 512 << 10), ("3M", 3 << 20), ("1G", 1 << 30), ("2T", 2 << 40)]
)
def test_sizes(text: str, size: int) -> None:
    assert load(f'volume.min_free_data = "{text}"'.encode(), "F").volume.min_free_data == size


@pytest.mark.parametrize(
    "value",
    ["64", "-1", '"-1M"', '"M"', '""', '"1.5G"', '"1 G"', '"1g"', '"1MB"', '"²M"', '"٣M"', "true", "[]", "nan",
     f'"{"9" * 18}T"', f'"{"9" * 5000}"', "1979-05-27", "1e999"],
)  # fmt: skip
def test_wrong_sizes(value: str) -> None:
    (line,) = mistakes(f"volume.min_free_metadata = {value}")
    assert line.startswith('volume.min_free_metadata: must be a size such as "512M" or "2G", not ')


@pytest.mark.parametrize(
    ("value", "shown"),
    [("1", "1"), ("10", "10"), ("-4", "-4"), ("true", "true"), ("4.0", "4.0"), ("nan", "nan"), ("-inf", "-inf"),
     ('"4"', '"4"'), ("[4]", "an array"), ("{a = 1}", "a table"), ("07:32:00", "a date or time"),
     ("0x" + "f" * 9000, "a huge number"), ("9" * 4000, "a huge number")],
)  # fmt: skip
def test_wrong_numbers(value: str, shown: str) -> None:
    (line,) = mistakes(f"generations.slots = {value}")
    assert line == f"generations.slots: must be a whole number from 3 to 9, not {shown}"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('queries.answer_from = "later"', 'queries.answer_from: must be "next" or "booted", not "later"'),
        ("queries.answer_from = []", 'queries.answer_from: must be "next" or "booted", not an array'),
        ('volume.commons = "@home"', 'volume.commons: must be an array of names such as "@var@log", not a string'),
        ('volume.commons = ["home"]', 'volume.commons: "home" is not a name such as "@var@log"'),
        ('volume.commons = ["@var@"]', 'volume.commons: "@var@" is not a name such as "@var@log"'),
        ('volume.commons = ["@.."]', 'volume.commons: "@.." is not a name such as "@var@log"'),
        ('volume.commons = ["@a/b"]', 'volume.commons: "@a/b" is not a name such as "@var@log"'),
        ('volume.commons = ["@usr"]', 'volume.commons: "@usr" is what each generation has for itself'),
        ("volume.commons = [7]", 'volume.commons: 7 is not a name such as "@var@log"'),
        ('chroot.accept = "a"', "chroot.accept: must be an array of package names, not a string"),
        ('chroot.accept = ["a", "b c"]', 'chroot.accept: "b c" is not the name of a package'),
        ('chroot.accept = ["a", 1]', "chroot.accept: 1 is not the name of a package"),
        ('chroot.accept = [""]', 'chroot.accept: "" is not the name of a package'),
        ('chroot.commons = ["/home"]', "chroot.commons: must be a table of mountpoints, not an array"),
        ('chroot.commons.home = "rw"', "chroot.commons: home is not the absolute path of a mountpoint"),
        ('chroot.commons."/" = "rw"', 'chroot.commons: "/" is not the absolute path of a mountpoint'),
        ('chroot.commons."/a/../b" = "rw"', 'chroot.commons: "/a/../b" is not the absolute path of a mountpoint'),
        ('chroot.commons."/a" = "x"', 'chroot.commons: "/a" must be "rw", "ro" or "skip", not "x"'),
        ('chroot.commons."/a" = {b = "rw"}', 'chroot.commons: "/a" must be "rw", "ro" or "skip", not a table'),
        ('initramfs.generator = ["mkimage"]',
         'initramfs.generator: the command must be an absolute path, not "mkimage"'),
        ("initramfs.generator = []",
         'initramfs.generator: must be "auto", "mkinitfs", "dracut" or "booster", or a command as an array of '
         "strings, not an array"),
        ("generations = 4", "generations: must be a table, not a number"),
        ("[[generations]]", "generations: must be a table, not an array"),
        ("generations.slot = 4", "generations.slot: unknown key"),
        ("[auto]\nwhen = 1", "auto.when: unknown key"),
        ('auto.policy = "all"', 'auto.policy: must be "none", "check", "stage" or "apply", not "all"'),
        ('auto.exclude = "linux"', "auto.exclude: must be an array of package names, not a string"),
        ('auto.exclude = ["linux-*", "a b"]',
         'auto.exclude: "a b" is not the name of a package, nor a pattern such as "linux-*"'),
        ('auto.inhibit = "stop"', 'auto.inhibit: must be an absolute path, not "stop"'),
        ("auto.nice = -1", "auto.nice: must be a whole number from 0 to 19, not -1"),
        ('auto.io = "fast"', 'auto.io: must be "idle", "best-effort" or "normal", not "fast"'),
        ('auto.reboot = "always"',
         'auto.reboot: must be "never", "when-needed" or an array of windows of time, not "always"'),
        ("auto.reboot = []",
         'auto.reboot: must be "never", "when-needed" or an array of windows of time, not an array'),
        ('auto.reboot = ["Sat 02:00-05:00", "at night"]',
         'auto.reboot: "at night" is not a window such as "Sat,Sun 02:00-05:00" or "03:00-04:00"'),
        ("auto.reboot = [7]", 'auto.reboot: 7 is not a window such as "Sat,Sun 02:00-05:00" or "03:00-04:00"'),
        ("[typo]", "typo: unknown table"),
        ("slots = 4", "slots: unknown table"),
    ],
)  # fmt: skip
def test_mistakes_are_named(text: str, line: str) -> None:
    assert mistakes(text) == [line]


def test_all_mistakes_are_reported_at_once() -> None:
    text = 'generations = { slots = 1, kep = 2 }\nvolume.min_free_data = 7\nqueries.answer_from = "x"\n[nowhere]'
    assert [line.split(":")[0] for line in mistakes(text)] == [
        "volume.min_free_data", "generations.slots", "generations.kep", "queries.answer_from", "nowhere",
    ]  # fmt: skip


def test_a_flood_of_mistakes_stays_readable() -> None:
    lines = mistakes("[generations]\n" + "\n".join(f"k{number} = 1" for number in range(20_000)))
    assert len(lines) < 60
    assert lines[-1] == "and 19960 more mistakes"


def test_hostile_keys_and_values_do_not_reach_the_terminal() -> None:
    text = 'generations."a\\u001b[2J\\nb" = 1\nqueries.answer_from = "\\u001b]0;x\\u0007\\u202e"'
    for line in mistakes(text):
        assert line.isprintable()


def test_long_keys_and_values_are_cut() -> None:
    assert all(len(line) < 300 for line in mistakes(f'{"k" * 9000} = 1\nqueries.answer_from = "{"v" * 9000}"'))


@pytest.mark.parametrize(
    "data",
    [
        b"a = " + b"[" * 500_000,
        b"a = " + b"{a=" * 200_000,
        b"a" + b".a" * 200_000 + b" = 1",
        b"a = " + b"9" * 100_000,
        b"a = 1\na = 2",
        b"\0",
        b"\xff\xfe",
        b"a = '''",
        b"\n" * (LIMIT + 1),
        Path(sys.executable).resolve().read_bytes()[:4096],
    ],
)
def test_what_is_not_a_configuration_is_refused_in_one_line(data: bytes) -> None:
    (line,) = mistakes(data)
    assert len(line) < 300


TOML_VALUES = st.one_of(
    st.integers().map(str), st.floats().map(str), st.sampled_from(["true", "[]", "{}", "[[]]", '"512M"', '"next"']),
    st.text("abc \"'\\\n/=[]{}.#", max_size=20),
)  # fmt: skip
TOML_LINES = st.builds(
    lambda table, key, value: f"{table}.{key} = {value}",
    st.sampled_from([*TABLES, "x"]),
    st.sampled_from([key for keys in TABLES.values() for key in keys]),
    TOML_VALUES,
)


@given(st.one_of(st.binary(max_size=200), st.lists(TOML_LINES, max_size=6).map(lambda x: "\n".join(x).encode())))
def test_any_bytes_give_settings_or_a_refusal(data: bytes) -> None:
    try:
        config = load(data, "F")
    except UsageError as error:
        assert error.message.endswith("\nnothing was changed")
    else:
        assert 3 <= config.generations.slots <= 9
        hash(config)


def test_tomli_is_imported_only_where_there_is_a_file() -> None:
    program = "import sys; from apk_atomic import config; config.Config(); sys.exit('tomli' in sys.modules)"
    assert run([sys.executable, "-c", program], cwd=Path(__file__).parents[1]).returncode == 0
