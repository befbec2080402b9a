"""Which apk the tests run: the real one where there is one, else the stand-in beside this file.

$APK may name one binary or several, separated by ":"; the first is the suite's, the conformance test
runs all. Without $APK it is /sbin/apk, or /usr/bin/apk where that came with a merged /usr. A test that
needs a real apk is marked `@pytest.mark.real_apk`.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from functools import cache
from typing import Literal

STAND_IN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "standin", "apk")
_USUAL = ("/sbin/apk", "/usr/bin/apk")


@dataclass(frozen=True, slots=True)
class Apk:
    """An apk binary. `major` decides what differs between 2.14 and 3; the stand-in behaves as 3."""

    path: str
    kind: Literal["stand-in", "real"]
    version: str
    major: int

    @property
    def real(self) -> bool:
        return self.kind == "real"

    def __str__(self) -> str:
        return f"apk-tools {self.version} ({self.path})" if self.real else "the stand-in for apk"


@cache
def stand_in() -> Apk:
    """Our own stand-in."""
    return _examine(STAND_IN, "stand-in")


@cache
def real_apks() -> tuple[Apk, ...]:
    """Every real apk at hand: those of $APK, else the system's. A wrong $APK raises, it is never ignored."""
    named = os.environ.get("APK", "")
    if named:
        return tuple(_examine(path, "real") for path in named.split(":") if path)
    return tuple(_examine(path, "real") for path in _USUAL if os.access(path, os.X_OK))[:1]


def all_apks() -> tuple[Apk, ...]:
    """The stand-in and every real apk, for what must hold for each."""
    return (stand_in(), *real_apks())


def which_apk() -> Apk:
    """The apk that this run of the suite uses."""
    return real_apks()[0] if real_apks() else stand_in()


def libraries_of(path: str) -> tuple[str, ...]:
    """What a dynamic binary needs beside itself to run in another root; none for a static one or a script."""
    listing = subprocess.run(["ldd", path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    words = (line.split("(")[0].split("=>")[-1].strip() for line in listing.stdout.splitlines())
    return tuple(word for word in words if word.startswith("/"))


def _examine(path: str, kind: Literal["stand-in", "real"]) -> Apk:
    """Ask the binary for its version: `apk-tools 3.0.6, compiled for x86_64.`"""
    answer = subprocess.run([path, "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout
    version = answer.split()[1].rstrip(",")
    return Apk(os.path.abspath(path), kind, version, int(version.split(".")[0]))
