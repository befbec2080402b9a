"""The applets of apk 2.14 and 3.x and the options that each of them knows: tables and nothing else.

They are those of 2.14.10 and 3.0.6 (`src/apk.c`, `src/app_*.c`, `src/query.c`). No I/O, nothing durable. It must
not know how words are matched against the tables (`grammar`) or what follows from a line (`cmdline`).
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Kind(Enum):
    """What a line asks for, as far as the running system is concerned."""

    CHANGE = "change"  # a transaction
    SIMULATE = "simulate"  # the preview of one
    QUERY = "query"  # reads the package database
    CACHE = "cache"  # update, cache: the shared cache only
    ELSEWHERE = "elsewhere"  # packages, repositories, another root: left alone
    HELP = "help"  # usage, version, or a line that apk refuses: nothing is done


class Version(Enum):
    """Which of the two parsers."""

    V2 = 2
    V3 = 3


class Mode(Enum):
    """What may follow an option's name."""

    FLAG = ""
    VALUE = "="
    BOOL = "?"  # v3: --name, --no-name, --name=yes|no
    AUTO = "*"  # v3: the same, and auto


class Option(NamedTuple):
    """One option; `name` is empty where apk has only the letter (list -a -I -O in v3)."""

    name: str
    letters: str
    mode: Mode


class Applet(NamedTuple):
    """`v2` and `v3` are the option specs beside the global ones; None: that version has no such applet.

    A spec is a list of words: `name`, then `=` (takes a value), `?` (BOOL) or `*` (AUTO), then `/` and letters.
    `+commit` and the like stand for a group below. The order is the source's: v3's matching depends on it.
    """

    kind: Kind
    v2: str | None
    v3: str | None


_GROUPS = {
    Version.V2: {
        "+global": """
            allow-untrusted arch= cache-dir= cache-max-age= force/f force-binary-stdout force-broken-world
            force-missing-repositories force-non-repository force-old-apk force-overwrite force-refresh help/h
            interactive/i keys-dir= no-cache no-check-certificate no-interactive no-network no-progress print-arch
            progress progress-fd= purge quiet/q repositories-file= repository=/X root=/p timeout= update-cache/U
            verbose/v version/V wait=""",
        "+commit": """
            clean-protected initramfs-diskless-boot no-commit-hooks no-scripts overlay-from-stdin simulate/s""",
        "+source": "from=",
    },
    Version.V3: {
        "+global": """
            allow-untrusted arch= cache? cache-dir= cache-max-age= cache-packages? cache-predownload?
            check-certificate? force/f force-binary-stdout force-broken-world force-missing-repositories
            force-no-chroot force-non-repository force-old-apk force-overwrite force-refresh help/h interactive*/i
            keys-dir= legacy-info? logfile? network? preserve-env? pretty-print* preupgrade-depends= print-arch
            progress* progress-fd= purge? quiet/q repositories-file= repository=/X repository-config= root=/p
            root-tmpfs* sync* timeout= update-cache/U uvol-manager= verbose/v version/V wait=""",
        "+commit": """
            clean-protected? commit-hooks? initramfs-diskless-boot overlay-from-stdin scripts? simulate?/s""",
        "+query": """
            all-matches available fields=/F format= from= installed match= recursive/R search summarize= upgradable
            world orphaned""",
        "+generation": "compression=/c sign-key=",
    },
}

_AUDIT = """
    backup check-permissions details full ignore-busybox-symlinks packages protected-paths= recursive/r system"""
_FIX = "depends/d directory-permissions reinstall/r upgrade/u xattr/x"
_INDEX = "description=/d index=/x merge no-warnings output=/o prune-origin rewrite-arch="
_INFO = (
    "all/a contents/L depends/R description/d {} license provides/P rdepends/r replaces rinstall-if size/s"
    " triggers/t webpage/w who-owns/W"
)
_SEARCH = "all/a description/d exact/ex has-origin origin/o rdepends/r"
_VERSION = "all/a check/c indexes/I limit=/l test/t"

APPLETS: dict[str, Applet] = {
    "add": Applet(
        Kind.CHANGE,
        "initdb latest/l no-chown upgrade/u virtual=/t +commit",
        "initdb latest/l no-chown upgrade/u usermode virtual=/t +commit",
    ),
    "del": Applet(Kind.CHANGE, "rdepends/r +commit", "rdepends/r +commit"),
    "fix": Applet(Kind.CHANGE, _FIX + " +commit", _FIX + " +commit"),
    "upgrade": Applet(
        Kind.CHANGE,
        "available/a ignore latest/l no-self-upgrade prune self-upgrade-only +commit",
        "available/a ignore latest/l preupgrade? preupgrade-only prune self-upgrade? self-upgrade-only"
        " +commit",
    ),
    "update": Applet(Kind.CACHE, "", ""),
    "cache": Applet(
        Kind.CACHE,
        "add-dependencies available/a ignore-conflict latest/l upgrade/u simulate/s",
        "add-dependencies available/a ignore-conflict latest/l upgrade/u simulate?/s",
    ),
    "info": Applet(
        Kind.QUERY,
        _INFO.format("install-if installed/e") + " +source",
        _INFO.format("exists/e install-if installed") + " +query",
    ),
    "list": Applet(
        Kind.QUERY,
        "available/a installed/I depends/d origin/o orphaned/O providers/P upgradable/u upgradeable +source",
        "/a depends/d /I manifest origin/o /O providers/P upgradeable/u +query",
    ),
    "query": Applet(Kind.QUERY, None, "+query"),
    "search": Applet(Kind.QUERY, _SEARCH + " +source", _SEARCH + " +query"),
    "policy": Applet(Kind.QUERY, "", "+query"),
    "version": Applet(Kind.QUERY, _VERSION, _VERSION),
    "dot": Applet(Kind.QUERY, "errors installed +source", "errors +query"),
    "stats": Applet(Kind.QUERY, "", ""),
    "manifest": Applet(Kind.QUERY, "", ""),
    "audit": Applet(Kind.QUERY, _AUDIT, _AUDIT),
    "fetch": Applet(
        Kind.ELSEWHERE,
        "built-after= link/l recursive/R output=/o simulate stdout/s url world/w +source",
        "built-after= link/l pkgname-spec= output=/o simulate? stdout/s url +query",
    ),
    "index": Applet(Kind.ELSEWHERE, _INDEX, _INDEX),
    "verify": Applet(Kind.ELSEWHERE, "", ""),
    "extract": Applet(Kind.ELSEWHERE, None, "destination= no-chown"),
    "mkpkg": Applet(
        Kind.ELSEWHERE,
        None,
        "compat= files=/F info=/I output=/o rootnode? script=/s stdout trigger=/t xattrs? +generation",
    ),
    "mkndx": Applet(
        Kind.ELSEWHERE,
        None,
        "description=/d filter-spec= hash= index=/x output=/o pkgname-spec= rewrite-arch= +generation",
    ),
    "adbsign": Applet(Kind.ELSEWHERE, None, "reset-signatures +generation"),
    "adbdump": Applet(Kind.ELSEWHERE, None, "format="),
    "adbgen": Applet(Kind.ELSEWHERE, None, ""),
    "convdb": Applet(Kind.ELSEWHERE, None, "+generation"),
    "convndx": Applet(Kind.ELSEWHERE, None, "+generation"),
}


def has_applet(version: Version, name: str) -> bool:
    """Names are exact and case-sensitive."""
    applet = APPLETS.get(name)
    return applet is not None and _own_spec(version, applet) is not None


def options(version: Version, applet: str) -> tuple[Option, ...]:
    """The options that `version` knows on a line of `applet` ('' or an unknown one: the global ones only)."""
    entry = APPLETS.get(applet)
    own = (_own_spec(version, entry) or "") if entry else ""
    groups = _GROUPS[version]
    words = groups["+global"].split()
    for word in own.split():
        words += groups[word].split() if word[0] == "+" else [word]
    return tuple(_option(word) for word in words)


def _own_spec(version: Version, applet: Applet) -> str | None:
    return applet.v2 if version is Version.V2 else applet.v3


def _option(word: str) -> Option:
    name, _, letters = word.partition("/")
    mode = Mode(name[-1]) if name[-1:] in ("=", "?", "*") else Mode.FLAG
    return Option(name[:-1] if mode is not Mode.FLAG else name, letters, mode)
