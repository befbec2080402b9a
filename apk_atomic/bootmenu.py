"""The boot menu as text: the static rEFInd stanza, the static grub.cfg, and what `state/boot.json` says of them.

Pure: values in, text out. A menu names slots (`/current/N/@/boot/…`), never a generation, so it is written once and
stays right after every commit. It must not know where the text is put. Facts: alpine-boot 1.7 and 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from apk_atomic.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

VERSION = 1
TITLE = "Alpine Linux"
HEADER = "Written by apk-atomic boot-config, which replaces this file"
_PANIC_SECONDS = 10  # a kernel that cannot mount its root reboots by itself (mkinitfs 3.13 and later)
_MOST_SLOTS, _LONGEST = 9, 2000
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/@=,.:_+-%")


class Loader(StrEnum):
    REFIND = "refind"
    GRUB = "grub"


@dataclass(frozen=True, slots=True)
class Menu:
    """What a menu is made of.

    `uuid` is the volume's fsid; `volume` what rEFInd finds it by: the GUID or label of its partition, else the file
    system's label. `kernel`, `initramfs` and `microcode` are paths in a root, without a leading slash. `resume` is
    the value of resume=, `append` further words for the kernel, `timeout` in seconds (0 waits, -1 boots at once).
    """

    uuid: str
    volume: str
    kernel: str
    initramfs: str
    microcode: tuple[str, ...] = ()
    slots: int = 4
    loader: Loader = Loader.REFIND
    resume: str = ""
    append: str = ""
    timeout: int = 5

    @property
    def paths(self) -> tuple[str, ...]:
        """What has to be in every root of a slot."""
        return (self.kernel, *self.microcode, self.initramfs)


def checked(menu: Menu) -> Menu:
    """`menu`, if both loaders would read it as it is meant; else UsageError."""
    texts = (menu.uuid, menu.volume, *menu.paths, menu.resume, menu.append)
    words = (menu.uuid, *menu.paths, menu.resume)
    if not (menu.uuid and menu.volume and menu.kernel and menu.initramfs):
        raise UsageError("a boot menu needs the volume's UUID, a name of it, a kernel and an initramfs")
    for text in texts:
        if len(text) > _LONGEST or not text.isprintable() or not text.isascii():
            raise UsageError(f"{text[:60]!r} cannot stand in a boot menu: printable ASCII only, and not too long")
    for text in words:
        if " " in text or '"' in text or ".." in text.split("/"):
            raise UsageError(f"{text!r} cannot stand in a boot menu")
    if not 1 <= menu.slots <= _MOST_SLOTS or not -1 <= menu.timeout <= 3600:
        raise UsageError("a boot menu has 1 to 9 slots and a timeout of -1 to 3600 seconds")
    return menu


def render(menu: Menu) -> str:
    """The configuration file of the menu's loader. Raises UsageError for values that it could not hold."""
    return "\n".join((_grub if menu.loader is Loader.GRUB else _refind)(checked(menu))) + "\n"


def options(menu: Menu, slot: int) -> str:
    """The kernel's command line for a slot. rootflags replaces mkinitfs's `ro`, so it says ro itself."""
    words = [
        f"root=UUID={menu.uuid}",
        "rootfstype=btrfs",
        f"rootflags=subvol=/current/{slot}/@,ro,noatime",
        f"resume={menu.resume}" if menu.resume else "",
        f"panic={_PANIC_SECONDS}",
        menu.append.strip(),
    ]
    return " ".join(word for word in words if word)


def slot_path(slot: int, path: str) -> str:
    """A path of the root in a slot, from the top level: where boot loaders look."""
    return f"/current/{slot}/@/{path}"


# ---- state/boot.json -------------------------------------------------------------------------------------


def document(menu: Menu) -> dict[str, object]:
    """The object of state/boot.json; `paths` is what every commit has to keep in place."""
    return {
        "version": VERSION,
        "loader": menu.loader.value,
        "paths": list(menu.paths),
        "uuid": menu.uuid,
        "volume": menu.volume,
        "kernel": menu.kernel,
        "initramfs": menu.initramfs,
        "microcode": list(menu.microcode),
        "slots": menu.slots,
        "resume": menu.resume,
        "append": menu.append,
        "timeout": menu.timeout,
    }


def from_document(found: object) -> Menu | None:
    """The menu that `document` described; None for anything that is not such an object."""
    if not isinstance(found, dict) or found.get("version") != VERSION:
        return None
    texts = {name: found.get(name) for name in ("uuid", "volume", "kernel", "initramfs", "resume", "append")}
    numbers = {name: found.get(name) for name in ("slots", "timeout")}
    microcode, loader = found.get("microcode"), found.get("loader")
    if not _are(texts, str) or not _are(numbers, int) or loader not in set(Loader):
        return None
    if not isinstance(microcode, list) or not all(isinstance(path, str) for path in microcode):
        return None
    try:
        return checked(Menu(**texts, **numbers, microcode=tuple(microcode), loader=Loader(loader)))  # type: ignore[arg-type]
    except UsageError:
        return None


def _are(values: Mapping[str, object], kind: type) -> bool:
    return all(type(value) is kind for value in values.values())  # exactly: True is not a number here


# ---- rEFInd ----------------------------------------------------------------------------------------------


def _refind(menu: Menu) -> Iterator[str]:
    """rEFInd shows `Boot using default options`, which is slot 0, above the submenu's own entries.

    Text only: it needs no icons, and works on a serial console. `default_selection 1`: rEFInd's own default is what
    was booted last, and a machine would stay on an old generation unseen.
    """
    yield from (
        f"# {HEADER}",
        f"timeout {menu.timeout}",
        "textonly true",
        "use_nvram false",
        "scanfor manual",
        "showtools shell,firmware,reboot,shutdown",
        "default_selection 1",
        "",
        f'menuentry "{TITLE}" {{',
        f"    volume {_doubled(menu.volume)}",
    )
    yield from _refind_entry(menu, 0, "    ")
    for slot in range(menu.slots):
        yield f'    submenuentry "{_slot_title(slot)}" {{'
        yield from _refind_entry(menu, slot, "        ")
        yield "    }"
    yield "}"


def _refind_entry(menu: Menu, slot: int, indent: str) -> Iterator[str]:
    """Microcode goes into the options: rEFInd puts the stanza's own initrd behind them."""
    early = " ".join("initrd=" + slot_path(slot, path).replace("/", "\\") for path in menu.microcode)
    words = f"{options(menu, slot)} {early}".rstrip()
    yield f"{indent}loader {slot_path(slot, menu.kernel)}"
    yield f"{indent}initrd {slot_path(slot, menu.initramfs)}"
    yield f"{indent}options {_doubled(words)}"


def _doubled(text: str) -> str:
    """In quotes, for rEFInd: a quote inside is written twice."""
    return '"' + text.replace('"', '""') + '"'


# ---- GRUB ------------------------------------------------------------------------------------------------


def _grub(menu: Menu) -> Iterator[str]:
    """GRUB reads the volume from its top level and follows the links in `current`. Unlike rEFInd it goes on with
    the next slot by itself where slot 0 cannot be loaded (`fallback`)."""
    yield from (
        f"# {HEADER}",
        f"set timeout={menu.timeout}",
        "set default=0",
        f"set fallback='{' '.join(str(slot) for slot in range(1, menu.slots))}'",
        "insmod part_gpt",
        "insmod btrfs",
        f"search --no-floppy --set=root --fs-uuid {menu.uuid}",
    )
    for slot in range(menu.slots):
        title = TITLE if slot == 0 else f"{TITLE}, {_slot_title(slot)}"
        words = [slot_path(slot, menu.kernel), *_kernel_words(options(menu, slot))]
        images = [slot_path(slot, path) for path in (*menu.microcode, menu.initramfs)]
        yield f"menuentry '{title}' --id slot-{slot} {{"
        yield f"    linux {' '.join(map(_grub_word, words))}"
        yield f"    initrd {' '.join(map(_grub_word, images))}"
        yield "}"


def _kernel_words(text: str) -> list[str]:
    """The words of a command line as the kernel splits it; GRUB puts the quotes back, and would escape ours."""
    words, quoted = [""], False
    for char in text:
        quoted ^= char == '"'
        if char == " " and not quoted:
            words.append("")
        elif char != '"':
            words[-1] += char
    return [word for word in words if word]


def _grub_word(word: str) -> str:
    """A word of a GRUB command, in quotes where the shell of GRUB would see more in it."""
    return word if _PLAIN.issuperset(word) else "'" + word.replace("'", "'\\''") + "'"


def _slot_title(slot: int) -> str:
    return f"slot {slot} (next)" if slot == 0 else f"slot {slot} (fallback)"
