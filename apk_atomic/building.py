"""The initramfs images of a staged root, made where an input of them changed (design, section 6).

Whatever the generator's exit status says, its product is looked at: that it was written at all here, what is in it by
the boot proof.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from apk_atomic import chroot, decompress, freshness, initramfs, lookup, rebuild, staged
from apk_atomic.config import Config
from apk_atomic.errors import BuildFailed
from apk_atomic.model import Record
from apk_atomic.namespace import Command, NotExecuted
from apk_atomic.rebuild import Plan, Rebuild
from apk_atomic.staged import Staged
from apk_atomic.unpack import Damaged
from apk_atomic.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apk_atomic.initramfs import Image
    from apk_atomic.signals import Signals
    from apk_atomic.unpack import External


def build_images(root: Staged, paths: tuple[str, ...], record: Record | None) -> Plan:
    """Makes what the changed `paths` put out of date; what was done, and in `images` what is known of the images.

    Raises BuildFailed where a generator fails, or says that it did not and left the old image there.
    """
    known = {image.path: image.members for image in record.initramfs} if record else {}
    wanted = root.work.config.initramfs.generator
    plan = rebuild.concerned_flavors(
        root.base_root,
        root.root,
        paths,
        known,
        configured=_configured(wanted),
        external=base_decompressor(root),
    )
    for each in plan.rebuild:
        _make_image(root, plan, each)
    return plan._replace(images=dict(_read_again(root, paths, plan))) if plan.rebuild else plan


def _configured(generator: str | tuple[str, ...]) -> tuple[str, ...]:
    """The setting as `rebuild` takes it: a command, the kind to look for, or nothing for whichever is installed."""
    if isinstance(generator, tuple):
        return generator
    return () if generator == "auto" else (generator,)


def _make_image(root: Staged, plan: Plan, wanted: Rebuild) -> None:
    root.work.console.step(f"building {wanted.output}: {'; '.join(wanted.reasons)}")
    if plan.generator is None:
        raise BuildFailed(f"no generator can make {wanted.output}; nothing was changed", hint="apk-atomic add mkinitfs")
    before = _identity(root, wanted.output)
    argv = tuple(rebuild.build_command(root.root, plan.generator, wanted.release, wanted.output))
    try:
        status = root.run(Command(argv[0], argv, chroot.environment(os.environ), silent=True))
    except NotExecuted as error:
        raise BuildFailed(error.message, hint="the new generation lacks something that its generator needs") from error
    root.work.signals.check()
    if status:
        raise BuildFailed(
            f"{argv[0]} failed with exit status {status} for kernel {wanted.release}; nothing was changed",
            hint="what it said stands above; free space in /tmp of the volume is a common reason",
        )
    if _identity(root, wanted.output) == before:
        raise BuildFailed(
            f"{argv[0]} said that all is well, but did not write {wanted.output}; nothing was changed",
            hint="the generator decides where it writes: [initramfs] generator names it, {output} is where to",
        )


def _identity(root: Staged, path: str) -> tuple[int, int] | None:
    """What no writer leaves as it was; None for no file."""
    found = lookup.status(root.root, path)
    return (found.st_ino, found.st_ctime_ns) if found is not None else None


def _read_again(root: Staged, paths: tuple[str, ...], plan: Plan) -> Iterator[tuple[str, Image]]:
    """The images that were made, read once for the proof, too, which says what is wrong with one that is damaged."""
    change = freshness.change_of(root.base_root, root.root, paths)
    for each in plan.rebuild:
        with lookup.opened(root.root, each.output) as fd:
            try:
                image = initramfs.read(fd, base_decompressor(root)) if fd is not None else None
            except Damaged:
                continue
        stale = freshness.left_over_member(change, image) if image else ""
        if stale:
            text = f"the generator made {each.output} with the old {stale}, which has changed; nothing was changed"
            raise BuildFailed(text, hint="[initramfs] generator names the program that makes it")
        if image:
            yield each.output, image


def base_decompressor(root: Staged) -> External:
    work = root.work
    return decompressor(work.volume, work.config, root.base, root.base_root, work.signals)


def decompressor(opened: Volume, config: Config, name: str, root: int, signals: Signals | None = None) -> External:
    """The decompressors of the sealed generation NAME, whose root is open as `root`."""
    return decompress.by_program(staged.plan_sealed(opened, config, name, root), root, signals)
