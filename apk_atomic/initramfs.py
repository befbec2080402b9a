"""Reading an initramfs as the kernel does: what is in it, and whether it is whole.

An image is a row of newc cpio archives, each plain or inside a compressed segment, with NUL padding between
them (kernel: buffer-format.rst, init/initramfs.c); early microcode is simply the first one. Everything is
streamed: memory holds the names and digests of the members and the beginnings of a few. Any bytes give an
`Image` or `unpack.Damaged`, within the limits below. This module must not know what a good image has to hold,
and writes nothing.
"""

from __future__ import annotations

import os
import stat
import sys
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from apk_atomic import cpio, lookup
from apk_atomic.unpack import CHUNK, Damaged, Unpacked, sniff

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from apk_atomic.unpack import External

MAX_UNPACKED = 1 << 30  # bytes; the largest real images (all firmware of a desktop) unpack to a third of it
MAX_MEMBERS = 100_000
_MAX_NAMED = 12 << 20  # bytes of memory for what is known of the members; real images need less than 3 MiB
_MEMBER, _LINK = 200, 400  # bytes, beside its texts: a member with its place in the table, and what ties hard links
_DIGEST = 16  # bytes
_STAGING, _ID_DIGITS = b"staging/", 14
# How much of a member is kept for whoever judges the image, by base name.
_KEPT = {
    "init": 1 << 18, "modules.dep": 1 << 22, "modules.builtin": 1 << 20,
    "busybox": 1 << 12, "sh": 1 << 12, "kmod": 1 << 12, "systemd": 1 << 12,
}  # fmt: skip
_MAX_KEPT = 1 << 23


class Member(NamedTuple):
    """`mode` as in stat; `size` in bytes; `content`: a file's BLAKE2b-128 in hex, or a link's target."""

    mode: int
    size: int
    content: str

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)


class Image(NamedTuple):
    """What a whole image holds.

    Names have no leading "/" or "./". `starts`: the beginnings of the few members that a judge reads.
    `staged`: members that name a staging subvolume, which will be gone when they are read. `codecs`: of its
    segments, in order, "none" for a plain archive.
    """

    members: Mapping[str, Member]
    starts: Mapping[str, bytes]
    staged: tuple[str, ...]
    codecs: tuple[str, ...]

    def resolve(self, path: str) -> str | None:
        """The name of the member that `path` leads to in the unpacked image, links followed; None if none."""
        name = lookup.follow(path, self._target)
        return name if name in self.members else None

    def _target(self, name: str) -> str | None:
        member = self.members.get(name)
        return member.content if member is not None and member.is_link else None

    def program(self, path: str) -> str | None:
        """`resolve`, for what can be executed only."""
        name = self.resolve(path)
        if name is None or not self.members[name].is_file or not self.members[name].mode & 0o111:
            return None
        return name


def read(fd: int, external: External | None = None, *, limit: int = MAX_UNPACKED) -> Image:
    """The image in the regular file `fd`, read to its end; `external` unpacks what Python itself cannot.

    Raises Damaged when the kernel would not unpack all of it, an archive has no end (TRAILER!!!), or the file or
    all that is in it has more than `limit` bytes.
    """
    reader, codecs = _Reader(limit), list[str]()
    size = os.fstat(fd).st_size
    if size > limit:  # also of zeros, which would be read all the same
        raise Damaged(f"has more than {limit >> 20} MiB")
    offset = _behind_zeros(fd, 0)
    while offset < size:
        head = os.pread(fd, 8, offset)
        codec = sniff(head)
        if codec is not None:
            codecs.append(codec)
            offset = reader.packed(Unpacked(fd, offset, codec, external))
        elif head.startswith(cpio.MAGIC):
            codecs.append("none")
            offset = reader.plain(fd, offset)
        else:
            raise Damaged(f"is corrupt: at byte {offset} is neither a cpio archive nor a compressed one")
        offset = _behind_zeros(fd, offset)
    if not codecs:
        raise Damaged("is empty")
    return Image(reader.members, reader.starts, tuple(reader.staged), tuple(codecs))


def file_digest(fd: int) -> str:
    """The digest of a file of a root, as `Member.content` would have it."""
    from hashlib import blake2b

    digest = blake2b(digest_size=_DIGEST)
    for chunk in _file_chunks(fd, 0):
        digest.update(chunk)
    return digest.hexdigest()


class _Reader:
    """Collects the members of all archives of one image."""

    def __init__(self, limit: int) -> None:
        self.members: dict[str, Member] = {}
        self.starts: dict[str, bytes] = {}
        self.staged: list[str] = []
        self._count, self._named = 0, 0
        self._limit, self._room, self._keep = limit, limit, _MAX_KEPT
        self._linked: dict[tuple[int, int, int], list[tuple[str, Member]]] = {}

    def plain(self, fd: int, offset: int) -> int:
        """The archive that stands at `offset` of the file as it is; the offset behind it."""
        if offset % 4:
            raise Damaged(f"is corrupt: the archive at byte {offset} is not aligned")
        window = cpio.Window(self._limited(_file_chunks(fd, offset)))
        self._archive(window)
        return offset + window.position

    def packed(self, segment: Unpacked) -> int:
        """All archives of a compressed segment, to its end: the kernel takes nothing else in there."""
        with closing(iter(segment)) as chunks:
            window = cpio.Window(self._limited(chunks))
            if window.at_end():
                raise Damaged("is empty: a compressed segment holds nothing")
            while not window.at_end():
                self._archive(window)
                window.skip_zeros()
        return segment.end

    def _limited(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._room -= len(chunk)
            if self._room < 0:
                raise Damaged(f"unpacks to more than {self._limit >> 20} MiB")
            yield chunk

    def _archive(self, window: cpio.Window) -> None:
        """One archive up to and with its trailer."""
        self._linked = {}
        self._count_one()  # its trailer, so that empty archives come to an end as well
        while (entry := cpio.next_entry(window)) is not None:
            self._count_one()
            self.starts.pop(entry.name, None)  # of an earlier member, which this one replaces
            member = Member(entry.mode, entry.size, self._content(window, entry))
            window.skip(cpio.padding(entry.size))
            is_linked = entry.links > 1 and member.is_file
            self._count_texts(entry.name, member.content, _MEMBER + _LINK * is_linked)
            if entry.name:
                self.members[entry.name] = member
            if is_linked:
                self._linked.setdefault(entry.inode, []).append((entry.name, member))
        for links in self._linked.values():
            self._share(links)

    def _count_one(self) -> None:
        self._count += 1
        if self._count > MAX_MEMBERS:
            raise Damaged(f"holds more than {MAX_MEMBERS} members")

    def _count_texts(self, name: str, content: str, more: int) -> None:
        """What a member takes of the memory until all is read, replaced by a later one or not."""
        self._named += sys.getsizeof(name) + sys.getsizeof(content) + more
        if self._named > _MAX_NAMED:
            raise Damaged(f"has names and links of members that fill more than {_MAX_NAMED >> 20} MiB")

    def _content(self, window: cpio.Window, entry: cpio.Entry) -> str:
        """Takes the content off `window`; what `Member.content` says of it."""
        if stat.S_ISREG(entry.mode):
            return self._digest(window, entry)
        if not stat.S_ISLNK(entry.mode):
            window.skip(entry.size)
            return ""
        if entry.size > cpio.MAX_NAME:
            raise Damaged("is corrupt: a symbolic link in it is too long")
        return os.fsdecode(window.take(entry.size).rstrip(b"\0"))

    def _share(self, links: list[tuple[str, Member]]) -> None:
        """The data that came last is that of all hard links; most archives give the others none. A name that another
        member has taken since is no link any more."""
        source, data = next(((name, member) for name, member in reversed(links) if member.size), links[0])
        for name, member in links:
            if name != source and self.members.get(name) is member:
                self.members[name] = data
                if source in self.starts:
                    self.starts[name] = self.starts[source]

    def _digest(self, window: cpio.Window, entry: cpio.Entry) -> str:
        """The digest of a regular file's content, whose beginning is kept where it is wanted."""
        from hashlib import blake2b  # with OpenSSL behind it, which most commands need not load

        digest, total, tail, staged = blake2b(digest_size=_DIGEST), 0, b"", False
        wanted = _KEPT.get(entry.name.rpartition("/")[2], 0)
        for piece in window.pieces(entry.size):
            digest.update(piece)
            if entry.checksum is not None:
                total += sum(piece)
            staged = staged or names_staging(tail + piece)
            tail = piece[-len(_STAGING) - _ID_DIGITS :]
            wanted -= self._keep_start(entry.name, piece[: max(wanted, 0)])
        if entry.checksum is not None and total & 0xFFFFFFFF != entry.checksum:
            raise Damaged(f"is corrupt: the checksum of {entry.name} is wrong")
        if staged:
            self.staged.append(entry.name)
        return digest.hexdigest()

    def _keep_start(self, name: str, piece: bytes) -> int:
        """Adds `piece` to what is kept of `name`, as far as there is room; how much that was."""
        piece = piece[: self._keep]
        if piece:
            self.starts[name] = self.starts.get(name, b"") + piece
            self._keep -= len(piece)
        return len(piece)


def names_staging(data: bytes) -> bool:
    """Whether the path of a staging subvolume stands in `data`: "staging/" and 14 digits (drivers/staging/ is
    in every modules.dep)."""
    at = data.find(_STAGING)
    while at >= 0:
        start = at + len(_STAGING)
        digits = data[start : start + _ID_DIGITS]
        if len(digits) == _ID_DIGITS and digits.isdigit():
            return True
        at = data.find(_STAGING, start)
    return False


def _file_chunks(fd: int, offset: int) -> Iterator[bytes]:
    while chunk := os.pread(fd, CHUNK, offset):
        offset += len(chunk)
        yield chunk


def _behind_zeros(fd: int, offset: int) -> int:
    """The offset of the first byte from `offset` on that is not NUL, or of the file's end."""
    for chunk in _file_chunks(fd, offset):
        rest = chunk.lstrip(b"\0")
        offset += len(chunk) - len(rest)
        if rest:
            break
    return offset
