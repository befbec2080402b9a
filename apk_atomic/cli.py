"""The command line: apk's lines to their commands, ours to `verbs`, errors to one message and an exit status.

The only place that prints errors and decides the exit status.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from apk_atomic import cmdline, settings
from apk_atomic.atomic_options import OF_A_CHANGE, require_only, split_atomic
from apk_atomic.cmdline import Kind, Line
from apk_atomic.console import Console
from apk_atomic.context import Context
from apk_atomic.errors import AtomicError, CheckFailed, NotSuchRoot, hint_for, plain

INSIDE = "/run/apk-atomic/inside"
# What options of ours mean to a line. One that means nothing to it is refused: who gave it expects something of it.
_OF_APK = {
    Kind.CHANGE: (*OF_A_CHANGE, "accept"),
    Kind.SIMULATE: ("base", "volume"),
    Kind.QUERY: ("volume",),
    Kind.CACHE: ("volume",),
    Kind.ELSEWHERE: (),
    Kind.HELP: (),
}


def main(argv: Sequence[str]) -> int:
    """`argv` with the program's name first; the exit status (design, section 8)."""
    _fill_standard_descriptors()
    console = Console()
    try:
        return _dispatch(argv, console)
    except AtomicError as error:
        console.error(error.message, hint=error.hint)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        console.error(plain(error), hint=hint_for(error))
        return CheckFailed.exit_code


def _fill_standard_descriptors() -> None:
    """A closed stdin, stdout or stderr becomes /dev/null: else a file of ours would be opened in its place."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _dispatch(argv: Sequence[str], console: Console) -> int:
    program, words = os.path.basename(argv[0]), list(argv[1:])
    ours = program == "apk-atomic"
    if ours and (not words or words[0] in ("--help", "-h", "help")):
        from apk_atomic.commands import usage

        return usage.show(console, asked=bool(words))
    options, rest = split_atomic(words)
    if ours and rest and cmdline.is_our_verb(rest[0]):
        from apk_atomic import verbs

        context = Context(("apk-atomic", *words), console, options.volume)
        return verbs.run(context, rest, options, inside=os.path.exists(INSIDE))
    line = cmdline.parse(words, _apk_config(), "apk" if ours else program, _is_live_root)
    context = Context(("apk-atomic" if ours else program, *words), console, line.atomic.volume)
    return _apk(context, line)


def _apk(context: Context, line: Line) -> int:
    from apk_atomic.commands import apk

    if os.path.exists(INSIDE):
        require_only(line.atomic, (), "apk inside of a change")
        apk.pass_through(line)
    require_only(line.atomic, _OF_APK[line.kind], "a line of apk's that changes nothing")
    try:
        return _carry_out(context, line)
    except settings.SortedAgain as found:
        return _carry_out(context, found.line)


def _carry_out(context: Context, line: Line) -> int:
    from apk_atomic.commands import apk

    if line.kind is Kind.CHANGE:
        return _change(context, line)
    if line.kind is Kind.QUERY:
        apk.query(context, line)
    if line.kind is Kind.SIMULATE:
        apk.simulate(context, line)
    if line.kind is Kind.CACHE:
        apk.cache(context, line)
    return apk.pass_through(line)


def _change(context: Context, line: Line) -> int:
    from apk_atomic.commands import apk, change

    try:
        return change.run(context, line)
    except NotSuchRoot as error:
        if context.argv[0] == "apk-atomic" or context.spec is not None:
            raise
        # Who said `apk` need not know of us: a drop-in must not leave him without any.
        raise NotSuchRoot(error.message, hint=f"{error.hint}; {apk.real_apk()} changes this root in place") from error


def _is_live_root(root: str) -> bool:
    """Whether a --root reaches the running system's files, by whatever spelling or link."""
    try:
        return os.path.samefile(root, "/")
    except OSError:
        return cmdline.reaches_live_root(root)


def _apk_config() -> list[str]:
    """The lines of the running system's configuration of apk 3."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return settings.lines(root)
    finally:
        os.close(root)
