"""Which kernels of a generation are held back, though newer ones are to be had: apk itself is asked, but only where
something is tied to a kernel at all. Nothing is written."""

from __future__ import annotations

import os

from apk_atomic import apkline, databases, holds, installed, lookup, volume
from apk_atomic.config import Config
from apk_atomic.volume import Volume


def sentences(opened: Volume, config: Config, name: str) -> tuple[str, ...]:
    """One for each such kernel of generation NAME. Raises AtomicError where there is none of that name."""
    root = volume.open_root(opened, name)
    try:
        world = (lookup.read(root, installed.WORLD, installed.LIMIT) or b"").decode("utf-8", "replace")
        with databases.opened(root) as database:
            found = holds.find_holds(lambda: installed.blocks(database), world)
    finally:
        os.close(root)
    if not found:
        return ()
    answer = apkline.ask(opened, config, name, [*holds.QUESTION, *(hold.kernel for hold in found)])
    return holds.sentences(found, answer.text if answer.status == 0 else "")
