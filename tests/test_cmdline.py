"""Which lines change the system: one row per applet, option form and oddity of the two parsers (facts, apk-cli 1, 2).

The rows say what becomes of a line; that each parser reads them so is held against real binaries in
`test_grammar_real`.
"""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apk_atomic.applets import APPLETS, Mode, Version, has_applet, options
from apk_atomic.atomic_options import AtomicOptions
from apk_atomic.cmdline import (
    QUERY_WORDS,
    VERBS,
    Kind,
    LocalPath,
    Role,
    is_our_verb,
    parse,
    reaches_live_root,
)
from apk_atomic.errors import UsageError
from apk_atomic.grammar import Outcome, read

C, S, Q, U, E, H = Kind.CHANGE, Kind.SIMULATE, Kind.QUERY, Kind.CACHE, Kind.ELSEWHERE, Kind.HELP

APPLET_ROWS = [
    ("add", C, "23"), ("del", C, "23"), ("fix", C, "23"), ("upgrade", C, "23"),
    ("update", U, "23"), ("cache", U, "23"),
    ("info", Q, "23"), ("list", Q, "23"), ("query", Q, "3"), ("search", Q, "23"), ("policy", Q, "23"),
    ("version", Q, "23"), ("dot", Q, "23"), ("stats", Q, "23"), ("manifest", Q, "23"), ("audit", Q, "23"),
    ("fetch", E, "23"), ("index", E, "23"), ("verify", E, "23"), ("extract", E, "3"), ("mkpkg", E, "3"),
    ("mkndx", E, "3"), ("adbsign", E, "3"), ("adbdump", E, "3"), ("adbgen", E, "3"), ("convdb", E, "3"),
    ("convndx", E, "3"),
]  # fmt: skip

LINES = [
    # plain, with and without operands
    ("add x", C, "add"), ("add", C, "add"), ("del x", C, "del"), ("del", C, "del"), ("fix", C, "fix"),
    ("upgrade", C, "upgrade"), ("upgrade x", C, "upgrade"), ("add '' x", C, "add"), ("add ''", C, "add"),
    ("'' add x", C, "add"), ("- add x", C, "add"), ("add -", C, "add"), ("add --initdb x", C, "add"),
    ("add --usermode x", C, "add"), ("add --no-chown x", C, "add"),
    # simulation
    ("add -s x", S, "add"), ("-s add x", S, "add"), ("add x -s", S, "add"), ("add --simulate x", S, "add"),
    ("add --sim x", S, "add"), ("--sim add x", S, "add"), ("upgrade -s", S, "upgrade"), ("fix -s", S, "fix"),
    ("del -s x", S, "del"), ("add -s -s x", S, "add"), ("add -s --initdb x", S, "add"),
    ("add --simulate=yes x", S, "add"), ("add --simulate=no x", C, "add"), ("add --no-simulate x", C, "add"),
    ("add -s --no-simulate x", C, "add"), ("add -s --simulate=no x", C, "add"), ("add -s --no-sim x", C, "add"),
    ("add --no-simulate -s x", S, "add"), ("add --simulate=no --simulate x", S, "add"),
    ("add --simulate=no --simulate=yes x", S, "add"), ("add -s --no-simulate -q x", C, "add"),
    ("add --simulate yes", S, "add"), ("add --simulate no", S, "add"), ("add --s x", S, "add"),
    ("add --simulate=auto x", H, "add"), ("add --simulate=maybe x", H, "add"), ("add --simulate= x", H, "add"),
    ("upgrade --no-self-upgrade", C, "upgrade"), ("upgrade --self-upgrade-only", C, "upgrade"),
    ("upgrade --preupgrade-only", C, "upgrade"), ("upgrade --no-preupgrade -s", S, "upgrade"),
    # -s of other applets
    ("fetch -s x", E, "fetch"), ("fetch --simulate x", E, "fetch"), ("info -s x", Q, "info"),
    ("mkpkg -s add -o x", E, "mkpkg"), ("update -s", U, "update"), ("cache -s clean", U, "cache"),
    ("cache --simulate=no clean", U, "cache"), ("search -s x", Q, "search"), ("list -s", Q, "list"),
    # clusters and attached values
    ("add -qs x", S, "add"), ("add -qUs x", S, "add"), ("add -sq x", S, "add"), ("upgrade -Ua", C, "upgrade"),
    ("add -t .v x", C, "add"), ("add -t.v x", C, "add"), ("add -ut .v x", C, "add"), ("add -ut.v x", C, "add"),
    ("add -ts x", C, "add"), ("add -t -s x", C, "add"), ("add -st .v x", S, "add"), ("add -uts x", C, "add"),
    ("add -X/url x", C, "add"), ("add -X /url x", C, "add"), ("add -Xs x", C, "add"), ("add -X -s x", C, "add"),
    ("add -qX /url -s x", S, "add"), ("upgrade -qUas", S, "upgrade"), ("del -rs x", S, "del"),
    # values of long options
    ("add --virtual .v x", C, "add"), ("add --virtual=.v x", C, "add"), ("add --virtual -s x", C, "add"),
    ("add --virtual=-s x", C, "add"), ("add --repository -s x", C, "add"), ("add --repositories-file -s x", C, "add"),
    ("add --arch -s x", C, "add"), ("add --wait -s x", C, "add"), ("add --progress-fd -s x", C, "add"),
    ("add --cache-dir -s x", C, "add"), ("add --keys-dir -s x", C, "add"), ("add --timeout -s x", C, "add"),
    ("add --cache-max-age -s x", C, "add"), ("add --preupgrade-depends -s x", C, "add"),
    ("add --virtual= -s x", S, "add"), ("add --vir .v -s x", S, "add"), ("add --vir -s x", C, "add"),
    # switches of v3 beside -s
    ("add --interactive=auto -s x", S, "add"), ("add --no-interactive -s x", S, "add"),
    ("add --no-cache -s x", S, "add"), ("add --cache=no x", C, "add"), ("add --no-network=yes x", H, "add"),
    ("add --progress=no -s x", S, "add"), ("add --no-scripts -s x", S, "add"), ("add --scripts=no x", C, "add"),
    # --
    ("add -- x", C, "add"), ("-- add x", C, "add"), ("add -- -s x", C, "add"), ("add -- --help", C, "add"),
    ("-- add -s", C, "add"), ("-s -- add x", S, "add"), ("add -t -- -s x", S, "add"), ("add -- -- x", C, "add"),
    ("info -- add", Q, "info"), ("-- info add", Q, "info"),
    # which word is the applet
    ("foo add bar", C, "add"), ("add add", C, "add"), ("add info", C, "add"), ("info add", Q, "info"),
    ("-t del add x", C, "del"), ("-t add add scr", C, "add"), ("--virtual add x", C, "add"),
    ("-X fix info", C, "fix"), ("-X info add", C, "add"), ("--cache-dir cache list", U, "cache"),
    ("--cache-dir add list", C, "add"), ("--wait del info", C, "del"), ("-p fix info", E, "info"),
    ("-q -X /u add x", C, "add"), ("-qX add info", C, "add"), ("--repository=add info", Q, "info"),
    ("query add x", C, "add"), ("query x", Q, "query"), ("mkpkg x", E, "mkpkg"), ("extract fix", C, "fix"),
    ("-U upgrade", C, "upgrade"), ("--update-cache add x", C, "add"), ("-v -v list", Q, "list"),
    # help, version, print-arch
    ("add --help", H, "add"), ("--help add x", H, "add"), ("add x -h", H, "add"), ("-h", H, ""),
    ("add --he x", H, "add"), ("add -qh x", H, "add"), ("--version", H, ""), ("add -V x", H, "add"),
    ("add --version x", H, "add"), ("--print-arch add x", H, "add"), ("add --print x", H, "add"),
    ("add -t --help x", C, "add"), ("add -t -h -V x", H, "add"), ("add --virtual=--help x", C, "add"),
    ("add -thV x", C, "add"), ("info --help", H, "info"), ("--version info", H, "info"),
    ("add --help=yes x", H, "add"), ("add --version=no x", H, "add"), ("fetch -h", H, "fetch"),
    # nothing that apk knows
    ("", H, ""), ("foo", H, ""), ("ad x", H, ""), ("ADD x", H, ""), ("adds x", H, ""), ("-q", H, ""),
    ("''", H, ""), ("-", H, ""), ("--", H, ""), ("--bogus", H, ""), ("foo -s bar", H, ""), ("Add", H, ""),
    # options that apk does not know: a newer one may
    ("add --bogus x", C, "add"), ("add -z x", C, "add"), ("add --bogus -s x", S, "add"),
    ("add -s --bogus x", S, "add"), ("add -zs x", S, "add"), ("add --bogus x --allow-untrusted", C, "add"),
    ("add --bogus --help x", H, "add"), ("info --bogus", Q, "info"), ("update --bogus", U, "update"),
    ("add --bogus=1 x", C, "add"), ("add --no-bogus x", C, "add"),
    # options that it knows and that are used wrongly: refused by both
    ("add -t", H, "add"), ("add x --virtual", H, "add"), ("add x -X", H, "add"), ("add --wait", H, "add"),
    ("add --quiet=yes x", H, "add"), ("add --initdb= x", H, "add"), ("add --f x", H, "add"), ("add x -p", H, "add"),
    ("add --no- x", H, "add"), ("add --=x", H, "add"),
    # refused by one of them only
    ("add --no x", C, "add"), ("add --quiet=yes x -q", C, "add"), ("add --no x -s", S, "add"),
    ("add --interactive=yes x", C, "add"), ("add --logfile=no x", C, "add"),
    # --root
    ("--root / add x", C, "add"), ("add -p/ x", C, "add"), ("-p / -s add x", S, "add"),
    ("--root /mnt add x", E, "add"), ("add --root=/mnt x", E, "add"), ("add -p /mnt x", E, "add"),
    ("add -p/root x", E, "add"), ("add -qp/mnt x", E, "add"), ("info -p /mnt x", E, "info"),
    ("update -p /mnt", E, "update"), ("cache clean -p /mnt", E, "cache"), ("add -s -p /mnt x", E, "add"),
    ("add -p /mnt --initdb", E, "add"), ("add -p /mnt --root / x", C, "add"), ("add --root / -p /mnt x", E, "add"),
    ("add -p // x", C, "add"), ("add --root=/. x", C, "add"), ("info -p // x", Q, "info"),
    ("add --root=/usr/.. x", C, "add"), ("add --root= x", E, "add"), ("add -p . x", E, "add"),
    ("add --ro /mnt x", E, "add"), ("add --roo=/mnt x", E, "add"), ("add -- -p /mnt", C, "add"),
    ("add -t -p /mnt", C, "add"), ("add -p -s x", E, "add"), ("add --root-tmpfs=no x", C, "add"),
    ("add -p /mnt --help", H, "add"), ("fetch -p /mnt x", E, "fetch"),
    # cache, audit, verify
    ("cache sync", U, "cache"), ("cache clean", U, "cache"), ("cache purge", U, "cache"),
    ("cache download add", U, "cache"), ("cache", U, "cache"), ("cache bogus", U, "cache"), ("update", U, "update"),
    ("audit --system", Q, "audit"), ("audit --protected-paths add", Q, "audit"), ("verify x.apk", E, "verify"),
]  # fmt: skip

LIVE_ROOTS = ["/", "//", "/.", "/./", "///", "/..", "/../..", "/usr/..", "/usr/../", "/a/../b/.."]
OTHER_ROOTS = ["", ".", "..", "/mnt", "mnt", "/mnt/.", "/../mnt", "./", "/..a", "/..."]


@pytest.mark.parametrize(("applet", "kind", "versions"), APPLET_ROWS)
def test_every_applet_has_its_kind(applet: str, kind: Kind, versions: str) -> None:
    assert parse([applet, "x"]).kind is kind
    assert parse([applet, "x"]).applet == applet
    assert [has_applet(version, applet) for version in Version] == ["2" in versions, "3" in versions]


def test_the_applets_are_those_of_the_two_versions() -> None:
    assert {row[0] for row in APPLET_ROWS} == set(APPLETS)
    assert [sum(has_applet(version, name) for name in APPLETS) for version in Version] == [18, 27]


@pytest.mark.parametrize(("line", "kind", "applet"), LINES, ids=[row[0] for row in LINES])
def test_line(line: str, kind: Kind, applet: str) -> None:
    decided = parse(shlex.split(line))
    assert (decided.kind, decided.applet) == (kind, applet)
    assert decided.argv == tuple(shlex.split(line))


def _both(applet: str, mode: Mode) -> list[str]:
    """The long names that mean the same to both versions on a line of this applet."""
    found = [{o.name for o in options(v, applet) if o.name and o.mode is mode} for v in Version]
    return sorted(found[0] & found[1] - {"help", "version", "print-arch", "root", "simulate"})


CHANGING = [name for name, applet in APPLETS.items() if applet.kind is Kind.CHANGE]


@pytest.mark.parametrize("applet", CHANGING)
def test_an_option_with_a_value_swallows_the_switch_behind_it(applet: str) -> None:
    for name in _both(applet, Mode.VALUE):
        assert parse([applet, f"--{name}", "-s"]).kind is C, name
        assert parse([applet, f"--{name}=-s"]).kind is C, name
        assert parse([applet, f"--{name}=x", "-s"]).kind is S, name
        assert parse([applet, f"--{name}"]).kind is H, name


@pytest.mark.parametrize("applet", CHANGING)
def test_a_flag_leaves_the_switch_behind_it_alone(applet: str) -> None:
    for name in _both(applet, Mode.FLAG):
        assert parse([applet, f"--{name}", "-s"]).kind is S, name
        assert parse([applet, f"--{name}"]).kind is C, name
        assert parse([applet, f"--{name}=x"]).kind is H, name


@pytest.mark.parametrize("applet", CHANGING)
def test_a_switch_of_v3_has_its_forms(applet: str) -> None:
    for option in options(Version.V3, applet):
        if option.mode in (Mode.BOOL, Mode.AUTO) and option.name != "simulate":
            forms = [f"--{option.name}", f"--no-{option.name}", f"--{option.name}=yes", f"--{option.name}=no"]
            for form in forms:
                assert read(Version.V3, [applet, form]).outcome is Outcome.READ, form
                assert parse([applet, form]).kind is C, form
            auto = read(Version.V3, [applet, f"--{option.name}=auto"]).outcome
            assert auto is (Outcome.READ if option.mode is Mode.AUTO else Outcome.REFUSED)


@pytest.mark.parametrize("version", Version)
@pytest.mark.parametrize("applet", APPLETS)
def test_every_letter_and_name_is_known_to_its_version(version: Version, applet: str) -> None:
    if not has_applet(version, applet):
        assert read(version, [applet]).outcome is Outcome.REFUSED
        return
    for option in options(version, applet):
        # info has `-R` twice in v3, its own and that of the query options: the first counts
        earlier = [o.letters for o in options(version, applet)[: options(version, applet).index(option)]]
        letters = [f"-{letter}" for letter in option.letters if letter not in "".join(earlier)]
        for word in [f"--{option.name}"] * bool(option.name) + letters:
            value = ["v"] if option.mode is Mode.VALUE else []
            seen = read(version, [applet, word, *value])
            ends = option.name in ("help", "version", "print-arch")
            assert seen.outcome is (Outcome.HELP if ends else Outcome.READ), word
            if not ends:
                assert [item.name for item in seen.given] == [option.name or word]
                assert seen.operands == ()


CONFIGS = [
    (["simulate"], "add x", S), (["simulate yes"], "add x", S), (["simulate no"], "add x", C),
    (["simulate"], "add --no-simulate x", C), (["simulate"], "add --simulate=no x", C),
    (["simulate", "no-simulate"], "add x", C), (["no-simulate"], "add -s x", S), (["simulate # why"], "add x", S),
    (["# simulate"], "add x", C), (["sim"], "add x", C), (["--simulate"], "add x", C), ([" simulate"], "add x", C),
    (["simulate  yes"], "add x", C), (["simulate   "], "add x", S), (["simulate\n"], "add x", S),
    (["simulate"], "update", U), (["simulate"], "info x", Q), (["simulate"], "-X fix info", S),
    (["root /mnt"], "add x", E), (["root /mnt"], "info x", E), (["root /mnt"], "add --root / x", C),
    (["root /"], "add x", C), (["root //"], "add x", C), (["root"], "add x", C), (["root  /mnt"], "add x", E),
    (["root /"], "add -p /mnt x", E), (["root /mnt", "simulate"], "add -p/ x", S), (["help"], "add x", C),
    (["version"], "add x", C), (["virtual simulate"], "add x", C), (["no-cache", "timeout 120"], "add x", C),
    (["", "bogus", "\t", "quiet yes"], "add x", C), (["simulate auto"], "add x", C),
]  # fmt: skip


@pytest.mark.parametrize(("config", "line", "kind"), CONFIGS)
def test_configuration_file_of_apk_3(config: list[str], line: str, kind: Kind) -> None:
    assert parse(line.split(), config=config).kind is kind


@pytest.mark.parametrize(
    ("program", "line", "kind", "applet", "words"),
    [
        ("apk_add", "x", C, "add", "add x"),
        ("/usr/bin/apk_del", "info", C, "del", "del info"),
        ("apk_info", "add", Q, "info", "info add"),
        ("apk_add", "-s x", S, "add", "add -s x"),
        ("apk_bogus", "add x", C, "add", "add x"),
        ("apk_query", "add x", Q, "query", "query add x"),
        ("/sbin/apk", "add x", C, "add", "add x"),
        ("apk-atomic", "add x", C, "add", "add x"),
        ("apk_", "info", Q, "info", "info"),
    ],
)
def test_applet_by_program_name(program: str, line: str, kind: Kind, applet: str, words: str) -> None:
    decided = parse(line.split(), program=program)
    assert (decided.kind, decided.applet, decided.words) == (kind, applet, tuple(words.split()))
    assert decided.argv == tuple(line.split())


@pytest.mark.parametrize("version", Version)
@pytest.mark.parametrize(
    ("line", "operands"),
    [
        ("add x y", ("x", "y")), ("x add y", ("x", "y")), ("add add", ("add",)), ("add - x", ("-", "x")),
        ("add '' x", ("x",)), ("add -- -s --", ("-s", "--")), ("add -t .v x -q y", ("x", "y")), ("-- add", ()),
    ],
)  # fmt: skip
def test_operands(version: Version, line: str, operands: tuple[str, ...]) -> None:
    assert read(version, shlex.split(line)).operands == operands


def test_posixly_correct_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSIXLY_CORRECT", "1")
    assert parse(["add", "x", "-s"]).kind is S


@pytest.mark.parametrize("root", LIVE_ROOTS)
def test_spellings_of_the_live_root(root: str) -> None:
    assert reaches_live_root(root)
    decided = parse(["add", "--root", root, "x"])
    assert (decided.kind, decided.root) == (C, None if root == "/" else root)


@pytest.mark.parametrize("root", OTHER_ROOTS)
def test_other_roots_are_left_alone_and_named(root: str) -> None:
    decided = parse(["add", "--root", root, "x"])
    assert (decided.kind, decided.root) == (E, root)
    assert parse(["add", "--root", root, "x"], is_live_root=lambda path: path == root).kind is C


@pytest.mark.parametrize(
    ("line", "wait"),
    [
        ("add x", None), ("add --wait 5 x", 5), ("add --wait=120 x", 120), ("--wa 7 add x", 7), ("add --w=8 x", 8),
        ("add --wait 5 --wait 9 x", 9), ("add --wait 3s x", 3), ("add --wait ten x", 0), ("add --wait '' x", 0),
        ("add --wait ' 4' x", 4), ("add --wait +6 x", 6), ("add --wait -1 x", 2**31 - 1), ("add -- --wait 5", None),
        ("add --wait 99999999999999999999 x", 2**31 - 1), ("add --wait=0x10 x", 0), ("add --wait -0 x", 0),
        ("info --wait 5 x", 5),
    ],
)  # fmt: skip
def test_wait_of_apk(line: str, wait: int | None) -> None:
    assert parse(shlex.split(line)).wait == wait


@pytest.mark.parametrize(
    ("line", "descriptor", "quiet"),
    [
        ("add --progress-fd 3 x", 3, False), ("add --progress-fd=9 -q x", 9, True),
        ("add --progress-fd 0 x", None, False), ("add --progress 3 x", None, False),
        ("add -qv x", None, False), ("add -qqv x", None, True), ("add -t -q x", None, False), ("-q add x", None, True),
    ],
)  # fmt: skip
def test_progress_descriptor_and_quiet(line: str, descriptor: int | None, quiet: bool) -> None:
    decided = parse(line.split())
    assert (decided.progress_fd, decided.quiet) == (descriptor, quiet)


REPO, PACKAGE = Role.REPOSITORY, Role.PACKAGE


@pytest.mark.parametrize(
    ("line", "paths"),
    [
        ("add ./a.apk b c-1.apk", [(PACKAGE, "./a.apk"), (PACKAGE, "c-1.apk")]),
        ("add so:libc.so.1 x", [(PACKAGE, "so:libc.so.1")]),
        ("add -t .v x", []),
        ("del ./a.apk", []),
        ("add -- -a.apk", [(PACKAGE, "-a.apk")]),
        ("manifest ./a.apk dir/b busybox", [(PACKAGE, "./a.apk"), (PACKAGE, "dir/b")]),
        ("add -X /srv/repo x", [(REPO, "/srv/repo")]),
        ("add -X repo --repository=../r x", [(REPO, "repo"), (REPO, "../r")]),
        ("add -X https://h/p x", []),
        ("add -X '@tag /srv/repo' x", [(REPO, "/srv/repo")]),
        ("add -X '@tag https://h/p' x", []),
        ("add -X '/srv/repo main community' x", [(REPO, "/srv/repo")]),
        ("add -X file:/srv/repo x", [(REPO, "/srv/repo")]),
        ("add -X '/srv/${APK_ARCH}/main' x", [(REPO, "/srv")]),
        ("add -X '${x}' x", []),
        ("add -X '#/srv' x", []),
        ("add -X '' x", []),
        ("add -X '@tag' x", []),
        ("add --repository-config 'v3 /srv/a\nset x=/b\n@t /srv/c\nhttps://h/d' x",
         [(REPO, "/srv/a"), (REPO, "/srv/c")]),
        ("add --repositories-file repos x", [(Role.REPOSITORIES_FILE, "repos")]),
        ("add --cache-dir=/tmp/c --keys-dir keys x", [(Role.CACHE_DIR, "/tmp/c"), (Role.KEYS_DIR, "keys")]),
        ("audit --protected-paths list", [(Role.PROTECTED_PATHS, "list")]),
        ("-X ./fix.apk info", [(REPO, "./fix.apk")]),
        ("upgrade -X /r -X /r", [(REPO, "/r")]),
    ],
)  # fmt: skip
def test_paths_of_the_caller(line: str, paths: list[tuple[Role, str]]) -> None:
    assert list(parse(shlex.split(line)).locals_) == [LocalPath(role, path) for role, path in paths]


def test_query_words_are_the_readers_of_the_design() -> None:
    expected = "info list query search policy version dot stats manifest audit"
    assert frozenset(expected.split()) == QUERY_WORDS


@pytest.mark.parametrize("word", sorted(QUERY_WORDS - {"query"}))
def test_a_query_word_in_front_stays_a_query(word: str) -> None:
    for rest in (["add", "x"], ["--", "add"], ["-X", "fix"], ["-s"], ["upgrade"], ["-t", "del", "fix"]):
        assert parse([word, *rest]).kind in (Q, H)


def test_our_verbs_collide_with_no_applet() -> None:
    assert not set(VERBS) & set(APPLETS)
    assert all(is_our_verb(verb) and parse([verb]).kind is H for verb in VERBS)
    assert not is_our_verb("add") and not is_our_verb("") and not is_our_verb("stat")


def test_our_options_and_apks_on_one_line() -> None:
    decided = parse(["--atomic-base", "fix", "add", "--atomic-accept=a,b", "-t", ".v", "x", "--", "--atomic-wait"])
    assert decided.atomic == AtomicOptions(base="fix", accept=("a", "b"))
    assert decided.argv == ("add", "-t", ".v", "x", "--", "--atomic-wait")
    assert (decided.kind, decided.applet) == (C, "add")


WORDS = st.one_of(
    st.text(max_size=6),
    st.sampled_from([*APPLETS, "-s", "--", "-", "", "--simulate=no", "--root", "-p/", "--help", "--wait", "-X"]),
    st.sampled_from([f"--{o.name}" for v in Version for a in APPLETS for o in options(v, a)]),
    st.text("-qsUtXphVp=.", max_size=5),
    st.sampled_from(["--atomic-base", "--atomic-wait=1", "--atomic-keep-failed", "--atomic-x", "--atomic-accept=,"]),
)
LISTS = st.lists(WORDS, max_size=7)


CONFIG = st.lists(st.text("simulate rot/#no-\n", max_size=14), max_size=3)


@given(LISTS, CONFIG, st.sampled_from(["apk", "apk_add", ""]))
def test_any_words_give_a_line_or_a_usage_error(words: list[str], config: list[str], program: str) -> None:
    try:
        decided = parse(words, config, program)
    except UsageError as error:
        assert any(word.startswith("--atomic-") for word in words)
        assert "nothing was changed" in error.message
        return
    if not any(word.startswith("--atomic-") for word in words):
        assert decided.argv == tuple(words)
    assert (decided.applet == "") <= (decided.kind is H)


@given(LISTS)
def test_operands_behind_two_dashes_never_matter(words: list[str]) -> None:
    assert parse(["add", "--", *words]).kind is C
    assert parse(["add", "-s", "--", *words]).kind is S
    assert parse(["info", "--", *words]).kind is Q


@given(LISTS.filter(lambda words: not any(word.startswith("--atomic-") for word in words)))
def test_our_options_in_front_change_nothing_of_apks(words: list[str]) -> None:
    plain = parse(words)
    ours = parse(["--atomic-message", "add", "--atomic-unchanged-77", *words])
    assert ours.atomic == AtomicOptions(message="add", unchanged_77=True)
    assert (ours.kind, ours.applet, ours.argv, ours.locals_) == (plain.kind, plain.applet, plain.argv, plain.locals_)
