"""`state/adopt.json`: what was chosen for an adoption, and what its last finish has made. At the top level.

It is the proof that the layout's names at the top level are ours, so it is made before them. Nothing else knows its
form. Durable when `write` returns.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from apk_atomic import files
from apk_atomic.adoption import Choices
from apk_atomic.bootmenu import Loader
from apk_atomic.errors import CheckFailed
from apk_atomic.volume import Volume

PATH = "state/adopt.json"
_VERSION = 1
_LIMIT = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Copied:
    """When a common was filled: up to which transaction, and from when to when by the clock of then. What changed at
    another time, in a later transaction, is the new system's; a clock may have been set since.

    `top` is its own directory then: mtime in nanoseconds, mode, owner, group; without that it counts as used.
    """

    transid: int
    moment: float
    start: float = 0.0
    top: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Adoption:
    """`generations`: those that a finish has made or is about to make, `copied`: the commons it filled, by UUID."""

    choices: Choices
    generations: tuple[str, ...] = ()
    copied: dict[str, Copied] = field(default_factory=dict)


def read(opened: Volume) -> Adoption | None:
    """None where there never was an adoption. Raises CheckFailed for a file that cannot be understood."""
    try:
        found = json.loads(files.read_file(opened.top, PATH, _LIMIT))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(str(error)) from error
    try:
        return _from(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(repr(error)) from error


def _damaged(why: str) -> CheckFailed:
    hint = "look at it at the top level (subvolid=5); where current leads to a system in use, leave all as it is"
    return CheckFailed(f"{PATH} at the top level cannot be understood ({why}); nothing was changed", hint=hint)


def _from(found: dict[str, object]) -> Adoption:
    if found["version"] != _VERSION:
        raise ValueError(f"version {found['version']}")
    choices = dict(found["choices"])  # type: ignore[call-overload]
    choices |= {"commons": tuple(choices["commons"]), "loader": Loader(choices["loader"])}
    copied = {str(uuid): _copied(each) for uuid, each in found["copied"].items()}  # type: ignore[attr-defined]
    return Adoption(Choices(**choices), tuple(map(str, found["generations"])), copied)  # type: ignore[call-overload]


def _copied(found: dict[str, Any]) -> Copied:
    return Copied(**found | {"top": tuple(found.get("top", ()))})


def write(opened: Volume, adoption: Adoption) -> None:
    """`state/` is a directory of its own: nothing beside `current` is ever synced by itself."""
    with suppress(FileExistsError):
        os.mkdir(os.path.dirname(PATH), 0o755, dir_fd=opened.top)
        files.syncfs(opened.top)
    for name in files.list_names(opened.top, os.path.dirname(PATH)):
        if name.startswith(files.TEMP_PREFIX):  # what a power cut left of an earlier write
            os.unlink(f"{os.path.dirname(PATH)}/{name}", dir_fd=opened.top)
    text = json.dumps({"version": _VERSION, **asdict(adoption)}, indent=1)
    files.write_durable(opened.top, PATH, text.encode() + b"\n", 0o644)
