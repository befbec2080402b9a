"""`apk-atomic shell` and `apk-atomic run -- COMMAND…`: anything at all as a transaction; its exit status decides."""

from __future__ import annotations

import os
from collections.abc import Sequence

from apk_atomic import chroot, transaction
from apk_atomic.atomic_options import AtomicOptions
from apk_atomic.context import Context, config_of
from apk_atomic.errors import ChangeFailed, UsageError
from apk_atomic.model import Kind
from apk_atomic.namespace import Command, NotExecuted
from apk_atomic.report import summary
from apk_atomic.staged import Staged
from apk_atomic.terminal import await_foreground
from apk_atomic.transaction import Request

UNCHANGED = 77
_SHELL = ("/bin/sh", "-l")
_SHELL_ENDS = "a shell in the new generation: exit 0 makes it the next one, any other status discards it"
_SHELL_LINE = "for a line of shell: apk-atomic run -- sh -c 'LINE'"


def shell(context: Context, words: Sequence[str], options: AtomicOptions) -> int:
    """A root shell in the fresh generation. `exit` commits what was done, `exit 1` discards it."""
    if words:
        hint = "apk-atomic run -- COMMAND…"
        raise UsageError(f"shell takes no operands, not {words[0]!r}; nothing was changed", hint=hint)
    await_foreground()
    return _perform(context, Kind.SHELL, _SHELL, options, interactive=True)


def run(context: Context, words: Sequence[str], options: AtomicOptions) -> int:
    """A command in the fresh generation; found by PATH, or by a path inside."""
    command = tuple(words[1:] if words[:1] == ["--"] else words)
    if not command or not command[0]:
        raise UsageError("run needs a command; nothing was changed", hint="apk-atomic run -- COMMAND…")
    return _perform(context, Kind.RUN, command, options)


def _perform(
    context: Context, kind: Kind, argv: tuple[str, ...], options: AtomicOptions, *, interactive: bool = False
) -> int:
    command = Command(
        program=argv[0],
        argv=argv,
        environment=chroot.environment(os.environ),
        directory="/root" if interactive else "/",
        interactive=interactive,
    )

    def change(root: Staged) -> None:
        if interactive:
            context.console.note(_SHELL_ENDS)
        try:
            status = root.run(command)
        except NotExecuted as error:
            raise ChangeFailed(error.message, status=error.status, hint=_SHELL_LINE) from error
        root.work.signals.check()
        if status:
            raise ChangeFailed(f"{argv[0]} ended with exit status {status}; nothing was changed", status=status)
        _require_configuration(root)

    request = Request(kind, context.argv, change, options.base, options.message or "", options.keep_failed)
    with context.locked(wait=options.wait or 0) as work:
        done = transaction.perform(work, request)
        summary(work, done)
    return UNCHANGED if not done.id and options.unchanged_77 else 0


def _require_configuration(root: Staged) -> None:
    """Once that generation is booted its root is sealed, and with a wrong file no command would be left to mend it.

    Not asked of apk's changes: those may bring a newer apk-atomic, which knows other keys.
    """
    try:
        config_of(root.root)
    except UsageError as error:
        hint = "no command of apk-atomic would work in that generation: put it right within the same change"
        raise UsageError(error.message, hint=hint) from error
