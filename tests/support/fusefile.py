"""One regular file on raw /dev/fuse that logs each write and each flush of the block device above it.

The whole file system is one regular file (its root *is* the file), so that a loop device can stand on it.
The protocol is spoken by hand, and `powercut` runs the module as a program of its own: the kernel's loop
worker waits for our answers while the test waits for the kernel, so both cannot be one process. It must know
nothing of btrfs or of what is tested, and it imports nothing of ours.

Order is exact: requests are served one at a time, and a write is logged before it is answered. Marks come
through a pipe that is drained before each request, so a mark is never logged later than anything that its
writer did afterwards, and never earlier than anything that had been answered before.

Log record: kind (1 byte), offset (8), length (4), then `length` bytes: the data of a write or a mark's name.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
import sys
from enum import Enum, IntEnum

RECORD = struct.Struct("<cQI")
WRITE, FLUSH, MARK = b"W", b"F", b"M"
FAULT_PREFIX = "!"

_IN_HEADER = struct.Struct("<IIQQIIIHH")
_OUT_HEADER = struct.Struct("<IiQ")
_IO_IN = struct.Struct("<QQIIQII")  # fuse_read_in and fuse_write_in
_INIT_OUT = struct.Struct("<IIIIHHIIHHII24x")
_ATTR_OUT = struct.Struct("<QII QQQQQQ IIIIIIIIII")
_OPEN_OUT = struct.Struct("<QIi")
_STATFS_OUT = struct.Struct("<QQQQQIIII24x")
_MAX_WRITE = 1 << 20
_BUFFER = _MAX_WRITE + 8192
_DIRECT_IO = 1
_BIG_WRITES, _MAX_PAGES = 1 << 5, 1 << 22
_MNT_DETACH = 2
_NEWNS, _REC, _PRIVATE = 0x20000, 0x4000, 0x40000


class Opcode(IntEnum):
    """The requests that a loop device on one file gives rise to; anything else is answered ENOSYS."""

    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    ACCESS = 34
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42


_UNANSWERED = {Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT}
_EMPTY_ANSWER = {Opcode.RELEASE, Opcode.FLUSH, Opcode.ACCESS, Opcode.DESTROY}


class Fault(Enum):
    """What the disk does from now on; the values are the commands of the marks pipe."""

    NONE = "!ok"
    EIO = "!eio"  # every write and every flush fails
    DROP = "!drop"  # every write and flush is answered as done and forgotten


class RefusedError(Exception):
    """The answer to a request is this errno."""

    def __init__(self, code: int) -> None:
        super().__init__(os.strerror(code))
        self.code = code


class Faults:
    """Which fault holds now. `!eio`, `!drop`, `!ok` act at once, `!eio N` after N more writes."""

    def __init__(self) -> None:
        self.now = Fault.NONE
        self._planned: tuple[int, Fault] | None = None

    def command(self, text: str) -> None:
        """Obey one line of the marks pipe that begins with `!`; ValueError if it is none of ours."""
        word, _, after = text.partition(" ")
        fault = Fault(word)
        if after:
            self._planned = (int(after), fault)
        else:
            self.now, self._planned = fault, None

    def before_write(self) -> Fault:
        """The fault for the write at hand; counts it."""
        if self._planned is not None:
            left, fault = self._planned
            self._planned = (left - 1, fault)
            if left == 0:
                self.now, self._planned = fault, None
        return self.now


class Server:
    """Serves `image` on `fuse` until that is unmounted, or until nobody holds the marks pipe any more."""

    def __init__(self, fuse: int, marks: int, image: int, log: int) -> None:
        self._fuse, self._marks, self._image, self._log = fuse, marks, image, log
        self._size = os.fstat(image).st_size
        self._faults = Faults()
        self._partial = b""

    def serve(self) -> bool:
        """Returns whether the file system was unmounted (else the test is dead)."""
        poll = select.poll()
        poll.register(self._marks, select.POLLIN)
        poll.register(self._fuse, select.POLLIN)
        buffer = bytearray(_BUFFER)
        while True:
            ready = dict(poll.poll())
            if self._marks in ready and not self._read_marks():
                return False
            if self._fuse in ready and not self._one_request(buffer):
                return True

    def _read_marks(self) -> bool:
        data = os.read(self._marks, 65536)
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self._record(MARK, 0, line)
            if line.decode().startswith(FAULT_PREFIX):
                self._faults.command(line.decode())
        return bool(data)

    def _record(self, kind: bytes, offset: int, data: bytes | memoryview) -> None:
        os.writev(self._log, [RECORD.pack(kind, offset, len(data)), data])

    def _one_request(self, buffer: bytearray) -> bool:
        """Read and answer one request; False when the file system is unmounted."""
        try:
            length = os.readv(self._fuse, [buffer])
        except OSError as error:
            if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                return True
            if error.errno == errno.ENODEV:
                return False
            raise
        _, opcode, unique, *_ = _IN_HEADER.unpack_from(buffer)
        if opcode not in _UNANSWERED:
            self._answer(unique, opcode, memoryview(buffer)[_IN_HEADER.size : length])
        return True

    def _answer(self, unique: int, opcode: int, body: memoryview) -> None:
        try:
            code, payload = 0, self._handle(opcode, body)
        except RefusedError as refused:
            code, payload = refused.code, b""
        try:
            os.writev(self._fuse, [_OUT_HEADER.pack(_OUT_HEADER.size + len(payload), -code, unique), payload])
        except OSError as error:
            if error.errno != errno.ENOENT:  # ENOENT: the request was interrupted meanwhile
                raise

    def _handle(self, opcode: int, body: memoryview) -> bytes:
        if opcode == Opcode.WRITE:
            return self._write(body)
        if opcode == Opcode.READ:
            _, offset, size, *_ = _IO_IN.unpack_from(body)
            return os.pread(self._image, size, offset)
        if opcode == Opcode.FSYNC:
            return self._flush()
        if opcode in (Opcode.GETATTR, Opcode.SETATTR):
            return self._attributes()
        if opcode in _EMPTY_ANSWER:
            return b""
        return self._describe(opcode)

    def _describe(self, opcode: int) -> bytes:
        if opcode == Opcode.INIT:
            version, queue, limits = (7, 31), (64, 48), (_MAX_WRITE, 1, _MAX_WRITE // 4096)
            return _INIT_OUT.pack(*version, 0, _BIG_WRITES | _MAX_PAGES, *queue, *limits, 0, 0, 0)
        if opcode == Opcode.OPEN:
            return _OPEN_OUT.pack(0, _DIRECT_IO, 0)
        if opcode == Opcode.STATFS:
            return _STATFS_OUT.pack(self._size // 4096, 0, 0, 1, 0, 4096, 255, 4096, 0)
        raise RefusedError(errno.ENOSYS)

    def _attributes(self) -> bytes:
        valid, times = (3600, 0, 0), (0,) * 6
        mode_to_flags = (0o100600, 1, 0, 0, 0, 4096, 0)
        return _ATTR_OUT.pack(*valid, 1, self._size, self._size // 512, *times, *mode_to_flags)

    def _write(self, body: memoryview) -> bytes:
        _, offset, size, *_ = _IO_IN.unpack_from(body)
        data = body[_IO_IN.size : _IO_IN.size + size]
        fault = self._faults.before_write()
        if fault is Fault.EIO:
            raise RefusedError(errno.EIO)
        if fault is Fault.NONE:
            self._record(WRITE, offset, data)
            os.pwrite(self._image, data, offset)
        return struct.pack("<II", size, 0)

    def _flush(self) -> bytes:
        if self._faults.now is Fault.EIO:
            raise RefusedError(errno.EIO)
        if self._faults.now is Fault.NONE:
            self._record(FLUSH, 0, b"")
        return b""


def _leave_mount_namespace() -> None:
    """Goes to a mount namespace of its own that holds none of the test's file systems.

    As the last process of the test's namespace, our exit would unmount the btrfs that we serve ourselves, and wait for
    our answers for ever; with it every sync(2) of the machine.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEWNS) or libc.mount(None, b"/", None, ctypes.c_ulong(_REC | _PRIVATE), None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "unshare")
    with open("/proc/self/mountinfo", "rb") as table:
        lines = [line.split() for line in table]
    for fields in reversed(lines):
        if fields[fields.index(b"-") + 1].startswith((b"btrfs", b"fuse")):
            libc.umount2(fields[4], _MNT_DETACH)


def main(argv: list[str]) -> int:
    """Arguments: the mount point; the descriptors of /dev/fuse, the marks pipe, the image and the log."""
    _leave_mount_namespace()
    if not Server(*map(int, argv[1:5])).serve():
        # The test died and cannot unmount any more.
        ctypes.CDLL(None).umount2(os.fsencode(argv[0]), _MNT_DETACH)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
