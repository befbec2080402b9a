"""What every command is given: which volume is meant, whom to talk to, and how to get at both."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from apk_atomic import files, locate, mounts, session, volume
from apk_atomic.config import Config, load
from apk_atomic.console import Console
from apk_atomic.errors import AtomicError, Interrupted, UsageError, refusal
from apk_atomic.locate import Located
from apk_atomic.names import redact_argv
from apk_atomic.session import Work
from apk_atomic.signals import Signals
from apk_atomic.volume import Volume

CONFIG = "etc/apk-atomic/apk-atomic.toml"
UNCHANGED = "\nnothing was changed"  # the end of what is said of a wrong configuration
_ATTEMPTS = 5  # to read what nobody replaces meanwhile
_CONFIG_LIMIT = 1 << 20  # bytes

T = TypeVar("T")


class Context(NamedTuple):
    """`argv` is the whole line as typed, for messages and records; `spec` the operand of --atomic-volume."""

    argv: tuple[str, ...]
    console: Console
    spec: str | None = None

    def locate(self) -> Located:
        """The volume that is meant. Raises NotSuchRoot, UsageError."""
        return locate.running() if self.spec is None else locate.named(self.spec)

    @contextmanager
    def locked(
        self, *, wait: float = 0, lenient: bool = False, signals: Signals | None = None
    ) -> Iterator[Work]:
        """The volume for changing; see `session.locked`. Ending signals are held back from here on.

        `lenient`: a configuration that is wrong is a warning; for what must work in an emergency. `signals`: those of a
        caller that holds them back already.
        """
        require_root(self.argv)
        signals, ours = signals or Signals(), signals is None
        try:
            command = shlex.join(redact_argv(self.argv))
            configure = self._configured_or_not if lenient else read_config
            with session.locked(self._locate(), configure, self.console, signals, command=command, wait=wait) as work:
                yield work
        finally:
            if ours:
                signals.release()

    def _locate(self) -> Located:
        """The same, where it is for a change."""
        try:
            return self.locate()
        except OSError as error:
            raise refusal(error) from error

    def _configured_or_not(self, opened: Volume) -> Config | None:
        try:
            return read_config(opened)
        except UsageError as error:
            self.console.warn(f"{error.message.removesuffix(UNCHANGED)}; going on with the defaults")
            return None

    @contextmanager
    def opened(self) -> Iterator[Volume]:
        """The volume for reading, without a lock."""
        require_root(self.argv)
        located = self.locate()
        mounts.make_private()
        with volume.opened(located, writable=False) as found:
            yield found


def steadily(opened: Volume, act: Callable[[], T]) -> T:
    """What `act`, which reads a volume without a lock, comes to while nobody replaces `current`.

    A commit that takes place meanwhile may remove what `act` had chosen, whether it then fails or not. So it is called
    again, a few times at most, where `current` is not what it was before.
    """
    for _ in range(_ATTEMPTS - 1):
        before = _pointer(opened)
        try:
            found = act()
        except Interrupted:
            raise
        except (AtomicError, OSError):
            if _pointer(opened) == before:
                raise
        else:
            if _pointer(opened) == before:
                return found
    return act()


def _pointer(opened: Volume) -> str:
    try:
        return os.readlink("current", dir_fd=opened.top)
    except OSError:
        return ""


def read_config(opened: Volume) -> Config:
    """The configuration of the running system; on a volume that is not its own, that of the generation in slot 0.

    Raises UsageError with every mistake in it. Without a file everything has its default.
    """
    if opened.running:
        return running_config()
    slots = volume.read_state(opened).slots
    if not slots or not slots[0]:
        return Config()
    root = volume.open_root(opened, slots[0])
    try:
        return config_of(root)
    finally:
        os.close(root)


def running_config() -> Config:
    """The configuration of the running system, whatever it is; otherwise as `read_config`."""
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return config_of(root)
    finally:
        os.close(root)


def config_of(root: int) -> Config:
    """The configuration in the root that `root` is a descriptor of; otherwise as `read_config`."""
    try:
        data = files.read_file(root, CONFIG, _CONFIG_LIMIT, resolve=files.IN_ROOT)
    except FileNotFoundError:
        if not _is_dangling(root):
            return Config()
        hint = f"repair or remove /{CONFIG}"
        raise UsageError(f"/{CONFIG} is a link that leads nowhere; nothing was changed", hint=hint) from None
    except OSError as error:
        hint = f"repair or remove /{CONFIG}"
        raise UsageError(f"/{CONFIG}: {error.strerror}; nothing was changed", hint=hint) from error
    return load(data, f"/{CONFIG}")


def _is_dangling(root: int) -> bool:
    try:
        os.close(files.open_in_root(root, CONFIG, os.O_PATH | os.O_NOFOLLOW))
    except OSError:
        return False
    return True


def require_root(argv: tuple[str, ...]) -> None:
    """Raises UsageError for anybody else."""
    if os.geteuid() != 0:
        raise UsageError("only root can do this; nothing was changed", hint=f"doas {shlex.join(redact_argv(argv))}")
