"""`python -m bench [--quick] [--only NAME]… [--check]`: the table on stdout, progress on stderr."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from bench import boot, cases, growth
from bench.figures import Row, table
from bench.shapes import Lab
from tests.support.apks import which_apk
from tests.support.imagecache import scratch_base

ROUNDS, QUICK_ROUNDS = 21, 3
Case = Callable[[Lab, int], Iterator[Row]]
CASES: dict[str, Case] = {
    "query": cases.query,
    "pending": cases.pending,
    "nothing": cases.nothing,
    "transaction": cases.transaction,
    "memory": cases.memory,
    "growth": growth.growth,
    "status": growth.status,
    "collect": growth.collect,
    "boot": boot.boot,
}


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 1 with --check when a bar is missed."""
    options = _parser().parse_args(argv)
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    rows: list[Row] = []
    print(f"{heading()}\n", flush=True)
    with contextlib.ExitStack() as stack:
        lab = Lab(stack)
        for name in options.only or CASES:
            started = time.monotonic()
            rows += CASES[name](lab, rounds)
            print(f"bench: {name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    print(table(rows))
    return 1 if options.check and any(row.missed for row in rows) else 0


def heading() -> str:
    """What was measured, on what."""
    libraries = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in cases.LIBRARIES)
    load = os.getloadavg()[0]
    return (
        f"{which_apk()}; {os.cpu_count()} CPUs, load {load:.1f}; Linux {platform.release()}; "
        f"Python {platform.python_version()} with {libraries}; volumes on loop devices in {scratch_base()}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=sys.modules["bench"].__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} pairs in place of {ROUNDS}")
    parser.add_argument("--only", action="append", choices=CASES, metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--check", action="store_true", help="exit with 1 when a bar is missed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
