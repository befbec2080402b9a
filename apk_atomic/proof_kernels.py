"""The boot proof's verdict on kernels: image ↔ release ↔ modules ↔ initramfs, and what the boot menu names.

A flavor that the menu cannot boot is not worth a failure: what is wrong with it becomes a warning. Reads the
root by `lookup` only, and writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from apk_atomic import generator, initramfs, kernel, kernel_image, lookup
from apk_atomic.proof_images import ROOT_MODULE, judge_image, machines_of, releases_in
from apk_atomic.proof_types import Findings
from apk_atomic.unpack import Damaged, MissingTool

if TYPE_CHECKING:
    from apk_atomic.initramfs import Image
    from apk_atomic.kernel import Kernel, Modules
    from apk_atomic.proof_types import ProofInput


_HEAD = 4096  # bytes of a kernel image


@dataclass(slots=True)
class Kernels:
    """The findings, and what was found on the way: release by flavor, image by path, ELF machines of programs that
    the kernels run (none where one of them does not say)."""

    findings: Findings = field(default_factory=Findings)
    releases: dict[str, str] = field(default_factory=dict)
    images: dict[str, Image] = field(default_factory=dict)
    machines: frozenset[int] = frozenset()
    none: bool = False  # no kernel here, nor named by base or the menu


class _Root(NamedTuple):
    """The root being judged. `menu`: names that must be there; `strict_menu`: the menu itself said so."""

    fd: int
    facts: ProofInput
    menu: frozenset[str]
    strict_menu: bool


def check_kernels(fd: int, facts: ProofInput) -> Kernels:
    """The verdict on all kernels and images of the root with directory descriptor `fd`."""
    root = _Root(fd, facts, menu_names(facts), facts.menu_paths is not None)
    result = Kernels()
    found = kernel.kernels(fd)
    result.none = not found and not any(kernel.is_kernel(name.rpartition("/")[2]) for name in root.menu)
    check_menu(result.findings, fd, facts)
    declared = any(each.release for each in found)
    for each in found:
        required = each.image in root.menu if root.strict_menu else bool(each.release) or not declared
        _check_flavor(root, each, result, required=required)
    known = [machines_of(lookup.read_start(fd, each.image, _HEAD)) for each in found]
    result.machines = frozenset().union(*known) if all(known) else frozenset()
    _check_other_images(root, result)
    _check_leftovers(root, result)
    return result


def check_menu(findings: Findings, root: int, facts: ProofInput) -> None:
    """Every path that the boot menu uses is a file of some length."""
    known = facts.menu_paths is not None
    for path in sorted(menu_names(facts)):
        status = lookup.status(root, path) if lookup.is_file(root, path) else None
        found = Findings()
        if status is None:
            by = "the boot menu names" if known else "the base has, and so perhaps the boot menu names"
            found.fail("menu-path", f"{path} is gone, which {by}")
        elif status.st_size == 0:
            found.fail("menu-path", f"{path} is empty")
        else:
            _require_loadable(found, root, path)
        findings.add(found, lenient=facts.allow_removed and not known)


def _require_loadable(findings: Findings, root: int, path: str) -> None:
    """For a file that is there: the boot loader has to find it, too. Where links lead there, its place is an input."""
    findings.inputs |= {lookup.real_path(root, path) or path, *lookup.links(root, path)}
    if not lookup.is_loadable(root, path):
        text = f"{path} is found through a link that is absolute or leads out of the root"
        findings.fail("menu-link", f"{text}: a boot loader looks it up from the top level of the volume")


def menu_names(facts: ProofInput) -> frozenset[str]:
    """The paths below the root that the boot menu uses, or may use when nothing says what it does."""
    names = facts.menu_paths if facts.menu_paths is not None else facts.base_boot_names
    return frozenset(map(in_root, names))


def in_root(path: str) -> str:
    """A menu's path as one below the root: /current/0/@/boot/x, /boot/x, boot/x and x all become boot/x."""
    path = path.replace("\\", "/").strip("/")
    first, _, rest = path.partition("/")
    if first == "current":
        path = rest.partition("/")[2].partition("/")[2]
    return path if "/" in path else f"{kernel.BOOT}/{path}"


def _check_flavor(root: _Root, each: Kernel, result: Kernels, *, required: bool) -> None:
    findings = Findings(inputs={each.image, f"{kernel.DECLARED}/{each.flavor}/kernel.release"})
    release = _check_image(root, each, findings)
    if release:
        result.releases[each.flavor] = release
        modules = _check_modules(root, release, findings)
        if modules is not None:
            _check_initramfs(root, each, modules, findings, result)
    result.findings.add(findings, lenient=not required)


def _check_image(root: _Root, each: Kernel, findings: Findings) -> str:
    """The release of a flavor, and whether its kernel image is whole and of that release; "" when unknown."""
    with lookup.opened(root.fd, each.image) as fd:
        if fd is None:
            findings.fail("kernel-missing", f"{each.image} is missing, though {each.flavor} is installed")
            return each.release
        try:
            image = kernel_image.read(fd, root.facts.decompress)
        except MissingTool as error:
            findings.fail("missing-tool", f"{each.image} {error}")
            return each.release
        except Damaged as error:
            findings.fail("kernel-damaged", f"{each.image} {error}")
            return each.release
    _require_loadable(findings, root.fd, each.image)
    if not each.release:
        findings.warn("kernel-undeclared", f"{each.image} has no {kernel.DECLARED}/{each.flavor}/kernel.release")
    elif image.release != each.release:
        text = f"{each.image} is of release {image.release}, but {each.flavor} is installed as {each.release}"
        findings.fail("kernel-release", text)
    if not image.efi:
        findings.warn("kernel-no-efi", f"{each.image} is no EFI program: only GRUB can start it")
    return each.release or image.release


def _check_modules(root: _Root, release: str, findings: Findings) -> Modules | None:
    directory = kernel.modules_directory(release)
    if not lookup.is_directory(root.fd, directory):
        findings.fail("modules-missing", f"{directory} is missing")
        return None
    findings.inputs |= {f"{directory}/{name}" for name in kernel.TABLES}
    missing = [name for name in kernel.TABLES if kernel.read_table(root.fd, release, name) is None]
    for name in missing:
        findings.fail("modules-table", f"{directory}/{name} is missing or empty")
    modules = None if missing else kernel.load_modules(root.fd, release)
    if modules is not None and modules.closure(ROOT_MODULE) is None:
        findings.fail("modules-no-btrfs", f"the kernel {release} has no btrfs, neither built in nor as a module")
        return None
    return modules


def _check_initramfs(
    root: _Root, each: Kernel, modules: Modules, findings: Findings, result: Kernels
) -> None:
    """Every image of the flavor that may be booted; at least one, unless another maker's are outside the root."""
    names = [name for name in kernel.image_names(each.flavor) if lookup.is_file(root.fd, name)]
    for name in names:
        judged = Findings(inputs={name})
        _require_loadable(judged, root.fd, name)
        image = _read_image(root, name, judged, result)
        if image is not None:
            judged.add(judge_image(name, image, modules, root.facts.wanted_modules))
        findings.add(judged, lenient=root.strict_menu and name not in root.menu)
    if names:
        return
    usual = kernel.image_names(each.flavor)[0]
    if generator.trigger_disabled(root.fd, generator.find_generator(root.fd)):
        findings.warn("initramfs-elsewhere", f"{usual} is missing, and disable_trigger says that it is not ours")
    elif root.strict_menu and not modules.closure(ROOT_MODULE):
        findings.warn("initramfs-missing", f"there is no initramfs of {each.flavor}; its btrfs is built in")
    else:
        findings.fail("initramfs-missing", f"there is no initramfs of {each.flavor}: {usual} is missing")


def _read_image(root: _Root, name: str, findings: Findings, result: Kernels) -> Image | None:
    if name in root.facts.images:
        result.images[name] = root.facts.images[name]
        return result.images[name]
    with lookup.opened(root.fd, name) as fd:
        if fd is None:
            return None  # the menu's own check has said so
        try:
            result.images[name] = initramfs.read(fd, root.facts.decompress)
        except MissingTool as error:
            findings.fail("missing-tool", f"{name} {error}")
        except Damaged as error:
            findings.fail("initramfs-damaged", f"{name} {error}")
    return result.images.get(name)


def _check_other_images(root: _Root, result: Kernels) -> None:
    """Microcode, which the kernel unpacks before the initramfs, and images of other names that the menu uses."""
    microcode = {f"{kernel.BOOT}/{name}" for name in kernel.boot_names(root.fd) if is_microcode(name)}
    others = {name for name in root.menu if root.strict_menu and not kernel.is_kernel(name.rpartition("/")[2])}
    for name in sorted((microcode | others) - result.images.keys()):
        findings = Findings(inputs={name})
        image = _read_image(root, name, findings, result)
        if image is not None and not is_microcode(name):
            _judge_other(root, name, image, result, findings)
        elif image is not None and not any("/microcode/" in f"/{member}" for member in image.members):
            findings.warn("microcode-empty", f"{name} holds no microcode")
        if is_microcode(name) and root.strict_menu and name not in root.menu:
            findings.warn("microcode-unused", f"the boot menu does not load {name}: apk-atomic boot-config --install")
        result.findings.add(findings, lenient=root.strict_menu and name not in root.menu)


def is_microcode(name: str) -> bool:
    return name.endswith(kernel.MICROCODE_SUFFIX)


def _judge_other(root: _Root, name: str, image: Image, result: Kernels, findings: Findings) -> None:
    """An image whose name tells no flavor belongs to the kernel that it has modules for."""
    held = releases_in(image)
    for release in result.releases.values():
        modules = kernel.load_modules(root.fd, release) if release in held else None
        if modules is not None:
            findings.add(judge_image(name, image, modules, root.facts.wanted_modules))
            return
    if held:
        text = f"{name} holds modules for {', '.join(sorted(held))}, of which no kernel is installed"
        findings.fail("initramfs-wrong-release", text)


def _check_leftovers(root: _Root, result: Kernels) -> None:
    declared = {kernel.declared_release(root.fd, name) for name in lookup.names(root.fd, kernel.DECLARED)}
    for release in lookup.names(root.fd, kernel.MODULES):
        if release not in declared | set(result.releases.values()):
            path = kernel.modules_directory(release)
            result.findings.warn("modules-left", f"{path} is left of a kernel that is not installed")
