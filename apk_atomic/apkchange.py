"""The change that an apk line asks for, and whether it came to that (design, "Verdict on apk")."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial

from apk_atomic import apkline, cmdline, installed, lookup
from apk_atomic.cmdline import Line
from apk_atomic.databases import Databases
from apk_atomic.errors import ChangeFailed, CheckFailed
from apk_atomic.names import is_below
from apk_atomic.staged import Staged
from apk_atomic.verdict import Evidence, is_explicable, judge

_LIMIT = 1 << 22  # bytes of the list of triggers
# What each commit of apk replaces; 3.x keeps the scripts in one of the two places.
_WRITTEN = ((installed.WORLD,), (installed.DATABASE,), installed.SCRIPTS, (installed.TRIGGERS,))
_FLAGS = (("s", "a script or trigger"), ("f", "the files"), ("x", "the extended attributes"))


def change(line: Line, output: int | None = None) -> Callable[[Staged], None]:
    """The change of an apk line, for a transaction: raises ChangeFailed when it is to be discarded.

    `output`: a descriptor for all that apk says; it then has no stdin either.
    """

    def run(root: Staged) -> None:
        _require_own_database(root)
        call = apkline.command(root.root, line)
        if output is not None:
            call = call._replace(silent=True, output=output)
        status = root.run(call, apkline.binds(line, root.plan, root.root))
        root.work.signals.check()
        _conclude(root, line, status)

    return run


def _require_own_database(root: Staged) -> None:
    """Raises CheckFailed where what apk keeps is in a common: it would be changed for all generations.

    Its directories count: a file that is a link apk replaces by a file.
    """
    for name in map(os.path.dirname, (installed.DATABASE, installed.WORLD)):
        place = lookup.follow(name, partial(lookup.link_target, root.root))
        for common in root.commons:
            if place is not None and is_below(f"/{place}", common.point):
                raise CheckFailed(
                    f"/{name} is /{place}, in {common.subvolume.lstrip('/')}, which all generations share; "
                    "nothing was changed",
                    hint=f"it has to be a directory of the root: apk-atomic shell, and put it at /{name}",
                )


def _conclude(root: Staged, line: Line, status: int) -> None:
    """Whether to go on; says which packages stay broken."""
    evidence = _evidence(root, line, status)
    if is_explicable(evidence):
        evidence = evidence._replace(undone=_undone(root, line))
    verdict = judge(evidence)
    if verdict.status == 0:
        if verdict.broken:
            names = ", ".join(verdict.broken)
            root.work.console.warn(f"apk has these packages flagged as broken: {names}; apk fix mends them")
        return
    if verdict.broken:
        raise ChangeFailed(
            f"{_reasons(root.databases, verdict.broken)}; nothing was changed",
            status=verdict.status,
            hint=f"to accept that, add --atomic-accept {','.join(verdict.broken)}",
            broken=verdict.broken,
        )
    left = f" and left undone: {'; '.join(evidence.undone)}" if evidence.undone else ""
    raise ChangeFailed(f"apk failed with exit status {status}{left}; nothing was changed", status=verdict.status)


def _evidence(root: Staged, line: Line, status: int) -> Evidence:
    new = root.databases.broken()
    if not new:
        return Evidence(status, new, new, False)
    evidence = Evidence(
        status,
        before=root.databases.broken_before(),
        after=new,
        committed=False,
        accepted=frozenset((*line.atomic.accept, *root.work.config.chroot.accept)),
    )
    if status == 0:
        return evidence
    from apk_atomic import rehearsal

    triggers = lookup.read(root.root, installed.TRIGGERS, _LIMIT) or b""
    flagged = [package for name in new if (package := root.databases.find(name))]
    return evidence._replace(
        committed=_is_committed(root),
        triggers=installed.with_trigger(flagged, triggers),
        mended=rehearsal.to_mend(line, new),
    )


def _is_committed(root: Staged) -> bool:
    """Whether apk has replaced every file that a commit of it writes; a snapshot keeps inode numbers."""
    return all(any(_is_replaced(root, path) for path in paths) for paths in _WRITTEN)


def _is_replaced(root: Staged, path: str) -> bool:
    before, after = lookup.status(root.base_root, path), lookup.status(root.root, path)
    return after is not None and (before is None or before.st_ino != after.st_ino)


def _undone(root: Staged, line: Line) -> tuple[str, ...] | None:
    """What is left to do of the line, by a simulation in the staged root, which it cannot write to."""
    from apk_atomic import rehearsal

    words = rehearsal.words_for(line)
    if not words:
        return None
    again = cmdline.parse(words)
    answer = apkline.answer_of(lambda: apkline.exec_in(root.plan._replace(read_only=True), root.root, again))
    return rehearsal.undone(line, answer.text)


def _reasons(databases: Databases, names: Sequence[str]) -> str:
    """Which package, and what of it, failed."""
    parts = []
    for name in names:
        package = databases.find(name)
        flags = package.broken if package else ""
        version = package.version if package else ""
        what = " and ".join(text for flag, text in _FLAGS if flag in flags) or "it"
        parts.append(f"{what} of {name}-{version} failed")
    return "; ".join(parts)
