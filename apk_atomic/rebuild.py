"""Which initramfs images a change made out of date, decided from the list of changed paths, never by a walk.

An image is rebuilt when its kernel or modules, its generator or the configuration of that, or any file that is
a member of it differs between base and the staged root; Alpine itself misses the last. An image that the
package's trigger has already made, and made well, is kept. This module reads both roots, runs nothing and
writes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from apk_atomic import generator as generators
from apk_atomic import initramfs, kernel, lookup
from apk_atomic.freshness import Change, change_of, outdated_member, stale_members, younger_input
from apk_atomic.generator import Generator, GeneratorKind, flavor_of
from apk_atomic.names import is_below
from apk_atomic.proof_images import judge_image
from apk_atomic.unpack import Damaged

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from apk_atomic.initramfs import Image
    from apk_atomic.kernel import Kernel
    from apk_atomic.unpack import External

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


class _Tools(NamedTuple):
    """What images are made and unpacked by."""

    generator: Generator
    external: External | None


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
    change, tools = change_of(base, staged, changed_paths), _Tools(generator, external)
    common = tuple(_generator_reasons(change, generator, configured))
    rebuild: list[Rebuild] = []
    kept: list[str] = []
    images: dict[str, Image] = {}
    for each in kernel.kernels(staged):
        output = image_path(base, staged, generator, each.flavor)
        if not each.release:
            continue
        reasons = list(_kernel_reasons(change, each, output)) + list(common)
        reasons += _member_reasons(change, _members(change, tools, image_members, output))
        if not reasons:
            continue
        trouble = _trouble(change, tools, each.release, output, images)
        if trouble is None:
            kept.append(each.flavor)
        else:
            rebuild.append(Rebuild(each.flavor, each.release, output, (*reasons, *filter(None, [trouble]))))
    return Plan(tuple(rebuild), tuple(kept), images, generator)


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


def _kernel_reasons(change: Change, each: Kernel, output: str) -> Iterator[str]:
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


def _generator_reasons(change: Change, generator: Generator, configured: tuple[str, ...]) -> Iterator[str]:
    before = generators.find_generator(change.base, configured)
    if generator.kind is not GeneratorKind.CONFIGURED and before is not None and before.kind is not generator.kind:
        yield f"{generator.kind} in place of {before.kind}"
    for path in generator.inputs:
        yield from _differing(change, path, lambda _: True)


def _differing(change: Change, directory: str, counts: Callable[[str], bool]) -> Iterator[str]:
    """One reason when a path that counts, at or below `directory`, is not the same in both roots."""
    top = lookup.merged(directory)
    for name, paths in change.changed.items():
        if is_below(name, top):
            for path in paths:
                if _differs(change, path, counts):
                    yield f"{path} changed"
                    return


def _differs(change: Change, path: str, counts: Callable[[str], bool]) -> bool:
    roots = (change.base, change.staged)
    directories = [lookup.is_directory(root, path) for root in roots]
    if all(directories):
        before, after = ({name for name in lookup.names(root, path) if counts(name)} for root in roots)
        return bool(before - after)  # what came is new, and so in the list itself
    if directories[0]:
        return True
    return not directories[1] and counts(path) and not lookup.same_content(*roots, path)


def _members(change: Change, tools: _Tools, known: Mapping[str, Collection[str]], output: str) -> Collection[str]:
    """The names of the members of base's image; none where it has none that can be read."""
    if output in known:
        return known[output]
    with lookup.opened(change.base, output) as fd:
        try:
            return initramfs.read(fd, tools.external).members if fd is not None else ()
        except Damaged:
            return ()


def _member_reasons(change: Change, members: Iterable[str]) -> list[str]:
    stale = stale_members(change, members)
    if not stale:
        return []
    more = f" and {len(stale) - _NAMED} more" if len(stale) > _NAMED else ""
    return [f"members of the image changed: {', '.join(sorted(stale)[:_NAMED])}{more}"]


def _trouble(change: Change, tools: _Tools, release: str, output: str, images: dict[str, Image]) -> str | None:
    """None when the change itself brought an image that is as good as a new one; else what is wrong with it,
    "" where it brought none. The good image goes to `images`."""
    if not change.lists(output):
        return ""
    with lookup.opened(change.staged, output) as fd:
        if fd is None:
            return ""
        try:
            image = initramfs.read(fd, tools.external)
        except Damaged as error:
            return f"{output} {error}"
    modules = kernel.load_modules(change.staged, release)
    if modules is None:
        return ""
    failures = judge_image(output, image, modules).failures
    if failures:
        return failures[0].message
    newer = outdated_member(change, tools.generator, image, release) or younger_input(change, tools.generator, output)
    if newer:
        return f"{output} is older than {newer}"
    images[output] = image
    return None
