"""What is compared for one command: queries, an upgrade with nothing to do, a one-package transaction, memory."""

from __future__ import annotations

from collections.abc import Iterator

from bench.figures import MIB, Row, Series, compared, in_turns, mib, ms, times
from bench.shapes import APK, FRONT, OURS, PYTHON, SYSMUT, Lab, Machine, Shape
from bench.stopwatch import Failed

BASE = Shape()
LIBRARIES = ("sh", "filelock", "tomli")
HELLO = "hello=1.{}-r0"
EXEC_APK = f"import os; os.execv('{APK}', ['{APK}', 'info', '-e', 'hello'])"
QUERY_RATIO, NOTHING_ADDED, TOTAL_ADDED, MEMORY = 1.3, 0.100, 0.150, 40 * MIB

# The high-water mark of the wrapper itself: not of apk, nor of the processes between them.
PEAK = """
import sys
from apk_atomic.cli import main
sys.argv[0] = "/usr/bin/apk-atomic"
status = main(sys.argv)
with open("/proc/self/status") as lines:
    print(next(line for line in lines if line.startswith("VmHWM")))
sys.exit(status)
"""


def query(lab: Lab, rounds: int) -> Iterator[Row]:
    """A query with nothing pending, beside the least that Python needs to become apk."""
    machine = lab.ours(BASE)
    machine.reboot()
    found = in_turns(
        2 * rounds,
        {
            "ours": machine.contestant(OURS, "info", "-e", "hello"),
            "drop-in": machine.contestant(FRONT, "info", "-e", "hello"),
            "python": machine.contestant(PYTHON, "-I", "-c", EXEC_APK),
            "apk": machine.contestant(APK, "info", "-e", "hello"),
        },
    )
    what = "query, nothing pending"
    yield compared(what, found["ours"], found["python"], "python3 -I, exec apk", ratio=QUERY_RATIO)
    yield compared(what, found["ours"], found["apk"], "apk")
    yield compared(f"{what}, by the drop-in", found["drop-in"], found["apk"], "apk", ratio=QUERY_RATIO)


def pending(lab: Lab, rounds: int) -> Iterator[Row]:
    """A query that is answered by the pending generation."""
    machine, bare = lab.ours(BASE), lab.bare(BASE)
    machine.once(OURS, "add", "hello=1.1-r0")
    found = in_turns(
        rounds,
        {
            "ours": machine.contestant(OURS, "info", "-e", "hello"),
            "apk": bare.contestant(APK, "info", "-e", "hello"),
        },
    )
    yield compared("query while pending", found["ours"], found["apk"], "apk")


def nothing(lab: Lab, rounds: int) -> Iterator[Row]:
    """An upgrade with nothing to do."""
    machine, bare = lab.ours(BASE), lab.bare(BASE)
    before = machine.volume.generations()
    found = in_turns(rounds, {"ours": machine.contestant(OURS, "upgrade"), "apk": bare.contestant(APK, "upgrade")})
    left = set(machine.volume.generations()) - set(before)
    what = "upgrade with nothing to do"
    yield compared(what, found["ours"], found["apk"], "apk", added=NOTHING_ADDED)
    yield Row(f"{what}: generations that it leaves", str(len(left)), "", "", "0", not left)


def transaction(lab: Lab, rounds: int) -> Iterator[Row]:
    """A one-package upgrade, durable, beside bare apk in place and the wiki's script, which is not durable."""
    machine, bare, wiki = lab.ours(BASE), lab.bare(BASE), lab.wiki(BASE)
    names = imported_libraries(machine)
    found = in_turns(
        rounds,
        {
            "ours": machine.contestant(OURS, "add", HELLO),
            "apk": bare.contestant(APK, "add", HELLO),
            "wiki": wiki.contestant(f"/{SYSMUT}", wiki.volume.device, APK, "add", HELLO),
            "libraries": machine.contestant(PYTHON, "-I", "-c", f"import {', '.join((*names, 'os'))}; os._exit(0)"),
            "python": machine.contestant(PYTHON, "-I", "-c", "import os; os._exit(0)"),
        },
    )
    yield compared("one package, total", found["ours"], found["apk"], "apk", added=TOTAL_ADDED)
    yield _work(found, names)
    yield compared("one package, total", found["ours"], found["wiki"], "wiki's script")
    yield compared("the wiki's script", found["wiki"], found["apk"], "apk")


def _work(found: dict[str, Series], names: tuple[str, ...]) -> Row:
    """All but the interpreter and the libraries: a process that imports what ours imports of them is taken off."""
    ours, libraries, wiki = found["ours"], found["libraries"], found["wiki"]
    work = ours.wall - libraries.wall
    return Row(
        f"one package, work (total - python3 with {', '.join(names)}: {ms(libraries.wall)})",
        ms(work),
        f"wiki's script {ms(wiki.wall)}",
        times(work / wiki.wall),
        "≤ x 1.00 (goal)",
        work <= wiki.wall,
        goal=True,
        cpu=f"{(ours.cpu - libraries.cpu) * 1000:.0f} / {wiki.cpu * 1000:.0f} ms",
        pairs=len(ours.samples),
    )


def imported_libraries(machine: Machine) -> tuple[str, ...]:
    """Which of the three libraries a one-package transaction really imports, by -X importtime."""
    said = machine.once(PYTHON, "-I", "-X", "importtime", OURS, "add", "hello=1.63-r0").said
    words = {line.rpartition("|")[2].strip() for line in said.splitlines() if line.startswith("import time:")}
    return tuple(name for name in LIBRARIES if name in words)


def memory(lab: Lab, rounds: int) -> Iterator[Row]:
    """The most memory that apk-atomic takes for itself while apk works."""
    for packages in (BASE.packages, 10_000):
        machine = lab.ours(Shape(packages=packages))
        adding = max(_peak(machine, "add", f"hello=1.{number + 1}-r0") for number in range(min(rounds, 3)))
        for what, peak in (("add", adding), ("upgrade", _peak(machine, "upgrade"))):
            name = f"peak memory beside apk: {what}, {packages:,} packages"
            yield Row(name, mib(peak), "", "", f"≤ {mib(MEMORY)}", peak <= MEMORY)


def _peak(machine: Machine, *words: str) -> int:
    said = machine.once(PYTHON, "-I", "-c", PEAK, *words).said
    lines = [line for line in said.splitlines() if line.startswith("VmHWM")]
    if not lines:
        raise Failed(f"no peak in what was said:\n{said}")
    return int(lines[0].split()[1]) * 1024
