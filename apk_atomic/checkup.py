"""What is wrong, or odd, with a system: from what was gathered to findings, each with what to type next.

Pure: facts in, findings out; a part that could not be looked at is not judged. It must not know how anything was found
out.
"""

from __future__ import annotations

from apk_atomic import checkup_boot as boot
from apk_atomic import checkup_root as root
from apk_atomic import checkup_volume as volume
from apk_atomic.checkup_types import Check, Facts, Finding, Level

CHECKS = (
    Check("volume", "the top level is the default subvolume, and every device is there", volume.check_readable),
    Check("slots", "every slot leads to a generation, slot 0 to what is booted", volume.of_volume(volume.check_slots)),
    Check("generations", "every generation is sealed and has its record", volume.of_volume(volume.check_generations)),
    Check("leftovers", "nothing is left of earlier transactions", volume.of_volume(volume.check_leftovers)),
    Check("space", "there is room for a transaction", volume.of_volume(volume.check_space)),
    Check("fstab", "the fstab template is one, and its commons exist", volume.of_volume(volume.check_fstab)),
    Check("kernels", "no kernel is known to be held back", volume.of_volume(volume.check_kernels)),
    Check("menu", "every slot has what the boot menu names", boot.check_menu),
    Check("esp", "loader, driver and menu are as boot-config writes them", boot.check_esp),
    Check("way-in", "the firmware finds the boot loader", boot.check_way_in),
    Check("root", "the running root is sealed and mounted read-only", root.of_root(root.check_seal)),
    Check("firmware", "this system was started by UEFI", root.of_root(root.check_firmware)),
    Check("drop-in", "no drop-in for apk is hidden by another apk", root.of_root(root.check_drop_in)),
    Check("jobs", "no job upgrades in vain", root.of_root(root.check_jobs)),
    Check("resolv", "etc/resolv.conf leads to where it can be written", root.of_root(root.check_resolv)),
    Check("configuration", "the configuration is understood", root.check_configuration),
    Check("hibernation", "no hibernated system waits", boot.check_hibernation),
)
"""In the order in which they are shown."""


def judge(facts: Facts) -> tuple[Finding, ...]:
    """Every finding, one that says OK for each check that found nothing wrong."""
    found: list[Finding] = []
    for check in CHECKS:
        results = check.judge(facts)
        if results is not None:
            found += list(results) or [Finding(Level.OK, check.code, check.fine)]
    return tuple(found)


def worst(findings: tuple[Finding, ...]) -> Level:
    order = list(Level)
    return max((finding.level for finding in findings), key=order.index, default=Level.OK)
