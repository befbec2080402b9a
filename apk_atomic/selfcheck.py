"""Whether the apk-atomic of a staged root runs: an unattended upgrade must not leave a machine without the way back.

The boot proof reads and never executes, so it cannot see a new Python for which apk-atomic is not installed, nor a new
apk-atomic that is broken. Run inside the staged root, with its own interpreter.
"""

from __future__ import annotations

import os

from apk_atomic import chroot, files, lookup
from apk_atomic.errors import CheckFailed
from apk_atomic.namespace import Command
from apk_atomic.staged import Staged

_PROGRAMS = ("usr/bin/apk-atomic", "usr/local/bin/apk-atomic")
_LIBRARIES = ("usr/lib", "usr/local/lib")
_PACKAGES = ("site-packages", "dist-packages")
_IMPORT_ALL = """\
import importlib, pkgutil, apk_atomic
for found in pkgutil.walk_packages(apk_atomic.__path__, "apk_atomic."):
    importlib.import_module(found.name)
"""
_SAID = 2000  # bytes


def lacking(root: int) -> str:
    """What of an apk-atomic a root has not, for people; "" where it is whole. It is looked for, not run."""
    program = next((path for path in _PROGRAMS if lookup.is_file(root, path)), None)
    if program is None:
        return f"/{_PROGRAMS[0]}"
    interpreter = _first_line(root, program).removeprefix("#!").split()[:1]
    if not interpreter or not lookup.is_file(root, interpreter[0]):
        return interpreter[0] if interpreter else f"/{program}"
    version = _version(root, interpreter[0])
    found = (f"{place}/{version}/{packages}/apk_atomic/cli.py" for place in _LIBRARIES for packages in _PACKAGES)
    return "" if any(lookup.is_file(root, path) for path in found) else f"the package apk_atomic of {version}"


def _version(root: int, interpreter: str) -> str:
    """`python3.12`, by the name that the interpreter has in the end; where that says nothing, by the only library."""
    name = os.path.basename(lookup.real_path(root, interpreter) or "")
    if name.startswith("python3."):
        return name
    libraries = [each for place in _LIBRARIES for each in lookup.names(root, place) if each.startswith("python3.")]
    return max(libraries, default="python3")


def require(root: Staged) -> None:
    """Raises CheckFailed when base has an apk-atomic and the staged root has none that runs."""
    program = next((path for path in _PROGRAMS if _first_line(root.base_root, path)), None)
    if program is None:
        return
    line = _first_line(root.root, program)
    if not line.startswith("#!/"):
        raise CheckFailed(f"the upgrade leaves no /{program} that could be run; nothing was changed")
    python = (*line[2:].split(), "-B")  # no bytecode of ours in the generation
    for words in (("-c", _IMPORT_ALL), (f"/{program}", "--help")):
        _run(root, (*python, *words))


def _run(root: Staged, argv: tuple[str, ...]) -> None:
    output = os.memfd_create("selfcheck", os.MFD_CLOEXEC)
    try:
        call = Command(argv[0], argv, chroot.environment(os.environ), silent=True, output=output)
        status = root.run(call)
        root.work.signals.check()
        if status:
            said = os.pread(output, _SAID, max(0, os.fstat(output).st_size - _SAID)).decode(errors="replace")
            last = said.strip().rpartition("\n")[2]
            raise CheckFailed(
                f"the new generation's own apk-atomic does not run ({last or f'exit status {status}'}); "
                "nothing was changed",
                hint="apk-atomic upgrade takes it all the same",
            )
    finally:
        os.close(output)


def _first_line(root: int, path: str) -> str:
    """'' where there is no such file."""
    try:
        return files.read_file(root, path, 1 << 20, resolve=files.IN_ROOT).partition(b"\n")[0].decode(errors="replace")
    except OSError:
        return ""
