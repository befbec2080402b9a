"""What `doctor` is given and what it says: plain values, no I/O.

Codes of findings are part of what `doctor --json` promises: more may come, none is renamed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from apk_atomic.bootmenu import Menu
    from apk_atomic.btrfs_space import Space
    from apk_atomic.hibernation import Resume
    from apk_atomic.model import State

INSTALL = "apk-atomic boot-config --install"
_NAMED = 3  # names that a message spells out; the rest is counted


class Level(StrEnum):
    """A problem is what will not work, or not boot; a warning is what may not; a note is nothing wrong."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    PROBLEM = "problem"


class Finding(NamedTuple):
    """`code` is for programs, `message` a sentence for people without a full stop, `hint` what to type next or ""."""

    level: Level
    code: str
    message: str
    hint: str = ""


class VolumeFacts(NamedTuple):
    """What lies on the volume.

    `least`: free bytes for data and metadata that a transaction wants. `damaged`: generations whose generation.json is
    none; `empty`: names in snapshots/ without a generation. `staging`, `links` and `scratch`: names in staging/, in
    links/ beside the one that counts, in next/. `at_work`: who holds the lock, "" for nobody. `template`, `fstab`: the
    volume's, and the next generation's; `commons`: the subvolumes that these name, and whether each is there.
    `unknown`: what the template mounts and no device here has. `held`: sentences about kernels.
    """

    fsid: str
    default_subvolume: int
    missing_devices: int
    space: Space
    least: tuple[int, int]
    state: State
    damaged: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    staging: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    scratch: tuple[str, ...] = ()
    at_work: str = ""
    template: str | None = None
    fstab: str | None = None
    commons: Mapping[str, bool] = {}
    unknown: tuple[str, ...] = ()
    held: tuple[str, ...] = ()


class MenuFacts(NamedTuple):
    """The boot menu by state/boot.json: `menu` None where that is missing (`there` False) or damaged.

    `names`: what rEFInd may call the volume, by partition and label; empty for unknown. `lacking`: paths of the menu
    that are no files of some length, with the slots that lack them. `unused`: microcode of the next generation that the
    menu does not load.
    """

    there: bool
    menu: Menu | None
    names: tuple[str, ...] = ()
    lacking: Mapping[str, tuple[int, ...]] = {}
    unused: tuple[str, ...] = ()


class EspFacts(NamedTuple):
    """The EFI system partition. `place` "" where none was found; `trouble` says why it could not be read, `unseen` why
    nothing here could read any, and `way_out` what helps.

    `known`: state/boot.json says what should be on it; without that the rest is empty. `missing`: files of the loader
    that are not there; `differing`: menus there that are not what boot-config would write; `fallback`: whether the
    disk's fallback path starts our loader; `entry`: whether the firmware has an entry for it, None where nobody can
    say. `free`: bytes, None for unknown; `wanted`: what a new loader needs.
    """

    place: str
    trouble: str = ""
    unseen: str = ""
    way_out: str = ""
    is_fat: bool = True
    known: bool = False
    missing: tuple[str, ...] = ()
    differing: tuple[str, ...] = ()
    fallback: bool = False
    entry: bool | None = None
    free: int | None = None
    wanted: int = 0


class RootFacts(NamedTuple):
    """The running system.

    `layer`: / is an overlay above the generation. `path_apk`: which `apk` is first in PATH, "" for none; `ours`: the
    drop-ins of ours in PATH. `resolv`: where etc/resolv.conf leads in the root, None for nowhere. `jobs`: in
    etc/periodic, path by name; `services`: in any runlevel.
    """

    sealed: bool
    writable: bool
    layer: bool
    efi: bool
    fstab: str
    path_apk: str
    ours: tuple[str, ...]
    resolv: str | None
    resolv_there: bool
    jobs: Mapping[str, str]
    services: frozenset[str]


class ResumeFacts(NamedTuple):
    """Where the next boot looks for a hibernated system, None for nowhere; whether that device is here, and whether one
    sleeps there."""

    resume: Resume | None
    there: bool = False
    waiting: bool = False


class Facts(NamedTuple):
    """All of it; None is what could not be looked at.

    `unreadable` and its `way_out`: why the volume could not be. `configuration`: what is wrong with the file, "" for
    nothing.
    """

    volume: VolumeFacts | None = None
    menu: MenuFacts | None = None
    esp: EspFacts | None = None
    root: RootFacts | None = None
    sleep: ResumeFacts | None = None
    configuration: str | None = None
    unreadable: str = ""
    way_out: str = ""


class Check(NamedTuple):
    """`judge` gives None where the facts that it needs are missing; `fine` is said where it finds nothing."""

    code: str
    fine: str
    judge: Callable[[Facts], Iterator[Finding] | None]


def some(names: tuple[str, ...] | list[str], before: str = "") -> str:
    """The first few names, and how many more."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(f"{before}{name}" for name in names[:_NAMED]) + more
