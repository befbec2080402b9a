"""A small root tree that runs by itself: busybox, python3, apk and the installed apk-atomic.

Everything in it is copied from this machine (static busybox, the interpreter that runs the tests, the three
libraries) or made on the spot. It knows nothing of volumes or generations: it fills a directory. The mere
content decides what an image of it is good for, so `inputs()` names all that goes in.
"""

from __future__ import annotations

import compileall
import importlib.metadata
import os
import py_compile
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.isolation import KEY_NAME, public_key

PROJECT = Path(__file__).resolve().parents[2]
LIBRARIES = ("sh", "filelock", "tomli")
REPOSITORY = "/var/cache/repo"
CLEAN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"

# Parts of the standard library that neither we, nor the three libraries, nor the stand-in import.
UNUSED_PACKAGES = frozenset({
    "__pycache__", "site-packages", "dist-packages", "lib-dynload", "test", "tests", "idlelib", "lib2to3",
    "ensurepip", "tkinter", "turtledemo", "distutils", "pydoc_data", "unittest", "xmlrpc", "wsgiref", "curses",
    "dbm", "sqlite3", "venv", "html", "msilib",
})  # fmt: skip
UNUSED_MODULES = frozenset({
    "turtle.py", "pydoc.py", "doctest.py", "pdb.py", "antigravity.py", "this.py", "nntplib.py", "imaplib.py",
    "smtplib.py", "poplib.py", "telnetlib.py", "ftplib.py", "mailbox.py", "cgi.py", "pickletools.py", "aifc.py",
})  # fmt: skip
UNUSED_EXTENSIONS = (
    "_test", "_xxtest", "xx", "_tkinter", "_curses", "_dbm", "_gdbm", "_sqlite3", "readline", "_codecs_", "audioop",
    "_ssl", "_hashlib", "pyexpat", "_elementtree", "_decimal", "unicodedata", "ossaudiodev", "nis", "_crypt",
    "_multibytecodec", "_xxsub", "spwd", "termios_",
)  # fmt: skip
ENCODINGS = (
    "__init__",
    "aliases",
    "ascii",
    "utf_",
    "latin_1",
    "cp437",
    "idna",
    "punycode",
    "raw_",
    "unicode_",
)

DIRECTORIES = (
    "bin", "sbin", "lib/apk/db", "lib/apk/exec", "lib/modules", "usr/bin", "usr/sbin", "usr/lib", "usr/local/bin", "etc/apk/keys",
    "etc/apk/protected_paths.d", "etc/init.d", "etc/runlevels/default", "etc/runlevels/sysinit", "home", "root",
    "boot", "mnt", "media", "proc", "sys", "dev", "run", "tmp", "opt", "srv", "var/cache", "var/log", "var/lib",
    "var/tmp", "var/empty", "usr/share",
)  # fmt: skip
TEXTS = {
    "etc/passwd": (
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n"
        "user:x:1000:1000:user:/home/user:/bin/sh\n"
    ),
    "etc/group": "root:x:0:root\ntty:x:5:\nwheel:x:10:root\nnogroup:x:65533:\nuser:x:1000:\n",
    "etc/inittab": "::sysinit:/sbin/openrc sysinit\n::ctrlaltdel:/sbin/reboot\n::shutdown:/sbin/openrc shutdown\n",
    "etc/hosts": "127.0.0.1\tlocalhost localhost.localdomain\n::1\t\tlocalhost localhost.localdomain\n",
    "etc/hostname": "world\n",
    "etc/resolv.conf": "nameserver 127.0.0.1\n",
    "etc/profile": 'export PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"\n',
    "etc/shells": "/bin/sh\n/bin/ash\n",
    "etc/os-release": 'NAME="Alpine Linux"\nID=alpine\nVERSION_ID=3.99.0\nPRETTY_NAME="Alpine Linux of the tests"\n',
    "etc/apk/repositories": f"{REPOSITORY}\n",
    "etc/fstab": "",
}


def busybox() -> Path:
    """This machine's static busybox (Debian: package busybox-static; Alpine: busybox-static)."""
    for name in ("/bin/busybox.static", "/bin/busybox", "/usr/bin/busybox"):
        if os.access(name, os.X_OK) and not _needed_libraries(Path(name)):
            return Path(name)
    raise FileNotFoundError("no static busybox: install the package busybox-static")


def base_inputs() -> Iterator[str | bytes]:
    """What the tree without apk-atomic is made of."""
    yield Path(__file__).read_bytes()
    yield sys.version
    for path in (busybox(), interpreter(), *_apk_files()):
        status = path.stat()
        yield f"{path} {status.st_size} {status.st_mtime_ns}"
    yield from (f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)
    yield public_key()


def project_inputs() -> Iterator[str | bytes]:
    """What is installed of the project."""
    for path in _project_files():
        yield str(path.relative_to(PROJECT))
        yield path.read_bytes()


def interpreter() -> Path:
    """The real binary of the Python that runs the tests, not the virtual environment's link to it."""
    return Path(getattr(sys, "_base_executable", sys.executable)).resolve()


def fill_base(root: Path) -> None:
    """Fill the empty directory `root` with everything but the project."""
    for name in DIRECTORIES:
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("tmp", "var/tmp"):
        (root / name).chmod(0o1777)
    (root / "root").chmod(0o700)
    for name, text in TEXTS.items():
        (root / name).write_text(text)
    (root / "etc/apk/arch").write_text(f"{os.uname().machine}\n")
    (root / "etc/apk/keys" / KEY_NAME).write_bytes(public_key())
    _add_busybox(root)
    _add_python(root)
    _add_libraries(root)
    _add_apk(root)


def install_project(root: Path) -> None:
    """Install apk-atomic into a tree that `fill_base` made."""
    site = _site_packages(root)
    shutil.copytree(PROJECT / "apk_atomic", site / "apk_atomic", ignore=shutil.ignore_patterns("__pycache__"))
    front = PROJECT / "apk_atomic/front.py"
    if front.exists():
        command = root / "usr/bin/apk-atomic"
        command.write_text("#!/usr/bin/python3 -I\n" + front.read_text())
        command.chmod(0o755)
    _compile(site / "apk_atomic")


def _project_files() -> list[Path]:
    return sorted(
        path for path in (PROJECT / "apk_atomic").rglob("*") if path.is_file() and path.suffix != ".pyc"
    )


def _add_busybox(root: Path) -> None:
    binary = busybox()
    shutil.copy2(binary, root / "bin/busybox")
    listing = subprocess.run([binary, "--list-full"], check=True, capture_output=True, text=True).stdout
    for name in listing.split():
        link = root / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(link):
            link.symlink_to("/bin/busybox")
    if not os.path.lexists(root / "sbin/init"):
        (root / "sbin/init").symlink_to("/bin/busybox")


def _add_python(root: Path) -> None:
    _add_binary(root, interpreter(), "usr/bin/python3")
    stdlib = Path(sysconfig.get_path("stdlib"))
    target = root / "usr/lib" / f"python{VERSION}"
    (target / "lib-dynload").mkdir(parents=True)
    (target / "site-packages").mkdir()
    _zip_stdlib(stdlib, root / "usr/lib" / f"python{VERSION.replace('.', '')}.zip")
    for module in (stdlib / "lib-dynload").glob("*.so"):
        if not module.name.startswith(UNUSED_EXTENSIONS):
            _add_binary(root, module, str((target / "lib-dynload" / module.name).relative_to(root)))


def _zip_stdlib(stdlib: Path, archive: Path) -> None:
    """One uncompressed archive of unchecked .pyc files, which is quicker to start from than 500 sources."""
    with zipfile.ZipFile(archive, "w") as out:
        for source in _stdlib_sources(stdlib):
            name = source.relative_to(stdlib)
            compiled = archive.with_suffix(".pyc")
            py_compile.compile(
                str(source), str(compiled), f"/usr/lib/python{VERSION}/{name}", doraise=True,
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )  # fmt: skip
            out.write(compiled, name.with_suffix(".pyc"))
            compiled.unlink()


def _stdlib_sources(stdlib: Path) -> Iterator[Path]:
    for directory, directories, names in os.walk(stdlib):
        directories[:] = sorted(
            name for name in directories if name not in UNUSED_PACKAGES and not name.startswith("config-")
        )
        inside_encodings = os.path.basename(directory) == "encodings"
        for name in sorted(names):
            if not name.endswith(".py") or name in UNUSED_MODULES:
                continue
            if inside_encodings and not name.startswith(ENCODINGS):
                continue
            yield Path(directory, name)


def _add_libraries(root: Path) -> None:
    """The three libraries, file by file as their installer recorded them."""
    site = _site_packages(root)
    for name in LIBRARIES:
        for entry in importlib.metadata.distribution(name).files or ():
            wanted = entry.suffix in (".py", ".so") or entry.name == "METADATA"
            if wanted and ".." not in entry.parts:
                target = site / str(entry)
                _add_binary(root, Path(entry.locate()), str(target.relative_to(root)))
    _compile(site)


def _site_packages(root: Path) -> Path:
    """Where the interpreter of the tree looks for installed packages (Debian's own differs from upstream's)."""
    command = [
        "chroot",
        root,
        "/usr/bin/python3",
        "-I",
        "-c",
        "import site; print(site.getsitepackages()[0])",
    ]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, env=CLEAN).stdout.strip()
    site = root / answer.lstrip("/")
    site.mkdir(parents=True, exist_ok=True)
    return site


def _compile(directory: Path) -> None:
    """A sealed root cannot write its __pycache__: what is not compiled now is compiled at every start."""
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    if not compileall.compile_dir(directory, quiet=1, invalidation_mode=mode, stripdir=str(directory)):
        raise RuntimeError(f"{directory} does not compile")


def _apk_files() -> list[Path]:
    choices = [os.environ.get("APK", ""), "/sbin/apk", str(PROJECT / "tests/support/standin/apk")]
    return [Path(choice) for choice in choices if choice and os.access(choice, os.X_OK)][:1]


def _add_apk(root: Path) -> None:
    """Put the apk into the tree and let it make the empty database."""
    for source in _apk_files():
        _add_binary(root, source, "sbin/apk")
    if not _apk_files():
        for name in ("world", "arch"):
            (root / "etc/apk" / name).touch()
        for name in ("installed", "triggers", "lock"):
            (root / "lib/apk/db" / name).touch()
        return
    (root / "etc/apk/world").touch()
    subprocess.run(
        ["chroot", root, "/sbin/apk", "add", "--initdb", "--no-network"], check=True, stdout=subprocess.DEVNULL,
        env=CLEAN,
    )  # fmt: skip


def _add_binary(root: Path, source: Path, target: str) -> None:
    """Copy a program or shared object with the libraries that it loads; drop its debug information."""
    destination = root / target
    destination.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source.resolve(), destination)
    _strip(destination)
    for library in _needed_libraries(source):
        place = root / _library_place(library).lstrip("/")
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(library.resolve(), place)
            _strip(place)


def _library_place(library: Path) -> str:
    """The loader stays where programs name it; the rest goes beside libc, where the loader looks by default."""
    if library.name.startswith("ld-"):
        return str(library)
    return str(_libc_directory() / library.name)


def _libc_directory() -> Path:
    for library in _needed_libraries(interpreter()):
        if library.name.startswith(("libc.", "libc-", "ld-musl")):
            return library.parent
    raise FileNotFoundError("the interpreter has no libc")


def _needed_libraries(binary: Path) -> list[Path]:
    """The closure of shared libraries, the loader among them; empty for static programs and scripts."""
    done = subprocess.run(["ldd", binary], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        return []
    words = (word for line in done.stdout.splitlines() for word in line.split())
    return [Path(word) for word in words if word.startswith("/") and os.path.exists(word)]


def _strip(path: Path) -> None:
    tool = shutil.which("strip")
    if tool and ".so" in path.name:
        subprocess.run([tool, "--strip-unneeded", path], check=True, stderr=subprocess.DEVNULL)
