"""The boot loader's own files: rEFInd with its btrfs driver from a package, a folder or the official archive, or GRUB.

It finds and reads them, or has GRUB's tool make its image. It must not know where they are put, nor what the menu says.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from apk_atomic import process
from apk_atomic.bootmenu import Loader
from apk_atomic.errors import CannotRun, UsageError
from apk_atomic.signals import Signals

DIRECTORY = "EFI/apk-atomic"
REFIND = "usr/share/refind"
_ARCHES = {"x86_64": "x64", "aarch64": "aa64"}  # uname -m: what UEFI calls it
_GRUB_FORMATS = {"x86_64": "x86_64-efi", "aarch64": "arm64-efi"}
_GRUB_MODULES = (
    "normal", "configfile", "search", "search_fs_uuid", "part_gpt", "part_msdos", "fat", "btrfs", "linux", "echo", "ls",
    "cat", "test", "true", "reboot", "halt", "all_video", "gzio",
)  # fmt: skip
_LARGEST = 1 << 24  # bytes of one file

_Reader = Callable[[str], bytes | None]


@dataclass(frozen=True, slots=True)
class LoaderFiles:
    """`program` is what the firmware starts; `beside` are further files, all relative to the loader's directory.

    `config` is the name of the menu's file. `own_directory`: the loader reads all of that from the directory that it
    was started from, wherever that is; else from DIRECTORY.
    """

    program: str
    content: bytes
    beside: tuple[tuple[str, bytes], ...]
    config: str
    own_directory: bool


@dataclass(frozen=True, slots=True)
class Names:
    """Of the files of `LoaderFiles`, without their content."""

    program: str
    beside: tuple[str, ...]
    config: str
    own_directory: bool


def names_of(loader: Loader) -> Names:
    """Under which names a loader's files lie in DIRECTORY, on this machine."""
    name = suffix()
    if loader is Loader.GRUB:
        return Names(f"grub{name}.efi", (), "grub.cfg", own_directory=False)
    return Names(f"refind_{name}.efi", (f"drivers_{name}/btrfs_{name}.efi",), "refind.conf", own_directory=True)


def suffix() -> str:
    """x64 or aa64, as in BOOTX64.EFI; UsageError on a machine whose UEFI we do not know."""
    machine = os.uname().machine
    if machine not in _ARCHES:
        raise UsageError(f"no boot loader is known for {machine}")
    return _ARCHES[machine]


def fallback_program() -> str:
    """What firmware starts from a disk that it has no entry for."""
    return f"EFI/BOOT/BOOT{suffix().upper()}.EFI"


def find(loader: Loader, places: Iterable[str], signals: Signals) -> LoaderFiles:
    """The files of a loader; `places` are where rEFInd may be, the first that has it counts.

    Raises UsageError, with what to type, where there is none.
    """
    if loader is Loader.GRUB:
        return _make_grub(signals)
    tried = []
    for place in places:
        tried.append(place)
        if os.path.exists(place) and (found := _read_refind(place)):
            return found
    raise UsageError(
        f"rEFInd with its btrfs driver is not in {' nor in '.join(tried) or 'any place'}",
        hint="apk add refind (repository testing), or --refind with the folder or archive of a binary release",
    )


def _read_refind(place: str) -> LoaderFiles | None:
    names = names_of(Loader.REFIND)
    program, (inside,) = names.program, names.beside
    directory, _, driver = inside.partition("/")
    directories = (directory, f"drivers_{os.uname().machine}")  # upstream's and Debian's; Alpine's
    with _reader(place) as read:
        for base in ("", "refind/"):
            content = read(base + program)
            found = next(filter(None, (read(f"{base}{each}/{driver}") for each in directories)), None)
            if content and found:
                return LoaderFiles(program, content, ((inside, found),), names.config, names.own_directory)
    return None


@contextmanager
def _reader(place: str) -> Iterator[_Reader]:
    """Reads files of a folder, or of an archive, where they are below one more directory."""
    if os.path.isdir(place):
        yield lambda path: _read_file(f"{place}/{path}")
        return
    import zipfile

    try:
        with zipfile.ZipFile(place) as archive:
            names = archive.namelist()

            def read(path: str) -> bytes | None:
                name = next((name for name in names if name == path or name.partition("/")[2] == path), None)
                fits = name is not None and archive.getinfo(name).file_size <= _LARGEST
                return archive.read(name) if name is not None and fits else None

            yield read
    except (OSError, zipfile.BadZipFile) as error:
        raise UsageError(f"{place} is neither a folder nor an archive of rEFInd: {error}") from error


def _read_file(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read(_LARGEST)
    except OSError:
        return None


def _make_grub(signals: Signals) -> LoaderFiles:
    """GRUB's image with its modules inside; its prefix is our directory of the partition that it is started from."""
    names = names_of(Loader.GRUB)
    program = names.program
    with tempfile.TemporaryDirectory(prefix="apk-atomic-") as place:
        argv = [
            "grub-mkimage", "--format", _GRUB_FORMATS[os.uname().machine], "--prefix", f"/{DIRECTORY}",
            "--output", f"{place}/{program}", *_GRUB_MODULES,
        ]  # fmt: skip
        try:
            done = process.run(argv, signals)
        except CannotRun as error:
            raise UsageError(error.message, hint="apk add grub grub-efi") from error
        content = _read_file(f"{place}/{program}")
    if done.status or not content:
        raise UsageError(f"grub-mkimage failed: {done.output.strip()}", hint="apk add grub grub-efi")
    return LoaderFiles(program, content, (), names.config, names.own_directory)
