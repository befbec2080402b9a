"""Which kernels of a generation are held back, though newer ones are to be had: apk itself is asked, but only where
something is tied to a kernel at all. Nothing is written."""

from __future__ import annotations

import os

from apk_atomic import apkline, holds, installed, lookup, volume
from apk_atomic.config import Config
from apk_atomic.volume import Volume


def sentences(opened: Volume, config: Config, name: str) -> tuple[str, ...]:
    """One for each such kernel of generation NAME. Raises AtomicError where there is none of that name."""
    root = volume.open_root(opened, name)
    try:
        database = lookup.read(root, installed.DATABASE, installed.LIMIT) or b""
        world = (lookup.read(root, installed.WORLD, installed.LIMIT) or b"").decode("utf-8", "replace")
    finally:
        os.close(root)
    found = holds.find_holds(database, world)
    if not found:
        return ()
    answer = apkline.ask(opened, config, name, [*holds.QUESTION, *(hold.kernel for hold in found)])
    return holds.sentences(found, answer.text if answer.status == 0 else "")
