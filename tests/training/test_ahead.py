"""Batches read beside the step before: the same ones in the same order, one ahead and no more."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from whole import Part

from pm1_core.data.store import Store
from pm1_core.errors import StateError
from pm1_core.training import loop
from pm1_core.training.ahead import ahead, drawing_on, placed


def test_one_is_read_ahead_by_another_thread() -> None:
    read: list[int] = []
    second = threading.Event()

    def slowly(number: int) -> tuple[int, int]:
        read.append(number)
        if number == 1:
            second.set()
        return number, threading.get_ident()

    found = ahead(slowly, range(4))
    first, reader = next(found)
    assert second.wait(10)
    assert (first, read) == (0, [0, 1])
    assert reader != threading.get_ident()
    assert [number for number, _ in found] == [1, 2, 3]
    assert read == [0, 1, 2, 3]
    assert list(ahead(slowly, [])) == []


def test_what_reading_raises_comes_where_its_batch_would() -> None:
    def broken(number: int) -> int:
        if number == 2:
            raise StateError("the disk is gone")
        return number

    found = ahead(broken, range(4))
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(StateError, match="the disk is gone"):
        next(found)


@pytest.mark.parametrize("name", ["genotype.22", "fusion"])
def test_a_round_whose_batches_are_read_ahead_ends_with_the_same_bytes(
    name: str, whole: dict[str, Part], north: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = whole[name].with_loop(batch_size=4)
    plain = part.train(north, tmp_path / "plain")
    monkeypatch.setattr(loop, "map", ahead, raising=False)
    again = part.train(north, tmp_path / "ahead")
    assert again.metrics == plain.metrics
    assert all(np.array_equal(array, plain.tensors[key]) for key, array in again.tensors.items())


def test_on_the_cpu_draws_and_tensors_are_the_same_ones() -> None:
    draws, tensor = torch.Generator(), torch.zeros(3)
    assert drawing_on(torch.device("cpu"), draws) is draws
    assert placed(tensor, "cpu") is tensor
