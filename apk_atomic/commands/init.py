"""`apk-atomic init DEVICE|IMAGE`: a bootable system with the layout, from nothing but packages."""

from __future__ import annotations

import json
import os
import select
from argparse import ArgumentTypeError, Namespace
from dataclasses import replace

from apk_atomic import bootmenu, chroot, loaders, makesystem, newroot, order
from apk_atomic.arguments import Parser, add_menu_options, text_of
from apk_atomic.atomic_options import AtomicOptions
from apk_atomic.bootmenu import Loader, Menu
from apk_atomic.bootstrap import Source, System
from apk_atomic.config import Config, load
from apk_atomic.config_schema import why_not_common
from apk_atomic.context import CONFIG, Context, require_root
from apk_atomic.errors import Refused, UsageError
from apk_atomic.makesystem import Made
from apk_atomic.newmenu import Wishes
from apk_atomic.newroot import Identity
from apk_atomic.order import Boot, Disk, Order
from apk_atomic.partition import MIB
from apk_atomic.signals import Signals

_TEXT = """\
Makes a system on a whole disk or in an image file (GPT: an ESP, swap if wanted, a btrfs volume), or with --esp on one
partition: layout, commons, fstab, a first generation of packages, sealed and proved to boot, and the boot menu.
It asks before it destroys anything. Packages come from --repository, else from where this system's come from."""
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_LIMIT = 1 << 20  # bytes of a key, a password file, a list of repositories
_FLAVOR = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
_WORD = _FLAVOR | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ._+")
_COMPRESSIONS = ("zstd", "zlib")  # rEFInd's driver cannot read lzo (facts: boots-seen, 6)


def run(context: Context, words: list[str], _: AtomicOptions) -> int:
    """0 when the system is on the disk, durably."""
    parser = _parser()
    asked = parser.parse(words)
    if asked is None:
        context.console.answer(parser.format_help())
        return 0
    require_root(context.argv)
    wanted = _order(context, asked)
    made = _perform(context, wanted, sure=asked.yes)
    if asked.json:
        context.console.answer(json.dumps(_document(made)))
    loader = "" if wanted.wants_menu else ", without a boot loader"
    context.console.note(f"{wanted.disk.path} holds generation {made.generation} in every slot{loader}")
    return 0


def _perform(context: Context, wanted: Order, *, sure: bool) -> Made:
    signals = Signals()
    try:
        found = order.examine(wanted, signals)
        if not sure:
            _ask(context, order.describe(wanted, found), signals)
        return makesystem.perform(wanted, found, context.console, signals)
    finally:
        signals.release()


def _ask(context: Context, question: str, signals: Signals) -> None:
    """Raises Refused for any answer but yes, and Interrupted for a Ctrl-C."""
    context.console.warn(f"{question}. Type yes to go on:")
    if _typed_line(signals).strip().lower() != b"yes":
        raise Refused("not confirmed; nothing was changed", hint="--yes answers the question beforehand")


def _typed_line(signals: Signals) -> bytes:
    """What is typed up to the end of the line; signals are blocked, so they are waited for beside it."""
    waiting = select.poll()
    waiting.register(0, select.POLLIN)
    waiting.register(signals.fd, select.POLLIN)
    line = b""
    while not line.endswith(b"\n"):
        ready = {fd for fd, _ in waiting.poll()}
        signals.check()
        if 0 in ready:
            typed = os.read(0, 1)
            if not typed:
                break
            line += typed
    return line


def _document(made: Made) -> dict[str, object]:
    parts = {
        part.role.lower(): {"number": part.number, "start": part.start, "size": part.size, "guid": part.guid}
        for part in made.parts
    }
    return {"version": 1, "generation": made.generation, "uuid": made.uuid, "partitions": parts}


# ---- the options -----------------------------------------------------------------------------------------


def _parser() -> Parser:
    parser = Parser("init", _TEXT)
    parser.add_argument("target", type=text_of, metavar="DEVICE|IMAGE", help="all that is on it is lost")
    _add_disk_options(parser)
    _add_package_options(parser)
    _add_system_options(parser)
    add_menu_options(parser)
    parser.add_argument("--json", action="store_true", help="a document of what was made, for programs")
    return parser


def _add_disk_options(parser: Parser) -> None:
    group = parser.add_argument_group("the disk")
    group.add_argument("--yes", action="store_true", help="do not ask")
    group.add_argument("--force", action="store_true", help="destroy what is on a device that is not empty")
    group.add_argument("--size", type=_size, default=0, help="of the image file, which is made: 4G")
    group.add_argument("--esp-size", type=_size, default=512 * MIB, metavar="SIZE", help="(512M)")
    group.add_argument("--swap", type=_size, default=0, metavar="SIZE", help="a swap partition (none)")
    group.add_argument(
        "--esp", type=text_of, metavar="DEVICE|DIR|none",
        help="DEVICE is one partition, for the volume alone; the boot loader goes to this ESP, or nowhere",
    )  # fmt: skip
    group.add_argument("--label", type=_label, default="ROOT", help="of the volume, and its partition (ROOT)")
    group.add_argument("--common", type=_common, action="append", metavar="@NAME", help="@var@log stands for /var/log")
    group.add_argument("--compress", choices=_COMPRESSIONS, default="", help="the files of all generations")


def _add_package_options(parser: Parser) -> None:
    group = parser.add_argument_group("the packages")
    group.add_argument("--apk", type=text_of, metavar="PATH", help="the apk that installs (this system's)")
    group.add_argument("--repository", type=text_of, action="append", metavar="URL", help="repeatable")
    group.add_argument("--keys-dir", type=text_of, default="/etc/apk/keys", metavar="DIR", help="(/etc/apk/keys)")
    group.add_argument("--allow-untrusted", action="store_true", help="install what no key has signed")
    group.add_argument("--arch", type=text_of, help="another architecture than that apk's")
    group.add_argument("--kernel", type=_flavor, default="lts", metavar="FLAVOR", help="lts, virt …, or none (lts)")
    group.add_argument("--firmware", type=_word, action="append", default=[], metavar="NAME",
                       help="linux-firmware-NAME, or none; else what the kernel asks for")  # fmt: skip
    group.add_argument("--package", type=_package, action="append", default=[], metavar="NAME", help="repeatable")
    group.add_argument("--feature", type=_word, action="append", default=[], metavar="NAME",
                       help="of mkinitfs, beside its own and btrfs")  # fmt: skip


def _add_system_options(parser: Parser) -> None:
    group = parser.add_argument_group("the system")
    group.add_argument("--hostname", type=text_of, metavar="NAME", help="(what the packages say)")
    group.add_argument("--interface", default="eth0", metavar="NAME", help='gets its address by DHCP; "" none (eth0)')
    group.add_argument("--root-password-file", type=text_of, metavar="FILE", help="its first line; or a hash, $6$…")
    group.add_argument("--root-key", type=text_of, metavar="FILE", help="SSH public keys that may log in as root")


def _size(value: str) -> int:
    digits, unit = (value[:-1], value[-1]) if value[-1:] in _UNITS else (value, "")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 16):
        raise ArgumentTypeError(f"{value!r} is not a size such as 512M or 4G")
    return int(digits) * _UNITS.get(unit, 1)


def _label(value: str) -> str:
    if not 0 < len(value) <= 36 or not value.isascii() or not value.isprintable() or set('"\\/') & set(value):
        raise ArgumentTypeError(f"{value!r} cannot be a label: at most 36 plain characters")
    return value


def _common(value: str) -> str:
    if why := why_not_common(value):
        raise ArgumentTypeError(f"{value!r} {why}")
    return value


def _flavor(value: str) -> str:
    if not value or not _FLAVOR.issuperset(value):
        raise ArgumentTypeError(f"{value!r} is not a kernel flavor")
    return "" if value == "none" else value


def _word(value: str) -> str:
    if not value or value.startswith("-") or not _WORD.issuperset(value):
        raise ArgumentTypeError(f"{value!r} is no name")
    return value


def _package(value: str) -> str:
    """What apk takes for a package and not for an option of its own: NAME, NAME=VERSION, a path, …"""
    if not value or value.startswith("-") or not value.isprintable() or " " in value:
        raise ArgumentTypeError(f"{value!r} is no package")
    return value


# ---- what they mean --------------------------------------------------------------------------------------


def _order(context: Context, asked: Namespace) -> Order:
    """Everything that can be found wrong without looking at the disk. Raises UsageError."""
    config = _config()
    commons = tuple(dict.fromkeys(asked.common)) if asked.common else config.volume.commons
    if asked.esp and asked.swap:
        raise UsageError("--swap makes a partition, and --esp none at all; nothing was changed")
    firmware = tuple(f"linux-firmware-{name}" for name in asked.firmware)
    key = newroot.valid_keys(_read(asked.root_key), asked.root_key) if asked.root_key else b""
    identity = Identity(newroot.valid_hostname(asked.hostname) if asked.hostname else "",
                        newroot.valid_interface(asked.interface), "", key)  # fmt: skip
    password = _password(asked.root_password_file) if asked.root_password_file else b""
    wishes = Wishes(Loader(asked.loader) if asked.loader else None, asked.kernel, asked.append, None, asked.timeout)
    _require_menu(wishes, asked.label, config.generations.slots)
    places = (asked.refind,) if asked.refind else (f"/{loaders.REFIND}",)
    return Order(
        Disk(
            asked.target, asked.esp or "", asked.esp_size, asked.swap, asked.label, commons, asked.size, asked.force
        ),
        _source(asked),
        System(asked.kernel, (*firmware, *asked.package), tuple(asked.feature), identity, password, asked.compress),
        Boot(wishes, places, nvram=not asked.no_nvram),
        config,
        context.argv,
    )


def _require_menu(wishes: Wishes, label: str, slots: int) -> None:
    """Raises UsageError for what could not stand in the boot menu, which is made last of all."""
    menu = Menu("uuid", label, "kernel", "initramfs", slots=slots, append=wishes.append or "")
    try:
        bootmenu.checked(menu if wishes.timeout is None else replace(menu, timeout=wishes.timeout))
    except UsageError as error:
        raise UsageError(f"{error.message}; nothing was changed") from error


def _password(path: str) -> bytes:
    """The first line of a file. Raises UsageError where that is empty, for then no password would be asked for, or not
    what can be typed."""
    line = _read(path).split(b"\n")[0].rstrip(b"\r")
    if not line:
        raise UsageError(f"the first line of {path} is empty, which is no password; nothing was changed")
    if b"\0" in line:
        raise UsageError(f"the first line of {path} has a NUL in it, which no password has; nothing was changed")
    return line


def _config() -> Config:
    """This system's settings, if it has any: the slots and the commons of the new one."""
    try:
        return load(_read(f"/{CONFIG}"), f"/{CONFIG}") if os.path.exists(f"/{CONFIG}") else Config()
    except OSError as error:
        raise UsageError(f"/{CONFIG}: {error.strerror}; nothing was changed") from error


def _source(asked: Namespace) -> Source:
    apk = os.path.abspath(asked.apk) if asked.apk else _apk_of_this_system()
    if not apk or not os.access(apk, os.X_OK):
        raise UsageError(
            f"{apk} cannot be run" if apk else "there is no apk here; nothing was changed",
            hint="--apk with an apk.static, from package apk-tools-static of Alpine",
        )
    repositories = tuple(asked.repository or _repositories())
    if not repositories:
        raise UsageError("no repository is known; nothing was changed", hint="--repository URL")
    keys = tuple(_keys(asked.keys_dir))
    if not keys and not asked.allow_untrusted:
        raise UsageError(
            f"{asked.keys_dir} has no keys, so that nothing could be trusted; nothing was changed",
            hint="--keys-dir with the public keys of the repositories",
        )
    return Source(apk, repositories, keys, asked.arch or "", asked.allow_untrusted)


def _apk_of_this_system() -> str:
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return chroot.find_apk(root) or ""
    finally:
        os.close(root)


def _repositories() -> list[str]:
    try:
        lines = _read("/etc/apk/repositories").decode("utf-8", "surrogateescape").splitlines()
    except UsageError:
        return []
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def _keys(directory: str) -> list[tuple[str, bytes]]:
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return []
    return [(name, _read(f"{directory}/{name}")) for name in names if name.endswith(".pub")]


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_LIMIT)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; nothing was changed") from error
