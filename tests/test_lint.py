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


def shell_scripts() -> list[str]:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    names = [name for name in files if name and (ROOT / name).is_file() and not (ROOT / name).is_symlink()]
    return [name for name in names if (ROOT / name).open("rb").readline(100).rstrip() in SHEBANGS]


SHEBANGS = (b"#!/bin/sh", b"#!/usr/bin/env bash")


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
