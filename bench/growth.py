"""What may not grow with the system: the overhead of a transaction, `status`, collecting garbage."""

from __future__ import annotations

from collections.abc import Iterator

from bench.figures import Row, Sample, Series, compared, cpu_of, in_turns, ms, times
from bench.shapes import APK, OURS, Lab, Machine, Shape, add_generations, unpin_generations

BASE = Shape()
MANY_GENERATIONS = Shape(generations=1000)
GROWN = {
    "50,000 files beside 1,000": Shape(files=50_000),
    "10,000 packages beside 300": Shape(packages=10_000),
    "1,000 generations beside 4": MANY_GENERATIONS,
}
HELLO = "hello=1.{}-r0"
OVERHEAD_RATIO, STATUS_RATIO, COLLECT_SECONDS = 1.2, 2.0, 0.5


def growth(lab: Lab, rounds: int) -> Iterator[Row]:
    """Ours minus bare on a grown system, over the same on the base one; all four in turns."""
    for what, shape in GROWN.items():
        # bare apk knows nothing of generations
        plain = BASE if shape.generations > BASE.generations else shape
        contestants = {
            "ours": lab.ours(BASE).contestant(OURS, "add", HELLO),
            "apk": lab.bare(BASE).contestant(APK, "add", HELLO),
            "ours grown": lab.ours(shape).contestant(OURS, "add", HELLO),
        }
        if plain is not BASE:
            contestants["apk grown"] = lab.bare(plain).contestant(APK, "add", HELLO)
        found = in_turns(rounds, contestants)
        found.setdefault("apk grown", found["apk"])
        small = found["ours"].wall - found["apk"].wall
        large = found["ours grown"].wall - found["apk grown"].wall
        yield Row(
            f"overhead over bare apk: {what}",
            ms(large),
            ms(small),
            times(large / small),
            f"≤ {times(OVERHEAD_RATIO)}",
            large <= OVERHEAD_RATIO * small,
            cpu=f"{_cpu(found['ours grown'], found['apk grown'])} / {_cpu(found['ours'], found['apk'])} ms",
            pairs=rounds,
        )


def _cpu(ours: Series, bare: Series) -> str:
    return f"{(ours.cpu - bare.cpu) * 1000:.0f}"


def status(lab: Lab, rounds: int) -> Iterator[Row]:
    """`status` of many generations beside that of a few."""
    many, few = lab.ours(MANY_GENERATIONS), lab.ours(BASE)
    found = in_turns(rounds, {"many": many.contestant(OURS, "status"), "few": few.contestant(OURS, "status")})
    yield compared("status of 1,000 generations", found["many"], found["few"], "of 4", ratio=STATUS_RATIO)
    found = in_turns(
        min(rounds, 5),
        {
            "many": many.contestant(OURS, "status", "--all"),
            "few": few.contestant(OURS, "status", "--all"),
        },
    )
    yield compared("status --all of 1,000 generations", found["many"], found["few"], "of 4")


def collect(lab: Lab, rounds: int) -> Iterator[Row]:
    """Collecting many generations: the whole command, until its prompt is back."""
    machine = lab.ours(MANY_GENERATIONS)
    found = in_turns(
        min(rounds, 5),
        {
            "many": lambda _: _collect(machine),
            "none": machine.contestant(OURS, "gc"),
        },
    )
    many = found["many"]
    yield Row(
        "collecting 1,000 generations",
        ms(many.wall),
        f"none {ms(found['none'].wall)}",
        times(many.wall / found["none"].wall),
        f"≤ {ms(COLLECT_SECONDS)}",
        many.wall <= COLLECT_SECONDS,
        cpu=cpu_of(many, found["none"]),
        pairs=len(many.samples),
    )


def _collect(machine: Machine) -> Sample:
    add_generations(machine.volume, MANY_GENERATIONS.generations - 2)
    unpin_generations(machine.volume)
    return machine.once(OURS, "gc")
