"""The boot proof's warnings on what a sealed root cannot make up for at run time (facts: alpine-boot 3.1 and 4).

Such a root boots, but without name resolution, D-Bus or ssh. Reads the root by `lookup` only, and writes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from apk_atomic import lookup

if TYPE_CHECKING:
    from apk_atomic.proof_types import Findings

RESOLV = "etc/resolv.conf"
_MACHINE_ID = "etc/machine-id"
_WRITABLE = ("run/", "tmp/", "var/run/")  # made anew in each boot
_LIMIT = 4096
_RUNLEVELS = "etc/runlevels"


def check_sealed(findings: Findings, root: int) -> None:
    """resolv.conf, machine-id and host keys: there, or for somebody to make where it can be made."""
    services = frozenset(
        name for level in lookup.names(root, _RUNLEVELS) for name in lookup.names(root, f"{_RUNLEVELS}/{level}")
    )
    target = resolv_target(root)
    if target is None:
        findings.warn("resolv-conf", f"{RESOLV} is missing, and nobody can make it on a sealed root: link it into /run")
    elif not lookup.is_file(root, RESOLV) and not target.startswith(_WRITABLE):
        findings.warn("resolv-conf", f"{RESOLV} leads to /{target}, which is not there and not made at boot either")
    if "dbus" in services and not (lookup.read(root, _MACHINE_ID, _LIMIT) or b"").strip():
        findings.warn("machine-id", f"{_MACHINE_ID} is missing or empty, and D-Bus cannot make it on a sealed root")
    keys = (name for name in lookup.names(root, "etc/ssh") if name.startswith("ssh_host_") and name.endswith("_key"))
    if "sshd" in services and not any(keys):
        findings.warn("host-keys", "etc/ssh has no host keys, and sshd cannot make them on a sealed root")


def resolv_target(root: int) -> str | None:
    """Where etc/resolv.conf leads, as a path in the root; the last place that a link names even if it is not there
    yet. None when there is no such name."""
    if not lookup.exists(root, RESOLV):
        return None
    return lookup.follow(RESOLV, lambda name: lookup.link_target(root, name))
