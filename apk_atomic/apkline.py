"""apk in a root: the change that an apk line asks for, and apk on a sealed root for lines that change none.

apk is the root's own, called by its absolute path, with the caller's words, descriptors and terminal.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NoReturn

from apk_atomic import chroot, cmdline, files, installed, mounts, namespace, operands, staged, volume
from apk_atomic.chroot import Bind, RootPlan
from apk_atomic.cmdline import Line, Role
from apk_atomic.config import Config
from apk_atomic.errors import ChangeFailed, CheckFailed, UsageError
from apk_atomic.namespace import Command
from apk_atomic.signals import Signals, die_with_parent
from apk_atomic.staged import Staged
from apk_atomic.verdict import Evidence, judge
from apk_atomic.volume import Volume

_OF_THE_ROOT = (Role.CACHE_DIR, Role.KEYS_DIR)  # relative ones count from apk's root
_REPOSITORIES = ("etc/apk/repositories", "etc/apk/repositories.d", "lib/apk/repositories.d")
_LIMIT = 1 << 20  # bytes of a repositories file, or of an answer
_PATIENCE = 60  # seconds for an answer


def change(line: Line, output: int | None = None) -> Callable[[Staged], None]:
    """The change of an apk line, for a transaction: raises ChangeFailed when it is to be discarded.

    `output`: a descriptor for all that apk says; it then has no stdin either.
    """

    def run(root: Staged) -> None:
        call = command(root.root, line)
        if output is not None:
            call = call._replace(silent=True, output=output)
        status = root.run(call, binds(line, root.plan, root.root))
        root.work.signals.check()
        _conclude(root, line, status)

    return run


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


def _conclude(root: Staged, line: Line, status: int) -> None:
    """Whether to go on (design, "Verdict on apk"); says which packages stay broken."""
    after = root.database.read()
    committed = root.database.inode != root.base_database.inode  # a snapshot keeps inode numbers
    accepted = frozenset((*line.atomic.accept, *root.work.config.chroot.accept))
    new = installed.broken(after)
    old = installed.broken(root.base_database.read()) if new else frozenset[str]()
    verdict = judge(Evidence(status, old, new, committed, accepted))
    if verdict.status == 0:
        if verdict.broken:
            names = ", ".join(verdict.broken)
            root.work.console.warn(f"apk has these packages flagged as broken: {names}; apk fix mends them")
        return
    if not verdict.broken:
        raise ChangeFailed(f"apk failed with exit status {status}; nothing was changed", status=verdict.status)
    raise ChangeFailed(
        f"{_reasons(after, verdict.broken)}; nothing was changed",
        status=verdict.status,
        hint=f"to accept that, add --atomic-accept {','.join(verdict.broken)}",
        broken=verdict.broken,
    )


def _reasons(database: bytes, names: Sequence[str]) -> str:
    """Which package, and what of it, failed."""
    parts = []
    for name in names:
        package = installed.find(database, name)
        flags = package.broken if package else ""
        version = package.version if package else ""
        what = " and ".join(text for flag, text in _FLAGS if flag in flags) or "it"
        parts.append(f"{what} of {name}-{version} failed")
    return "; ".join(parts)


_FLAGS = (("s", "a script or trigger"), ("f", "the files"), ("x", "the extended attributes"))


# ---- without a transaction -------------------------------------------------------------------------------


def exec_in_generation(
    opened: Volume, config: Config, name: str, line: Line, *, copied_database: bool = False
) -> NoReturn:
    """Replaces this process by apk in the sealed generation NAME; see RootPlan for `copied_database`.

    Raises CheckFailed when that cannot be done. The namespace of this process is the only one that sees the mounts.
    """
    root = volume.open_root(opened, name)
    plan = staged.plan_sealed(opened, config, name, root)
    call = command(root, line)
    chroot.enter(plan._replace(binds=binds(line, plan, root), copied_database=copied_database))
    namespace.change_directory(call.directory)
    namespace.drop_capabilities()
    replace_process(call)


def ask(opened: Volume, config: Config, name: str, words: Sequence[str]) -> str:
    """What apk in the sealed generation NAME says on stdout to a query of ours; "" where it fails, or is silent."""
    line = cmdline.parse(words)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        _answer(opened, config, name, line, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        text = answer.read(_LIMIT)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return text.decode("utf-8", "replace") if status == 0 else ""


def _answer(opened: Volume, config: Config, name: str, line: Line, writer: int) -> NoReturn:
    """In the child: becomes that apk; whatever fails shows as its exit status."""
    import signal

    try:
        die_with_parent()
        signal.alarm(_PATIENCE)  # goes with the process through the exec
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(writer, 1)
        os.dup2(0, 2)
        mounts.make_private()
        exec_in_generation(opened, config, name, line)
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
        call = command(root, line)._replace(silent=True, output=output, directory="/")
    finally:
        os.close(root)
    return namespace.run(call, lambda: chroot.enter(plan), signals, held=held)


def is_remote(root: int) -> bool:
    """Whether a repository of the root that `root` is a descriptor of has to be fetched from elsewhere."""
    lines = (line.split("#")[0] for text in _configured(root) for line in os.fsdecode(text).splitlines())
    return any("://" in line for line in lines)


def replace_process(call: Command) -> NoReturn:
    """execve(2), with the dispositions that apk would have had without us, in this process's directory."""
    import signal

    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # which Python ignores, and an exec would pass on
    try:
        os.execve(call.program, call.argv, call.environment)
    except OSError as error:
        raise UsageError(f"cannot execute {call.program}: {error.strerror}") from error
