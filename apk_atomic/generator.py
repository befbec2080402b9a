"""Generators of initramfs images: which one a root has, what it reads, how it is called.

Facts: mkinitfs takes the release as operand (`uname -r` is the running kernel's), `-k` means "keep the
temporary directory", and exit 0 proves nothing. This module runs nothing and writes nothing.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from apk_atomic import lookup

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_CONFIG = 1 << 20
_YES = frozenset({"yes", "YES", "true", "TRUE", "1"})  # what mkinitfs.trigger takes for it
MKINITFS_CONFIG = "etc/mkinitfs/mkinitfs.conf"


class GeneratorKind(StrEnum):
    MKINITFS = "mkinitfs"
    DRACUT = "dracut"
    BOOSTER = "booster"
    CONFIGURED = "configured"


class Generator(NamedTuple):
    """`argv` is the program, as an absolute path in the root, or the configured command. `inputs` are the
    files, and directories with all in them, that decide what it makes."""

    kind: GeneratorKind
    argv: tuple[str, ...]
    inputs: tuple[str, ...] = ()

    @property
    def copies_files(self) -> bool:
        """Whether members of its images are the root's files as they are: others strip or unpack modules."""
        return self.kind is GeneratorKind.MKINITFS

    def image_name(self, flavor: str) -> str:
        """Where its package's trigger puts the image of `flavor` (Alpine's mkinitfs, dracut, booster)."""
        prefix = self.kind if self.kind in (GeneratorKind.DRACUT, GeneratorKind.BOOSTER) else "initramfs"
        return f"boot/{prefix}-{flavor}"


_KNOWN = (
    (GeneratorKind.MKINITFS, ("sbin/mkinitfs", "usr/sbin/mkinitfs"), ("etc/mkinitfs", "usr/share/mkinitfs")),
    (GeneratorKind.DRACUT, ("usr/bin/dracut", "usr/sbin/dracut"),
     ("etc/dracut.conf", "etc/dracut.conf.d", "usr/lib/dracut")),
    (GeneratorKind.BOOSTER, ("usr/bin/booster", "usr/sbin/booster"), ("etc/booster.yaml", "usr/lib/booster")),
)  # fmt: skip


def find_generator(root: int, configured: Sequence[str] = ()) -> Generator | None:
    """The generator of a root: the configured command, else the first of mkinitfs, dracut and booster that is
    there; None when none is. A configured word that is no path is the kind to look for."""
    kinds = tuple(kind for kind, _, _ in _KNOWN if tuple(configured) in ((), (str(kind),)))
    if not kinds:
        return Generator(GeneratorKind.CONFIGURED, tuple(configured), (configured[0].lstrip("/"),))
    for kind, programs, inputs in _KNOWN:
        if kind not in kinds:
            continue
        program = next((path for path in programs if lookup.is_file(root, path)), None)
        if program is not None:
            return Generator(kind, (f"/{program}",), (program, *inputs))
    return None


def trigger_disabled(root: int, generator: Generator | None) -> bool:
    """Whether mkinitfs.conf says disable_trigger=yes: images are then somebody else's (a UKI hook's)."""
    if generator is not None and generator.kind is not GeneratorKind.MKINITFS:
        return False
    text = (lookup.read(root, MKINITFS_CONFIG, _MAX_CONFIG) or b"").decode("utf-8", "replace")
    value = ""
    for line in text.splitlines():
        name, equals, rest = line.strip().partition("=")
        if equals and name == "disable_trigger":
            value = rest.partition("#")[0].strip().strip("\"'")
    return value in _YES


def command(generator: Generator, flavor: str, release: str, output: str) -> list[str]:
    """The command, to be run in the root, that makes the image `output` (relative to the root) for `release`.

    In a configured command {release}, {output} and {flavor} are replaced; where none of them is, release and
    output are appended. The product must be parsed: exit 0 proves nothing.
    """
    path = "/" + output.lstrip("/")
    if generator.kind is GeneratorKind.MKINITFS:
        return [*generator.argv, "-o", path, release]
    if generator.kind is GeneratorKind.DRACUT:
        return [*generator.argv, "--force", path, release]
    if generator.kind is GeneratorKind.BOOSTER:
        return [*generator.argv, "build", "--force", "--kernel-version", release, path]
    values = {"{release}": release, "{output}": path, "{flavor}": flavor}
    words = [_filled(word, values) for word in generator.argv]
    return words if words != list(generator.argv) else [*words, release, path]


def flavor_of(release: str) -> str:
    """6.18.44-0-lts → lts: what Alpine's `${REL##*[0-9]-}` gives."""
    parts = release.split("-")
    last = max((index for index, part in enumerate(parts[:-1]) if part[-1:].isdigit()), default=-1)
    return "-".join(parts[last + 1 :])


def _filled(word: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        word = word.replace(name, value)
    return word
