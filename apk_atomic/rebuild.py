"""Which initramfs images a change made out of date, decided from the list of changed paths, never by a walk.

An image is rebuilt when its kernel or modules, its generator or the configuration of that, or any file that is
a member of it differs between base and the staged root; Alpine itself misses the last. An image that the
package's trigger has already made, and made well, is kept. This module reads both roots, runs nothing and
writes nothing.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, NamedTuple

from apk_atomic import generator as generators
from apk_atomic import initramfs, kernel, lookup
from apk_atomic.generator import Generator, GeneratorKind, flavor_of
from apk_atomic.proof_images import judge_image, modules_in
from apk_atomic.unpack import Damaged

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from apk_atomic.initramfs import Image, Member
    from apk_atomic.kernel import Kernel
    from apk_atomic.unpack import External

# Members that the generator writes itself: another file of that name in the root says nothing.
_GENERATED = frozenset({"init", "etc/fstab", "etc/passwd", "etc/group"})
_MODULES = "usr/lib/modules/"
_TABLES = ("modules.builtin", "modules.order", "modules.softdep")
_NAMED = 3  # files that a reason names; the rest is counted


class Rebuild(NamedTuple):
    """One image to make: `output` is relative to the root, `reasons` are for people."""

    flavor: str
    release: str
    output: str
    reasons: tuple[str, ...]


class Plan(NamedTuple):
    """`rebuild`: what to make. `kept`: flavors whose image a trigger made well. `images`: what these hold, by
    path. `elsewhere`: disable_trigger says that images are not ours to make."""

    rebuild: tuple[Rebuild, ...] = ()
    kept: tuple[str, ...] = ()
    images: Mapping[str, Image] | None = None
    generator: Generator | None = None
    elsewhere: bool = False


class _Change(NamedTuple):
    """What all flavors are asked about; `changed` maps merged names to the paths that have them."""

    base: int
    staged: int
    changed: Mapping[str, tuple[str, ...]]
    generator: Generator
    external: External | None

    def lists(self, path: str) -> bool:
        return lookup.merged(path) in self.changed


def concerned_flavors(
    base: int,
    staged: int,
    changed_paths: Collection[str],
    image_members: Mapping[str, Collection[str]],
    *,
    configured: tuple[str, ...] = (),
    external: External | None = None,
) -> Plan:
    """What to rebuild, and why.

    `base` and `staged` are directory descriptors. `changed_paths` are those of new or changed inodes, and of
    directories that lost an entry or of what they lost, relative to the root. `image_members` has the members
    of base's images by path, as its record keeps them; an image that is not in it is read from base.
    `configured` is the generator's command of the configuration, if any. Raises OSError only.
    """
    generator = generators.find_generator(staged, configured)
    if not changed_paths:
        return Plan(generator=generator)
    if generator is None or generators.trigger_disabled(staged, generator):
        return Plan(generator=generator, elsewhere=True)
    change = _Change(base, staged, _by_merged_name(changed_paths), generator, external)
    common = tuple(_generator_reasons(change, generator, configured))
    rebuild: list[Rebuild] = []
    kept: list[str] = []
    images: dict[str, Image] = {}
    for each in kernel.kernels(staged):
        output = image_path(base, staged, generator, each.flavor)
        if not each.release:
            continue
        reasons = list(_kernel_reasons(change, each, output)) + list(common)
        reasons += _member_reasons(change, _members(change, image_members, output))
        if not reasons:
            continue
        trouble = _trouble(change, each.release, output, images)
        if trouble is None:
            kept.append(each.flavor)
        else:
            rebuild.append(Rebuild(each.flavor, each.release, output, (*reasons, *filter(None, [trouble]))))
    return Plan(tuple(rebuild), tuple(kept), images, generator)


def stale_member(base: int, staged: int, changed_paths: Collection[str], plan: Plan, image: Image) -> str:
    """The first member of an image of this very change that still is base's file, though the root has another one
    in its place; "" for none.

    That is less than what a trigger's image is asked: a generator may strip, unpack and write members, but none
    brings back what is gone.
    """
    assert plan.generator is not None
    change = _Change(base, staged, _by_merged_name(changed_paths), plan.generator, None)
    modules = {lookup.merged(name) for name in image.members if name.startswith(_MODULES)}
    names = {*_changed_members(change, image.members), *modules.intersection(change.changed)}
    for member, found in image.members.items():
        name = lookup.merged(member)
        if name in names and found.is_file and _is_left_over(change, name, found):
            return name
    return ""


def build_command(root: int, generator: Generator, release: str, output: str) -> list[str]:
    """The command, to be run in `root`, that makes the image `output` for `release`: `generator.command`, with
    the flavor that the root declares for this release."""
    flavors = (each.flavor for each in kernel.kernels(root) if each.release == release)
    return generators.command(generator, next(flavors, flavor_of(release)), release, output)


def image_path(base: int, staged: int, generator: Generator, flavor: str) -> str:
    """Where the image of `flavor` belongs: where base has one, since that is what the boot menu names; else
    where one already is; else where the generator's package puts it."""
    names = kernel.image_names(flavor)
    there = (name for root in (base, staged) for name in names if lookup.is_file(root, name))
    return next(there, generator.image_name(flavor))


def _by_merged_name(paths: Collection[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for path in paths:
        name = lookup.merged(path)
        found[name] = (*found.get(name, ()), path)
    return found


def _kernel_reasons(change: _Change, each: Kernel, output: str) -> Iterator[str]:
    before = kernel.declared_release(change.base, each.flavor)
    if each.release != before:
        yield f"kernel {each.release} in place of {before}" if before else f"new kernel {each.release}"
        return
    if change.lists(each.image) and not lookup.same_content(change.base, change.staged, each.image):
        yield f"{each.image} changed"
    directory = kernel.modules_directory(each.release)
    yield from _differing(change, directory, _is_module_input)
    if lookup.is_file(change.base, output) and not lookup.is_file(change.staged, output):
        yield f"{output} is gone"


def _is_module_input(path: str) -> bool:
    """Not the tables that depmod makes, nor what triggers leave in the directory."""
    return bool(kernel.module_name(path)) or path.rpartition("/")[2] in _TABLES


def _generator_reasons(change: _Change, generator: Generator, configured: tuple[str, ...]) -> Iterator[str]:
    before = generators.find_generator(change.base, configured)
    if generator.kind is not GeneratorKind.CONFIGURED and before is not None and before.kind is not generator.kind:
        yield f"{generator.kind} in place of {before.kind}"
    for path in generator.inputs:
        yield from _differing(change, path, lambda _: True)


def _differing(change: _Change, directory: str, counts: Callable[[str], bool]) -> Iterator[str]:
    """One reason when a path that counts, at or below `directory`, is not the same in both roots."""
    top = lookup.merged(directory)
    for name, paths in change.changed.items():
        if name == top or name.startswith(top + "/"):
            for path in paths:
                if _differs(change, path, counts):
                    yield f"{path} changed"
                    return


def _differs(change: _Change, path: str, counts: Callable[[str], bool]) -> bool:
    roots = (change.base, change.staged)
    directories = [lookup.is_directory(root, path) for root in roots]
    if all(directories):
        before, after = ({name for name in lookup.names(root, path) if counts(name)} for root in roots)
        return bool(before - after)  # what came is new, and so in the list itself
    if directories[0]:
        return True
    return not directories[1] and counts(path) and not lookup.same_content(*roots, path)


def _members(change: _Change, known: Mapping[str, Collection[str]], output: str) -> Collection[str]:
    """The names of the members of base's image; none where it has none that can be read."""
    if output in known:
        return known[output]
    with lookup.opened(change.base, output) as fd:
        try:
            return initramfs.read(fd, change.external).members if fd is not None else ()
        except Damaged:
            return ()


def _member_reasons(change: _Change, members: Iterable[str]) -> list[str]:
    stale = [name for name in _changed_members(change, members) if _is_stale(change, name)]
    if not stale:
        return []
    more = f" and {len(stale) - _NAMED} more" if len(stale) > _NAMED else ""
    return [f"members of the image changed: {', '.join(sorted(stale)[:_NAMED])}{more}"]


def _changed_members(change: _Change, members: Iterable[str]) -> Iterator[str]:
    """Members whose namesake in the root, or a directory above it, is in the list; not those that the generator
    makes itself, and not modules, which are looked at as such."""
    above: dict[str, bool] = {"": False}
    for member in members:
        name = lookup.merged(member)
        if member in _GENERATED or name.startswith(_MODULES):
            continue
        if name in change.changed or _is_below_change(change, name.rpartition("/")[0], above):
            yield name


def _is_below_change(change: _Change, directory: str, known: dict[str, bool]) -> bool:
    if directory not in known:
        upper = _is_below_change(change, directory.rpartition("/")[0], known)
        known[directory] = upper or directory in change.changed
    return known[directory]


def _is_stale(change: _Change, name: str) -> bool:
    """Whether a member's namesake in base was replaced or removed: one that is new is not what the image holds."""
    paths = [path for path in lookup.layouts(name) if lookup.exists(change.base, path)]
    return not all(lookup.same_content(change.base, change.staged, path) for path in paths)


def _trouble(change: _Change, release: str, output: str, images: dict[str, Image]) -> str | None:
    """None when the change itself brought an image that is as good as a new one; else what is wrong with it,
    "" where it brought none. The good image goes to `images`."""
    if not change.lists(output):
        return ""
    with lookup.opened(change.staged, output) as fd:
        if fd is None:
            return ""
        try:
            image = initramfs.read(fd, change.external)
        except Damaged as error:
            return f"{output} {error}"
    modules = kernel.load_modules(change.staged, release)
    if modules is None:
        return ""
    failures = judge_image(output, image, modules).failures
    if failures:
        return failures[0].message
    outdated = _outdated(change, image, release) or _younger_input(change, output)
    if outdated:
        return f"{output} is older than {outdated}"
    images[output] = image
    return None


def _outdated(change: _Change, image: Image, release: str) -> str:
    """The first member of a new image that is not what the root now has; "" for none."""
    names = set(_changed_members(change, image.members))
    if change.generator.copies_files:
        names |= {lookup.merged(name) for name in modules_in(image, release).values()}
    for member, found in image.members.items():
        name = lookup.merged(member)
        if name in names and (found.is_file or found.is_link) and not _is_current(change, name, found):
            return name
    return ""


def _is_current(change: _Change, name: str, member: Member) -> bool:
    """Whether a namesake in the staged root has the member's content; so too when there is none in either root."""
    paths = lookup.layouts(name)
    if member.is_link:
        targets = {lookup.link_target(change.staged, path) for path in paths}
        return member.content in targets or targets == {None}
    digests = {digest for path in paths if (digest := _digest(change.staged, path))}
    return member.content in digests or not (digests or any(_digest(change.base, path) for path in paths))


def _is_left_over(change: _Change, name: str, member: Member) -> bool:
    roots = (change.base, change.staged)
    before, after = ({_digest(root, path) for path in lookup.layouts(name)} - {""} for root in roots)
    return bool(after) and member.content in before and member.content not in after


def _digest(root: int, path: str) -> str:
    with lookup.opened(root, path) as fd:
        return initramfs.file_digest(fd) if fd is not None else ""


def _younger_input(change: _Change, output: str) -> str:
    """An input that cannot be compared with the image's content and was changed after it; "" for none."""
    made = lookup.status(change.staged, output)
    inputs = list(change.generator.inputs)
    if not change.generator.copies_files:
        inputs += [kernel.DECLARED, kernel.MODULES]
    tops = tuple(lookup.merged(path) for path in inputs)
    for name, paths in change.changed.items():
        if made is not None and any(name == top or name.startswith(top + "/") for top in tops):
            for path in paths:
                found = lookup.status(change.staged, path)
                if found is not None and stat.S_ISREG(found.st_mode) and found.st_ctime_ns > made.st_ctime_ns:
                    return path
    return ""
