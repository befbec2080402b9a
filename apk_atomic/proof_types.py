"""What the boot proof is given and what it says: plain values, no I/O.

Codes of findings are part of what `prove --json` promises: more may come, none is renamed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from apk_atomic.initramfs import Image
    from apk_atomic.unpack import External

TOP_LEVEL = 5
INIT = "/sbin/init"  # what an initramfs starts where nothing says another


class ProofInput(NamedTuple):
    """What the proof cannot see in the root itself.

    `generation_path`: `/snapshots/ID`, whatever the root is called while it is staged. `menu_paths`: paths that
    the boot menu uses, relative to the root (a leading `/` or `/current/N/@/` is fine), None where no
    state/boot.json says; then all of `base_boot_names`, names in base's boot/ (`kernel.boot_names`), must still
    be there, but for `allow_removed`. `decompress`: see `unpack.External`. `images`: what was read of this very
    root a moment ago (`rebuild.Plan.images`). `volume_uuid`: the volume's fsid, "" for do not ask. `is_missing`:
    whether no file system at hand has a UUID, None for do not ask; it reads devices, so it is asked only of what
    is not known otherwise. `wanted_modules`: of this machine's disk and of the volume's checksum. `init`: the
    menu's init=; `resume`: its resume=; `hibernated`: that device holds a hibernated system.
    """

    generation_path: str
    menu_paths: tuple[str, ...] | None = None
    base_boot_names: tuple[str, ...] = ()
    default_subvolume: int = TOP_LEVEL
    decompress: External | None = None
    images: Mapping[str, Image] = {}
    init: str = INIT
    allow_removed: bool = False
    volume_uuid: str = ""
    is_missing: Callable[[str], bool] | None = None
    wanted_modules: tuple[str, ...] = ()
    resume: str = ""
    hibernated: bool = False


class Finding(NamedTuple):
    """`code` is for programs, `message` a sentence for people, without a full stop."""

    code: str
    message: str


@dataclass(slots=True)
class Findings:
    """Collects findings, and in `inputs` the paths, relative to the root, that the verdict rests on."""

    failures: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    inputs: set[str] = field(default_factory=set)

    def fail(self, code: str, message: str) -> None:
        self.failures.append(Finding(code, message))

    def warn(self, code: str, message: str) -> None:
        self.warnings.append(Finding(code, message))

    def add(self, other: Findings, *, lenient: bool = False) -> None:
        """Takes over another's findings; with `lenient` its failures count as warnings only."""
        (self.warnings if lenient else self.failures).extend(other.failures)
        self.warnings.extend(other.warnings)
        self.inputs |= other.inputs


class Proof(NamedTuple):
    """The verdict: the root boots when `failures` is empty.

    `kernels`: release by flavor; `images`: what each initramfs holds, by path; `inputs`: for
    `proof.must_run`; `duration`: seconds.
    """

    failures: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    kernels: Mapping[str, str]
    images: Mapping[str, Image]
    inputs: tuple[str, ...]
    duration: float

    @property
    def passed(self) -> bool:
        return not self.failures
