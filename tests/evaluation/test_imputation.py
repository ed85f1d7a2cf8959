"""SoftImpute: its closed form, its optimality, a table whose rank is known; and shares that are explained."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pm1_core.errors import InputError
from pm1_core.evaluation.imputation import explained, shrunk, soft_impute, soft_impute_path


def _low_rank(rng: np.random.Generator, n: int = 60, k: int = 20, rank: int = 2) -> np.ndarray:
    return rng.normal(size=(n, rank)) @ rng.normal(size=(rank, k))


def _objective(values: np.ndarray, known: np.ndarray, found: np.ndarray, penalty: float) -> float:
    return float(((values - found)[known] ** 2).sum() / 2 + penalty * np.linalg.norm(found, "nuc"))


@given(st.integers(0, 2**32 - 1), st.floats(0.0, 5.0))
def test_where_all_is_known_the_solution_is_the_proximal_map(seed: int, penalty: float) -> None:
    values = np.random.default_rng(seed).normal(size=(9, 6))
    known = np.ones(values.shape, bool)
    np.testing.assert_allclose(soft_impute(values, known, penalty), shrunk(values, penalty), atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_solution_meets_the_conditions_of_the_minimum(seed: int) -> None:
    """The residual on known entries is penalty * (U V' + W): U' W = 0, W V = 0, |W| <= 1 (a subgradient)."""
    rng = np.random.default_rng(seed)
    values, known, penalty = rng.normal(size=(12, 8)), rng.random((12, 8)) < 0.7, 1.0
    found = soft_impute(values, known, penalty, tolerance=1e-16, most=3000)
    left, singular, right = np.linalg.svd(found, full_matrices=False)
    rank = int((singular > 1e-6).sum())
    residual = np.where(known, values - found, 0.0)
    np.testing.assert_allclose(
        left[:, :rank].T @ residual @ right[:rank].T, penalty * np.eye(rank), atol=1e-3
    )
    assert np.linalg.norm(residual, 2) <= penalty * (1 + 1e-3)


def test_every_step_lowers_the_objective() -> None:
    rng = np.random.default_rng(0)
    values, known = _low_rank(rng) + 0.1 * rng.normal(size=(60, 20)), rng.random((60, 20)) < 0.5
    steps = [soft_impute(values, known, 2.0, tolerance=0.0, most=most) for most in range(1, 12)]
    objectives = [_objective(values, known, found, 2.0) for found in steps]
    assert objectives == sorted(objectives, reverse=True)


def test_a_table_of_low_rank_is_recovered_from_half_of_its_entries() -> None:
    rng = np.random.default_rng(1)
    values = _low_rank(rng)
    known = rng.random(values.shape) < 0.5
    held = known & (rng.random(values.shape) < 0.1)
    found, penalty = soft_impute_path(values, known, held, span=1000.0)
    assert explained(values, found, np.zeros(20), ~known) > 0.95
    assert penalty < np.linalg.norm(np.where(known, values, 0.0), 2) / 10, "nothing there to shrink away"


def test_noise_alone_is_best_left_at_the_means() -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(size=(200, 15))
    known = rng.random(values.shape) < 0.7
    held = known & (rng.random(values.shape) < 0.2)
    found, _ = soft_impute_path(values, known, held)
    assert abs(explained(values, found, np.zeros(15), ~known)) < 0.02


def test_what_is_not_known_is_not_read() -> None:
    rng = np.random.default_rng(3)
    values, known = _low_rank(rng), rng.random((60, 20)) < 0.6
    other = np.where(known, values, 1e6)
    np.testing.assert_array_equal(soft_impute(values, known, 1.0), soft_impute(other, known, 1.0))


def test_means_explain_nothing_and_hidden_entries_alone_count() -> None:
    rng = np.random.default_rng(4)
    true, hidden = rng.normal(size=(30, 4)), rng.random((30, 4)) < 0.3
    means = np.full(4, 0.2)
    assert explained(true, np.broadcast_to(means, true.shape), means, hidden) == pytest.approx(0.0)
    assert explained(true, np.where(hidden, true, 99.0), means, hidden) == 1.0
    assert math.isnan(explained(true, true, means, np.zeros(true.shape, bool)))


def test_what_cannot_be_chosen_by_is_refused() -> None:
    values, known = np.zeros((3, 2)), np.ones((3, 2), bool)
    with pytest.raises(InputError, match="hold out some of them"):
        soft_impute_path(values, known, ~known)
    with pytest.raises(InputError, match="penalty"):
        soft_impute(values, known, -1.0)
