"""Our verbs: which options of ours mean something to each, its words, and the command that carries it out.

A line of apk's does not import this; and of the commands a verb imports its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from apk_atomic.atomic_options import OF_A_CHANGE, AtomicOptions, require_only
from apk_atomic.context import Context
from apk_atomic.errors import Refused, UsageError


def run(context: Context, words: Sequence[str], options: AtomicOptions, *, inside: bool) -> int:
    """Carries out a line of ours, verb first; its exit status. `inside`: of a change that is at work."""
    if "--help" in words and _helped(context, words):
        return 0
    if inside and words[0] not in _READING:
        raise Refused(
            f"a change is at work here already: {words[0]} cannot run inside it; nothing was changed",
            hint="leave this shell first",
        )
    verb = VERBS.get(words[0])
    if verb is None:
        raise UsageError(f"{words[0]} is planned, but this version does not have it; nothing was changed")
    require_only(options, verb.takes, words[0])
    return verb.handler(context, list(words[1:]), options)


def _helped(context: Context, words: Sequence[str]) -> bool:
    """Answers with the verb's help where the line asks for it, and it is not for the verb's own parser to do so."""
    from apk_atomic.commands import usage

    verb = VERBS.get(words[0])
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


VERBS = {
    "status": _Verb(_status, ("volume",)),
    "diff": _Verb(_diff, ("volume",)),
    "prove": _Verb(_prove, ("volume",)),
    "rollback": _Verb(_rollback, ("wait", "volume")),
    "discard": _Verb(_discard, ("wait", "volume")),
    "gc": _Verb(_gc, ("wait", "volume")),
    "shell": _Verb(_shell, OF_A_CHANGE),
    "run": _Verb(_run, OF_A_CHANGE),
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
