"""What `doctor` says of the running system: its seal, its firmware, PATH, jobs, name resolution, configuration.

Pure: facts in, findings out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from apk_atomic import fstab
from apk_atomic.checkup_types import Facts, Finding, Level, RootFacts

_MADE_AT_BOOT = ("run/", "tmp/", "var/run/")
_LINK = "apk-atomic run -- ln -sf /run/resolv.conf /etc/resolv.conf"


def of_root(check: Callable[[RootFacts], Iterator[Finding]]) -> Callable[[Facts], Iterator[Finding] | None]:
    return lambda facts: None if facts.root is None else check(facts.root)


def check_seal(facts: RootFacts) -> Iterator[Finding]:
    if not facts.sealed:
        text = "the running root is not sealed: what is changed in it changes the generation"
        yield Finding(Level.PROBLEM, "root-unsealed", text, "btrfs property set / ro true")
    if facts.layer:
        text = "/ is an overlay: everything can be written, and all of it is lost at the next boot"
        yield Finding(Level.NOTE, "root-overlay", text)
    entry = fstab.root_entry(fstab.parse(facts.fstab))
    if entry is None:
        yield Finding(Level.PROBLEM, "root-fstab", "etc/fstab has no entry for /, or more than one")
    elif [option for option in entry.options if option in ("ro", "rw")][-1:] != ["ro"]:
        text = "etc/fstab does not say ro for /: OpenRC's service root mounts it writable"
        yield Finding(Level.WARNING, "root-remount", text, "put ro into the fstab template")
    elif facts.writable and not facts.layer:
        text = "/ is mounted writable, and only its seal protects it; rootflags= of the boot menu should say ro"
        yield Finding(Level.NOTE, "root-writable", text)


def check_firmware(facts: RootFacts) -> Iterator[Finding]:
    if not facts.efi:
        text = "this system was not started by UEFI: apk-atomic makes no boot menu for any other way"
        yield Finding(Level.WARNING, "bios", text)


def check_drop_in(facts: RootFacts) -> Iterator[Finding]:
    if facts.ours and facts.path_apk not in facts.ours:
        text = f"apk means {facts.path_apk}, which comes before {facts.ours[0]} in PATH"
        yield Finding(Level.WARNING, "drop-in-shadowed", text, f"put {facts.ours[0].rpartition('/')[0]} first in PATH")


def check_jobs(facts: RootFacts) -> Iterator[Finding]:
    for name, place in facts.jobs.items():
        if name == "apk":
            text = f"{place} runs apk upgrade, which fails on a sealed root each time (package apk-cron)"
            yield Finding(Level.WARNING, "apk-cron", text, "apk-atomic del apk-cron; apk-atomic has a job of its own")
    ours = [place for name, place in facts.jobs.items() if name.startswith("apk-atomic")]
    if ours and "crond" not in facts.services:
        hint = "apk-atomic run -- rc-update add crond default"
        yield Finding(Level.WARNING, "crond-disabled", f"{ours[0]} never runs: crond is in no runlevel", hint)


def check_resolv(facts: RootFacts) -> Iterator[Finding]:
    if facts.resolv is None:
        text = "etc/resolv.conf is missing, and nobody can make it on a sealed root"
        yield Finding(Level.PROBLEM, "resolv-missing", text, _LINK)
    elif facts.resolv.startswith(_MADE_AT_BOOT):
        if not facts.resolv_there:
            yield Finding(Level.NOTE, "resolv-empty", f"/{facts.resolv}, where etc/resolv.conf leads, is not there yet")
    elif not facts.resolv_there:
        text = f"etc/resolv.conf leads to /{facts.resolv}, which is not there"
        yield Finding(Level.PROBLEM, "resolv-missing", text, _LINK)
    elif facts.resolv == "etc/resolv.conf":
        text = "etc/resolv.conf is a file of the sealed root: DHCP cannot change it"
        yield Finding(Level.NOTE, "resolv-fixed", text)


def check_configuration(facts: Facts) -> Iterator[Finding] | None:
    return None if facts.configuration is None else _configuration(facts.configuration)


def _configuration(trouble: str) -> Iterator[Finding]:
    if trouble:
        yield Finding(Level.PROBLEM, "configuration", trouble)
