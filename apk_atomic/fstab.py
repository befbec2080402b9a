"""fstab as text: the template rendered, a base's own carried forward, and what to mount for a change.

Text in, text and values out: no file is opened here, nothing is mounted, and nothing is durable. Bytes
become text by `decode` and go back by `encode`, without loss whatever they are. Facts: the wiki's template
has lines like `LABEL=ROOT / btrfs subvol=CURRENT_SNAPSHOTS_PATH/@,ro,noatime 0 0`, and its scripts replace
that word by sed.
"""

from __future__ import annotations

import os.path
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from apk_atomic.errors import Refused
from apk_atomic.names import is_below

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    Predicate = Callable[[str], bool]

PLACEHOLDER = "CURRENT_SNAPSHOTS_PATH"
ESP_POINT = "/boot/efi"

_OWN_DIRECTORIES = ("snapshots", "staging", "links", "next", "current", "state")
_LEFT_TO_THE_CHANGE = ("/tmp", "/run", "/proc", "/sys", "/dev")
_KEPT_FLAGS = ("nodev", "nosuid", "noexec")
_NEVER = ("noauto", "_netdev")


def decode(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def digest(text: str) -> str:
    """SHA-256 in hex, as the record keeps it."""
    import hashlib  # costs more than all the rest of this module, and reading commands do not need it

    return hashlib.sha256(encode(text)).hexdigest()


def mountpoint(common: str) -> str:
    """Where a common is mounted: @var@log → /var/log."""
    return common.replace("@", "/")


# Entries


class Entry(NamedTuple):
    """One line, with its octal escapes (`\\040`) decoded."""

    device: str
    mountpoint: str
    fstype: str
    options: tuple[str, ...] = ("defaults",)
    dump: int = 0
    passno: int = 0

    @property
    def uuid(self) -> str | None:
        """What names the file system where that is by `UUID=`."""
        key, _, value = self.device.partition("=")
        return value.strip('"') if key == "UUID" else None

    def value(self, name: str) -> str | None:
        """What stands behind `name=`; of several the last, which is the one that counts for the kernel."""
        found = [option.partition("=")[2] for option in self.options if option.startswith(name + "=")]
        return found[-1] if found else None


def parse(text: str) -> tuple[Entry, ...]:
    """The entries in file order. Lines that are none are left out; `garbage` names them."""
    return tuple(entry for _, _, entry in _lines(text) if entry is not None)


def garbage(text: str) -> tuple[str, ...]:
    """The lines that are neither entry, comment nor blank, as `line N: …`."""
    return tuple(f"line {number}: {line}" for number, line, entry in _lines(text) if entry is None)


def root_entry(entries: Iterable[Entry]) -> Entry | None:
    """The entry of `/`; None when there is none, or more than one."""
    roots = [entry for entry in entries if _path(entry.mountpoint) == "/"]
    return roots[0] if len(roots) == 1 else None


def _lines(text: str) -> Iterator[tuple[int, str, Entry | None]]:
    for number, line in enumerate(text.split("\n"), 1):
        content = line.strip(" \t\r")
        if content and not content.startswith("#"):
            words = content.replace("\t", " ").split(" ")
            yield number, content, _entry([_unescape(word) for word in words if word])


def _entry(words: list[str]) -> Entry | None:
    if len(words) < 3 or any("\0" in word for word in words):
        return None
    absent = ("defaults", "0", "0")[len(words) - 3 :]
    device, mountpoint, fstype, options, dump, passno = [*words, *absent][:6]
    return Entry(device, mountpoint, fstype, tuple(options.split(",")), _number(dump), _number(passno))


def _number(word: str) -> int:
    return int(word) if word.isascii() and word.isdigit() and len(word) < 4 else 0


def _unescape(word: str) -> str:
    head, *parts = word.split("\\")
    return decode(b"".join([encode(head), *map(_unescaped, parts)]))


def _unescaped(part: str) -> bytes:
    """`part` followed a backslash; three octal digits are a byte, anything else stands for itself."""
    digits = part[:3]
    if len(digits) == 3 and all(digit in "01234567" for digit in digits) and digits[0] in "0123":
        return bytes([int(digits, 8)]) + encode(part[3:])
    return b"\\" + encode(part)


def _path(text: str) -> str:
    """`text` as a normal absolute path; a relative one is taken from the root, as btrfs does with subvol=."""
    return os.path.normpath("/" + text.lstrip("/"))


# The text of a new generation's etc/fstab


class Source(Enum):
    """Where the text came from."""

    TEMPLATE = "template"
    BASE = "base"


class BaseFstab(NamedTuple):
    """What base brings along.

    `text`: its etc/fstab, None where there is none; `path`: `/snapshots/ID`; the hashes are its record's
    `fstab_template` and `fstab_rendered`, '' for a foreign base or a damaged record.
    """

    text: str | None
    path: str
    template_hash: str = ""
    rendered_hash: str = ""


class Rendered(NamedTuple):
    """The text to stage, and the two hashes for the new record, '' where the volume has no template."""

    text: str
    source: Source
    template_hash: str = ""
    rendered_hash: str = ""


def render(template: str, generation_path: str) -> str:
    """The template as this generation's etc/fstab; `generation_path` is `/snapshots/ID`."""
    return template.replace(PLACEHOLDER, generation_path)


def carry_forward(base_text: str, base_path: str, new_path: str) -> str:
    """Base's own etc/fstab with base's path replaced, also where subvol= leaves out the leading slash.

    Only whole names are: the path of `a` is also the beginning of that of `ab`.
    """
    old, new = base_path.strip("/"), new_path.strip("/")
    carried, done, at = [], 0, base_text.find(old)
    while at >= 0:
        if _is_whole(base_text, at, at + len(old)):
            carried += [base_text[done:at], new]
            done = at + len(old)
        at = base_text.find(old, at + len(old))
    return "".join([*carried, base_text[done:]])


def _is_whole(text: str, start: int, end: int) -> bool:
    while start > 0 and text[start - 1] == "/":
        start -= 1
    return (start == 0 or text[start - 1] in "=, \t\n") and (end == len(text) or text[end] in "/, \t\r\n")


def decide(template: str | None, base: BaseFstab, new_path: str) -> Rendered:
    """The etc/fstab to stage (design, "fstab"); `template`: the top level's, None where there is none.

    Base's own is edited when it is not what the template of its time rendered to for it. That stays so in
    whatever is carried forward from it, since a record keeps the hash of the rendered template even where
    that was not used. Raises Refused when both were edited and do not agree, and when there is neither.
    """
    if template is None:
        if base.text is None:
            raise Refused("the volume has no fstab template and the base no etc/fstab; nothing was changed")
        return Rendered(carry_forward(base.text, base.path, new_path), Source.BASE)
    rendered = render(template, new_path)
    hashes = digest(template), digest(rendered)
    if base.text is None or base.rendered_hash in ("", digest(base.text)):
        return Rendered(rendered, Source.TEMPLATE, *hashes)
    carried = carry_forward(base.text, base.path, new_path)
    if base.template_hash == hashes[0]:
        return Rendered(carried, Source.BASE, *hashes)
    if parse(rendered) == parse(carried):
        return Rendered(rendered, Source.TEMPLATE, *hashes)
    raise _conflict(rendered, carried, base.path)


def _conflict(rendered: str, carried: str, base_path: str) -> Refused:
    import difflib  # heavy, and of use here only

    names = ("fstab template at the top level", f"etc/fstab of {base_path}")
    lines = difflib.unified_diff(rendered.splitlines(), carried.splitlines(), *names, lineterm="")
    difference = "\n".join("".join(char if char.isprintable() else " " for char in line) for line in lines)
    return Refused(
        f"the fstab template and the base's etc/fstab were both edited; nothing was changed\n{difference}",
        hint="mount the top level (subvolid=5) at /mnt; put /etc/fstab of the base in place of /mnt/fstab, "
        f"with {PLACEHOLDER} for {base_path}, and run this again; after that, edit only the template",
    )


# What has to be there to mount on

_MADE_AT_BOOT = ("/proc", "/sys", "/dev", "/run")  # what lies below is made by whoever mounts these


def points_in_root(entries: Iterable[Entry]) -> tuple[str, ...]:
    """The mount points that must be directories of the root itself: not those of swap, nor what lies below another."""
    named = [_path(each.mountpoint) for each in entries if each.mountpoint.startswith("/") and each.fstype != "swap"]
    points = {point for point in named if ".." not in point.split("/")} - {"/"}
    return tuple(sorted(point for point in points if not _is_covered(point, points)))


def _is_covered(point: str, points: set[str]) -> bool:
    """Whether another mount lies above `point`: then it need not exist in the root itself."""
    above = (points | set(_MADE_AT_BOOT)) - {point}
    return is_below(point, *above)


# What a change needs mounted


class Mount(NamedTuple):
    """A subvolume to mount in the root of the change.

    `subvol` is its path from the top level. `part` is not '' where it belongs to the generation itself
    (`@usr`): then its staged twin is what to mount. `flags` are the fstab's nodev, nosuid, noexec; `optional`: nofail.
    """

    mountpoint: str
    subvol: str
    writable: bool
    part: str = ""
    flags: tuple[str, ...] = ()
    optional: bool = False


def mounts_for_change(
    entries: Iterable[Entry], generation_path: str, is_volume: Predicate, commons: Mapping[str, str]
) -> tuple[Mount, ...]:
    """What to mount for a change, parents first.

    `entries` are the rendered fstab's, `generation_path` is `/snapshots/ID` in it. `is_volume` says whether
    a device field means our volume. `commons` is `[chroot] commons`: mountpoint to "rw", "ro" or "skip".
    The top level, our own directories and other generations are never mounted, whatever the fstab says:
    nothing of them has a path inside.
    """
    wishes = {_path(mountpoint): wish for mountpoint, wish in commons.items()}
    mounts: dict[str, Mount] = {}
    for entry in entries:
        if not _concerns_change(entry) or not is_volume(entry.device):
            continue
        mount = _mount(entry, _path(generation_path), wishes.get(_path(entry.mountpoint), ""))
        if mount is not None:
            mounts[mount.mountpoint] = mount  # a later line covers an earlier one
    return tuple(mounts[mountpoint] for mountpoint in sorted(mounts, key=lambda each: each.split("/")))


def _concerns_change(entry: Entry) -> bool:
    mountpoint = _path(entry.mountpoint)
    return (
        entry.fstype == "btrfs"
        and entry.mountpoint.startswith("/")
        and ".." not in entry.mountpoint.split("/")
        and mountpoint != "/"
        and not is_below(mountpoint, *_LEFT_TO_THE_CHANGE)
        and not any(option in _NEVER for option in entry.options)
    )


def _mount(entry: Entry, generation_path: str, wish: str) -> Mount | None:
    named = entry.value("subvol")
    if named is None or ".." in named.split("/"):
        return None
    mountpoint, subvol = _path(entry.mountpoint), _path(named)
    flags = tuple(option for option in _KEPT_FLAGS if option in entry.options)
    part = subvol[len(generation_path) + 1 :] if is_below(subvol, generation_path) else ""
    if part and part.split("/")[0] != "@":
        return Mount(mountpoint, subvol, writable=True, part=part, flags=flags)
    if subvol == "/" or subvol.split("/")[1] in _OWN_DIRECTORIES or wish == "skip":
        return None
    by_default = is_below(mountpoint, "/var") and "ro" not in entry.options
    writable = wish == "rw" or (by_default and wish != "ro")
    return Mount(mountpoint, subvol, writable, flags=flags, optional="nofail" in entry.options)
