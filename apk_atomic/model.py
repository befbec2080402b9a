"""The nouns of the project as frozen values: generation, record, state of a volume.

Named tuples, since every command imports this module, and to make a frozen dataclass takes six times as long.

No I/O, no clock, no randomness: those are arguments. It must not know where anything lies on disk. What is
durable is the JSON form of a `Record` (`snapshots/ID/generation.json`, version 1): keys may be added, never
renamed or retyped, because after a rollback an older apk-atomic reads what a newer one wrote.
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from apk_atomic.names import is_own_id as is_own_id
from apk_atomic.names import is_safe_name as is_safe_name
from apk_atomic.names import iso_utc as iso_utc
from apk_atomic.names import new_id as new_id
from apk_atomic.names import redact_argv as redact_argv

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

RECORD_VERSION = 1
_NOTHING: Mapping[str, object] = MappingProxyType({})


class DamagedRecord(ValueError):
    """A generation.json that is not one; it never stops list, boot, gc or commit."""


class Kind(StrEnum):
    """What made a generation."""

    APK = "apk"
    RUN = "run"
    SHELL = "shell"
    EDIT = "edit"
    AUTO = "auto"
    IMPORT = "import"


class PackageChanges(NamedTuple):
    """Difference of two package sets.

    `added` and `removed` are (name, version), `upgraded` (name, old, new), downgrades too; `rebuilt` are the
    names whose version is the same and whose contents are not.
    """

    added: tuple[tuple[str, str], ...] = ()
    removed: tuple[tuple[str, str], ...] = ()
    upgraded: tuple[tuple[str, str, str], ...] = ()
    rebuilt: tuple[str, ...] = ()
    unknown: Mapping[str, object] = _NOTHING

    @property
    def is_empty(self) -> bool:
        return not (self.added or self.removed or self.upgraded or self.rebuilt)


class Image(NamedTuple):
    """One initramfs of a generation; paths are relative to the generation's root, without a leading slash."""

    flavor: str = ""
    release: str = ""
    path: str = ""
    generator: str = ""
    members: tuple[str, ...] = ()
    unknown: Mapping[str, object] = _NOTHING


class Proof(NamedTuple):
    """A boot proof that passed. `of`: the generation that the full proof ran on, itself or an ancestor. `menu`: what
    of the boot menu it was asked about."""

    of: str = ""
    inputs: tuple[str, ...] = ()
    menu: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    unknown: Mapping[str, object] = _NOTHING


class Record(NamedTuple):
    """What generation.json says.

    `created` is ISO-8601 in UTC, `argv` already redacted, `kernels` are (flavor, release), `durations` are
    (step, seconds). `fstab_template` and `fstab_rendered` are SHA-256 in hex: of the template when this
    generation was made, and of what that template renders to for it, whether or not that was used; empty
    where there was no template. `unknown`, here and in the parts, holds the keys of other versions, to be
    written back.
    """

    id: str
    parent: str | None = None
    created: str = ""
    kind: Kind | str = Kind.APK
    argv: tuple[str, ...] = ()
    user: str = ""
    message: str = ""
    apk_version: str = ""
    kernels: tuple[tuple[str, str], ...] = ()
    changes: PackageChanges = PackageChanges()
    initramfs: tuple[Image, ...] = ()
    proof: Proof | None = None
    fstab_template: str = ""
    fstab_rendered: str = ""
    durations: tuple[tuple[str, float], ...] = ()
    version: int = RECORD_VERSION
    unknown: Mapping[str, object] = _NOTHING


class Generation(NamedTuple):
    """One root on the volume.

    `order` is the btrfs otransid of `snapshots/ID/@` (0: unknown), the only thing that says which is newer;
    `created` is that subvolume's otime in Unix seconds, as wrong as the clock was. `sealed`: it is
    read-only.
    """

    id: str
    order: int = 0
    created: float = 0.0
    sealed: bool = True
    foreign: bool = False
    good: bool = False
    failed: bool = False
    pinned: bool = False
    attempts: int = 0
    record: Record | None = None


class State(NamedTuple):
    """What a volume and /run say at one moment.

    `links`: the ID of the links directory that `current` names. `slots`: the IDs that current/0… name, '' where one
    does not resolve to a generation. `booted`: the ID that runs now; None where the volume is not the running
    system's. `pending`: /run/apk-atomic/next agrees with `current`, and slot 0 is not booted. `chosen`: then, by a
    rollback to a generation that was there before.
    """

    generations: tuple[Generation, ...] = ()
    slots: tuple[str, ...] = ()
    booted: str | None = None
    pending: bool = False
    chosen: bool = False
    links: str = ""

    @property
    def next(self) -> str:
        """ID of the generation in slot 0, '' when there is none."""
        return self.slots[0] if self.slots else ""

    @property
    def fallback_booted(self) -> bool:
        return self.booted is not None and self.booted != self.next and not self.pending

    def find(self, name: str) -> Generation | None:
        return next((each for each in self.generations if each.id == name), None)


# The record's JSON form: keys are the field names; `kernels` and `durations` are objects, other tuples lists


def to_json_dict(record: Record) -> dict[str, object]:
    """The JSON object of generation.json: what we know, and what another version wrote beside it."""
    return {
        **_encoded(record),
        "kind": str(record.kind),
        "kernels": dict(record.kernels),
        "changes": _encoded(record.changes),
        "initramfs": [_encoded(image) for image in record.initramfs],
        "proof": None if record.proof is None else _encoded(record.proof),
        "durations": dict(record.durations),
    }


def _encoded(value: Record | PackageChanges | Image | Proof) -> dict[str, object]:
    known = {name: _plain(each) for name, each in value._asdict().items() if name != "unknown"}
    return {**value.unknown, **known}


def _plain(value: object) -> object:
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def from_json_dict(obj: object) -> Record:
    """The record in a parsed JSON value; raises DamagedRecord, and nothing else, when it holds none.

    Only `version` and `id` are required. An ID that is no safe name is damage: others build paths from it.
    """
    values = _decoded(obj, _RECORD)
    if not {"id", "version"} <= values.keys():
        raise DamagedRecord("id or version is missing")
    return Record(**values)


def _decoded(obj: object, decoders: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
    """Arguments for the value that `decoders` describes; absent keys are left to its defaults."""
    source = _need(obj, dict)
    values: dict[str, Any] = {"unknown": {key: source[key] for key in source if key not in decoders}}
    for key in decoders.keys() & source.keys():
        try:
            values[key] = decoders[key](source[key])
        except DamagedRecord as damage:
            raise DamagedRecord(f"{key}: {damage}") from None
    return values


def _need(value: Any, kind: type) -> Any:
    if type(value) is not kind:  # exactly: True is not a number here
        raise DamagedRecord(f"{kind.__name__} expected")
    return value


def _text(value: Any) -> str:
    return str(_need(value, str))


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(_text(each) for each in _need(value, list))


def _rows(width: int) -> Callable[[Any], tuple[tuple[str, ...], ...]]:
    def decode(value: Any) -> tuple[tuple[str, ...], ...]:
        rows = tuple(_texts(row) for row in _need(value, list))
        if any(len(row) != width for row in rows):
            raise DamagedRecord(f"lists of {width} expected")
        return rows

    return decode


def _id(value: Any) -> str:
    if not is_safe_name(_text(value)):
        raise DamagedRecord("not the name of a generation")
    return str(value)


def _version(value: Any) -> int:
    if _need(value, int) < 1:
        raise DamagedRecord("not positive")
    return int(value)


def _kind(value: Any) -> Kind | str:
    """What another version calls a kind of its own is no damage."""
    return Kind(value) if _text(value) in set(Kind) else str(value)


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or not -1e12 < value < 1e12:
        raise DamagedRecord("not a number of seconds")
    return float(value)


def _initramfs(value: Any) -> tuple[Image, ...]:
    return tuple(Image(**_decoded(each, _IMAGE)) for each in _need(value, list))


_IMAGE = {"flavor": _text, "release": _text, "path": _text, "generator": _text, "members": _texts}
_PROOF = {"of": _text, "inputs": _texts, "menu": _texts, "warnings": _texts}
_CHANGES = {"added": _rows(2), "removed": _rows(2), "upgraded": _rows(3), "rebuilt": _texts}
_RECORD: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("created", "user", "message", "apk_version", "fstab_template", "fstab_rendered"), _text),
    "version": _version,
    "id": _id,
    "parent": lambda value: None if value is None else _id(value),
    "kind": _kind,
    "argv": _texts,
    "kernels": lambda value: tuple((flavor, _text(each)) for flavor, each in _need(value, dict).items()),
    "changes": lambda value: PackageChanges(**_decoded(value, _CHANGES)),
    "initramfs": _initramfs,
    "proof": lambda value: None if value is None else Proof(**_decoded(value, _PROOF)),
    "durations": lambda value: tuple((step, _seconds(each)) for step, each in _need(value, dict).items()),
}
