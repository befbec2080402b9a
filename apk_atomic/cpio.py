"""newc cpio archives, member by member, off a stream of chunks that is never held as a whole.

The format as the kernel reads it (init/initramfs.c): magic 070701, or 070702 with a checksum. Any bytes give
members or `unpack.Damaged`. This module must not know what the members are for, and writes nothing.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, NamedTuple

from apk_atomic.lookup import parts
from apk_atomic.unpack import Damaged

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAGIC = b"07070"  # of all cpio forms in ASCII; the digit behind it says which
MAX_NAME = 4096  # PATH_MAX, as in the kernel
_HEADER = 110
_FIELDS = struct.Struct(">13I")
_TRAILER = "TRAILER!!!"


class Entry(NamedTuple):
    """A member's header. `name` has no leading "/" or "./"; "" is the top directory itself.

    `inode` tells hard links of one archive; `checksum` is the 32-bit sum of the content's bytes, None where
    the format has none.
    """

    name: str
    inode: tuple[int, int, int]
    mode: int
    links: int
    size: int
    checksum: int | None


class Window:
    """Takes bytes off the front of a stream of chunks; `position` counts those taken."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._chunk, self._at = b"", 0
        self.position = 0

    def at_end(self) -> bool:
        """Whether the stream is used up; reads on when nothing is at hand."""
        while self._at == len(self._chunk):
            chunk = next(self._chunks, None)
            if chunk is None:
                return True
            self._chunk, self._at = chunk, 0
        return False

    def pieces(self, size: int) -> Iterator[bytes]:
        """The next `size` bytes, in order, in pieces; Damaged when there are fewer."""
        while size > 0:
            if self.at_end():
                raise Damaged("is truncated: an archive in it ends in the middle of a member")
            whole = self._at == 0 and len(self._chunk) <= size
            piece = self._chunk if whole else self._chunk[self._at : self._at + size]
            self._at += len(piece)
            self.position += len(piece)
            size -= len(piece)
            yield piece

    def take(self, size: int) -> bytes:
        """The next `size` bytes in one piece; for small sizes only."""
        return b"".join(self.pieces(size))

    def skip(self, size: int) -> None:
        for _ in self.pieces(size):
            pass

    def skip_zeros(self) -> None:
        while not self.at_end() and self._chunk[self._at] == 0:
            rest = self._chunk[self._at :]
            zeros = len(rest) - len(rest.lstrip(b"\0"))
            self._at += zeros
            self.position += zeros


def next_entry(window: Window) -> Entry | None:
    """Takes the next member's header off `window`; None when it was the trailer, which ends the archive.

    The caller takes `size` bytes of content and then `padding(size)`.
    """
    data = window.take(_HEADER)
    if data[:6] not in (b"070701", b"070702"):
        raise Damaged("is corrupt: a member of an archive begins with no magic number of newc")
    ino, mode, _, _, links, _, size, major, minor, _, _, length, checksum = _fields(data[6:])
    if not 0 < length <= MAX_NAME:
        raise Damaged("is corrupt: a member of an archive has no name")
    raw = window.take(length)
    window.skip(-(_HEADER + length) % 4)
    if raw[-1:] != b"\0" or b"\0" in raw[:-1]:
        raise Damaged("is corrupt: the name of a member does not end where it should")
    name = "/".join(parts(os.fsdecode(raw[:-1])))
    if name == _TRAILER:
        window.skip(size + padding(size))
        return None
    return Entry(name, (ino, major, minor), mode, links, size, checksum if data[5:6] == b"2" else None)


def padding(size: int) -> int:
    """How many bytes follow a content of `size` bytes."""
    return -size % 4


def _fields(text: bytes) -> tuple[int, ...]:
    try:
        return _FIELDS.unpack(bytes.fromhex(text.decode("ascii")))
    except (ValueError, struct.error) as error:  # struct.error: fromhex skips blanks and gives too little
        raise Damaged("is corrupt: a cpio header is not hexadecimal") from error
