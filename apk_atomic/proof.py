"""The boot proof (design, section 7): a root in, a verdict out. It reads, it does not execute.

Hard failures mean that the root, sealed and pointed to, would not boot; warnings are printed and recorded. The
proof must not know how the root came to be, nor what becomes of the verdict. It writes nothing. Whatever bytes
the root is made of, there is a verdict; only a disk that cannot be read raises (OSError).
"""

from __future__ import annotations

import time
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from apk_atomic import lookup
from apk_atomic.names import is_below
from apk_atomic.proof_fstab import FSTAB, check_fstab, check_resume, check_staging
from apk_atomic.proof_init import check_init
from apk_atomic.proof_kernels import check_kernels, check_menu, menu_names
from apk_atomic.proof_sealed import check_sealed
from apk_atomic.proof_types import INIT as INIT
from apk_atomic.proof_types import TOP_LEVEL, Findings
from apk_atomic.proof_types import Finding as Finding
from apk_atomic.proof_types import Proof as Proof
from apk_atomic.proof_types import ProofInput as ProofInput

if TYPE_CHECKING:
    from collections.abc import Collection

    from apk_atomic.initramfs import Image

# Whatever changes here is an input, known or not.
_ALWAYS = ("boot", "usr/lib/modules", "usr/share/kernel", "etc/runlevels", "etc/mkinitfs")
_LIBRARY_PATH = "etc/ld-musl-*.path"


def prove(root_fd: int, facts: ProofInput) -> Proof:
    """The full verdict on the root with directory descriptor `root_fd`, staged or sealed."""
    started = time.monotonic()
    kernels = check_kernels(root_fd, facts)
    findings = _own_findings(root_fd, facts)
    findings.add(kernels.findings)
    if kernels.none:
        findings.warn("no-kernel", "no kernel: this root cannot boot by itself")
    else:
        check_init(findings, root_fd, facts.init, kernels.machines)
        check_sealed(findings, root_fd)
    return _proof(findings, started, kernels.releases, kernels.images)


def prove_own(root_fd: int, facts: ProofInput) -> Proof:
    """The part of the verdict that no generation can inherit, in a few milliseconds: etc/fstab, names of the
    staging subvolume, the paths and init of the boot menu, the default subvolume. `kernels` and `images` are empty."""
    started = time.monotonic()
    findings = _own_findings(root_fd, facts)
    check_menu(findings, root_fd, facts)
    if facts.menu_paths is not None and not lookup.is_file(root_fd, facts.init):
        findings.fail("init-missing", f"{facts.init}, which the boot menu starts, is missing or leads nowhere")
    return _proof(findings, started, {}, {})


def must_run(root_fd: int, changed_paths: Collection[str], inputs: Collection[str], members: Collection[str]) -> bool:
    """Whether a full proof is due, so that base's cannot be inherited.

    `changed_paths` as for `rebuild.concerned_flavors`; `inputs` and `members` (of all images) are those that
    base's record has of its proof. True as well where there are none: base was never proved. etc/fstab does not
    count, since each generation has its own: it is for `prove_own`.
    """
    if not inputs:
        return True
    changed = {lookup.merged(path) for path in changed_paths} - {FSTAB}
    if any(is_below(name, *_ALWAYS) for name in changed):
        return True
    watched = changed.intersection(map(lookup.merged, (*inputs, *members)))
    if not all(_is_directory(root_fd, name) for name in watched):  # that one is listed says nothing of what is in it
        return True
    named = {path.strip("/") for path in changed_paths}.intersection(inputs)
    if any(_is_other_way(root_fd, name) for name in named) or _concerns_libraries(changed, inputs):
        return True
    suspects = (path for path in inputs if any(above in changed for above in _above(lookup.merged(path))))
    return any(not _is_there(root_fd, path) for path in suspects)


def _own_findings(root_fd: int, facts: ProofInput) -> Findings:
    findings = Findings()
    if facts.default_subvolume != TOP_LEVEL:
        text = f"the volume's default subvolume is {facts.default_subvolume}, not {TOP_LEVEL}"
        findings.fail("default-subvolume", f"{text}: the boot loader would look for /current in the wrong place")
    check_fstab(findings, root_fd, facts)
    check_staging(findings, root_fd, None if facts.menu_paths is None else menu_names(facts))
    check_resume(findings, facts)
    return findings


def _proof(findings: Findings, started: float, kernels: dict[str, str], images: dict[str, Image]) -> Proof:
    failures, warnings = (tuple(dict.fromkeys(each)) for each in (findings.failures, findings.warnings))
    return Proof(failures, warnings, kernels, images, tuple(sorted(findings.inputs)), time.monotonic() - started)



def _above(path: str) -> list[str]:
    """The directories that `path` lies in."""
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _is_other_way(root_fd: int, name: str) -> bool:
    """Whether an input that changed is a link now, or gone: a way to what lies elsewhere (/bin of a merged /usr)."""
    return lookup.link_target(root_fd, name) is not None or not lookup.exists(root_fd, name)


def _concerns_libraries(changed: Collection[str], inputs: Collection[str]) -> bool:
    """Whether ld.so would look in other directories, or may find another library of a name that it looks for."""
    names = {path.rpartition("/")[2] for path in inputs if ".so" in path}
    return any(path.rpartition("/")[2] in names or fnmatchcase(path, _LIBRARY_PATH) for path in changed)


def _is_directory(root_fd: int, name: str) -> bool:
    return any(lookup.is_directory(root_fd, each) for each in lookup.layouts(name))


def _is_there(root_fd: int, path: str) -> bool:
    return any(lookup.status(root_fd, each) is not None for each in lookup.layouts(lookup.merged(path)))
