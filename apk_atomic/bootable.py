"""The staged root made bootable: initramfs where an input changed, then the boot proof (design, sections 6 and 7)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import NamedTuple

from apk_atomic import btrfs, disks, files, generations, hibernation, kernel, proof, volume
from apk_atomic import generator as generators
from apk_atomic.building import base_decompressor, build_images, decompressor
from apk_atomic.changed import Changed
from apk_atomic.config import Config
from apk_atomic.errors import BuildFailed, CheckFailed
from apk_atomic.faults import point
from apk_atomic.initramfs import Image as ReadImage
from apk_atomic.model import Image, Record
from apk_atomic.model import Proof as RecordedProof
from apk_atomic.proof import INIT, Finding, Proof, ProofInput
from apk_atomic.proof_kernels import menu_names
from apk_atomic.rebuild import Plan
from apk_atomic.signals import Signals
from apk_atomic.staged import Staged
from apk_atomic.volume import Volume

MENU = "state/boot.json"
_MENU_LIMIT = 1 << 20  # bytes
_BTRFS = "/sys/fs/btrfs"
# crc32c comes with btrfs itself, by modules.dep
_CHECKSUMS = {"xxhash64": "xxhash_generic", "sha256": "sha256_generic", "blake2b": "blake2b_generic"}
_SHOWN = 5  # findings that a refusal spells out


class Bootable(NamedTuple):
    """What the record keeps of it; `boot_paths` are what the boot menu will look for in the root."""

    boot_paths: tuple[str, ...]
    kernels: tuple[tuple[str, str], ...]
    images: tuple[Image, ...]
    proof: RecordedProof
    warnings: tuple[str, ...]


class KnownMenu(NamedTuple):
    """What of the boot menu concerns a root: `paths` in it, None where nobody knows them, and the program to start."""

    paths: tuple[str, ...] | None = None
    init: str = INIT

    def facts(self) -> tuple[str, ...]:
        """For the record of a proof: another menu makes it worth nothing."""
        return (*sorted(self.paths or ()), f"init={self.init}")


def make_bootable(root: Staged, changed: Changed) -> Bootable:
    """Rebuilds what is out of date, proves the root or inherits base's proof.

    Raises BuildFailed where an initramfs cannot be made, CheckFailed where the root would not boot.
    """
    record = generations.read_record(root.work.volume.top, root.base)
    paths = (*changed.paths, *changed.removed)
    plan = build_images(root, paths, record)
    point("built")
    facts = _facts(root, plan)
    if record is None or plan.rebuild or _is_due(root, paths, record, facts):
        found = _full(root, plan, facts)
    else:
        found = _inherited(root, record, facts)
    point("proved")
    return found


def boot_names(root: int) -> tuple[str, ...]:
    """The kernels, initramfs and microcode images in boot/ of a root: what a static boot menu may name."""
    return tuple(f"boot/{name}" for name in kernel.boot_names(root))


def boot_json(opened: Volume) -> object:
    """What `state/boot.json` holds, whatever that is; None where it cannot be read."""
    try:
        return json.loads(files.read_file(opened.top, MENU, _MENU_LIMIT))
    except (OSError, ValueError, RecursionError):
        return None


def menu_document(opened: Volume) -> dict[str, object] | None:
    """The object in `state/boot.json`; None where there is none that names paths."""
    found = boot_json(opened)
    return found if isinstance(found, dict) and isinstance(found.get("paths"), list) else None


def known_menu(opened: Volume) -> KnownMenu:
    """What `state/boot.json` says; nothing where there is no usable one."""
    found = menu_document(opened)
    if found is None or not isinstance(found["paths"], list):
        return KnownMenu()
    return KnownMenu(tuple(map(str, found["paths"])), init_of(str(found.get("append", ""))))


def init_of(words: str) -> str:
    """What a kernel with this command line starts: the last init= counts."""
    found = (word.partition("=")[2] for word in words.replace('"', "").split() if word.startswith("init="))
    return ([each for each in found if each] or [INIT])[-1]


def menu_paths(opened: Volume) -> tuple[str, ...] | None:
    """Paths, relative to a root, that the boot menu uses; None where nothing says it."""
    return known_menu(opened).paths


# ---- a generation that is there already ----------------------------------------------------------------------------


def prove_sealed(
    opened: Volume, config: Config, name: str, menu: KnownMenu | None = None, *, signals: Signals | None = None
) -> Proof:
    """The full proof of a generation that exists already, for the boot menu that there is or for `menu`; `signals`
    where they are blocked."""
    known = menu or known_menu(opened)
    resume = hibernation.resume_of(hibernation.words_of_next_boot(opened.top, running=opened.running))
    root = volume.open_root(opened, name)
    try:
        return proof.prove(
            root,
            of_this_machine(opened, ProofInput(
                generation_path=f"/snapshots/{name}",
                menu_paths=known.paths,
                init=known.init,
                base_boot_names=kernel.boot_names(root),
                default_subvolume=btrfs.default_subvolume(opened.top),
                decompress=decompressor(opened, config, name, root, signals),
                volume_uuid=opened.fsid,
                resume=resume.spec if resume else "",
                hibernated=resume is not None and hibernation.is_waiting(resume),
            )),
        )  # fmt: skip
    finally:
        os.close(root)


# ---- the proof ------------------------------------------------------------------------------------------------------


def _facts(root: Staged, plan: Plan) -> ProofInput:
    menu = known_menu(root.work.volume)
    return ProofInput(
        generation_path=f"/snapshots/{root.id}",
        menu_paths=menu.paths,
        init=menu.init,
        base_boot_names=kernel.boot_names(root.base_root),
        decompress=base_decompressor(root),
        images=dict(plan.images or {}),
        allow_removed=root.work.config.proof.allow_removed_kernel,
        volume_uuid=root.work.volume.fsid,
    )


def of_this_machine(opened: Volume, facts: ProofInput) -> ProofInput:
    """`facts` with what only the machine knows that the volume boots on, which is this one where the volume runs."""
    wanted = [_CHECKSUMS[name] for name in (_checksum(opened.fsid),) if name in _CHECKSUMS]
    if not opened.running:
        return facts._replace(wanted_modules=tuple(wanted))
    for device in btrfs.devices(opened.top):
        wanted += disks.modules_of(device.path) if device.path else ()
    return _with_disks(opened, facts._replace(wanted_modules=tuple(dict.fromkeys(wanted))))


def _with_disks(opened: Volume, facts: ProofInput) -> ProofInput:
    """`facts` with the file systems at hand, where the volume runs."""
    return facts._replace(is_missing=disks.is_missing if opened.running else None)


def _checksum(fsid: str) -> str:
    """What the kernel says of the mounted volume's: "xxhash64 (xxhash64-generic)"."""
    try:
        with open(f"{_BTRFS}/{fsid}/checksum", encoding="utf-8") as file:
            return file.read(100).partition(" ")[0].strip()
    except OSError:
        return ""


def _is_due(root: Staged, paths: tuple[str, ...], record: Record, facts: ProofInput) -> bool:
    if record.proof is None or record.proof.menu != _menu(facts).facts():
        return True
    members = [member for image in record.initramfs for member in image.members]
    return proof.must_run(root.root, paths, record.proof.inputs, members)


def _menu(facts: ProofInput) -> KnownMenu:
    return KnownMenu(facts.menu_paths, facts.init)


def _full(root: Staged, plan: Plan, facts: ProofInput) -> Bootable:
    verdict = proof.prove(root.root, of_this_machine(root.work.volume, facts))
    _require(root, verdict, plan, facts)
    generator = str(plan.generator.kind) if plan.generator else ""
    return Bootable(
        boot_paths=_boot_paths(root, facts),
        kernels=tuple(verdict.kernels.items()),
        images=recorded_images(verdict.images, verdict.kernels, generator),
        proof=recorded_proof(root.id, verdict, _menu(facts)),
        warnings=texts(verdict.warnings),
    )


def _inherited(root: Staged, record: Record, facts: ProofInput) -> Bootable:
    """Base's verdict, with what no generation can inherit checked on this one."""
    verdict = proof.prove_own(root.root, _with_disks(root.work.volume, facts))
    _require(root, verdict, Plan(), facts)
    assert record.proof is not None
    return Bootable(
        boot_paths=_boot_paths(root, facts),
        kernels=record.kernels,
        images=record.initramfs,
        proof=record.proof,
        warnings=texts(verdict.warnings),
    )


def _require(root: Staged, verdict: Proof, plan: Plan, facts: ProofInput) -> None:
    if verdict.passed:
        return
    shown = "; ".join(finding.message for finding in verdict.failures[:_SHOWN])
    text = f"the new generation would not boot: {shown}; nothing was changed"
    codes = {finding.code for finding in verdict.failures}
    about_images = any(code.startswith("initramfs") for code in codes)
    if plan.rebuild and about_images:
        raise BuildFailed(text, hint="the generator made an image that does not fit; its configuration decides")
    hint = "--atomic-keep-failed keeps such a generation, in no slot, to be looked at"
    if "menu-path" in codes:
        hint = _menu_hint(root, facts)
    elif plan.elsewhere and about_images:
        hint = _no_generator_hint(plan)
    raise CheckFailed(text, hint=hint)


def _menu_hint(root: Staged, facts: ProofInput) -> str:
    """What to type where something is gone that the boot menu names, or may name."""
    menu = menu_names(facts)
    others = [each.flavor for each in kernel.kernels(root.root) if each.image not in menu]
    install = "apk-atomic boot-config --install"
    if facts.menu_paths is not None:
        return f"{install} --kernel {(others or ['OTHER'])[0]} makes the menu boot another kernel; then this again"
    return f"{install} --kernel FLAVOR says what the boot menu names; or [proof] allow_removed_kernel = true"


def _no_generator_hint(plan: Plan) -> str:
    if plan.generator is None:
        return "nothing here makes an initramfs: apk-atomic add mkinitfs"
    file = f"/{generators.MKINITFS_CONFIG}"
    return f"disable_trigger=yes in {file} leaves the image to others, and none made it: take that out with the change"


def _boot_paths(root: Staged, facts: ProofInput) -> tuple[str, ...]:
    """What is looked up once more through the new pointer just before the switch."""
    if facts.menu_paths is not None:
        return tuple(path.lstrip("/") for path in facts.menu_paths)
    names = boot_names(root.base_root)
    return tuple(name for name in names if name in boot_names(root.root)) if facts.allow_removed else names


def recorded_proof(name: str, verdict: Proof, menu: KnownMenu) -> RecordedProof:
    """What the record of generation NAME keeps of a full proof of it."""
    return RecordedProof(name, verdict.inputs, menu.facts(), texts(verdict.warnings))


def recorded_images(
    images: Mapping[str, ReadImage], kernels: Mapping[str, str], generator: str
) -> tuple[Image, ...]:
    """What the record keeps of the images that a proof has read; `kernels` is release by flavor."""
    flavors = {path: flavor for flavor in kernels for path in kernel.image_names(flavor)}
    return tuple(
        Image(
            flavor=flavors.get(path, ""),
            release=kernels.get(flavors.get(path, ""), ""),
            path=path,
            generator=generator,
            members=tuple(image.members),
        )
        for path, image in images.items()
    )


def texts(findings: tuple[Finding, ...]) -> tuple[str, ...]:
    """The sentences of findings."""
    return tuple(finding.message for finding in findings)
