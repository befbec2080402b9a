"""A python3 for a test's root tree: this interpreter, a trimmed standard library, the libraries we depend on.

The pure part of the standard library is one uncompressed archive of compiled modules: few files, quick to
start from, and a sealed root could not write its __pycache__ anyway.
"""

from __future__ import annotations

import compileall
import importlib.metadata
import os
import py_compile
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.binaries import add_binary, interpreter

LIBRARIES = ("sh", "filelock", "tomli")
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
UNCHECKED = py_compile.PycInvalidationMode.UNCHECKED_HASH

# What neither we, nor the three libraries, nor the stand-in for apk import.
UNUSED_PACKAGES = frozenset({
    "__pycache__", "site-packages", "dist-packages", "lib-dynload", "test", "tests", "idlelib", "lib2to3",
    "ensurepip", "tkinter", "turtledemo", "distutils", "pydoc_data", "unittest", "xmlrpc", "wsgiref",
    "curses", "dbm", "sqlite3", "venv", "html", "msilib",
})  # fmt: skip
UNUSED_MODULES = frozenset({
    "turtle.py", "pydoc.py", "doctest.py", "pdb.py", "antigravity.py", "this.py", "nntplib.py", "imaplib.py",
    "smtplib.py", "poplib.py", "telnetlib.py", "ftplib.py", "mailbox.py", "cgi.py", "pickletools.py",
})  # fmt: skip
UNUSED_EXTENSIONS = (
    "_test", "_xx", "xx", "_tkinter", "_curses", "_dbm", "_gdbm", "_sqlite3", "readline", "_codecs_",
    "audioop", "_ssl", "_hashlib", "pyexpat", "_elementtree", "_decimal", "unicodedata", "ossaudiodev", "nis",
    "_crypt", "_multibytecodec", "spwd",
)  # fmt: skip
ENCODINGS = (
    "__init__", "aliases", "ascii", "utf_", "latin_1", "cp437", "idna", "punycode", "raw_", "unicode_",
)  # fmt: skip


def python_inputs() -> Iterator[str]:
    """What the python of a tree is made of, for a cache's key."""
    yield Path(__file__).read_text()
    yield f"{sys.version} {interpreter()}"
    yield from (f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)


def add_python(root: Path) -> None:
    """Put /usr/bin/python3 with its library, and sh, filelock and tomli, into `root`."""
    add_binary(root, interpreter(), "usr/bin/python3")
    stdlib = Path(sysconfig.get_path("stdlib"))
    _zip_stdlib(stdlib, root / f"usr/lib/python{VERSION.replace('.', '')}.zip")
    for module in sorted((stdlib / "lib-dynload").glob("*.so")):
        if not module.name.startswith(UNUSED_EXTENSIONS):
            add_binary(root, module, f"usr/lib/python{VERSION}/lib-dynload/{module.name}")
    _add_libraries(root)


def site_packages(root: Path) -> Path:
    """Where the interpreter of the tree looks for packages (Debian's own differs from upstream's)."""
    question = "import site; print(site.getsitepackages()[0])"
    command = ["chroot", str(root), "/usr/bin/python3", "-I", "-c", question]
    site = root / subprocess.check_output(command, text=True).strip().lstrip("/")
    site.mkdir(parents=True, exist_ok=True)
    return site


def compile_modules(directory: Path, root: Path) -> None:
    """Compile what lies below `directory`, for the place it has in `root`; a module that does not compile fails
    whoever imports it."""
    compileall.compile_dir(
        directory, quiet=2, invalidation_mode=UNCHECKED, stripdir=str(root), prependdir="/", workers=1
    )


def _add_libraries(root: Path) -> None:
    """The three libraries, file by file as their installer recorded them."""
    site = site_packages(root)
    for name in LIBRARIES:
        for entry in importlib.metadata.files(name) or ():
            wanted = entry.suffix in (".py", ".so") or entry.name == "METADATA"
            if wanted and ".." not in entry.parts:
                add_binary(root, Path(str(entry.locate())), str((site / str(entry)).relative_to(root)))
    compile_modules(site, root)


def _zip_stdlib(stdlib: Path, archive: Path) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    compiled = archive.with_suffix(".pyc")
    with zipfile.ZipFile(archive, "w") as out:
        for source in _stdlib_sources(stdlib):
            name = source.relative_to(stdlib)
            shown = f"/usr/lib/python{VERSION}/{name}"
            py_compile.compile(str(source), str(compiled), shown, doraise=True, invalidation_mode=UNCHECKED)
            out.write(compiled, name.with_suffix(".pyc"))
    compiled.unlink()


def _stdlib_sources(stdlib: Path) -> Iterator[Path]:
    for directory, directories, names in os.walk(stdlib):
        kept = (name for name in directories if name not in UNUSED_PACKAGES)
        directories[:] = sorted(name for name in kept if not name.startswith("config-"))
        prefixes = ENCODINGS if os.path.basename(directory) == "encodings" else ("",)
        for name in sorted(names):
            if name.endswith(".py") and name not in UNUSED_MODULES and name.startswith(prefixes):
                yield Path(directory, name)
