"""apk in a root: how it is called for a line there, and apk on a sealed root for lines that change none.

apk is the root's own, called by its absolute path, with the caller's words, descriptors and terminal.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

from apk_atomic import (
    chroot,
    cmdline,
    files,
    generations,
    installed,
    mounts,
    namespace,
    operands,
    sharedcache,
    staged,
    volume,
)
from apk_atomic.chroot import Bind, RootPlan
from apk_atomic.cmdline import Kind, Line, Role
from apk_atomic.config import Config
from apk_atomic.errors import CheckFailed, UsageError
from apk_atomic.faults import point
from apk_atomic.namespace import Command
from apk_atomic.signals import Signals, die_with_parent
from apk_atomic.volume import Volume

_OF_THE_ROOT = (Role.CACHE_DIR, Role.KEYS_DIR)  # relative ones count from apk's root
_REPOSITORIES = ("etc/apk/repositories", "etc/apk/repositories.d", "lib/apk/repositories.d")
_LIMIT = 1 << 20  # bytes of a repositories file, or of an answer
_PATIENCE = 60  # seconds for an answer


def command(root: int, line: Line) -> Command:
    """apk's call in the root that `root` is a descriptor of. Raises CheckFailed where there is no apk in it."""
    path = chroot.find_apk(root)
    if path is None:
        raise CheckFailed(
            "there is no apk in the base generation; nothing was changed",
            hint="apk-atomic rollback goes to a generation that has one",
        )
    for name in (installed.DATABASE, installed.WORLD):
        _require_file(root, name)
    return Command(
        program=path,
        argv=(path, *line.words),
        environment=chroot.environment(os.environ),
        directory=_cwd(),
        keep_fds=_inherited(line.progress_fd),
    )


def _inherited(fd: int | None) -> tuple[int, ...]:
    """`--progress-fd N`, if the caller really opened it: a descriptor of our own is close-on-exec."""
    try:
        return (fd,) if fd is not None and fd > 2 and os.get_inheritable(fd) else ()
    except OSError:
        return ()


def _require_file(root: int, name: str) -> None:
    """apk would wait forever for somebody to write into a FIFO in the place of its database."""
    try:
        fd = files.open_in_root(root, name, os.O_PATH)
    except OSError:
        return  # missing, or a link that leads nowhere: apk's own business
    try:
        if os.fstat(fd).st_mode & 0o170000 != 0o100000:
            raise CheckFailed(f"/{name} in the base generation is not a regular file; nothing was changed")
    finally:
        os.close(fd)


def binds(line: Line, plan: RootPlan, root: int) -> tuple[Bind, ...]:
    """The caller's files that the line, $APK_CONFIG and the repositories in use name, to be seen inside the root that
    `root` is a descriptor of. Raises UsageError for one that cannot be."""
    named = [
        local.path
        for local in line.locals_
        if os.path.exists(local.path) and (local.role not in _OF_THE_ROOT or os.path.isabs(local.path))
    ]
    settings = os.environ.get("APK_CONFIG", "")
    named += [settings] if os.path.exists(settings) else []
    named += [path for path in _repositories(line, root) if os.path.isdir(path) and path not in operands.FRESH]
    if not named:
        return ()
    inside = frozenset(common.point for common in plan.commons)
    written = [local.path for local in line.locals_ if local.role is Role.CACHE_DIR]
    return operands.binds(named, _cwd(), mounts.mount_table(), inside, written)


def _repositories(line: Line, root: int) -> list[str]:
    """Directories that the repositories file counts for this line names: of a medium in /media, say."""
    given = [local.path for local in line.locals_ if local.role is Role.REPOSITORIES_FILE]
    texts = [_read(os.path.join(_cwd(), path), None) for path in given] or _configured(root)
    return [path for text in texts for path in cmdline.repository_directories(os.fsdecode(text))]


def _configured(root: int) -> list[bytes]:
    main, *directories = _REPOSITORIES
    texts = [_read(main, root)]
    for directory in directories:
        try:
            fd = files.open_in_root(root, directory, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        texts += [_read(name, fd) for name in sorted(os.listdir(fd)) if name.endswith(".list")]
        os.close(fd)
    return texts


def _read(path: str, root: int | None) -> bytes:
    """A file of the root, or with None of the caller's; nothing where it cannot be read."""
    try:
        if root is not None:
            return files.read_file(root, path, _LIMIT, resolve=files.IN_ROOT)
        with open(path, "rb") as file:
            return file.read(_LIMIT)
    except OSError:
        return b""


def _cwd() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "/"  # it was deleted


# ---- without a transaction -------------------------------------------------------------------------------


def exec_in_generation(opened: Volume, config: Config, name: str, line: Line) -> NoReturn:
    """Replaces this process by apk in the sealed generation NAME; what a line needs to write to is a copy.

    Raises CheckFailed when that cannot be done. The namespace of this process is the only one that sees the mounts.
    It is held until apk is executed; from then on that it is mounted keeps it from being collected.
    """
    try:
        generations.hold(opened.top, name)
    except OSError as error:
        raise CheckFailed(f"cannot open generation {name}: {error.strerror}; nothing was changed") from error
    point("held")
    root = volume.open_root(opened, name)
    plan = staged.plan_sealed(opened, config, name, root)
    exec_in(plan._replace(copied_database=line.kind is Kind.CACHE), root, line)


def exec_in(plan: RootPlan, root: int, line: Line) -> NoReturn:
    """Replaces this process by apk in the root of `plan`, which `root` is a descriptor of; otherwise the same."""
    call = command(root, line)
    plan = plan._replace(binds=binds(line, plan, root))
    chroot.enter(plan)
    sharedcache.require(plan, line)
    namespace.change_directory(call.directory)
    namespace.drop_capabilities(sealed=True)
    replace_process(call)


class Answer(NamedTuple):
    """What apk said on stdout to a question of ours; `status` is negative where a signal ended it."""

    status: int
    text: str


def ask(opened: Volume, config: Config, name: str, words: Sequence[str]) -> Answer:
    """Asks apk in the sealed generation NAME."""
    line = cmdline.parse(words)
    return answer_of(lambda: exec_in_generation(opened, config, name, line))


def has_cache(opened: Volume, config: Config, name: str) -> bool:
    """Whether apk keeps what it downloads in the sealed generation NAME. It is asked there, where the commons are
    mounted: what the link leads to is as a rule in one."""
    root = volume.open_root(opened, name)
    try:
        plan = staged.plan_sealed(opened, config, name, root)
    finally:
        os.close(root)

    def look() -> NoReturn:
        chroot.enter(plan)
        os._exit(0 if sharedcache.is_configured() else 1)

    return answer_of(look).status == 0


def answer_of(become_apk: Callable[[], NoReturn]) -> Answer:
    """What a child says that becomes apk in a mount namespace of its own; where it cannot, it has status 127."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        _answer(become_apk, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        text = answer.read(_LIMIT)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Answer(status, text.decode("utf-8", "replace"))


def _answer(become_apk: Callable[[], NoReturn], writer: int) -> NoReturn:
    """In the child: becomes that apk; whatever fails shows as its exit status."""
    import signal

    try:
        die_with_parent()
        signal.alarm(_PATIENCE)  # goes with the process through the exec
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(writer, 1)
        os.dup2(0, 2)
        mounts.make_private()
        become_apk()
    finally:
        os._exit(127)


def run_in_generation(
    opened: Volume, config: Config, name: str, line: Line, signals: Signals, output: int, *, held: Sequence[int] = ()
) -> int:
    """Runs apk in the sealed generation NAME, with a copy of its database that is forgotten; its exit status.

    What it says goes to the descriptor `output`. The shared cache is all that it can change.
    """
    root = volume.open_root(opened, name)
    try:
        plan = staged.plan_sealed(opened, config, name, root)
        plan = plan._replace(binds=binds(line, plan, root), copied_database=True)
        call = command(root, line)._replace(silent=True, output=output, directory="/", sealed=True)
    finally:
        os.close(root)

    def enter() -> None:
        chroot.enter(plan)
        sharedcache.require(plan, line)

    return namespace.run(call, enter, signals, held=held)


def is_remote(root: int) -> bool:
    """Whether a repository of the root that `root` is a descriptor of has to be fetched from elsewhere."""
    lines = (line.split("#")[0] for text in _configured(root) for line in os.fsdecode(text).splitlines())
    return any("://" in line for line in lines)


def replace_process(call: Command) -> NoReturn:
    """execve(2), with the dispositions that apk would have had without us, in this process's directory."""
    import signal

    for number in Signals.CHANGED:
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execve(call.program, call.argv, call.environment)
    except OSError as error:
        raise UsageError(f"cannot execute {call.program}: {error.strerror}") from error
