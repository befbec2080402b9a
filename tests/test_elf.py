"""`elf`: programs of this machine, made-up ones, and any bytes."""

from __future__ import annotations

import contextlib
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apk_atomic import elf
from apk_atomic.unpack import Damaged
from tests.support.bootfiles import elf as make_elf
from tests.support.bootfiles import memory_file

MUSL = "/lib/ld-musl-x86_64.so.1"


def read(data: bytes) -> elf.Elf:
    with memory_file(data) as fd:
        return elf.read(fd)


def test_the_interpreter_of_these_tests() -> None:
    fd = os.open(os.path.realpath(sys.executable), os.O_RDONLY)
    found = elf.read(fd)
    assert found.interpreter.startswith("/lib")
    assert any(name.startswith("libc.") for name in found.libraries)
    assert elf.interpreter(os.pread(fd, 4096, 0)) == found.interpreter
    os.close(fd)


def test_dynamic() -> None:
    data = make_elf(MUSL, ("libc.musl-x86_64.so.1", "libz.so.1"))
    assert read(data) == elf.Elf(62, MUSL, ("libc.musl-x86_64.so.1", "libz.so.1"), ())


def test_static() -> None:
    assert read(make_elf()) == elf.Elf(62, "", (), ())
    assert elf.interpreter(make_elf()) == ""


def test_no_elf() -> None:
    for data in (b"", b"#!/bin/sh\n", b"\x7fELF", b"\x7fELF\x09\x01"):
        with pytest.raises(Damaged):
            read(data)


def test_cut_short() -> None:
    data = make_elf(MUSL, ("libz.so.1",))
    for size in range(1, len(data)):
        with pytest.raises(Damaged):
            read(data[:size])


@given(st.binary(max_size=300), st.sampled_from([1, 2]), st.sampled_from([1, 2]))
def test_any_bytes_give_a_verdict(rest: bytes, width: int, order: int) -> None:
    data = b"\x7fELF" + bytes([width, order]) + rest
    for function in (read, elf.interpreter):
        with contextlib.suppress(Damaged):
            function(data)


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=8))
def test_any_changed_program_gives_a_verdict(changes: list[tuple[int, int]]) -> None:
    data = bytearray(make_elf(MUSL, ("libz.so.1", "libc.so")))
    for at, byte in changes:
        data[at % len(data)] = byte
    with contextlib.suppress(Damaged):
        read(bytes(data))
