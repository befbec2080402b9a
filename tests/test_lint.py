"""The linters, as tests: what they say is an error of the change that made them say it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYTHON_SCRIPTS = ("tests/support/standin/apk",)


def run(*argv: str) -> None:
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


SHEBANGS = (b"#!/bin/sh", b"#!/usr/bin/env bash", b"#!/sbin/openrc-run")


def tracked() -> list[Path]:
    """What is or is going to be committed; also outside a checkout, as in an unpacked release."""
    listing = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode == 0:
        return [ROOT / name for name in listing.stdout.splitlines() if (ROOT / name).is_file()]
    return [path for path in ROOT.rglob("*") if path.is_file() and ".venv" not in path.parts]


def shell_scripts() -> list[str]:
    return [str(path.relative_to(ROOT)) for path in tracked() if path.read_bytes()[:100].split(b"\n")[0] in SHEBANGS]


def test_ruff() -> None:
    run(sys.executable, "-m", "ruff", "check", ".", *PYTHON_SCRIPTS)


def test_mypy() -> None:
    run(sys.executable, "-m", "mypy")


def test_mypy_scripts() -> None:
    run(sys.executable, "-m", "mypy", *PYTHON_SCRIPTS)


@pytest.mark.parametrize("script", shell_scripts())
def test_shellcheck(script: str) -> None:
    run("shellcheck", script)


def test_there_are_shell_scripts() -> None:
    assert shell_scripts()
