"""What apk does, as a table: the same for the stand-in, apk 3 and apk 2.14 unless a step says otherwise.

A case is a list of steps in one fresh root. `Do` calls apk and says its exit status and its steps in order;
`Publish` changes the repository; `Write` changes the root, `Spoil` a package. `world` and `installed` are the end.
Cases in BEYOND are more than the stand-in knows: they run with real apks only.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.packages import Directory, File, Package, Symlink

FAILING = "#!/bin/sh\necho going wrong\nexit 3\n"


def noting(text: str) -> str:
    """A script that says it ran, with its arguments, in a file of the root."""
    return f'#!/bin/sh\necho "{text} $*" >> /notes\n'


@dataclass(frozen=True, slots=True)
class Do:
    """A call of apk. `two` is what 2.14 exits with where it differs; `says` must be in its output, in full lines."""

    line: str
    status: int = 0
    steps: tuple[str, ...] = ()
    two: int | None = None
    stdin: str = ""
    says: tuple[str, ...] = ()

    def status_of(self, major: int) -> int:
        return self.two if major == 2 and self.two is not None else self.status


@dataclass(frozen=True, slots=True)
class Publish:
    packages: tuple[Package, ...]


@dataclass(frozen=True, slots=True)
class Write:
    path: str
    text: str
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class Spoil:
    """Damage the .apk file of a package behind the index's back: truncated, or gone."""

    package: Package
    gone: bool = False


Step = Do | Publish | Write | Spoil


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    steps: tuple[Step, ...]
    world: str = ""
    installed: str = ""


BASE = Package("base", files={"etc/base.conf": File(b"base=1\n")})
HELLO = Package(
    "hello",
    depends=("base",),
    provides=("cmd:hello=1.0-r0",),
    files={
        "usr/bin/hello": File(b"#!/bin/sh\necho hello\n", 0o755),
        "usr/bin/hi": Symlink("hello"),
        "usr/share/hello": Directory(0o750),
        "var/hello/data": File(b"x", 0o600, (7, 8)),
    },
    scripts={
        "pre-install": noting("hello pre-install"),
        "post-install": noting("hello post-install"),
        "pre-deinstall": noting("hello pre-deinstall"),
        "post-deinstall": noting("hello post-deinstall"),
    },
)
HELLO_2 = Package(
    "hello",
    "1.10-r0",
    depends=("base",),
    files={"usr/bin/hello": File(b"#!/bin/sh\necho 2\n", 0o755)},
    scripts={"pre-upgrade": noting("hello pre-upgrade"), "post-upgrade": noting("hello post-upgrade")},
)
HELLO_REBUILT = Package("hello", depends=("base",), files={"usr/bin/hello": File(b"rebuilt", 0o755)}, builddate=1)
USER = Package("user", depends=("cmd:hello",), files={"usr/bin/user": File(b"user", 0o755)})
PINNED = Package("pinned", depends=("base=2.0-r0",))
BAD_POST = Package("bad", scripts={"post-install": FAILING}, files={"usr/bad": File(b"1")})
BAD_PRE = Package("badpre", scripts={"pre-install": FAILING}, files={"usr/badpre": File(b"1")})
BAD_DEL = Package(
    "baddel",
    scripts={"pre-deinstall": FAILING, "post-deinstall": FAILING},
    files={"usr/baddel": File(b"1")},
)
CLASH = Package("clash", files={"usr/bin/hello": File(b"mine", 0o755), "usr/clash": File(b"1")})
REPLACER = Package("replacer", files={"etc/base.conf": File(b"theirs\n")}, replaces=("base",))
RIVAL = Package("rival", depends=("!hello",))
LOST = Package("lost", depends=("nosuch",))
LOST_DEEPER = Package("lostdeeper", depends=("lost",))
WATCHER = Package(
    "watcher",
    files={"usr/watcher": File(b"1")},
    triggers=("/usr/bin", "/usr/share/*"),
    scripts={"trigger": noting("watcher trigger")},
)
BAD_WATCHER = Package("badwatcher", triggers=("/usr/bin",), scripts={"trigger": FAILING}, files={"b": File(b"1")})

INSTALL_HELLO = (
    "Installing base (1.0-r0)",
    "Installing hello (1.0-r0)",
    "run hello-1.0-r0.pre-install",
    "run hello-1.0-r0.post-install",
)
INSTALL_BAD = ("Installing bad (1.0-r0)", "run bad-1.0-r0.post-install")

ADDING = (
    Case(
        "a package brings what it needs",
        (Publish((HELLO, BASE)), Do("add hello", 0, INSTALL_HELLO)),
        "hello",
        "base-1.0-r0 hello-1.0-r0",
    ),
    Case(
        "nothing to do",
        (
            Publish((HELLO, BASE)),
            Do("add hello", 0, INSTALL_HELLO),
            Do("add hello"),
            Do("upgrade"),
            Do("fix"),
            Do("del"),
        ),
        "hello",
        "base-1.0-r0 hello-1.0-r0",
    ),
    Case(
        "a change of world alone",
        (Publish((HELLO, BASE)), Do("add hello", 0, INSTALL_HELLO), Do("add base")),
        "base hello",
        "base-1.0-r0 hello-1.0-r0",
    ),
    Case(
        "quiet",
        (Publish((HELLO, BASE)), Do("-q add hello")),
        "hello",
        "base-1.0-r0 hello-1.0-r0",
    ),
    Case(
        "what is not there",
        (
            Publish((LOST, BASE, PINNED)),
            Do("add nosuch", 1, says=("  nosuch (no such package):", "    required by: world[nosuch]")),
            Do("add lost", 2, says=("    required by: lost-1.0-r0[nosuch]",)),
            Do("add base=9", 1, says=("  base-1.0-r0:", "    breaks: world[base=9]")),
            Do("add pinned", 2, says=("    breaks: pinned-1.0-r0[base=2.0-r0]",)),
        ),
    ),
    Case(
        "an older version on demand, then no bound",
        (
            Publish((HELLO, HELLO_2, BASE)),
            Do("add hello=1.0-r0", 0, INSTALL_HELLO),
            Do("upgrade"),
            Do("add hello"),
            Do(
                "upgrade",
                0,
                (
                    "Upgrading hello (1.0-r0 -> 1.10-r0)",
                    "run hello-1.10-r0.pre-upgrade",
                    "run hello-1.10-r0.post-upgrade",
                ),
            ),
            Do("add hello=1.0-r0", 0, ("Downgrading hello (1.10-r0 -> 1.0-r0)",)),
        ),
        "hello=1.0-r0",
        "base-1.0-r0 hello-1.0-r0",
    ),
    Case(
        "what a package provides",
        (
            Publish((HELLO, BASE, USER)),
            Do("add user", 0, (*INSTALL_HELLO, "Installing user (1.0-r0)")),
        ),
        "user",
        "base-1.0-r0 hello-1.0-r0 user-1.0-r0",
    ),
    Case(
        "simulation",
        (
            Publish((HELLO, BASE)),
            Do("-s add hello", 0, INSTALL_HELLO[:2]),
            Do("add --simulate hello", 0, INSTALL_HELLO[:2]),
            Do("add -qs hello"),
        ),
    ),
)

REMOVING = (
    Case(
        "a package takes along what nobody else needs",
        (
            Publish((HELLO, BASE)),
            Do("add hello", 0, INSTALL_HELLO),
            Do(
                "del hello",
                0,
                (
                    "Purging hello (1.0-r0)",
                    "run hello-1.0-r0.pre-deinstall",
                    "run hello-1.0-r0.post-deinstall",
                    "Purging base (1.0-r0)",
                ),
            ),
        ),
    ),
    Case(
        "what others need stays",
        (
            Publish((HELLO, BASE)),
            Do("add hello base", 0, INSTALL_HELLO),
            Do("del base"),
            Do("del nosuch", 1, says=("ERROR: No such package: nosuch",)),
        ),
        "hello",
        "base-1.0-r0 hello-1.0-r0",
    ),
    Case(
        "failing deinstall scripts change nothing",
        (
            Publish((BAD_DEL,)),
            Do("add baddel", 0, ("Installing baddel (1.0-r0)",)),
            Do(
                "del baddel",
                0,
                ("Purging baddel (1.0-r0)", "run baddel-1.0-r0.pre-deinstall", "run baddel-1.0-r0.post-deinstall"),
            ),
        ),
    ),
)

UPGRADING = (
    Case(
        "versions by number",
        (
            Publish((Package("v", "1.2-r0"),)),
            Do("add v", 0, ("Installing v (1.2-r0)",)),
            Publish((Package("v", "1.2-r10"), Package("v", "1.2-r9"))),
            Do("upgrade", 0, ("Upgrading v (1.2-r0 -> 1.2-r10)",)),
            Publish((Package("v", "1.2.10-r0"), Package("v", "1.2.9-r1"))),
            Do("upgrade", 0, ("Upgrading v (1.2-r10 -> 1.2.10-r0)",)),
        ),
        "v",
        "v-1.2.10-r0",
    ),
    Case(
        "scripts see both versions",
        (
            Publish((HELLO, BASE)),
            Do("add hello", 0, INSTALL_HELLO),
            Publish((HELLO_2,)),
            Do(
                "upgrade",
                0,
                (
                    "Upgrading hello (1.0-r0 -> 1.10-r0)",
                    "run hello-1.10-r0.pre-upgrade",
                    "run hello-1.10-r0.post-upgrade",
                ),
            ),
        ),
        "hello",
        "base-1.0-r0 hello-1.10-r0",
    ),
    Case(
        "only what is named",
        (
            Publish((HELLO, BASE)),
            Do("add hello", 0, INSTALL_HELLO),
            Publish((HELLO_2, Package("base", "2.0-r0", files=BASE.files))),
            Do("upgrade base", 0, ("Upgrading base (1.0-r0 -> 2.0-r0)",)),
            Do("upgrade nosuch", 1, says=("ERROR: Package 'nosuch' not found",)),
        ),
        "hello",
        "base-2.0-r0 hello-1.0-r0",
    ),
)

FAILING_CASES = (
    Case(
        "a failing post-install script is counted until it is mended",
        (
            Publish((BAD_POST, BASE)),
            Do("add bad", 1, INSTALL_BAD),
            Do("add base", 1, ("Installing base (1.0-r0)",)),
            Do("-s add base", 1),
            Do("fix", 0, ("Reinstalling bad (1.0-r0)",)),
            Do("add"),
        ),
        "bad base",
        "bad-1.0-r0 base-1.0-r0",
    ),
    Case(
        "broken packages add up, and their removal ends it",
        (
            Publish((BAD_POST, BAD_PRE)),
            Do("add bad", 1, INSTALL_BAD),
            Do("add badpre", 2, ("Installing badpre (1.0-r0)", "run badpre-1.0-r0.pre-install")),
            Do("del bad", 1, ("Purging bad (1.0-r0)",)),
        ),
        "badpre",
        "badpre-1.0-r0[s]",
    ),
    Case(
        "no scripts on demand",
        (Publish((BAD_POST,)), Do("add --no-scripts bad", 0, ("Installing bad (1.0-r0)",))),
        "bad",
        "bad-1.0-r0",
    ),
    Case(
        "a file of another package",
        (
            Publish((HELLO, BASE, CLASH)),
            Do("add hello", 0, INSTALL_HELLO),
            Do(
                "add clash",
                1,
                ("Installing clash (1.0-r0)",),
                says=("ERROR: clash-1.0-r0: trying to overwrite usr/bin/hello owned by hello-1.0-r0.",),
            ),
        ),
        "clash hello",
        "base-1.0-r0 clash-1.0-r0[f] hello-1.0-r0",
    ),
    Case(
        "a package file that is gone",
        (
            Publish((BASE, BAD_POST)),
            Spoil(BASE, gone=True),
            Do(
                "add base",
                1,
                ("Installing base (1.0-r0)",),
                says=("ERROR: base-1.0-r0: package mentioned in index not found (try 'apk update')",),
            ),
            Do("add", 1, ("Installing base (1.0-r0)",)),
            Publish((BASE,)),
            Do("add", 0, ("Installing base (1.0-r0)",)),
        ),
        "base",
        "base-1.0-r0",
    ),
    Case(
        "a package file that is damaged",
        (Publish((BASE, HELLO)), Spoil(BASE), Do("add base", 1, ("Installing base (1.0-r0)",))),
        "base",
    ),
    Case(
        "an upgrade that cannot be unpacked leaves the old version",
        (
            Publish((BASE, HELLO)),
            Do("add hello", 0, INSTALL_HELLO),
            Publish((HELLO_2,)),
            Spoil(HELLO_2, gone=True),
            Do("upgrade", 1, ("Upgrading hello (1.0-r0 -> 1.10-r0)",)),
        ),
        "hello",
        "base-1.0-r0 hello-1.0-r0",
    ),
    Case(
        "a repository that is gone",
        (
            Publish((BASE,)),
            Do("-X /nowhere add base", 0, ("Installing base (1.0-r0)",)),
            Do("-X /nowhere upgrade", 0),
        ),
        "base",
        "base-1.0-r0",
    ),
)

TRIGGERS = (
    Case(
        "a trigger fires for all directories at first, then for those that changed",
        (
            Publish((HELLO, BASE, WATCHER)),
            Do("add watcher", 0, ("Installing watcher (1.0-r0)",)),
            Do("add hello", 0, (*INSTALL_HELLO, "run watcher-1.0-r0.trigger")),
            Do("add"),
            Do(
                "del hello",
                0,
                (
                    "Purging hello (1.0-r0)",
                    "run hello-1.0-r0.pre-deinstall",
                    "run hello-1.0-r0.post-deinstall",
                    "Purging base (1.0-r0)",
                    "run watcher-1.0-r0.trigger",
                ),
            ),
            Do("add base", 0, ("Installing base (1.0-r0)",)),
        ),
        "base watcher",
        "base-1.0-r0 watcher-1.0-r0",
    ),
    Case(
        "a failing trigger",
        (
            Publish((HELLO, BASE, BAD_WATCHER)),
            Do("add badwatcher", 0, ("Installing badwatcher (1.0-r0)",)),
            Do("add hello", 1, (*INSTALL_HELLO, "run badwatcher-1.0-r0.trigger"), two=0),
            Do("add", 1),
        ),
        "badwatcher hello",
        "badwatcher-1.0-r0[s] base-1.0-r0 hello-1.0-r0",
    ),
)

HOOK = "etc/apk/commit_hooks.d/10-guard"
HOOKS = (
    Case(
        "a hook runs before and after, also when nothing changes",
        (
            Publish((BASE,)),
            Write(HOOK, noting("guard"), 0o755),
            Do("add base", 0, ("Installing base (1.0-r0)",)),
            Do("add"),
            Do("-s add"),
            Do("add --no-commit-hooks", says=(f"Skipping: {HOOK} pre-commit", f"Skipping: {HOOK} post-commit")),
        ),
        "base",
        "base-1.0-r0",
    ),
    Case(
        "a hook refuses",
        (Publish((BASE,)), Write(HOOK, '#!/bin/sh\n[ "$1" != pre-commit ]\n', 0o755), Do("add base", 99)),
    ),
    Case(
        "a hook fails afterwards",
        (
            Publish((BASE,)),
            Write(HOOK, '#!/bin/sh\n[ "$1" = pre-commit ]\n', 0o755),
            Do("add base", 0, ("Installing base (1.0-r0)",)),
        ),
        "base",
        "base-1.0-r0",
    ),
)

ASKING = (
    Case(
        "the prompt",
        (
            Publish((BASE, HELLO)),
            Do("-i add base", 99, stdin="n\n", says=("The following NEW packages will be installed:", "  base")),
            Do("add -i base", 0, ("Installing base (1.0-r0)",), stdin="y"),
            Do("-i del base", 99, stdin="x"),
            Do("-i add base", 0, stdin="n"),
            Do("-i -s del base", 0, ("Purging base (1.0-r0)",), stdin="n"),
            Do("-i del base", 0, ("Purging base (1.0-r0)",), stdin=""),
        ),
    ),
    Case(
        "queries",
        (
            Publish((BASE, HELLO)),
            Do("add hello", 0, INSTALL_HELLO),
            Do("info", says=("base", "hello")),
            Do("info -v", says=("base-1.0-r0", "hello-1.0-r0")),
            Do("info -e base", says=("base",)),
            Do("info -e base nosuch nosuch2", 2, says=("base",)),
            Do("info -ev hello=1.0-r0 base=2", 1, says=("hello-1.0-r0",)),
            Do("list -I", says=("hello-1.0-r0 ARCH {hello} (MIT) [installed]",)),
            Do("list -I -q hello", says=("hello",)),
            Do("list -I nosuch"),
        ),
        "hello",
        "base-1.0-r0 hello-1.0-r0",
    ),
    Case(
        "versions beside what is to be had",
        (
            Publish((BASE, Package("ties", depends=("base=1.0-r0",), files={"usr/ties": File(b"1")}))),
            Do("add ties", 0, ("Installing base (1.0-r0)", "Installing ties (1.0-r0)")),
            Do("version -l < base", says=("Installed:                                Available:",)),
            Publish((BASE, Package("base", "1.1-r0", files={"etc/base.conf": File(b"base=1\n")}),
                     Package("ties", depends=("base=1.0-r0",), files={"usr/ties": File(b"1")}))),
            Do("upgrade"),
            Do("version -l < base ties", says=("base-1.0-r0                             < 1.1-r0 ",)),
        ),
        "ties",
        "base-1.0-r0 ties-1.0-r0",
    ),
    Case(
        "the command line",
        (
            Publish((BASE,)),
            Do("--version"),
            Do("add base --version"),
            Do("add --help base", 1),
            Do("add --bogus", 1),
            Do("frobnicate", 1),
            Do("add -X", 1),
            Do("--simulate add base", 0, ("Installing base (1.0-r0)",)),
            Do("add -- base", 0, ("Installing base (1.0-r0)",)),
            Do("del base -qs"),
            Do("add ba$se", 1),
        ),
        "base",
        "base-1.0-r0",
    ),
)

BEYOND = (
    Case(
        "a package that forbids another",
        (Publish((HELLO, BASE, RIVAL)), Do("add hello", 0, INSTALL_HELLO), Do("-s add rival", 2)),
        "hello",
        "base-1.0-r0 hello-1.0-r0",
    ),
    Case(
        "a virtual package with a version",
        (
            Publish((BASE,)),
            Do("add -t .group=1 base", 0, ("Installing base (1.0-r0)", "Installing .group (1)")),
            Do("del .group", 0, ("Purging .group (1)", "Purging base (1.0-r0)")),
        ),
    ),
    Case(
        "a rebuilt package replaces only on demand",
        (
            Publish((HELLO, BASE)),
            Do("add hello", 0, INSTALL_HELLO),
            Publish((HELLO_REBUILT,)),
            Do("upgrade"),
            Do("upgrade -a", 0, ("Replacing hello (1.0-r0 -> 1.0-r0)",)),
        ),
        "hello",
        "base-1.0-r0 hello-1.0-r0",
    ),
    Case(
        "edited configuration stays",
        (
            Publish((BASE,)),
            Do("add base", 0, ("Installing base (1.0-r0)",)),
            Write("etc/base.conf", "edited\n"),
            Publish((Package("base", "2.0-r0", files={"etc/base.conf": File(b"base=2\n")}),)),
            Do("upgrade", 0, ("Upgrading base (1.0-r0 -> 2.0-r0)",)),
        ),
        "base",
        "base-2.0-r0",
    ),
    Case(
        "pre-releases and suffixes",
        (
            Publish((Package("v", "1.2_rc1-r0"),)),
            Do("add v", 0, ("Installing v (1.2_rc1-r0)",)),
            Publish((Package("v", "1.2-r0"),)),
            Do("upgrade", 0, ("Upgrading v (1.2_rc1-r0 -> 1.2-r0)",)),
            Publish(
                (Package("v", "1.2b-r0"), Package("v", "1.2_p1-r0"), Package("v", "1.2-r10"), Package("v", "1.2-r9"))
            ),
            Do("upgrade", 0, ("Upgrading v (1.2-r0 -> 1.2b-r0)",)),
            Publish((Package("v", "1.2.10-r0"), Package("v", "1.2.9-r0"), Package("v", "1.2.010-r0"))),
            Do("upgrade", 0, ("Upgrading v (1.2b-r0 -> 1.2.10-r0)",)),
        ),
        "v",
        "v-1.2.10-r0",
    ),
    Case(
        "a file that the other package gives up",
        (
            Publish((BASE, REPLACER)),
            Do("add base", 0, ("Installing base (1.0-r0)",)),
            Do("add replacer", 0, ("Installing replacer (1.0-r0)",)),
            Do("del replacer", 0, ("Purging replacer (1.0-r0)",)),
        ),
        "base",
        "base-1.0-r0",
    ),
    Case(
        "what is not there further down",
        (Publish((LOST, LOST_DEEPER)), Do("add lostdeeper", 3)),
    ),
    Case(
        "why packages stay",
        (
            Publish((HELLO, BASE)),
            Do("add hello base", 0, INSTALL_HELLO),
            Do(
                "del base",
                says=("World updated, but the following packages are not removed due to:", "  base: hello"),
            ),
        ),
        "hello",
        "base-1.0-r0 hello-1.0-r0",
    ),
    Case(
        "longer answers",
        (
            Publish((BASE,)),
            Do("add base", 0, ("Installing base (1.0-r0)",)),
            Do("info -vv", says=("base-1.0-r0 - test package base",)),
            Do("info nosuch", 1),
            Do("info base", says=("base-1.0-r0 description:", "test package base")),
            Do("--print-arch", says=("ARCH",)),
            Do("--sim del base", 0, ("Purging base (1.0-r0)",)),
            Do("add -t", 1),
        ),
        "base",
        "base-1.0-r0",
    ),
)

CASES = (*ADDING, *REMOVING, *UPGRADING, *FAILING_CASES, *TRIGGERS, *HOOKS, *ASKING)
