"""Whether the members of an initramfs are what the root has: asked of base's image, and of one that a change brought.

A member that is not a file of the root, or that the generator writes itself, says nothing. This module reads both roots
and writes nothing; it must not know what is done about an image that is not fresh.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, NamedTuple

from apk_atomic import initramfs, kernel, lookup
from apk_atomic.names import is_below
from apk_atomic.proof_images import modules_in

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from apk_atomic.generator import Generator
    from apk_atomic.initramfs import Image, Member

# Members that the generator writes itself: another file of that name in the root says nothing.
_GENERATED = frozenset({"init", "etc/fstab", "etc/passwd", "etc/group"})
_MODULES = "usr/lib/modules/"


class Change(NamedTuple):
    """The roots as descriptors; `changed` maps merged names to the paths that have them, see `change_of`."""

    base: int
    staged: int
    changed: Mapping[str, tuple[str, ...]]

    def lists(self, path: str) -> bool:
        return lookup.merged(path) in self.changed


def change_of(base: int, staged: int, paths: Collection[str]) -> Change:
    """`paths` are those of new or changed inodes, and of directories that lost an entry or of what they lost."""
    found: dict[str, tuple[str, ...]] = {}
    for path in paths:
        name = lookup.merged(path)
        found[name] = (*found.get(name, ()), path)
    return Change(base, staged, found)


def stale_members(change: Change, members: Iterable[str]) -> list[str]:
    """Those of base's image whose namesake was replaced or removed."""
    return [name for name in _changed_members(change, members) if _is_stale(change, name)]


def outdated_member(change: Change, generator: Generator, image: Image, release: str) -> str:
    """The first member of a new image that is not what the root now has; "" for none."""
    names = set(_changed_members(change, image.members))
    if generator.copies_files:
        names |= {lookup.merged(name) for name in modules_in(image, release).values()}
    for member, found in image.members.items():
        name = lookup.merged(member)
        if name in names and (found.is_file or found.is_link) and not _is_current(change, name, found):
            return name
    return ""


def younger_input(change: Change, generator: Generator, output: str) -> str:
    """An input that cannot be compared with the image's content and was changed after it; "" for none."""
    made = lookup.status(change.staged, output)
    inputs = list(generator.inputs)
    if not generator.copies_files:
        inputs += [kernel.DECLARED, kernel.MODULES]
    tops = tuple(lookup.merged(path) for path in inputs)
    for name, paths in change.changed.items():
        if made is not None and is_below(name, *tops):
            for path in paths:
                found = lookup.status(change.staged, path)
                if found is not None and stat.S_ISREG(found.st_mode) and found.st_ctime_ns > made.st_ctime_ns:
                    return path
    return ""


def left_over_member(change: Change, image: Image) -> str:
    """The first member of an image of this very change that still is base's file, though the root has another one
    in its place; "" for none.

    That is less than what a trigger's image is asked: a generator may strip, unpack and write members, but none
    brings back what is gone.
    """
    modules = {lookup.merged(name) for name in image.members if name.startswith(_MODULES)}
    names = {*_changed_members(change, image.members), *modules.intersection(change.changed)}
    for member, found in image.members.items():
        name = lookup.merged(member)
        if name in names and found.is_file and _is_left_over(change, name, found):
            return name
    return ""


def _changed_members(change: Change, members: Iterable[str]) -> Iterator[str]:
    """Members whose namesake in the root, or a directory above it, is in the list; not those that the generator
    makes itself, and not modules, which are looked at as such."""
    above: dict[str, bool] = {"": False}
    for member in members:
        name = lookup.merged(member)
        if member in _GENERATED or name.startswith(_MODULES):
            continue
        if name in change.changed or _is_below_change(change, name.rpartition("/")[0], above):
            yield name


def _is_below_change(change: Change, directory: str, known: dict[str, bool]) -> bool:
    if directory not in known:
        upper = _is_below_change(change, directory.rpartition("/")[0], known)
        known[directory] = upper or directory in change.changed
    return known[directory]


def _is_stale(change: Change, name: str) -> bool:
    """Whether a member's namesake in base was replaced or removed: one that is new is not what the image holds."""
    paths = [path for path in lookup.layouts(name) if lookup.exists(change.base, path)]
    return not all(lookup.same_content(change.base, change.staged, path) for path in paths)


def _is_current(change: Change, name: str, member: Member) -> bool:
    """Whether a namesake in the staged root has the member's content; so too when there is none in either root."""
    paths = lookup.layouts(name)
    if member.is_link:
        targets = {lookup.link_target(change.staged, path) for path in paths}
        return member.content in targets or targets == {None}
    digests = {digest for path in paths if (digest := _digest(change.staged, path))}
    return member.content in digests or not (digests or any(_digest(change.base, path) for path in paths))


def _is_left_over(change: Change, name: str, member: Member) -> bool:
    roots = (change.base, change.staged)
    before, after = ({_digest(root, path) for path in lookup.layouts(name)} - {""} for root in roots)
    return bool(after) and member.content in before and member.content not in after


def _digest(root: int, path: str) -> str:
    with lookup.opened(root, path) as fd:
        return initramfs.file_digest(fd) if fd is not None else ""
