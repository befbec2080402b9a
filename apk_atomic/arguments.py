"""The words of a verb of ours that takes options with values: argparse, with our errors and our exit status."""

from __future__ import annotations

import argparse
from typing import NoReturn

from apk_atomic.bootmenu import Loader
from apk_atomic.errors import UsageError


class Parser(argparse.ArgumentParser):
    """`parse` is what commands call; options are never abbreviated, and `--help` is an option like others."""

    def __init__(self, verb: str, description: str) -> None:
        super().__init__(
            prog=f"apk-atomic {verb}", description=description, add_help=False, allow_abbrev=False,
            epilog="Options of ours, --atomic-…: apk-atomic --help. The manual: man apk-atomic.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        self.add_argument("--help", action="store_true", help="this text")

    def error(self, message: str) -> NoReturn:
        """What argparse calls for any line that it does not understand."""
        raise UsageError(f"{message}; nothing was changed", hint=f"{self.prog} --help")

    def parse(self, words: list[str]) -> argparse.Namespace | None:
        """The options by name; None where help was asked for, which counts even on a line that is wrong."""
        return None if "--help" in words else self.parse_args(words)


def text_of(value: str) -> str:
    """The type of an option that may not be empty."""
    if not value:
        raise argparse.ArgumentTypeError("an empty value")
    return value


def add_menu_options(parser: Parser) -> None:
    """Those that decide about the boot menu, for `boot-config` and `init`."""
    parser.add_argument("--loader", choices=[str(each) for each in Loader], help="of the boot menu (refind)")
    parser.add_argument("--refind", type=text_of, metavar="DIR|ZIP", help="where rEFInd is (/usr/share/refind)")
    parser.add_argument("--append", metavar="WORDS", help="further words for the kernel's command line")
    parser.add_argument("--timeout", type=int, metavar="SECONDS", help="0 waits, -1 boots at once (5)")
    parser.add_argument("--no-nvram", action="store_true", help="leave the firmware's boot entries alone")
