"""The command line: apk's lines and our verbs to their commands, errors to one message and an exit status.

The only place that prints errors and decides the exit status.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from apk_atomic import cmdline, settings
from apk_atomic.atomic_options import AtomicOptions, require_only, split_atomic
from apk_atomic.cmdline import Kind, Line
from apk_atomic.console import Console
from apk_atomic.context import Context
from apk_atomic.errors import AtomicError, CheckFailed, NotSuchRoot, Refused, UsageError

INSIDE = "/run/apk-atomic/inside"


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
        console.error(f"{error.filename or 'the system'}: {error.strerror}", hint="dmesg may say more")
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
        return _verb(Context(("apk-atomic", *words), console, options.volume), rest, options)
    line = cmdline.parse(words, _apk_config(), "apk" if ours else program, _is_live_root)
    context = Context(("apk-atomic" if ours else program, *words), console, line.atomic.volume)
    return _apk(context, line)


# ---- apk's words -----------------------------------------------------------------------------------------


# What options of ours mean to a line. One that means nothing to it is refused: who gave it expects something of it.
_OF_A_CHANGE = ("base", "message", "wait", "keep_failed", "unchanged_77", "volume")
_OF_APK = {
    Kind.CHANGE: (*_OF_A_CHANGE, "accept"),
    Kind.SIMULATE: ("base", "volume"),
    Kind.QUERY: ("volume",),
    Kind.CACHE: ("volume",),
    Kind.ELSEWHERE: (),
    Kind.HELP: (),
}


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


# ---- our verbs -------------------------------------------------------------------------------------------


def _verb(context: Context, words: Sequence[str], options: AtomicOptions) -> int:
    if "--help" in words and _helped(context, words):
        return 0
    if os.path.exists(INSIDE) and words[0] not in _READING:
        raise Refused(
            f"a change is at work here already: {words[0]} cannot run inside it; nothing was changed",
            hint="leave this shell first",
        )
    verb = _VERBS.get(words[0])
    if verb is None:
        raise UsageError(f"{words[0]} is planned, but this version does not have it; nothing was changed")
    require_only(options, verb.takes, words[0])
    return verb.handler(context, list(words[1:]), options)


def _helped(context: Context, words: Sequence[str]) -> bool:
    """Answers with the verb's help where the line asks for it, and it is not for the verb's own parser to do so."""
    from apk_atomic.commands import usage

    verb = _VERBS.get(words[0])
    text = usage.of(words, [name for name in usage.OPTIONS if name.replace("-", "_") in verb.takes]) if verb else None
    if text is not None:
        context.console.answer(text)
    return text is not None


def _shell(context: Context, words: list[str], options: AtomicOptions) -> int:
    from apk_atomic.commands import shell

    return shell.shell(context, words, options)


def _run(context: Context, words: list[str], options: AtomicOptions) -> int:
    from apk_atomic.commands import shell

    return shell.run(context, words, options)


def _status(context: Context, words: list[str], _: AtomicOptions) -> int:
    from apk_atomic.commands import status

    found = _parsed("status", words)
    return status.run(context, everything="all" in found[0], as_json="json" in found[0])


def _diff(context: Context, words: list[str], _: AtomicOptions) -> int:
    from apk_atomic.commands import diff

    flags, operands = _parsed("diff", words)
    first, second = [*operands, None, None][:2]
    return diff.run(context, first, second, as_json="json" in flags)


def _prove(context: Context, words: list[str], _: AtomicOptions) -> int:
    from apk_atomic.commands import prove

    flags, operands = _parsed("prove", words)
    return prove.run(context, operands[0] if operands else None, as_json="json" in flags)


def _rollback(context: Context, words: list[str], options: AtomicOptions) -> int:
    from apk_atomic.commands import rollback

    flags, operands = _parsed("rollback", words)
    target = operands[0] if operands else None
    return rollback.rollback(context, target, force="force" in flags, wait=options.wait or 0)


def _discard(context: Context, words: list[str], options: AtomicOptions) -> int:
    from apk_atomic.commands import rollback

    _parsed("discard", words)
    return rollback.discard(context, wait=options.wait or 0)


def _gc(context: Context, words: list[str], options: AtomicOptions) -> int:
    from apk_atomic.commands import gc

    flags, _ = _parsed("gc", words)
    return gc.run(context, dry_run="dry-run" in flags, as_json="json" in flags, wait=options.wait or 0)


def _init(context: Context, words: list[str], options: AtomicOptions) -> int:
    from apk_atomic.commands import init

    return init.run(context, words, options)


def _adopt(context: Context, words: list[str], options: AtomicOptions) -> int:
    from apk_atomic.commands import adopt

    return adopt.run(context, words, options)


def _boot_config(context: Context, words: list[str], options: AtomicOptions) -> int:
    from apk_atomic.commands import boot_config

    return boot_config.run(context, words, options)


def _auto(context: Context, words: list[str], _: AtomicOptions) -> int:
    from apk_atomic.commands import auto

    flags, _operands = _parsed("auto", words)
    wishes = auto.Wishes("now" in flags, "dry-run" in flags, "reboot" in flags, "json" in flags)
    return auto.run(context, wishes)


def _doctor(context: Context, words: list[str], _: AtomicOptions) -> int:
    from apk_atomic.commands import doctor

    return doctor.run(context, words)


_READING = ("status", "diff", "prove", "doctor")


class _Verb(NamedTuple):
    """`takes`: the options of ours that mean something to it, as fields of AtomicOptions."""

    handler: Callable[[Context, list[str], AtomicOptions], int]
    takes: tuple[str, ...]


_VERBS = {
    "status": _Verb(_status, ("volume",)),
    "diff": _Verb(_diff, ("volume",)),
    "prove": _Verb(_prove, ("volume",)),
    "rollback": _Verb(_rollback, ("wait", "volume")),
    "discard": _Verb(_discard, ("wait", "volume")),
    "gc": _Verb(_gc, ("wait", "volume")),
    "shell": _Verb(_shell, _OF_A_CHANGE),
    "run": _Verb(_run, _OF_A_CHANGE),
    "init": _Verb(_init, ()),
    "adopt": _Verb(_adopt, ("wait",)),
    "boot-config": _Verb(_boot_config, ("wait", "volume")),
    "auto": _Verb(_auto, ()),
    "doctor": _Verb(_doctor, ("volume",)),
}


def _parsed(verb: str, words: Sequence[str]) -> tuple[set[str], list[str]]:
    """The `--flags` and operands of one of our verbs. Raises UsageError for anything else."""
    from apk_atomic.commands import usage

    known = usage.VERBS[verb]
    found: set[str] = set()
    operands: list[str] = []
    only_operands = False
    for word in words:
        if word == "--" and not only_operands:
            only_operands = True
        elif word.startswith("-") and not only_operands:
            if not word.startswith("--") or word[2:] not in (known.flags or {}):
                raise _not_understood(verb, word, usage.synopsis(verb))
            found.add(word[2:])
        elif len(operands) < known.most:
            operands.append(word)
        else:
            raise _not_understood(verb, word, usage.synopsis(verb))
    return found, operands


def _not_understood(verb: str, word: str, synopsis: str) -> UsageError:
    return UsageError(f"{verb}: {word!r} is not understood; nothing was changed", hint=synopsis)
