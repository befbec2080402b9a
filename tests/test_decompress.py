"""`decompress`: the program of the sealed base, and what becomes of one that does not behave."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from apk_atomic import decompress, initramfs
from apk_atomic.chroot import RootPlan
from apk_atomic.decompress import Limits
from apk_atomic.errors import Interrupted
from apk_atomic.signals import Signals
from apk_atomic.unpack import Codec, Damaged, MissingTool, Unpacked
from tests.support import engine
from tests.support.bootfiles import initramfs_image, lz4_stored, memory_file, newc
from tests.support.world import FIRST, Volume, make_volume

IMAGE = initramfs_image("6.12.1-0-lts", compression="lz4")
PLAIN = initramfs_image("6.12.1-0-lts", compression="none")


@contextmanager
def program(script: str) -> Iterator[Volume]:
    """A volume in whose first generation `lz4` is a shell script; /plain is what it should put out."""

    def prepare(tree: Path) -> None:
        (tree / "plain").write_bytes(PLAIN)
        if script:
            (tree / "usr/bin/lz4").write_text(f"#!/bin/sh\n{script}\n")
            (tree / "usr/bin/lz4").chmod(0o755)

    with engine.own_run(), make_volume(prepare=prepare) as volume:
        yield volume


def read(volume: Volume, limits: Limits, signals: Signals | None = None) -> initramfs.Image:
    plan = RootPlan(volume.device, f"/snapshots/{FIRST}/@", read_only=True)
    root = os.open(volume.tree(), os.O_RDONLY | os.O_DIRECTORY)
    try:
        with memory_file(IMAGE) as fd:
            return initramfs.read(fd, decompress.by_program(plan, root, signals, limits), limit=64 << 20)
    finally:
        os.close(root)
        assert engine.children() == ""


def test_what_it_puts_out_is_the_image() -> None:
    with program("cat >/dev/null; exec cat /plain") as volume:
        assert "init" in read(volume, Limits()).members


def test_it_sees_the_frame_and_cannot_write_to_the_root() -> None:
    with program("wc -c >/tmp/size && touch /x; exit 3") as volume, pytest.raises(Damaged, match="exit status 3"):
        read(volume, Limits())
    with memory_file(b"before  " + lz4_stored(newc([])) + b"\0\0\0\0") as fd, pytest.raises(MissingTool):
        list(Unpacked(fd, 8, Codec.LZ4, None))


@pytest.mark.parametrize("first", ["", "cat /plain;", "head -c 1000 /plain;"])
@pytest.mark.parametrize("then", ["exec sleep 1000", "exit 0", "exit 1", "kill -INT $$"])
def test_a_signal_ends_it_however_the_program_does(first: str, then: str) -> None:
    """Signals are blocked in a transaction; the program sends one to its parent, and does not end, or just does."""
    script = f"{first} kill -INT $PPID; {then}"
    with program(script) as volume, engine.held_signals() as signals, pytest.raises(Interrupted):
        read(volume, Limits(), signals)


def test_with_signals_that_do_not_come_it_is_the_same_image() -> None:
    with program("cat >/dev/null; exec cat /plain") as volume, engine.held_signals() as signals:
        assert read(volume, Limits(), signals) == read(volume, Limits())


def test_the_base_that_has_none() -> None:
    with program("") as volume, pytest.raises(MissingTool, match="add the package lz4"):
        read(volume, Limits())


@pytest.mark.parametrize(
    ("script", "limits"),
    [
        ("exec sleep 1000", Limits(patience=1)),
        ("while :; do :; done", Limits(seconds=1)),
        ("cat /plain; exec sleep 1000", Limits(patience=1)),
        ("while :; do echo; done", Limits(patience=20)),
        ("exec cat /dev/zero", Limits()),
        ("exec head -c 1 /plain", Limits()),
        ("cat /plain; exit 1", Limits()),
        ("kill -9 $$", Limits()),
    ],
)
def test_one_that_does_not_behave_is_ended(script: str, limits: Limits) -> None:
    with program(script) as volume, pytest.raises(Damaged):
        read(volume, limits)
