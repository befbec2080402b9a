"""The transaction: stage, change, build, prove, lay out, seal, check, commit; else discard (design, section 4).

Discard is the default end: whatever leaves `perform` before the switch removes all that was made. The commit is one
rename, last. After it nothing can fail any more, there are only warnings.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from apk_atomic import (
    changed,
    discarding,
    files,
    fstab,
    generations,
    hooks,
    journal,
    pointer,
    preflight,
    recording,
    session,
    shared,
    staged,
    superblock,
    volume,
)
from apk_atomic.changed import Changed
from apk_atomic.databases import Databases
from apk_atomic.errors import AtomicError, NotDurable, plain, refusal
from apk_atomic.faults import point
from apk_atomic.model import Kind, PackageChanges, Record, State
from apk_atomic.names import iso_utc, redact_argv
from apk_atomic.recording import Clock
from apk_atomic.retention import Base, slots_after_commit
from apk_atomic.session import Work
from apk_atomic.staged import Staged
from apk_atomic.volume import Volume

if TYPE_CHECKING:
    from apk_atomic.bootable import Bootable

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


class Request(NamedTuple):
    """What to do: `change` runs in the staged root and raises to discard; `argv` is what the user typed.

    `examine` is given the base before anything is made, and raises where there is nothing to do with it.
    """

    kind: Kind
    argv: tuple[str, ...]
    change: Callable[[Staged], None]
    base: str | None = None
    message: str = ""
    keep_failed: bool = False
    examine: Callable[[Base], None] | None = None


class Done(NamedTuple):
    """`id` is the new generation, '' when nothing changed and none was made."""

    id: str
    changes: PackageChanges = PackageChanges()
    warnings: tuple[str, ...] = ()


def perform(work: Work, request: Request) -> Done:
    """Runs one transaction on a locked volume.

    On return the new generation is durable and next, or (Done.id == '') nothing changed at all. Whatever is raised,
    the volume is as it was, except for NotDurable.
    """
    try:
        before = volume.current_links(work.volume)  # before anything is decided on what it leads to
        base = preflight.base_of(work, request.base)
        if request.examine is not None:
            request.examine(base)
        name = journal.begin(work.volume)
    except OSError as error:
        raise refusal(error) from error
    clock, ahead = Clock(), _Ahead(work.volume)
    try:
        with _staged(work, name, base, clock, ahead) as root:
            result = _change(root, request, clock)
            if result is None:
                journal.remove(work.volume, name)
                return Done("")
            record = _record(root, request, result, clock)
            _lay_out(work, root, ahead.state(), base, record)
        with clock.step("seal"):
            journal.seal(work.volume, name)
        pointer.check(work.volume, name, before, result.bootable.boot_paths)
        work.signals.check()
        work.signals.settle()
        pointer.switch(work.volume, name, before)
    except NotDurable:
        raise
    except OSError as error:
        _discard(work, name, base.id, request)
        raise refusal(error) from error
    except BaseException:
        _discard(work, name, base.id, request)
        raise
    return _afterwards(work, name, before, ahead.state(), result)


class _Ahead:
    """What the end of a transaction needs, made ready while apk is at work: so it takes none of the user's time."""

    def __init__(self, opened: Volume) -> None:
        self._volume = opened
        self._state: State | None = None

    def state(self) -> State:
        """All generations, as they are when this is first called."""
        if self._state is None:
            self._state = volume.read_state(self._volume)
        return self._state

    def prepare(self, databases: Databases) -> None:
        databases.prepare()
        import apk_atomic.bootable  # noqa: F401  # with all that it imports, a fifth of our modules

        self.state()


class _Result(NamedTuple):
    """What the change and the proof of it came to."""

    base: str
    changed: Changed
    bootable: Bootable
    packages: PackageChanges
    apk_version: str


# ---- before ----------------------------------------------------------------------------------------------


@contextmanager
def _staged(work: Work, name: str, base: Base, clock: Clock, ahead: _Ahead) -> Iterator[Staged]:
    with ExitStack() as stack:
        with clock.step("stage"):
            journal.stage(work.volume, name, base.id)
            root = files.open_beneath(work.volume.top, f"{journal.STAGING}/{name}/@", _DIRECTORY)
            stack.callback(os.close, root)
            base_root = volume.open_root(work.volume, base.id)
            stack.callback(os.close, base_root)
            text = _stage_fstab(work, name, base, root, base_root)
        for made in staged.make_mount_points(root, text.text):
            work.console.note(f"made {made} in the new generation: etc/fstab mounts something there")
        plan = staged.plan_staged(work.volume, work.config, name, text.text)
        databases = Databases(base_root, root)
        stack.callback(databases.close)
        meanwhile = partial(ahead.prepare, databases)
        yield Staged(work, name, base.id, root, base_root, text, plan, databases, meanwhile)


def _stage_fstab(work: Work, name: str, base: Base, root: int, base_root: int) -> fstab.Rendered:
    record = generations.read_record(work.volume.top, base.id)
    known = fstab.BaseFstab(
        text=staged.read_fstab(base_root),
        path=f"/{journal.SNAPSHOTS}/{base.id}",
        template_hash=record.fstab_template if record else "",
        rendered_hash=record.fstab_rendered if record else "",
    )
    rendered = fstab.decide(staged.read_template(work.volume), known, f"/{journal.SNAPSHOTS}/{name}")
    staged.write_fstab(root, rendered.text)
    point("fstab")
    return rendered


# ---- the change ------------------------------------------------------------------------------------------


def _change(root: Staged, request: Request, clock: Clock) -> _Result | None:
    """Runs the change, rebuilds, proves; None when nothing changed."""
    work = root.work
    hooks.around(work, "pre-change.d", root.id, root.base)
    point("change-started")
    with clock.step("change"):
        _run_change(root, request)
    work.signals.check()
    root.databases.settle()
    point("changed")
    hooks.around(work, "post-change.d", root.id, root.base)
    with clock.step("compare"), root.parts() as parts:
        found = changed.compare(parts, fstab.encode(root.fstab.text))
    if not found.relevant:
        _name_altered(root)
        return None
    _warn(root, found)
    with clock.step("prove"):
        from apk_atomic.bootable import make_bootable

        with superblock.kept_writable(work):
            bootable = make_bootable(root, found)
    work.signals.check()
    hooks.around(work, "pre-commit.d", root.id, root.base)
    point("hooked")
    return _Result(root.base, found, bootable, root.databases.changes(), root.databases.apk_version())


def _run_change(root: Staged, request: Request) -> None:
    try:
        with superblock.kept_writable(root.work):
            request.change(root)
    except AtomicError:
        try:
            _name_altered(root)
        except OSError as error:
            root.work.console.warn(f"what it changed in the commons is not known: {plain(error)}")
        raise


def _warn(root: Staged, found: Changed) -> None:
    """What the user should know of the change itself."""
    console = root.work.console
    if found.removed:
        _warn_of_no_way_back(root)
    if staged.read_fstab(root.root) != root.fstab.text:
        console.warn("the change altered etc/fstab; the template at the top level was not touched")
    hidden = shared.hidden_files(root)
    if hidden:
        console.warn(f"under a mount point, so not part of the generation: {shared.named(hidden)}")
    _name_altered(root)


def _warn_of_no_way_back(root: Staged) -> None:
    from apk_atomic import selfcheck  # where something is gone, only

    lacks = selfcheck.lacking(root.root)
    if lacks and lacks != selfcheck.lacking(root.base_root):
        root.work.console.warn(f"the new generation lacks {lacks}, which apk-atomic needs; apk-atomic discard drops it")


def _name_altered(root: Staged) -> None:
    altered = shared.altered_commons(root)
    if altered:
        root.work.console.warn(f"changed meanwhile, shared by all generations: {shared.named(altered)}")


# ---- the commit ------------------------------------------------------------------------------------------


def _record(root: Staged, request: Request, result: _Result, clock: Clock) -> Record:
    return Record(
        id=root.id,
        parent=root.base,
        created=iso_utc(time.time()),
        kind=request.kind,
        argv=redact_argv(request.argv),
        user=recording.user_name(),
        message=request.message,
        apk_version=result.apk_version,
        kernels=result.bootable.kernels,
        changes=result.packages,
        initramfs=result.bootable.images,
        proof=result.bootable.proof,
        fstab_template=root.fstab.template_hash,
        fstab_rendered=root.fstab.rendered_hash,
        durations=tuple(clock.durations.items()),
    )


def _lay_out(work: Work, root: Staged, state: State, base: Base, record: Record) -> None:
    """Everything that the new pointer reaches, before the seal that makes it durable."""
    os.mkdir(f"{journal.SNAPSHOTS}/{root.id}", 0o755, dir_fd=work.volume.top)
    recording.write_record(work, record)
    slots = slots_after_commit(state, root.id, base.id, work.config.generations.slots)
    pointer.lay_out(work.volume, root.id, slots)


def _discard(work: Work, name: str, base: str, request: Request) -> None:
    kept = partial(_record_of_failed, name, base, request) if request.keep_failed else None
    discarding.discard(work, name, base, kept)


def _record_of_failed(name: str, base: str, request: Request) -> Record:
    return Record(
        id=name,
        parent=base,
        created=iso_utc(time.time()),
        kind=request.kind,
        argv=redact_argv(request.argv),
        user=recording.user_name(),
        message=request.message,
    )


def _afterwards(work: Work, name: str, before: str, state: State, result: _Result) -> Done:
    """The new generation is in place: from here on failures are warnings. `before`, `state`: as at the start."""
    session.after_switch(
        work,
        lambda: pointer.confirm(work.volume, name),
        lambda: journal.remove(work.volume, name),
        lambda: journal.remove_directory(work.volume, journal.LINKS, before),
        lambda: hooks.around(work, "post-commit.d", name, result.base, journal.SNAPSHOTS),
        lambda: _collect_garbage(work, state, name),
        lambda: session.announce(work),
    )
    return Done(name, result.packages, result.bootable.warnings)


def _collect_garbage(work: Work, before: State, name: str) -> None:
    """What the commit of `name` left without a slot. To read a thousand generations once more would cost 15 ms."""
    state = volume.read_again(work.volume, before, (name,))
    session.collect(work, session.plan_garbage(work.volume, work.config, state, time.time(), asked=False))
