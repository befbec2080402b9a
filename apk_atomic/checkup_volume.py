"""What `doctor` says of a volume: top level, slots, generations, leftovers, room, fstab.

Pure: facts in, findings out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from apk_atomic import fstab
from apk_atomic.checkup_types import Facts, Finding, Level, VolumeFacts, some

_TOP_LEVEL = 5
_SHARED = ("/var", "/var/cache", "/var/cache/apk")


def of_volume(check: Callable[[VolumeFacts], Iterator[Finding]]) -> Callable[[Facts], Iterator[Finding] | None]:
    return lambda facts: None if facts.volume is None else check(facts.volume)


def check_readable(facts: Facts) -> Iterator[Finding] | None:
    """A volume that cannot be read is not healthy; one that nobody tried to read is not judged."""
    if facts.unreadable:
        return iter((Finding(Level.PROBLEM, "volume-unreadable", facts.unreadable, facts.way_out),))
    return None if facts.volume is None else check_top_level(facts.volume)


def check_top_level(facts: VolumeFacts) -> Iterator[Finding]:
    if facts.default_subvolume != _TOP_LEVEL:
        text = f"the default subvolume is {facts.default_subvolume}, not {_TOP_LEVEL}: the boot loader looks in there"
        hint = "mount the volume with -o subvolid=5 at /mnt, then: btrfs subvolume set-default 5 /mnt"
        yield Finding(Level.PROBLEM, "default-subvolume", text, hint)
    if facts.missing_devices:
        text = f"{facts.missing_devices} of the volume's devices are missing"
        yield Finding(Level.PROBLEM, "device-missing", text, "btrfs filesystem show /")


def check_slots(facts: VolumeFacts) -> Iterator[Finding]:
    state = facts.state
    for number, name in enumerate(state.slots):
        if not name:
            level = Level.WARNING if number else Level.PROBLEM
            yield Finding(level, "slot-dangling", f"slot {number} leads to no generation", "apk-atomic rollback")
    if not state.slots:
        yield Finding(Level.PROBLEM, "slot-dangling", "there are no slots, so nothing boots", "apk-atomic rollback")
    if state.fallback_booted:
        text = f"{state.booted} is booted as a fallback, and {state.next or 'nothing'} boots next"
        yield Finding(Level.WARNING, "fallback-booted", text, "apk-atomic rollback makes the booted one the next")
    if state.booted is not None and state.booted not in state.slots:
        text = f"{state.booted}, which is booted, has no slot: the boot menu cannot lead back to it"
        yield Finding(Level.WARNING, "booted-without-slot", text, f"apk-atomic rollback {state.booted}")
    if state.pending:
        yield Finding(Level.NOTE, "pending", f"{state.next} is pending: it runs after the reboot", "reboot")


def check_generations(facts: VolumeFacts) -> Iterator[Finding]:
    state = facts.state
    slots = set(state.slots)
    for each in state.generations:
        if not each.sealed and each.id in slots:
            text = f"{each.id}, which is in a slot, is not sealed: whoever mounts it can change it"
            hint = "btrfs property set /snapshots/ID/@ ro true, below the mounted top level (subvolid=5)"
            yield Finding(Level.PROBLEM, "generation-unsealed", text, hint)
    loose = [each.id for each in state.generations if not each.sealed and each.id not in slots]
    if loose:
        text = f"not sealed, and in no slot: {some(loose)}; gc takes such when they are a day old"
        yield Finding(Level.WARNING, "generation-unsealed", text, "apk-atomic gc --dry-run")
    failed = [each.id for each in state.generations if each.failed and each.id == state.next]
    if failed:
        yield Finding(Level.WARNING, "next-failed", f"{failed[0]} boots next, and failed before", "apk-atomic rollback")
    if facts.damaged:
        text = f"the record of {some(facts.damaged)} is damaged: it is as if it had none"
        yield Finding(Level.WARNING, "record-damaged", text)
    foreign = [each.id for each in state.generations if each.foreign]
    if foreign:
        yield Finding(Level.NOTE, "foreign", f"made by hand or by other tools, and without a record: {some(foreign)}")


def check_leftovers(facts: VolumeFacts) -> Iterator[Finding]:
    if facts.at_work:
        yield Finding(Level.NOTE, "at-work", f"a transaction is at work: {facts.at_work}")
        return  # what it made so far is no leftover
    if facts.staging:
        text = f"a transaction did not finish: {some(facts.staging, 'staging/')}; the next one removes it"
        yield Finding(Level.NOTE, "staging-left", text, "apk-atomic gc")
    if facts.scratch:
        text = f"left in next/: {some(facts.scratch, 'next/')}; nothing reads it"
        yield Finding(Level.NOTE, "next-left", text, "rm, below the mounted top level (subvolid=5)")
    if facts.links:
        text = f"no longer current: {some(facts.links, 'links/')}"
        yield Finding(Level.NOTE, "links-left", text, "apk-atomic gc removes those that are a day old")
    if facts.empty:
        text = f"without a root in it: {some(facts.empty, 'snapshots/')}"
        yield Finding(Level.WARNING, "snapshot-empty", text, "look into it, below the mounted top level (subvolid=5)")


def check_space(facts: VolumeFacts) -> Iterator[Finding]:
    for kind, free, least in (
        ("data", facts.space.data_free, facts.least[0]),
        ("metadata", facts.space.metadata_free, facts.least[1]),
    ):
        if free < 2 * least:
            level = Level.PROBLEM if free < least else Level.WARNING
            text = f"{free >> 20} MiB are free for {kind}; a transaction does not start with less than {least >> 20}"
            yield Finding(level, "space", text, "apk-atomic gc; btrfs filesystem usage / shows what is full")


def check_fstab(facts: VolumeFacts) -> Iterator[Finding]:
    if facts.template is None:
        text = "there is no fstab template at the top level: etc/fstab goes from generation to generation"
        yield Finding(Level.NOTE, "template-missing", text)
    elif fstab.PLACEHOLDER not in facts.template:
        text = f"the fstab template does not say {fstab.PLACEHOLDER}: no generation made from it would boot"
        yield Finding(Level.PROBLEM, "template-fixed", text, "edit fstab at the mounted top level (subvolid=5)")
    for device in facts.unknown:
        text = f"the fstab template names {device}, and no file system here is that"
        yield Finding(Level.WARNING, "template-uuid", text, "edit fstab at the mounted top level (subvolid=5)")
    for subvolume, there in facts.commons.items():
        if not there:
            text = f"fstab mounts {subvolume}, which does not exist: what needs it does not start"
            hint = f"btrfs subvolume create {subvolume}, below the mounted top level (subvolid=5)"
            yield Finding(Level.PROBLEM, "common-missing", text, hint)
    points = {entry.mountpoint.rstrip("/") for entry in fstab.parse(facts.fstab or "") if entry.value("subvol")}
    if facts.fstab is not None and not points & set(_SHARED):
        text = "/var/cache is not shared by the generations: apk-atomic update is refused, and caches are lost"
        yield Finding(Level.WARNING, "cache-unshared", text, "a commons subvolume on /var/cache, in the fstab template")


def check_kernels(facts: VolumeFacts) -> Iterator[Finding]:
    for sentence in facts.held:
        yield Finding(Level.NOTE, "kernel-held", sentence)
