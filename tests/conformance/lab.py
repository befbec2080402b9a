"""Throw-away roots in which one apk runs, and what a run did: steps, exit status, database, files.

apk works on them with `--root`, and chroots for the scripts: nothing but a static busybox has to be in them.
Knows nothing of apk-atomic.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.apks import Apk
from tests.support.binaries import busybox
from tests.support.packages import Repository

PROMPT = "Do you want to continue [Y/n]? "
_CHANGE = re.compile(r"^\(\s*\d+/\d+\) (.+)$")
_SCRIPT = re.compile(r"^ *Executing (\S+-r\d+\.[a-z-]+)$")
# Here a root differs by the version of apk and by what the lab put there, and nowhere else.
_OWN_TRACES = ("dev", "proc", "tmp", "lib", "var/log", "var/cache", "etc/apk", "bin")


@dataclass(frozen=True, slots=True)
class Run:
    """What one call of apk did, without the prompt. `steps` are its `(n/m)` lines and `run SCRIPT`."""

    status: int
    steps: tuple[str, ...]
    stdout: str
    stderr: str


class Lab:
    """One root, one repository, one apk."""

    def __init__(self, apk: Apk, directory: Path) -> None:
        self.apk = apk
        self.root = directory / "root"
        self.repository = Repository(directory / "repository")
        (self.root / "bin").mkdir(parents=True)
        shell = directory.parent / "busybox"
        if not shell.exists():
            shell.write_bytes(busybox().read_bytes())
            shell.chmod(0o755)
        for name in ("sh", "sleep", "touch", "cat"):
            os.link(shell, self.root / "bin" / name)
        self.run("add", "--initdb")
        (self.root / "etc/apk/repositories").write_text(f"{self.repository.path}\n")

    def argv(self, *arguments: str) -> list[str]:
        return [self.apk.path, "--root", str(self.root), "--allow-untrusted", "--no-progress", *arguments]

    def run(self, *arguments: str, stdin: str = "") -> Run:
        done = subprocess.run(self.argv(*arguments), input=stdin, capture_output=True, text=True, cwd=self.root)
        stdout = done.stdout.replace(PROMPT, "")
        return Run(done.returncode, tuple(_steps(stdout)), stdout, done.stderr)

    def installed(self) -> str:
        """`base-1.0-r0 bad-1.0-r0[s]`: names and versions with their flags, in the order of the database."""
        words = []
        for record in self.database("installed").split("\n\n"):
            fields = dict(line.split(":", 1) for line in record.splitlines() if line[:2] in ("P:", "V:", "f:"))
            if fields:
                words.append(f"{fields['P']}-{fields['V']}" + (f"[{fields['f']}]" if "f" in fields else ""))
        return " ".join(words)

    def world(self) -> str:
        return " ".join((self.root / "etc/apk/world").read_text().split())

    def database(self, name: str) -> str:
        return (self.root / "lib/apk/db" / name).read_text()

    def state(self) -> dict[str, object]:
        """All that must be the same whichever apk made it."""
        databases = [self.database(name) for name in ("installed", "triggers")]
        return {"tree": self.tree(), "world": self.world(), "databases": databases}

    def scripts(self) -> bytes:
        """The scripts archive as it is; 2.14 does not compress it."""
        plain = self.root / "lib/apk/db/scripts.tar"
        return plain.read_bytes() if plain.exists() else plain.with_suffix(".tar.gz").read_bytes()

    def tree(self) -> dict[str, str]:
        """Every path that packages can have made: kind, mode, owner and content."""
        found = {}
        for place, directories, files in os.walk(self.root):
            for name in (*directories, *files):
                path = os.path.relpath(os.path.join(place, name), self.root)
                if not path.startswith(_OWN_TRACES):
                    found[path] = _describe(os.path.join(place, name))
        return found


def _steps(output: str) -> list[str]:
    steps = []
    for line in output.splitlines():
        if change := _CHANGE.match(line):
            steps.append(change[1])
        elif script := _SCRIPT.match(line):
            steps.append(f"run {script[1]}")
    return steps


def _describe(path: str) -> str:
    status = os.lstat(path)
    content = ""
    if stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    elif stat.S_ISREG(status.st_mode):
        content = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return f"{stat.filemode(status.st_mode)} {status.st_uid}:{status.st_gid} {content}"
