"""Proof, record and slots of a system's first generation, which has no base: for `init` and `adopt`.

The record is durable when `lay_out` returns; links and slots are with the seal.
"""

from __future__ import annotations

import os
import time

from apk_atomic import fstab, installed, journal, lookup, pointer, recording
from apk_atomic.bootable import Bootable, KnownMenu, recorded_images, recorded_proof, texts
from apk_atomic.errors import CheckFailed
from apk_atomic.faults import point
from apk_atomic.model import Record
from apk_atomic.names import iso_utc
from apk_atomic.proof import Proof
from apk_atomic.session import Work

_SHOWN = 5  # findings that a refusal spells out


def proved(name: str, verdict: Proof, paths: tuple[str, ...], made_by: str, unchanged: str) -> Bootable:
    """What the record is to say of a proof that was passed, else CheckFailed, which ends with what there is then.

    `paths` are those that the boot menu will need, none without a kernel; `made_by` is the generator of the images.
    """
    if not verdict.passed:
        shown = "; ".join(finding.message for finding in verdict.failures[:_SHOWN])
        raise CheckFailed(f"the new system would not boot: {shown}; {unchanged}")
    point("proved")
    return Bootable(
        boot_paths=paths,
        kernels=tuple(verdict.kernels.items()),
        images=recorded_images(verdict.images, verdict.kernels, made_by),
        proof=recorded_proof(name, verdict, KnownMenu(paths or None)),
        warnings=texts(verdict.warnings),
    )


def lay_out(work: Work, root: int, record: Record, found: Bootable, template: str) -> None:
    """Writes the record, and the slots, all of which lead to this generation.

    `record` has what only its maker knows: ID, kind, words, durations. `root` is a descriptor of the staged root,
    `template` the fstab's.
    """
    apk = installed.find(lookup.read(root, installed.DATABASE, installed.LIMIT) or b"", "apk-tools")
    whole = record._replace(
        created=iso_utc(time.time()),
        user=recording.user_name(),
        apk_version=apk.version if apk else "",
        kernels=found.kernels,
        initramfs=found.images,
        proof=found.proof,
        fstab_template=fstab.digest(template),
        fstab_rendered=fstab.digest(fstab.render(template, f"/{journal.SNAPSHOTS}/{record.id}")),
    )
    os.mkdir(f"{journal.SNAPSHOTS}/{record.id}", 0o755, dir_fd=work.volume.top)
    recording.write_record(work, whole)
    pointer.lay_out(work.volume, record.id, (record.id,) * work.config.generations.slots)
