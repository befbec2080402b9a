"""Samples to figures: medians, differences and ratios of what was run in turns, and the table that shows them. Pure
but for `in_turns`, which runs what it is given.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: `wall` and `cpu` (user and system, of all its processes) in seconds, `said` what it wrote."""

    wall: float
    cpu: float
    said: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """The runs of one contestant."""

    samples: tuple[Sample, ...]

    @property
    def wall(self) -> float:
        """Median, in seconds."""
        return statistics.median(sample.wall for sample in self.samples)

    @property
    def cpu(self) -> float:
        """Median, in seconds."""
        return statistics.median(sample.cpu for sample in self.samples)


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table. `met` is None where there is neither bar nor goal; a missed goal is no missed bar."""

    what: str
    ours: str
    beside: str
    result: str
    bar: str = ""
    met: bool | None = None
    goal: bool = False
    cpu: str = ""
    pairs: int = 0

    @property
    def verdict(self) -> str:
        if self.met is None:
            return ""
        if self.goal:
            return "reached" if self.met else "not reached"
        return "pass" if self.met else "MISSED"

    @property
    def missed(self) -> bool:
        return self.met is False and not self.goal


Contestant = Callable[[int], Sample]


def in_turns(rounds: int, contestants: Mapping[str, Contestant]) -> dict[str, Series]:
    """Runs each contestant once a round, in the order given; round 0 only warms up and is not counted.

    A contestant is given the number of the round, from which it makes something that was not done before.
    """
    found: dict[str, list[Sample]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            sample = run(number)
            if number:
                found[name].append(sample)
    return {name: Series(tuple(samples)) for name, samples in found.items()}


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def more(seconds: float) -> str:
    """A difference: `+12.3 ms`."""
    return f"{seconds * 1000:+.1f} ms"


def times(ratio: float) -> str:
    return f"x {ratio:.2f}"


def mib(size: float) -> str:
    return f"{size / MIB:.1f} MiB"


def cpu_of(*series: Series) -> str:
    """CPU times side by side, `34 / 12 ms`."""
    return " / ".join(f"{each.cpu * 1000:.0f}" for each in series) + " ms"


def compared(what: str, ours: Series, beside: Series, name: str, *, ratio: float = 0, added: float = 0) -> Row:
    """A row of two contestants with a bar on the `ratio` of medians or on what ours `added` to it, in seconds."""
    result, bar, met = times(ours.wall / beside.wall), "", None
    if ratio:
        bar, met = f"≤ {times(ratio)}", ours.wall <= ratio * beside.wall
    elif added:
        result, bar = more(ours.wall - beside.wall), f"≤ {more(added)}"
        met = ours.wall - beside.wall <= added
    return Row(
        what, ms(ours.wall), f"{name} {ms(beside.wall)}", result, bar, met,
        cpu=cpu_of(ours, beside), pairs=len(ours.samples),
    )  # fmt: skip


HEADINGS = ("what", "ours", "beside", "result", "bar", "verdict", "CPU ours / beside", "pairs")


def table(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table that is plain text as well."""
    cells = [HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(HEADINGS))]
    lines = [_line(line, widths) for line in cells]
    return "\n".join([lines[0], _line(["-" * width for width in widths], widths), *lines[1:]])


def _cells(row: Row) -> Sequence[str]:
    pairs = str(row.pairs) if row.pairs else ""
    return (row.what, row.ours, row.beside, row.result, row.bar, row.verdict, row.cpu, pairs)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"
