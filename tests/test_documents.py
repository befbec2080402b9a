"""What is documented is what there is: verbs, options, settings, names on disk and in documents for programs.

Each test takes one side from the code itself (its parsers, tables, types) and the other from the manual, the help or
the shipped configuration, so that what is added in one place and forgotten in another fails here. Pure.
"""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from argparse import SUPPRESS
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from apk_atomic import (
    atomic_options,
    bootmenu,
    cmdline,
    config,
    config_schema,
    errors,
    generations,
    lock,
    model,
    notify,
    process,
    session,
    verbs,
)
from apk_atomic.applets import APPLETS, Kind
from apk_atomic.arguments import Parser
from apk_atomic.bootmenu import Menu
from apk_atomic.commands import change, usage
from apk_atomic.model import PackageChanges, Record, State
from apk_atomic.proof_types import Proof
from tests.test_config import with_every_key

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "apk_atomic").rglob("*.py"))
SHIPPED = (ROOT / "config/apk-atomic.toml").read_text()
COMMANDS, SETTINGS, LAYOUT = (
    (ROOT / f"doc/{name}.scd").read_text() for name in ("apk-atomic.8", "apk-atomic.toml.5", "apk-atomic-layout.7")
)
VERBS = sorted(verbs.VERBS)
JSON_TYPES = {int: "number", str: "string", dict: "object", list: "s", type(None): ", null"}


def section(page: str, heading: str) -> str:
    """What stands below a heading, with its level: up to the next of that level or above."""
    level = heading.partition(" ")[0]
    _, found, rest = page.partition(f"\n{heading}\n")
    assert found, f"no {heading}"
    return re.split(rf"^#{{1,{len(level)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def defined(text: str, prefix: str = "--") -> list[str]:
    """The options that a section explains: those in the lines that begin with one."""
    lines = (line for line in text.splitlines() if line.startswith(f"*{prefix}"))
    return [name for line in lines for name in re.findall(rf"\*({prefix}[\w-]+)\*", line)]


def rows(text: str) -> dict[str, list[str]]:
    """A table of scdoc's by its first column, without the heading's row."""
    found = re.split(r"^(?:\[\[|\|) *", text, flags=re.MULTILINE)[1:]
    cells = ([cell.strip() for cell in re.split(r"^:[-<]? *", row, flags=re.MULTILINE)] for row in found)
    return {first.strip("*"): rest for first, *rest in cells if first != "*key*"}


# ---- verbs -------------------------------------------------------------------------------------------------


def headings() -> dict[str, str]:
    """Words behind a verb by verb, as in the manual."""
    found = re.findall(r"^## ([a-z-]+) ?(.*)$", section(COMMANDS, "# VERBS"), re.MULTILINE)
    return dict(found)


def of_verb(verb: str) -> str:
    return section(COMMANDS, f"## {verb} {headings()[verb]}".rstrip())


def own_parser(verb: str) -> Parser:
    module = importlib.import_module(f"apk_atomic.commands.{verb.replace('-', '_')}")
    parser = module._parser()
    assert isinstance(parser, Parser)
    return parser


def options_of(verb: str) -> set[str]:
    """What the verb's parser understands, but for --help."""
    flags = usage.VERBS[verb].flags
    if flags is not None:
        return {f"--{flag}" for flag in flags}
    return {option for action in own_parser(verb)._actions for option in action.option_strings} - {usage.HELP}


def test_every_verb_is_documented() -> None:
    assert VERBS == sorted(usage.VERBS) == sorted(headings())
    assert set(VERBS) <= set(cmdline.VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_options_of_a_verb(verb: str) -> None:
    explained = defined(of_verb(verb))
    assert len(explained) == len(set(explained))
    assert set(explained) == options_of(verb)


@pytest.mark.parametrize("verb", VERBS)
def test_options_of_ours_that_a_verb_takes(verb: str) -> None:
    said = re.findall(r"^Takes (.*)\.$", of_verb(verb), re.MULTILINE)
    assert len(said) == 1
    named = {name.replace("-", "_") for name in re.findall(r"--atomic-([\w-]+)", said[0])}
    assert named == set(verbs.VERBS[verb].takes)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if usage.VERBS[verb].flags is not None])
def test_synopsis_of_a_verb(verb: str) -> None:
    """The same in the manual, in the help and in what is understood."""
    words = usage.VERBS[verb].words
    assert headings()[verb].replace("...", "…").replace("[--]", "--") == words
    assert set(re.findall(r"--[a-z-]+", words)) == options_of(verb)
    help_text = usage.of([verb, usage.HELP], ()) or ""
    assert help_text.startswith(f"usage: {usage.synopsis(verb)}\n")
    assert set(re.findall(r"^  (--[a-z-]+)", help_text, re.MULTILINE)) == options_of(verb) | {usage.HELP}


def test_list_of_verbs_is_in_columns() -> None:
    lines = usage.text().splitlines()
    assert all(len(line) < 120 for line in lines)
    for verb, each in usage.VERBS.items():
        at = next(number for number, line in enumerate(lines) if line.strip().startswith(usage.synopsis(verb)))
        assert each.does in (lines[at][usage._LEFT :], lines[at + 1][usage._LEFT :])


@pytest.mark.parametrize("verb", [verb for verb in VERBS if usage.VERBS[verb].flags is None])
def test_own_parser_explains_itself(verb: str) -> None:
    silent = [action.dest for action in own_parser(verb)._actions if action.help in (None, SUPPRESS)]
    assert silent == []


def test_words_of_apk() -> None:
    named = set(re.findall(r"\*([a-z]+)\*", "".join(re.findall(r"^\*[a-z].*$", section(COMMANDS, "# WORDS OF APK"),
                                                                re.MULTILINE))))  # fmt: skip
    assert {name for name, applet in APPLETS.items() if applet.kind is not Kind.ELSEWHERE} <= named <= set(APPLETS)


# ---- options of ours ---------------------------------------------------------------------------------------


def test_every_option_of_ours_is_documented() -> None:
    names = [*atomic_options._VALUE_OPTIONS, *atomic_options._FLAG_OPTIONS]
    fields = {name.replace("-", "_") for name in names}
    assert fields == set(atomic_options.AtomicOptions._fields)
    assert sorted(usage.OPTIONS) == sorted(names)
    explained = defined(section(COMMANDS, "# OPTIONS"), atomic_options.OPTION_PREFIX)
    assert sorted(explained) == sorted(atomic_options.OPTION_PREFIX + name for name in names)


def test_options_that_take_a_value() -> None:
    assert {name for name, (metavar, _) in usage.OPTIONS.items() if metavar} == set(atomic_options._VALUE_OPTIONS)
    lines = re.findall(r"^\*--atomic-([\w-]+)\*(.*)$", section(COMMANDS, "# OPTIONS"), re.MULTILINE)
    assert {name for name, rest in lines if rest} == set(atomic_options._VALUE_OPTIONS)


# ---- exit status -------------------------------------------------------------------------------------------


def test_every_exit_status_is_documented() -> None:
    ours = {each.exit_code for each in vars(errors).values() if isinstance(each, type) and hasattr(each, "exit_code")}
    named = rows(section(COMMANDS, "# EXIT STATUS"))
    assert {int(word) for word in named if word.isdigit()} == ours | {0, change.UNCHANGED}


# ---- settings ----------------------------------------------------------------------------------------------


def settings() -> Iterator[tuple[str, str, str, str]]:
    """Table, key, what it takes and default, as the manual has them."""
    for part in re.split(r"^## ", section(SETTINGS, "# TABLES"), flags=re.MULTILINE)[1:]:
        table = part.partition("]")[0].strip("[")
        for line in part.splitlines():
            if line.startswith("*"):
                found = re.fullmatch(r"\*(\w+)\* = (.*) \(default: \*(.*)\*\)", line)
                assert found, line
                yield table, found[1], found[2], found[3]


def test_every_setting_is_documented_with_its_default() -> None:
    shown = {(table, key): tomllib.loads(f"x = {default}")["x"] for table, key, _, default in settings()}
    tables = tomllib.loads(with_every_key(SHIPPED))
    shipped = {(table, key): value for table, keys in tables.items() for key, value in keys.items()}
    assert shown == shipped
    assert list(shown) == [(table, key) for table, keys in config_schema.TABLES.items() for key in keys]
    empty = [table for table, keys in config_schema.TABLES.items() if not keys]
    assert "".join(f"[{table}], " for table in empty).rstrip(", ") in section(SETTINGS, "# TABLES")


@pytest.mark.parametrize(
    ("table", "key", "words"), [(table, key, words) for table, key, words, _ in settings() if " to " in words]
)
def test_range_of_a_setting(table: str, key: str, words: str) -> None:
    least, most = map(int, re.findall(r"-?\d+", words))
    for value in (least, most):
        config.load(f"[{table}]\n{key} = {value}".encode(), "F")
    for value in (least - 1, most + 1):
        with pytest.raises(errors.UsageError):
            config.load(f"[{table}]\n{key} = {value}".encode(), "F")


def hook_directories() -> set[str]:
    """The directories below hooks.d that any module runs the executables of."""
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("hooks.around", "hooks.listed"):
                found |= set(re.findall(r"[a-z]+(?:-[a-z]+)*\.d(?![a-z])", ast.unparse(node)))
    return found - {"hooks.d"}


def test_every_hook_is_documented() -> None:
    text = section(SETTINGS, "# HOOKS")
    assert set(re.findall(r"^_([a-z-]+\.d)_$", text, re.MULTILINE)) == hook_directories() != set()
    passed = text.partition("The environment is")[2].partition("as the caller")[0]
    assert set(re.findall(r"\*([A-Za-z_]+)\*", passed)) == set(process._PASSED)
    assert f"more than {process.TIMEOUT:g} seconds" in text


# ---- documents for programs --------------------------------------------------------------------------------


def documents() -> dict[str, Mapping[str, object]]:
    """What `--json` answers, by verb; made by the verb itself, of nothing."""
    from apk_atomic import adoptreport
    from apk_atomic.adoption import Choices, OldSystem, decide
    from apk_atomic.commands import diff, init, prove, status
    from apk_atomic.makesystem import Made

    event = notify.document(notify.Event("nothing"), "stage")
    generation = model.Generation("x")
    shown = status._document(State((generation,)), (generation,), {"x": Record("x")}, 1)
    inner = shown["generations"]
    assert isinstance(inner, list)
    return {
        "status": {**shown, **inner[0]},
        "auto": {**event, "dry_run": False, "reboot": None},
        "diff": diff._as_json("a", "b", PackageChanges()),
        "prove": prove._document("a", Proof((), (), {}, {}, (), 0.0)),
        "init": init._document(Made("a", "b", ())),
        "adopt": adoptreport.document(decide(OldSystem("a", "b"), Choices()), Choices()),
    }


@pytest.mark.parametrize("verb", documents())
def test_every_key_of_a_document_is_named(verb: str) -> None:
    named = re.findall(r"_(\w+)_", of_verb(verb).partition("*--json*")[2])
    assert set(documents()[verb]) <= set(named)


def test_record() -> None:
    """Every key of generation.json, with its type, and the keys of its parts."""
    encoded = model.to_json_dict(Record("x"))
    table = rows(section(LAYOUT, "# RECORD"))
    assert sorted(table) == sorted(encoded)
    for key, value in encoded.items():
        assert table[key][0].endswith(JSON_TYPES[type(value)]), key
    for key, part in (("changes", PackageChanges), ("initramfs", model.Image), ("proof", model.Proof)):
        fields = {*part._fields} - {"unknown"}
        assert fields <= set(re.findall(r"_(\w+)_", table[key][1])), key
    assert set(re.findall(r"\w+", table["kind"][1])) - {"or"} == {kind.value for kind in model.Kind}


def test_boot_json() -> None:
    document = bootmenu.document(Menu("u", "v", "k", "i"))
    table = rows(section(LAYOUT, "# BOOT MENU"))
    assert sorted(table) == sorted(document)
    for key, value in document.items():
        assert table[key][0].endswith(JSON_TYPES[type(value)]), key


# ---- names on disk -----------------------------------------------------------------------------------------


def test_files_beside_a_root() -> None:
    line = next(line for line in LAYOUT.splitlines() if line.startswith("_/snapshots/ID/generation.json_"))
    assert set(re.findall(r"_(?:/snapshots/ID/)?([\w.]+)_", line)) == generations.OUR_FILES
    marks = re.findall(r"^_(\w+)_$", section(LAYOUT, "# MARKS"), re.MULTILINE)
    assert {*marks, generations.RECORD} == generations.OUR_FILES


def test_files_in_run() -> None:
    """Whatever a module says lies below /run is named."""
    lines = [line for line in section(LAYOUT, "# /run").splitlines() if line.startswith("_")]
    named = {name.removeprefix(lock.RUN).strip("/") for line in lines for name in re.findall(r"_([^_]+)_", line)}
    source = "".join(path.read_text() for path in SOURCES).replace("{STATUS}", session.STATUS)
    used = {*re.findall(r'f"\{RUN\}/([a-z.]+)"', source), *re.findall(rf'"{lock.RUN}/([a-z.]+)"', source)}
    assert session.STATUS in used and used <= named
    others = {path for path in re.findall(r'"(/run/[\w.-]+)"', source) if path != lock.RUN}
    assert session.REBOOT in others
    assert all(f"_{path}_" in COMMANDS + LAYOUT for path in others), others


def test_manual_leads_to_what_is_there() -> None:
    pages = {path.stem for path in (ROOT / "doc").glob("*.scd")}
    for page in (COMMANDS, SETTINGS, LAYOUT):
        for name, number in re.findall(r"\*(apk-atomic[\w.-]*)\*\((\d)\)", page):
            assert f"{name}.{number}" in pages


def test_services_are_added_to_a_runlevel() -> None:
    """Without one rc-update asks the running system; in the root of a change there is none, and it takes sysinit."""
    texts = [*SOURCES, *ROOT.glob("*.md"), *ROOT.glob("*.post-install"), *(ROOT / "doc").glob("*.scd"),
             *(path for path in (ROOT / "hooks").iterdir() if path.is_file())]  # fmt: skip
    found = [line for path in texts for line in re.findall(r"rc-update add (.+)", path.read_text())]
    assert found
    for line in found:
        assert re.match(r"\S+ (sysinit|boot|default|shutdown)\b", line), line


def test_nobody_left_a_conflict() -> None:
    for path in (*SOURCES, *ROOT.glob("*.md"), *(ROOT / "doc").glob("*.scd"), *(ROOT / "tests").rglob("*.py")):
        assert not re.search(r"^(<{7}|>{7})( |$)", path.read_text(), re.MULTILINE), path
