"""What holds for a fold whatever the numbers."""

from __future__ import annotations

import numpy as np
import pytest
from folded import EVERY, ROBUST, WEIGHTED, around, assert_same_bytes, drawn, fold
from hypothesis import given, settings
from hypothesis import strategies as st

from pm1_core.update import Update
from strategies import Gathered, Summation, build

SEEDS = st.integers(0, 2**31)
few = settings(max_examples=20, deadline=None)


@pytest.mark.parametrize("name", EVERY)
@few
@given(seed=SEEDS, arrival=st.permutations(range(7)))
def test_the_order_of_arrival_changes_no_byte(name: str, seed: int, arrival: list[int]) -> None:
    strategy, previous, updates = drawn(name, seed)
    shuffled = {f"site{i}": updates[f"site{i}"] for i in arrival}
    assert_same_bytes(
        fold(strategy, previous, Gathered(updates)), fold(strategy, previous, Gathered(shuffled))
    )


@pytest.mark.parametrize("name", EVERY)
@few
@given(seed=SEEDS, factor=st.floats(1e-3, 1e3))
def test_weights_scale_out(name: str, seed: int, factor: float) -> None:
    strategy, previous, updates = drawn(name, seed)
    once = fold(strategy, previous, Gathered(updates))
    scaled = fold(strategy, previous, Gathered(updates, lambda update, _: factor * update.weight))
    for tensor, array in once.items():
        np.testing.assert_allclose(scaled[tensor], array, rtol=1e-7, atol=1e-7)
    doubled = fold(strategy, previous, Gathered(updates, lambda update, _: 2 * update.weight))
    assert_same_bytes(doubled, once)


@pytest.mark.parametrize("name", EVERY)
@few
@given(seed=SEEDS)
def test_a_site_of_zero_weight_changes_no_byte(name: str, seed: int) -> None:
    strategy, previous, updates = drawn(name, seed)
    idle = Update(around(np.random.default_rng(seed + 1), previous).tensors, 0.0)
    without = Gathered(updates, absent={"away": 30.0})
    joined = Gathered({**updates, "late": idle}, absent={"away": 30.0})
    assert_same_bytes(fold(strategy, previous, joined), fold(strategy, previous, without))


@pytest.mark.parametrize("name", EVERY)
@few
@given(seed=SEEDS, order=st.permutations(range(6)))
def test_permuting_coordinates_commutes_with_folding(name: str, seed: int, order: list[int]) -> None:
    strategy, previous, updates = drawn(name, seed)
    moved = {
        site: Update({n: array[order] for n, array in update.tensors.items()}, update.weight)
        for site, update in updates.items()
    }
    after = fold(strategy, previous, Gathered(updates))
    again = fold(strategy, {n: array[order] for n, array in previous.items()}, Gathered(moved))
    assert_same_bytes(again, {n: array[order] for n, array in after.items()})


@few
@given(seed=SEEDS, cut=st.integers(1, 6))
def test_the_mean_of_group_means_is_the_mean(seed: int, cut: int) -> None:
    strategy, previous, updates = drawn("fedavg", seed)
    sites = sorted(updates)
    groups = [{site: updates[site] for site in part} for part in (sites[:cut], sites[cut:])]
    means = {
        f"group{i}": Update(
            fold(strategy, previous, Gathered(group)), sum(update.weight for update in group.values())
        )
        for i, group in enumerate(groups)
    }
    whole, grouped = (fold(strategy, previous, Gathered(given)) for given in (updates, means))
    for name, array in whole.items():
        np.testing.assert_allclose(grouped[name], array, atol=1e-6)


@few
@given(seed=SEEDS, cut=st.integers(1, 6))
def test_the_sum_of_group_sums_is_the_sum(seed: int, cut: int) -> None:
    _, previous, updates = drawn("fedavg", seed)
    sites = sorted(updates)
    sums = {
        f"group{i}": Update(
            fold(Summation(), previous, Gathered({site: updates[site] for site in part})), float(i)
        )
        for i, part in enumerate((sites[:cut], sites[cut:]))
    }
    whole, grouped = (fold(Summation(), previous, Gathered(given)) for given in (updates, sums))
    for name, array in whole.items():
        np.testing.assert_allclose(grouped[name], array, atol=1e-5)


@pytest.mark.parametrize("name", [*WEIGHTED, *ROBUST])
@few
@given(seed=SEEDS)
def test_a_run_that_is_resumed_equals_one_that_went_on(name: str, seed: int) -> None:
    """All that a strategy remembers is in the tensors: a new object goes on to the same bytes."""
    strategy, previous, _ = drawn(name, seed)
    rng = np.random.default_rng(seed)
    going = {n: np.array(array) for n, array in previous.items()}
    resumed = dict(going)
    for number in range(1, 4):
        updates = Gathered({f"site{i}": around(rng, going) for i in range(7)})
        going = fold(strategy, going, updates, number)
        stored = {n: np.frombuffer(array.tobytes(), np.float32) for n, array in resumed.items()}
        resumed = fold(build(strategy.options()), stored, updates, number)
        assert_same_bytes(resumed, going)
