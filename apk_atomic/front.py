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


def become_apk(argv: list[str]) -> None:
    """execve(2) of the real apk; returns where there is none."""
    import _signal  # type: ignore[import-not-found]

    _signal.signal(_signal.SIGPIPE, _signal.SIG_DFL)  # which Python ignores, and an exec would pass on
    here = os.path.realpath(sys.argv[0])
    for path in APK:
        if os.access(path, os.X_OK) and os.path.realpath(path) != here:
            os.execv(path, [path, *argv])


def main() -> int:
    argv = sys.argv[1:]
    if argv and argv[0] in QUERY_WORDS and (not os.path.exists(PENDING) or os.path.exists(INSIDE)):
        become_apk(argv)
    try:
        from apk_atomic.cli import main as cli
    except KeyboardInterrupt:
        return 130
    return cli(sys.argv)


if __name__ == "__main__":
    sys.exit(main())
