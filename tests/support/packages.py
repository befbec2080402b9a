"""A maker of apk packages and repositories: version 2 of the format, which apk 2.14 and 3 both read.

    repository = Repository(path)                        # files land in PATH/ARCH
    repository.publish(
        Package("hello", "1.0-r0", files={"usr/bin/hello": File(b"#!/bin/sh\\n", 0o755)}),
        Package("world", "1.0-r0", depends=("hello",), scripts={"post-install": "#!/bin/sh\\nexit 0\\n"}),
    )                                                    # then: apk -X PATH --allow-untrusted add world

With `Repository(path, key=keys.make_key_pair(directory))` packages and index are signed.

A .apk file is two gzip streams (three when signed) that together are one tar archive: [signature,]
control, data. Only the last one has the end-of-archive blocks. The same input gives the same bytes.
Knows nothing of apk-atomic; nothing here is made durable.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tests.support.keys import KeyPair

SCRIPT_NAMES = (
    "pre-install", "post-install", "pre-upgrade", "post-upgrade", "pre-deinstall", "post-deinstall",
    "trigger",
)  # fmt: skip
BUILD_TIME = 1_700_000_000
MAINTAINER = "Test <test@localhost>"
_BLOCK = 512
_APK_ARCHES = {"armv7l": "armv7", "armv6l": "armhf", "i686": "x86", "i586": "x86"}


def machine_arch() -> str:
    """The architecture of this machine by apk's name for it."""
    machine = os.uname().machine
    return _APK_ARCHES.get(machine, machine)


@dataclass(frozen=True, slots=True)
class File:
    """A regular file of a package."""

    content: bytes = b""
    mode: int = 0o644
    owner: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Symlink:
    """A symbolic link of a package."""

    target: str


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory whose mode matters, or that is empty; parents of files need no mention."""

    mode: int = 0o755


Entry = File | Symlink | Directory


@dataclass(frozen=True, slots=True)
class Package:
    """What a package is to hold. `arch` "" is the repository's.

    apk neither unpacks a package of installed size zero nor runs its scripts, and loses the flags of one
    without any entry (2.14 even gives them to the next package). So the size is at least 1 and the directory
    `usr` is in it, unless `meta` says that exactly such a package is wanted. `builddate` tells two builds
    of one version apart, as `rebuilt` in a package diff.
    """

    name: str
    version: str = "1.0-r0"
    files: Mapping[str, Entry] = field(default_factory=dict)
    scripts: Mapping[str, str] = field(default_factory=dict)
    depends: tuple[str, ...] = ()
    provides: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()
    install_if: tuple[str, ...] = ()
    triggers: tuple[str, ...] = ()
    description: str = ""
    origin: str = ""
    arch: str = ""
    provider_priority: int = 0
    builddate: int = BUILD_TIME
    meta: bool = False

    def __post_init__(self) -> None:
        unknown = set(self.scripts) - set(SCRIPT_NAMES)
        if unknown:
            raise ValueError(f"{self.name}: unknown scripts: {', '.join(sorted(unknown))}")

    @property
    def filename(self) -> str:
        return f"{self.name}-{self.version}.apk"

    @property
    def installed_size(self) -> int:
        if self.meta:
            return 0
        return max(1, sum(len(entry.content) for entry in self.files.values() if isinstance(entry, File)))


@dataclass(frozen=True, slots=True)
class Built:
    """The bytes of a .apk file and its record for an index."""

    package: Package
    blob: bytes
    record: str


def build(package: Package, arch: str, key: KeyPair | None = None) -> Built:
    """Make the .apk file of `package`, signed when a key is given."""
    arch = package.arch or arch
    data = _gzip(_data(package) + b"\0" * (2 * _BLOCK))
    control = _gzip(_control(package, arch, hashlib.sha256(data).hexdigest()))
    blob = control + data
    if key is not None:
        blob = _signature(key, control) + blob
    return Built(package, blob, _record(package, arch, control, len(blob)))


def write_package(package: Package, directory: str | os.PathLike[str], arch: str = "") -> str:
    """Write the .apk file of `package` by itself, outside any repository; returns its path."""
    path = os.path.join(directory, package.filename)
    _write(path, build(package, arch or machine_arch()).blob)
    return path


class Repository:
    """A directory of .apk files with their index, as `apk -X PATH` wants it."""

    def __init__(self, path: str | os.PathLike[str], arch: str = "", *, key: KeyPair | None = None) -> None:
        self.path = os.fspath(path)
        self.arch = arch or machine_arch()
        self.key = key
        self._built: dict[tuple[str, str], Built] = {}
        self.directory = os.path.join(self.path, self.arch)
        os.makedirs(self.directory, exist_ok=True)

    def file_of(self, package: Package) -> str:
        """The path of the package's .apk file."""
        return os.path.join(self.directory, package.filename)

    def add(self, *packages: Package) -> None:
        """Write the .apk files; the index lists them after the next `write_index`."""
        for package in packages:
            built = build(package, self.arch, self.key)
            self._built[package.name, package.version] = built
            _write(self.file_of(package), built.blob)

    def drop(self, name: str, version: str = "") -> None:
        """Forget one version of a package, or all, and remove the files; `write_index` comes after."""
        gone = [key for key in self._built if key[0] == name and version in ("", key[1])]
        if not gone:
            raise KeyError(name)
        for key in gone:
            os.unlink(self.file_of(self._built.pop(key).package))

    def write_index(self) -> str:
        """Write APKINDEX.tar.gz in one rename; returns its path."""
        records = "".join(built.record for built in self._built.values())
        raw = _member("DESCRIPTION", b"test") + _member("APKINDEX", records.encode())
        blob = _gzip(raw + b"\0" * (2 * _BLOCK))
        if self.key is not None:
            blob = _signature(self.key, blob) + blob
        path = os.path.join(self.directory, "APKINDEX.tar.gz")
        _write(path, blob)
        return path

    def publish(self, *packages: Package) -> None:
        """Add the packages and write the index."""
        self.add(*packages)
        self.write_index()


def _write(path: str, blob: bytes) -> None:
    """Replace a file whole, so that an apk that reads it meanwhile sees the old or the new one."""
    with open(path + ".part", "wb") as out:
        out.write(blob)
    os.replace(path + ".part", path)


def _gzip(raw: bytes) -> bytes:
    return gzip.compress(raw, mtime=0)


def _member(name: str, data: bytes = b"", *, info: tarfile.TarInfo | None = None, sha1: str = "") -> bytes:
    """One tar member: headers, body, padding."""
    info = info or tarfile.TarInfo(name)
    info.name, info.size = name, len(data)
    info.uname = info.gname = "root" if (info.uid, info.gid) == (0, 0) else ""
    if sha1:
        info.pax_headers = {"APK-TOOLS.checksum.SHA1": sha1}
    head = info.tobuf(format=tarfile.PAX_FORMAT if sha1 else tarfile.USTAR_FORMAT)
    return head + data + b"\0" * (-len(data) % _BLOCK)


def _info(package: Package, kind: bytes, mode: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.mode, info.mtime = kind, mode, package.builddate
    return info


def _signature(key: KeyPair, payload: bytes) -> bytes:
    return _gzip(_member(f".SIGN.RSA.{key.name}", key.sign(payload)))


def _with_parents(package: Package) -> Iterator[tuple[str, Entry]]:
    """Every entry, each directory before what lies in it: apk refuses a file without its directory."""
    files = package.files
    entries: dict[str, Entry] = {} if files or package.meta else {"usr": Directory()}
    for path in files:
        parts = path.split("/")
        for depth in range(1, len(parts)):
            entries.setdefault("/".join(parts[:depth]), Directory())
    yield from sorted({**entries, **files}.items())


def _data(package: Package) -> bytes:
    """The tar members of the data stream, without the end of the archive."""
    members = []
    for path, entry in _with_parents(package):
        match entry:
            case Directory(mode):
                members.append(_member(path + "/", info=_info(package, tarfile.DIRTYPE, mode)))
            case Symlink(target):
                info = _info(package, tarfile.SYMTYPE, 0o777)
                info.linkname = target
                members.append(_member(path, info=info, sha1=hashlib.sha1(target.encode()).hexdigest()))
            case File(content, mode, owner):
                info = _info(package, tarfile.REGTYPE, mode)
                info.uid, info.gid = owner
                members.append(_member(path, content, info=info, sha1=hashlib.sha1(content).hexdigest()))
    return b"".join(members)


def _control(package: Package, arch: str, data_hash: str) -> bytes:
    """The tar members of the control stream: .PKGINFO first, then the scripts."""
    text = "".join(f"{key} = {value}\n" for key, value in _pkginfo(package, arch, data_hash))
    members = [_member(".PKGINFO", text.encode(), info=_info(package, tarfile.REGTYPE, 0o644))]
    for name in SCRIPT_NAMES:
        if name in package.scripts:
            info = _info(package, tarfile.REGTYPE, 0o755)
            members.append(_member("." + name, package.scripts[name].encode(), info=info))
    return b"".join(members)


def _pkginfo(package: Package, arch: str, data_hash: str) -> Iterator[tuple[str, str]]:
    yield "pkgname", package.name
    yield "pkgver", package.version
    yield "pkgdesc", package.description or f"test package {package.name}"
    yield "url", "http://localhost/"
    yield "builddate", str(package.builddate)
    yield "packager", MAINTAINER
    yield "size", str(package.installed_size)
    yield "arch", arch
    yield "origin", package.origin or package.name
    yield "maintainer", MAINTAINER
    yield "license", "MIT"
    if package.provider_priority:
        yield "provider_priority", str(package.provider_priority)
    lists = (("depend", package.depends), ("provides", package.provides), ("replaces", package.replaces))
    for key, values in lists:
        yield from ((key, value) for value in values)  # one line each
    for key, values in (("install_if", package.install_if), ("triggers", package.triggers)):
        if values:
            yield key, " ".join(values)  # all on one line
    yield "datahash", data_hash


def _record(package: Package, arch: str, control: bytes, file_size: int) -> str:
    """The package's record in an index, up to and with the empty line that ends it."""
    fields = [
        ("C", "Q1" + base64.b64encode(hashlib.sha1(control).digest()).decode()),
        ("P", package.name),
        ("V", package.version),
        ("A", arch),
        ("S", str(file_size)),
        ("I", str(package.installed_size)),
        ("T", package.description or f"test package {package.name}"),
        ("U", "http://localhost/"),
        ("L", "MIT"),
        ("o", package.origin or package.name),
        ("m", MAINTAINER),
        ("t", str(package.builddate)),
        ("k", str(package.provider_priority or "")),
        ("D", " ".join(package.depends)),
        ("p", " ".join(package.provides)),
        ("i", " ".join(package.install_if)),
    ]
    return "".join(f"{key}:{value}\n" for key, value in fields if value) + "\n"
