"""The part of an unattended upgrade that changes nothing but the shared cache: indexes, plan, package files.

It needs no lock of the volume, so nobody waits for a slow network, and a lost one costs nothing.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from apk_atomic import apkline, autoplan, cmdline, files, installed, volume
from apk_atomic.config import Config
from apk_atomic.context import Context
from apk_atomic.errors import ChangeFailed, Refused
from apk_atomic.faults import point
from apk_atomic.model import PackageChanges
from apk_atomic.retention import choose_base
from apk_atomic.signals import Signals
from apk_atomic.volume import Volume

CACHE = "/var/cache/apk"
_LIMIT = 1 << 22  # bytes of what apk says


class Run(NamedTuple):
    """One run. `held` keeps the lock of unattended runs in whatever is started; `output`: a descriptor for what apk
    says in the transaction."""

    context: Context
    config: Config
    signals: Signals
    held: int
    output: int
    now: bool = False
    dry_run: bool = False


class Plan(NamedTuple):
    """`set` is the fingerprint of what will be installed; `words` are those of the apk line, `options` its cache's;
    `files` are NAME-VERSION of the package files that it needs."""

    base: str
    changes: PackageChanges
    set: str
    words: tuple[str, ...]
    options: tuple[str, ...]
    files: tuple[str, ...]
    remote: bool


def make(run: Run, opened: Volume) -> Plan:
    base = base_of(opened)
    point("chosen")
    root = volume.open_root(opened, base)
    try:
        remote = apkline.is_remote(root)
        options = ("--cache-dir", CACHE) if remote and not apkline.has_cache(opened, run.config, base) else ()
        database = files.read_file(root, installed.DATABASE, installed.LIMIT, resolve=files.IN_ROOT)
    finally:
        os.close(root)
    status, said = _apk(run, opened, base, (*options, "-U", "update"))
    if status:
        raise ChangeFailed(f"the indexes could not be refreshed; nothing was changed\n{said}", status=status)
    point("refreshed")
    versions = {name: package.version for name, package in installed.packages(database).items()}
    left = autoplan.excluded(run.config.auto.exclude, versions)
    words = ("upgrade", *(("--ignore", *left) if left else ()))
    changes = _simulate(run, opened, base, (*options, *words), installed.broken(database))
    forced = sorted(autoplan.touched(changes).intersection(left))
    if forced:
        raise Refused(
            f"the upgrade would change {', '.join(forced)}, which [auto] exclude keeps as it is; nothing was changed",
            hint="apk-atomic upgrade",
        )
    point("planned")
    after = autoplan.applied(versions, changes)
    needed = tuple(f"{name}-{after[name]}" for name in autoplan.downloads(changes))
    return Plan(base, changes, autoplan.fingerprint(after), words, options, needed, remote)


def base_of(opened: Volume) -> str:
    """The generation that an upgrade starts from now."""
    return choose_base(volume.read_slots(opened), None).id


def _simulate(run: Run, opened: Volume, base: str, words: tuple[str, ...], broken: frozenset[str]) -> PackageChanges:
    """Also a simulation exits with the number of packages that are broken already (facts: apk-cli, 5.2)."""
    status, said = _apk(run, opened, base, (*words, "--simulate"))
    if status not in (0, len(broken)):
        raise ChangeFailed(f"apk finds no way to upgrade; nothing was changed\n{said}", status=status)
    return autoplan.parse_simulation(said)


def download(run: Run, opened: Volume, plan: Plan) -> None:
    """Every package file of the plan into the shared cache; apk checks each against the index before it keeps it."""
    names = autoplan.downloads(plan.changes)
    status, said = _apk(run, opened, plan.base, (*plan.options, "cache", "download", "--upgrade", *names))
    if status:
        raise ChangeFailed(f"the packages could not be downloaded; nothing was changed\n{said}", status=status)
    point("downloaded")


def _apk(run: Run, opened: Volume, base: str, words: tuple[str, ...]) -> tuple[int, str]:
    """apk in the sealed base: its status, and what it said."""
    output = os.memfd_create("apk", os.MFD_CLOEXEC)
    try:
        line = cmdline.parse(words)
        status = apkline.run_in_generation(opened, run.config, base, line, run.signals, output, held=(run.held,))
        run.signals.check()
        return status, said_in(output)
    finally:
        os.close(output)


def said_in(output: int, length: int = _LIMIT) -> str:
    """The end of what was written to a descriptor of a file in memory."""
    size = os.fstat(output).st_size
    return os.pread(output, length, max(0, size - length)).decode(errors="replace").strip()


def cached() -> dict[str, str]:
    """Package files in the cache of the running system, which all generations share: NAME-VERSION by file name."""
    try:
        return {name: name.rsplit(".", 2)[0] for name in os.listdir(CACHE) if name.endswith(".apk")}
    except OSError:
        return {}
