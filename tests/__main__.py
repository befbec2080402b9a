"""`python -m tests [OPTION…]`: the whole suite, in halves that run at the same time where there are two cores.

Each half is a process of pytest's own, for the suite forks and signals itself, which the threads of a worker would not
bear. OPTIONs are pytest's. The first line says which apk it was, the last one how many cases need the real one; the
exit status is the worst.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading

# About as long as all the rest.
FIRST_HALF = ("tests/adversity", "tests/conformance", "tests/crash")
COUNT = re.compile(r"(\d+) cases need the real apk and did not run")


class Half:
    """One pytest; what it says is passed on line by line, but for the last line, which is `count`."""

    def __init__(self, name: str, words: list[str]) -> None:
        self.count = 0
        self._name = name
        command = [sys.executable, "-m", "pytest", *words]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._reader = threading.Thread(target=self._pass_on)
        self._reader.start()

    def _pass_on(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            found = COUNT.fullmatch(line.strip())
            if found:
                self.count = int(found[1])
            else:
                print(f"{self._name} {line}" if line.strip() else line, end="", flush=True)

    def wait(self) -> int:
        """The exit status, once everything that was said is passed on."""
        self._reader.join()
        return self._process.wait()


def main(options: list[str]) -> int:
    if (os.cpu_count() or 1) < 2:
        return subprocess.run([sys.executable, "-m", "pytest", *options]).returncode
    ignored = [f"--ignore={path}" for path in FIRST_HALF]
    halves = [Half("1|", [*FIRST_HALF, *options]), Half("2|", ["tests", *ignored, *options])]
    try:
        worst = max(half.wait() for half in halves)
    except KeyboardInterrupt:
        worst = max(130, *(half.wait() for half in halves))
    print(f"{sum(half.count for half in halves)} cases need the real apk and did not run")
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
