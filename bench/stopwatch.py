"""Times commands inside a guest, from inside: starting a process there by nsenter would cost more than apk.

A small Python in the guest reads one command a line, runs it and answers with what wait4(2) says of it and of all
its descendants. It is PID 1 of a PID namespace: there real apk leaves out its sync() of every file system of the
machine, which would time other people's disks.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence

from bench.figures import Sample
from tests.support.guest import ENVIRONMENT, Guest

WORKER = """
import json, os, sys, time
null = os.open(os.devnull, os.O_RDWR)
for line in sys.stdin:
    argv, environment = json.loads(line)
    out = os.memfd_create("said")
    actions = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, out, 1), (os.POSIX_SPAWN_DUP2, out, 2)]
    start = time.perf_counter()
    pid = os.posix_spawn(argv[0], argv, environment, file_actions=actions)
    status, usage = os.wait4(pid, 0)[1:]
    wall = time.perf_counter() - start
    said = os.pread(out, 1 << 20, 0).decode(errors="replace")
    os.close(out)
    print(json.dumps([os.waitstatus_to_exitcode(status), wall, usage.ru_utime + usage.ru_stime, said]), flush=True)
"""


class Failed(Exception):
    """A command that was to be timed did not do what it should."""


class Stopwatch:
    """Lives as long as its guest."""

    def __init__(self, guest: Guest) -> None:
        command = ["unshare", "--pid", "--fork", "python3", "-I", "-c", WORKER]
        self._process = guest.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(self, argv: Sequence[str]) -> Sample:
        """Runs argv (its first word is a path) with /dev/null as stdin; Failed unless it exits with 0."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([argv, ENVIRONMENT]).encode() + b"\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise Failed(f"the guest of {' '.join(argv)} is gone")
        status, wall, cpu, said = json.loads(answer)
        if status != 0:
            raise Failed(f"{' '.join(argv)} exited with {status}:\n{said}")
        return Sample(wall, cpu, said)
