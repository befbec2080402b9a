"""What an EFI system partition is to who reads and writes its files, however it is reached; and why it cannot be.

It must not know what the files are. Paths have no leading slash.
"""

from __future__ import annotations

from typing import Protocol

from apk_atomic.errors import AtomicError, CheckFailed, NoSpace

LIMIT = 1 << 25  # bytes of a file that we read back


class Unseen(CheckFailed):
    """There is nothing here that reads a FAT file system, so nobody knows what is on it."""


class Esp(Protocol):
    """`device` is the block device, "" where a directory was given that is on none; `is_fat` says that it is one."""

    device: str
    is_fat: bool

    def read(self, path: str) -> bytes | None:
        """The file's content; None where there is none."""

    def write(self, path: str, data: bytes) -> None:
        """Replaces the file, and makes the directories above it; durable when this returns."""

    def tidy(self, path: str) -> None:
        """Removes what a power cut left of an earlier `write` of the file."""

    def free(self) -> int | None:
        """Bytes that there is room for; None where that is not known."""


def refused(path: str, why: str, *, full: bool) -> AtomicError:
    """What to raise where a file could not be written; `full`: for want of room."""
    kind = NoSpace if full else CheckFailed
    return kind(f"{path} cannot be written to the ESP: {why}; what was there before still boots")
