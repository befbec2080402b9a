"""`apk-atomic prove [GENERATION] [--json]`: the full boot proof of a generation, read and not run."""

from __future__ import annotations

import json
from collections.abc import Iterable

from apk_atomic import bootable, volume
from apk_atomic.context import Context, read_config, steadily
from apk_atomic.errors import CheckFailed
from apk_atomic.proof import Finding, Proof
from apk_atomic.retention import named
from apk_atomic.volume import Volume


def run(context: Context, word: str | None, *, as_json: bool) -> int:
    """0 when it would boot, 104 when not; the findings are the answer. Without an operand, the next generation."""
    with context.opened() as opened:
        name, verdict = steadily(opened, lambda: _prove(opened, word or "next"))
    if as_json:
        context.console.answer(json.dumps(_document(name, verdict)))
    else:
        _tell(context, name, verdict)
    return 0 if verdict.passed else CheckFailed.exit_code


def _prove(opened: Volume, word: str) -> tuple[str, Proof]:
    name = named(volume.read_state(opened), word)
    return name, bootable.prove_sealed(opened, read_config(opened), name)


def _tell(context: Context, name: str, verdict: Proof) -> None:
    for finding in verdict.failures:
        context.console.answer(f"failure  {finding.code}: {finding.message}")
    for finding in verdict.warnings:
        context.console.answer(f"warning  {finding.code}: {finding.message}")
    for flavor, release in verdict.kernels.items():
        context.console.answer(f"kernel   {flavor}: {release}")
    outcome = "would not boot" if not verdict.passed else "would boot" if verdict.kernels else "holds no kernel to boot"
    context.console.note(f"generation {name} {outcome} ({verdict.duration * 1000:.0f} ms)")


def _document(name: str, verdict: Proof) -> dict[str, object]:
    return {
        "version": 1,
        "generation": name,
        "passed": verdict.passed,
        "failures": _rows(verdict.failures),
        "warnings": _rows(verdict.warnings),
        "kernels": dict(verdict.kernels),
        "seconds": round(verdict.duration, 4),
    }


def _rows(findings: Iterable[Finding]) -> list[dict[str, str]]:
    return [{"code": finding.code, "message": finding.message} for finding in findings]
