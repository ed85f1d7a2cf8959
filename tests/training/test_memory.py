"""What a site finds on its disk: the newest round before the asked one, whatever was asked before and how often."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quadratics import order

from pm1_core.errors import StateError
from pm1_core.training.memory import Memory
from pm1_core.training.order import Order


def at(folder: Path, round_number: int, phase: str = "fusion") -> Memory:
    return Memory(folder, Order(phase, "fusion", round_number, 99, 0))


def note(folder: Path, round_number: int) -> None:
    at(folder, round_number).save("moments", {"round": np.array(round_number), "x": np.full(2, 0.5)})


def found(memory: Memory, *, after: bool = False) -> int | None:
    held = memory.load("moments", after)
    return None if held is None else int(held["round"])


@given(st.lists(st.integers(1, 9), max_size=12))
def test_a_round_reads_the_newest_before_it_that_no_earlier_round_has_overtaken(rounds: list[int]) -> None:
    with TemporaryDirectory() as name:
        folder, written = Path(name), list[int]()
        for number in rounds:
            expected = max((r for r in written if r < number), default=None)
            assert found(at(folder, number)) == expected
            note(folder, number)
            assert found(at(folder, number)) == expected, "asked for again"
            assert found(at(folder, number), after=True) == number
            written = sorted({r for r in written if r <= number} | {number})[-2:]
            files = sorted(int(file.stem) for file in folder.rglob("*.safetensors"))
            assert files == written


def test_what_is_read_is_what_was_written_to_the_bit(tmp_path: Path) -> None:
    arrays = {
        "a": np.array([[0.1, -0.0]], np.float32),
        "b/step": np.array(7),
        "none": np.zeros((0, 3), np.float32),
    }
    at(tmp_path, 1).save("moments", arrays)
    held = at(tmp_path, 2).load("moments")
    assert held is not None
    assert set(held) == set(arrays)
    for name, array in arrays.items():
        assert (held[name].dtype, held[name].shape) == (array.dtype, array.shape)
        assert held[name].tobytes() == array.tobytes()


def test_an_empty_memory_is_one(tmp_path: Path) -> None:
    assert at(tmp_path, 2).load("residual") is None
    at(tmp_path, 1).save("residual", {})
    assert at(tmp_path, 2).load("residual") == {}


@pytest.mark.parametrize(
    "other", ["genotype.2", "genotype", "genotype.22.1", "genotype/22", "..", "../genotype.22"]
)
def test_phases_and_kinds_do_not_meet_and_nothing_leaves_the_folder(other: str, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    at(folder, 1, other).save("moments", {"round": np.array(1)})
    at(folder, 2, "genotype.22").save("control", {"round": np.array(2)})
    assert at(folder, 3, "genotype.22").load("moments") is None
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_what_a_killed_process_left_half_written_is_swept_away(tmp_path: Path) -> None:
    note(tmp_path, 1)
    (half,) = (file.with_name(f".{file.name}.abc") for file in tmp_path.rglob("000001*"))
    half.write_bytes(b"half")
    assert found(at(tmp_path, 2)) == 1
    note(tmp_path, 2)
    assert not half.exists()


def test_a_damaged_file_is_refused_in_a_sentence(tmp_path: Path) -> None:
    note(tmp_path, 1)
    next(tmp_path.rglob("*.safetensors")).write_bytes(b"not a safetensors file")
    with pytest.raises(StateError, match=r"000001\.safetensors.*remove it"):
        at(tmp_path, 2).load("moments")


def test_orders_carry_method_and_encoding_and_old_ones_are_still_read() -> None:
    asked = replace(order({"proximal": 0.1}), encoding="int8")
    assert Order.from_json(asked.to_json()) == asked
    plain = '{"phase": "p", "task": "t", "round": 1, "rounds": 2, "seed": 3, "parameters": {}}'
    assert Order.from_json(plain) == Order("p", "t", 1, 2, 3)
