"""apk lines that make no generation: queries, simulations, the cache, and what is not for us at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NoReturn

from apk_atomic import apkline, chroot, settings, volume
from apk_atomic.cmdline import Kind, Line
from apk_atomic.config import Config
from apk_atomic.context import Context, read_config, require_root, steadily
from apk_atomic.errors import AtomicError, NotSuchRoot
from apk_atomic.faults import point
from apk_atomic.model import State
from apk_atomic.namespace import Command
from apk_atomic.retention import choose_base
from apk_atomic.volume import Volume


def real_apk() -> str:
    """The running system's apk, never ourselves under its name. Raises AtomicError where there is none."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        path = chroot.find_apk(root)
    finally:
        os.close(root)
    if path is None:
        raise AtomicError("there is no apk on this system (looked in /sbin, /usr/sbin, /usr/bin and /bin)")
    return path


def pass_through(line: Line) -> NoReturn:
    """Becomes the running system's apk, with the caller's directory and environment untouched."""
    path = real_apk()
    apkline.replace_process(Command(path, (path, *line.words), dict(os.environ)))


def query(context: Context, line: Line) -> NoReturn:
    """Answered from the pending generation, so that what was added is there, else by the booted one."""
    if context.spec is None and not volume.pending_ids():
        pass_through(line)
    if _is_user(context, line):
        _aside(context, line, "answered by the booted generation; only root can ask the pending one")
        pass_through(line)
    _in_chosen(context, line, _queried)
    pass_through(line)


def simulate(context: Context, line: Line) -> NoReturn:
    """Computed on the base that the transaction would have. Raises SortedAgain where its configuration makes it one."""
    if _is_user(context, line):
        if volume.pending_ids():
            _aside(context, line, "simulated on the booted generation; only root can use the pending one")
        pass_through(line)
    _in_chosen(context, line, lambda state, _: choose_base(state, line.atomic.base).id)
    pass_through(line)


def cache(context: Context, line: Line) -> NoReturn:
    """`update` and `cache`: they change the shared cache only, so they need no generation but a writable /var/cache."""
    if _is_user(context, line):
        pass_through(line)
    _in_chosen(context, line, _queried)
    pass_through(line)


def _is_user(context: Context, line: Line) -> bool:
    """Whether an ordinary user asks, to whom the running system's apk answers; it must not where another is named."""
    if _names_another(context, line):
        require_root(context.argv)
    return os.geteuid() != 0


def _names_another(context: Context, line: Line) -> bool:
    """Whether the line says which volume or generation is to answer."""
    return context.spec is not None or line.atomic.base is not None


def _queried(state: State, config: Config) -> str:
    if state.pending and config.queries.answer_from == "next":
        return state.next
    return state.booted or state.next


def _in_chosen(context: Context, line: Line, choose: Callable[[State, Config], str]) -> None:
    """Becomes apk in the sealed generation that is chosen; returns where that of the running system is to answer."""
    try:
        context.locate()
    except NotSuchRoot:
        if _names_another(context, line):
            raise
        return
    with context.opened() as opened:
        steadily(opened, lambda: _become(context, opened, line, choose))


def _become(context: Context, opened: Volume, line: Line, choose: Callable[[State, Config], str]) -> None:
    state, config = volume.read_state(opened), read_config(opened)
    name = choose(state, config)
    point("chosen")
    if name == state.booted and line.kind is not Kind.CACHE:
        return
    root = volume.open_root(opened, name)
    try:
        settings.require_sorted(line, root)
    finally:
        os.close(root)
    if name != state.booted and opened.running:
        _aside(context, line, f"answered by the pending generation {name}")
    apkline.exec_in_generation(opened, config, name, line)


def _aside(context: Context, line: Line, text: str) -> None:
    if not line.quiet:
        context.console.aside(text)
