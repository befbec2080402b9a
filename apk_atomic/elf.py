"""What an ELF file needs to run: its interpreter and its libraries, as far as the kernel and ld.so read it.

Little- and big-endian, 32 and 64 bit. Any bytes give an answer or `unpack.Damaged`, within a few small reads.
This module knows nothing of roots, and writes nothing.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, NamedTuple

from apk_atomic.unpack import Damaged

if TYPE_CHECKING:
    from collections.abc import Callable

MAGIC = b"\x7fELF"
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 1, 5, 15, 29
_MAX_SEGMENTS, _MAX_DYNAMIC, _MAX_TEXT = 128, 1 << 14, 4096


class Elf(NamedTuple):
    """`interpreter` is empty for a static program or a library; `libraries` are DT_NEEDED names in order;
    `search` the directories of DT_RPATH and DT_RUNPATH, $ORIGIN not replaced."""

    machine: int
    interpreter: str
    libraries: tuple[str, ...]
    search: tuple[str, ...]


class _Segment(NamedTuple):
    kind: int
    offset: int
    address: int
    size: int


def read(fd: int) -> Elf:
    """The needs of the ELF file `fd`, whose position is left alone. Raises Damaged when it is none, or cut
    short."""
    size = os.fstat(fd).st_size
    file = _File(lambda offset, length: os.pread(fd, length, offset) if offset < size else b"")
    segments = _segments(file)
    if any(segment.kind == _PT_LOAD and segment.offset + segment.size > size for segment in segments):
        raise Damaged("is truncated: a segment lies behind its end")
    libraries, search = _dynamic(file, segments)
    return Elf(file.machine, _interpreter(file, segments), libraries, search)


def interpreter(head: bytes) -> str:
    """The interpreter of the ELF file that begins with `head`; "" for a static one, and where `head` does not
    reach far enough. Raises Damaged when it is no ELF file."""
    file = _File(lambda offset, length: head[offset : offset + length])
    return _interpreter(file, _segments(file))


class _File:
    """Numbers and texts of an ELF file, in its byte order and width."""

    def __init__(self, read_at: Callable[[int, int], bytes]) -> None:
        self._read_at = read_at
        ident = self.some(0, 16).ljust(16, b"\0")
        if not ident.startswith(MAGIC) or ident[4] not in (1, 2) or ident[5] not in (1, 2):
            raise Damaged("is no ELF file")
        self.wide = ident[4] == 2
        self.order = "<" if ident[5] == 1 else ">"
        (self.machine,) = self.unpack(18, "H")

    def some(self, offset: int, size: int) -> bytes:
        return self._read_at(offset, size)

    def unpack(self, offset: int, form: str) -> tuple[int, ...]:
        layout = struct.Struct(self.order + form)
        data = self.some(offset, layout.size)
        if len(data) < layout.size:
            raise Damaged("is truncated: its headers point behind its end")
        return layout.unpack(data)

    def text(self, offset: int, size: int) -> str:
        """The NUL-terminated string at `offset`, at most `size` bytes with its NUL."""
        return os.fsdecode(self.some(offset, min(size, _MAX_TEXT)).partition(b"\0")[0])


def _segments(file: _File) -> list[_Segment]:
    (start,) = file.unpack(32 if file.wide else 28, "Q" if file.wide else "I")
    size, count = file.unpack(54 if file.wide else 42, "HH")
    form, columns = ("IIQQQQQQ", (2, 3, 5)) if file.wide else ("IIIIIIII", (1, 2, 4))
    if count > _MAX_SEGMENTS:
        raise Damaged("is corrupt: its program headers make no sense")
    segments = []
    for index in range(count):
        fields = file.unpack(start + index * size, form)
        offset, address, length = (fields[column] for column in columns)
        segments.append(_Segment(fields[0], offset, address, length))
    return segments


def _interpreter(file: _File, segments: list[_Segment]) -> str:
    return next((file.text(each.offset, each.size) for each in segments if each.kind == _PT_INTERP), "")


def _dynamic(file: _File, segments: list[_Segment]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """DT_NEEDED names and DT_RPATH/DT_RUNPATH directories."""
    layout = struct.Struct(file.order + ("qQ" if file.wide else "iI"))
    entries: list[tuple[int, int]] = []
    for segment in segments:
        if segment.kind == _PT_DYNAMIC:
            data = file.some(segment.offset, min(segment.size, _MAX_DYNAMIC))
            entries += layout.iter_unpack(data[: len(data) // layout.size * layout.size])
    table = next((_file_offset(segments, value) for tag, value in entries if tag == _DT_STRTAB), None)
    if table is None:
        return (), ()
    needed = tuple(file.text(table + value, _MAX_TEXT) for tag, value in entries if tag == _DT_NEEDED)
    paths = [file.text(table + value, _MAX_TEXT) for tag, value in entries if tag in (_DT_RPATH, _DT_RUNPATH)]
    return needed, tuple(entry for path in paths for entry in path.split(":") if entry)


def _file_offset(segments: list[_Segment], address: int) -> int | None:
    for segment in segments:
        if segment.kind == _PT_LOAD and segment.address <= address < segment.address + segment.size:
            return segment.offset + address - segment.address
    return None
