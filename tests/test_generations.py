"""A generation as it lies on the volume: its marks and its record, whatever somebody did to them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apk_atomic import generations
from apk_atomic.model import Record, to_json_dict
from apk_atomic.names import is_safe_name
from apk_atomic.volume import read_state
from tests.support import engine
from tests.support.engine import Place
from tests.support.properties import cheap


@pytest.fixture
def place(top: Path) -> Iterator[Place]:
    with engine.two_generations(top) as made:
        yield made


@pytest.fixture(scope="module")
def shared_place(top: Path) -> Iterator[Place]:
    with engine.place(top) as made:
        made.generation("one")
        yield made


def test_markers_and_attempts(place: Place) -> None:
    home = place.top / "snapshots/one"
    for name in ("good", "failed", "pinned"):
        (home / name).touch()
    (home / "attempts").write_text("3\n")
    found = read_state(place.volume).find("one")
    assert found is not None
    assert (found.good, found.failed, found.pinned, found.attempts, found.foreign) == (True, True, True, 3, False)


@pytest.mark.parametrize("content", [b"", b"-1", b"x", b"\xff", b"9" * 65, b"1.5", "٣".encode()])
def test_attempts_that_are_no_number(place: Place, content: bytes) -> None:
    (place.top / "snapshots/one/attempts").write_bytes(content)
    found = read_state(place.volume).find("one")
    assert found is not None
    assert found.attempts == 0


def test_markers_that_are_not_files(place: Place) -> None:
    """What is there counts by its name alone and is never opened, so nothing blocks or leads away."""
    home = place.top / "snapshots/one"
    os.mkfifo(home / "attempts")
    os.mkfifo(home / "generation.json")
    (home / "good").symlink_to("/nowhere")
    (home / "pinned").mkdir()
    found = read_state(place.volume, records=True).find("one")
    assert found is not None
    assert (found.good, found.pinned, found.attempts, found.record) == (True, True, 0, None)


def test_an_unsealed_generation(place: Place) -> None:
    place.generation("open", sealed=False)
    found = read_state(place.volume).find("open")
    assert found is not None
    assert not found.sealed


# ---- records -----------------------------------------------------------------------------------------------


def test_a_record_comes_back(place: Place) -> None:
    record = Record("one", message="é\x1b[2J", kernels=(("lts", "6.12.1-0-lts"),))
    (place.top / "snapshots/one/generation.json").write_text(json.dumps(to_json_dict(record)))
    assert generations.read_record(place.volume.top, "one") == record
    assert read_state(place.volume, records=True).find("one").record == record  # type: ignore[union-attr]
    assert read_state(place.volume).find("one").record is None  # type: ignore[union-attr]
    assert generations.read_record(place.volume.top, "two") is None
    assert generations.read_record(place.volume.top, "gone") is None


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe", b"\0" * 4096, b"[" * 100000,
        b'{"version": 1}',
        b'{"version": 1, "id": "../x"}',
        b'{"version": 1, "id": "one", "durations": {"x": NaN}}',
        b'{"version": 1, "id": "one", "argv": [1]}',
        b'{"version": 0, "id": "one"}',
        b'{"version": ' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
def test_a_damaged_record_is_as_if_it_were_not_there(place: Place, content: bytes) -> None:
    (place.top / "snapshots/one/generation.json").write_bytes(content)
    found = read_state(place.volume, records=True).find("one")
    assert found is not None
    assert found.record is None
    assert not found.foreign
    assert generations.read_record(place.volume.top, "one") is None


def test_a_huge_record_is_not_read(place: Place) -> None:
    with open(place.top / "snapshots/one/generation.json", "wb") as file:
        file.truncate(1 << 40)
    assert generations.read_record(place.volume.top, "one") is None


@cheap(60)
@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)
       | st.dictionaries(st.sampled_from(["id", "version", "argv", "changes", "kernels", "proof", "x"]), inner)))
def test_any_json_is_a_record_or_none(shared_place: Place, document: object) -> None:
    (shared_place.top / "snapshots/one/generation.json").write_text(json.dumps(document))
    found = generations.read_record(shared_place.volume.top, "one")
    assert found is None or is_safe_name(found.id)
