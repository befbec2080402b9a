#!/usr/bin/python3 -I
"""The command `apk-atomic`, installed under that name (and as `apk`, earlier in PATH, where one wants that).

The fast path: a plain query while nothing is pending becomes apk at once, without importing anything that the
interpreter has not loaded already; `_signal` is built in. Everything else is in `apk_atomic.cli`.
"""

import os
import sys

# A test compares them with apk_atomic.cmdline.QUERY_WORDS.
QUERY_WORDS = {
    "audit", "dot", "info", "list", "manifest", "policy", "query", "search", "stats", "version",
}  # fmt: skip
APK = ("/sbin/apk", "/usr/sbin/apk", "/usr/bin/apk", "/bin/apk")
PENDING, INSIDE = "/run/apk-atomic/next", "/run/apk-atomic/inside"


def restore_signals(*, to_exec: bool) -> None:
    """The dispositions that Python changed at its start: Ctrl-C ends us silently, and an exec would pass on the others.

    A transaction needs those: a write to a closed pipe must be an error there, not the end of the process.
    """
    import _signal  # type: ignore[import-not-found]

    if to_exec:
        _signal.signal(_signal.SIGPIPE, _signal.SIG_DFL)
        _signal.signal(_signal.SIGXFSZ, _signal.SIG_DFL)
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)


def is_for_apk(argv: list[str]) -> bool:
    """Whether a line is a plain query, of a system on which nothing is pending, without an option of ours."""
    if not argv or argv[0] not in QUERY_WORDS or "--atomic-" in " ".join(argv):
        return False
    return not os.path.exists(PENDING) or os.path.exists(INSIDE)


def become_apk(argv: list[str]) -> None:
    """execve(2) of the real apk; returns where there is none."""
    for path in APK:
        if os.access(path, os.X_OK) and "apk-atomic" not in os.path.realpath(path):
            os.execv(path, [path, *argv])


def main() -> int:
    for_apk = is_for_apk(sys.argv[1:])
    restore_signals(to_exec=for_apk)
    if for_apk:
        become_apk(sys.argv[1:])
    import gc

    gc.set_threshold(100_000)  # a run is short: to look for cycles while modules load costs 8 ms
    try:
        from apk_atomic.cli import main as cli

        return cli(sys.argv)
    except ImportError as error:
        return without(error)


def without(error: ImportError) -> int:
    """What is left where a part of apk-atomic, or a library of its, is broken: a query's answer, and a way out."""
    if sys.argv[1:] and sys.argv[1] in QUERY_WORDS:
        become_apk(sys.argv[1:])
    sys.stderr.write(
        f"apk-atomic: error: apk-atomic is broken here ({error}); nothing was changed\n"
        "apk-atomic: hint: boot a fallback from the boot menu, then: apk-atomic rollback\n"
    )
    return 100


if __name__ == "__main__":
    # At once: nothing of ours is buffered, and Python needs 15 ms to clear away the modules of a transaction.
    os._exit(main())
