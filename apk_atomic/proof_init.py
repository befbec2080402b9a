"""The boot proof's verdict on init: what the initramfs hands over to exists and can be executed.

A program is followed as the kernel and ld.so would: script → interpreter → ELF → its interpreter → its
libraries, all inside the root. Nothing is executed. Reads the root by `lookup` only, and writes nothing.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, NamedTuple

from apk_atomic import elf, lookup
from apk_atomic.proof_images import script_interpreter
from apk_atomic.proof_types import Findings
from apk_atomic.unpack import Damaged

if TYPE_CHECKING:
    from collections.abc import Iterator

INITTAB = "etc/inittab"
_MAX_TEXT = 1 << 20
_MAX_CHAIN = 6
_MAX_LIBRARIES = 128
_EARLY = ("sysinit", "wait")  # inittab's actions that the rest waits for
_RUNLEVELS = "etc/runlevels"
_MUSL_SELF = ("libc.", "libpthread.", "librt.", "libm.", "libdl.", "libutil.", "libxnet.")  # musl's ldso is all of them


class _Root(NamedTuple):
    """`machines`: those whose ELF programs the kernel runs, none for any."""

    fd: int
    machines: frozenset[int]


def check_init(findings: Findings, root: int, init: str, machines: frozenset[int] = frozenset()) -> None:
    """`init`, the shell, inittab's first programs, root's account and the runlevels. `machines`: as in `_Root`."""
    judged = _Root(root, machines)
    _check_program(findings, judged, init.lstrip("/"), "init")
    _check_program(findings, judged, "bin/sh", "shell")
    if (lookup.real_path(root, init) or "").rpartition("/")[2] == "busybox":
        _check_inittab(findings, judged)
    findings.inputs.add("etc/passwd")
    if not any(line.startswith(b"root:") for line in (lookup.read(root, "etc/passwd", _MAX_TEXT) or b"").split(b"\n")):
        findings.fail("no-root-account", "etc/passwd has no line for root")
    if lookup.is_file(root, "sbin/openrc"):
        _check_runlevels(findings, root)


def _check_program(findings: Findings, judged: _Root, path: str, code: str) -> None:
    """Follows the chain from `path` to the last interpreter and its libraries."""
    first, root = path, judged.fd
    for _ in range(_MAX_CHAIN):
        by = "" if path == first else f", which {first} needs,"
        real = _found(findings, root, path)
        status = lookup.status(root, path)
        if real is None or status is None or not stat.S_ISREG(status.st_mode):
            findings.fail(f"{code}-missing", f"{path}{by} is missing or leads nowhere")
            return
        if not status.st_mode & 0o111:
            findings.fail(f"{code}-not-executable", f"{path}{by} is not executable")
            return
        start = lookup.read_start(root, real, 4096)
        path = script_interpreter(start)
        if not path:
            _check_elf(findings, judged, real, code)
            return
    findings.fail(f"{code}-missing", f"{first} is a script of a script of a script")


def _found(findings: Findings, root: int, path: str) -> str | None:
    """`lookup.real_path`; the verdict rests on the name that was asked for, and on all links between the two."""
    real = lookup.real_path(root, path)
    findings.inputs |= {path.strip("/"), *lookup.links(root, path), *([real] if real else [])}
    return real


def _check_elf(findings: Findings, judged: _Root, path: str, code: str) -> None:
    """An ELF program, its interpreter, and the libraries that it and they need."""
    root = judged.fd
    try:
        program = _read_elf(root, path)
        if judged.machines and program.machine not in judged.machines:
            findings.fail(f"{code}-machine", f"{path} is for another machine than the kernel: ELF {program.machine}")
        real = _found(findings, root, program.interpreter) if program.interpreter else None
        if program.interpreter and not real:
            text = f"{program.interpreter}, which {path} needs, is missing or leads nowhere"
            findings.fail(f"{code}-interpreter", text)
        elif real and _read_elf(root, real).machine != program.machine:
            findings.fail(f"{code}-interpreter", f"{real}, which {path} needs, is for another machine")
        elif real:
            _check_libraries(findings, root, path, program, code)
    except Damaged as error:
        findings.fail(f"{code}-damaged", f"{error}")


def _read_elf(root: int, path: str) -> elf.Elf:
    with lookup.opened(root, path) as fd:
        if fd is None:
            raise Damaged(f"{path} is no file")
        try:
            return elf.read(fd)
        except Damaged as error:
            raise Damaged(f"{path} {error}") from error


def _check_libraries(findings: Findings, root: int, path: str, program: elf.Elf, code: str) -> None:
    """Libraries as ld.so would find them. Where it is not musl's, whose rules are few, missing is but a warning."""
    musl = "ld-musl-" in program.interpreter
    directories = tuple(_library_directories(root, program.interpreter))
    seen, rest = set[str](), [(path, program)]
    while rest and len(seen) < _MAX_LIBRARIES:
        user, needs = rest.pop()
        own = tuple(entry.replace("$ORIGIN", "/" + user.rpartition("/")[0]) for entry in needs.search)
        for name in set(needs.libraries) - seen:
            seen.add(name)
            place = _find_library(root, name, own + directories)
            found = _found(findings, root, place) if place else None
            if found:
                rest.append((found, _read_elf(root, found)))
            elif musl and not name.startswith(_MUSL_SELF):
                findings.fail(f"{code}-library", f"{name}, which {user} needs, is missing")
            elif not musl:
                findings.warn(f"{code}-library", f"{name}, which {user} needs, is in no usual directory")


def _find_library(root: int, name: str, directories: tuple[str, ...]) -> str | None:
    """The path by which it is found; None for nowhere."""
    places = (name,) if "/" in name else (f"{directory}/{name}" for directory in directories)
    return next((place for place in places if lookup.real_path(root, place) is not None), None)


def _library_directories(root: int, interpreter: str) -> Iterator[str]:
    """Where the dynamic linker `interpreter` looks (musl: ldso/dynlink.c)."""
    if "ld-musl-" in interpreter:
        arch = interpreter.partition("ld-musl-")[2].partition(".")[0]
        configured = lookup.read(root, f"etc/ld-musl-{arch}.path", _MAX_TEXT)
        text = configured or b"/lib:/usr/local/lib:/usr/lib"
        yield from text.decode("utf-8", "replace").replace(":", "\n").split()
        return
    for directory in ("lib", "usr/lib", "lib64", "usr/lib64", interpreter.rpartition("/")[0]):
        yield directory
        yield from (f"{directory}/{name}" for name in lookup.names(root, directory) if "-linux-" in name)


def _check_inittab(findings: Findings, judged: _Root) -> None:
    """busybox init without an inittab, or one with nothing for sysinit, runs nothing of OpenRC's."""
    findings.inputs.add(INITTAB)
    text = lookup.read(judged.fd, INITTAB, _MAX_TEXT)
    if not text:
        findings.fail("inittab-missing", f"{INITTAB} is missing or empty")
        return
    lines = [line.split(":", 3) for line in text.decode("utf-8", "surrogateescape").splitlines() if line[:1] != "#"]
    early = [fields for fields in lines if len(fields) == 4 and fields[2] in _EARLY and fields[3].strip()]
    if not any(fields[2] == "sysinit" for fields in early):
        findings.fail("inittab-sysinit", f"{INITTAB} has no line for sysinit: init would start nothing")
    for path in dict.fromkeys(fields[3].split()[0] for fields in early):
        if path.startswith("/"):
            found = Findings()
            _check_program(found, judged, path, "inittab")
            for failure in found.failures:
                findings.fail("inittab-program", f"{failure.message} ({INITTAB} runs it)")
            found.failures.clear()
            findings.add(found)


def _check_runlevels(findings: Findings, root: int) -> None:
    """OpenRC with empty runlevels mounts nothing and starts nothing (they are empty after apk --initdb)."""
    for level in ("sysinit", "boot"):
        directory = f"{_RUNLEVELS}/{level}"
        findings.inputs.add(directory)
        services = lookup.names(root, directory)
        if not services:
            findings.fail("runlevel-empty", f"{directory} is empty: OpenRC would start nothing")
        elif level == "sysinit" and not {"devfs", "mdev", "udev"} & set(services):
            findings.warn("runlevel-devices", f"{directory} has none of devfs, mdev and udev")
        dangling = [service for service in services if not _is_service(findings, root, f"{directory}/{service}")]
        if services and dangling == services:
            findings.fail("runlevel-empty", f"all of {directory} leads nowhere: OpenRC would start nothing")
        for service in dangling:
            findings.warn("runlevel-dangling", f"{directory}/{service} leads nowhere")


def _is_service(findings: Findings, root: int, path: str) -> bool:
    return _found(findings, root, path) is not None and lookup.is_file(root, path)
