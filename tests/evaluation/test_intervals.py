"""Areas and intervals against definitions that are slow and obvious."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from pm1_core.errors import InputError
from pm1_core.evaluation.intervals import (
    holm,
    roc_auc,
    roc_auc_difference,
)

Sample = tuple[np.ndarray, np.ndarray, np.ndarray]


def brute_force(labels: np.ndarray, scores: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Mann-Whitney kernel over all pairs, and its mean per case and per control."""
    cases, controls = scores[labels == 1], scores[labels == 0]
    kernel = (cases[:, None] > controls[None, :]) + 0.5 * (cases[:, None] == controls[None, :])
    return float(kernel.mean()), kernel.mean(axis=1), kernel.mean(axis=0)


def brute_variance(labels: np.ndarray, scores: np.ndarray) -> float:
    _, of_cases, of_controls = brute_force(labels, scores)
    return float(of_cases.var(ddof=1) / of_cases.size + of_controls.var(ddof=1) / of_controls.size)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    cases, controls = draw(st.integers(2, 25)), draw(st.integers(2, 25))
    labels = rng.permutation(np.repeat([1, 0], [cases, controls]))
    grid = draw(st.sampled_from([3, 10, 10_000]))  # few values give many ties
    return labels, rng.integers(grid, size=labels.size) * 1.0, rng.integers(grid, size=labels.size) * 1.0


def correlated(n: int, gain: float, seed: int = 3) -> Sample:
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.25).astype(int)
    shared = rng.standard_normal(n)
    first = labels * (0.6 + gain) + shared + 0.5 * rng.standard_normal(n)
    return labels, first, labels * 0.6 + shared + 0.5 * rng.standard_normal(n)


@given(samples())
@settings(max_examples=80, deadline=None)
def test_area_and_variance_equal_all_pairs(sample: Sample) -> None:
    labels, scores, _ = sample
    area = roc_auc(labels, scores)
    expected, _, _ = brute_force(labels, scores)
    assert area.auc == pytest.approx(expected, abs=1e-12)
    assert area.auc == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert area.variance == pytest.approx(brute_variance(labels, scores), abs=1e-12)
    assert 0 <= area.low <= area.auc <= area.high <= 1


@given(samples())
@settings(max_examples=50, deadline=None)
def test_area_is_blind_to_monotone_maps_and_mirrors_under_negation(sample: Sample) -> None:
    labels, scores, _ = sample
    area = roc_auc(labels, scores)
    assert roc_auc(labels, np.exp(scores / 1e4)).auc == pytest.approx(area.auc, abs=1e-12)
    mirrored = roc_auc(labels, -scores)
    assert mirrored.auc == pytest.approx(1 - area.auc, abs=1e-12)
    assert mirrored.low == pytest.approx(1 - area.high, abs=1e-12)


@given(samples())
@settings(max_examples=50, deadline=None)
def test_paired_difference_uses_the_covariance_of_all_pairs(sample: Sample) -> None:
    labels, first, second = sample
    a, a_cases, a_controls = brute_force(labels, first)
    b, b_cases, b_controls = brute_force(labels, second)
    expected = (a_cases - b_cases).var(ddof=1) / a_cases.size
    expected += (a_controls - b_controls).var(ddof=1) / a_controls.size
    result = roc_auc_difference(labels, first, second)
    assert result.difference == pytest.approx(a - b, abs=1e-12)
    assert (result.high - result.low) / 2 == pytest.approx(1.959964 * expected**0.5, abs=1e-6)


def test_interval_agrees_with_the_bootstrap() -> None:
    labels, scores, other = correlated(500, 0.5)
    area, gain = roc_auc(labels, scores), roc_auc_difference(labels, scores, other)
    rng = np.random.default_rng(0)
    draws, gains = [], []
    for _ in range(1000):
        chosen = rng.integers(labels.size, size=labels.size)
        draws.append(roc_auc_score(labels[chosen], scores[chosen]))
        gains.append(draws[-1] - roc_auc_score(labels[chosen], other[chosen]))
    assert area.variance**0.5 == pytest.approx(np.std(draws), rel=0.08)
    assert (gain.high - gain.low) / 2 / 1.96 == pytest.approx(np.std(gains), rel=0.08)
    assert area.low == pytest.approx(np.percentile(draws, 2.5), abs=0.01)
    assert area.high == pytest.approx(np.percentile(draws, 97.5), abs=0.01)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    truth = 0.7602499  # P(N(1, 1) > N(0, 1)) = Phi(1 / sqrt 2)
    labels = np.repeat([1, 0], [60, 140])
    covered = 0
    for _ in range(1000):
        area = roc_auc(labels, rng.standard_normal(200) + labels)
        covered += area.low <= truth <= area.high
    assert 0.93 <= covered / 1000 <= 0.965


def test_paired_test_keeps_its_level_and_finds_a_gain() -> None:
    p_values = []
    for seed in range(400):
        labels, first, second = correlated(300, 0.0, seed)
        p_values.append(roc_auc_difference(labels, first, second).p)
    assert 0.025 <= np.mean(np.array(p_values) < 0.05) <= 0.08
    labels, first, second = correlated(2000, 0.4)
    gain = roc_auc_difference(labels, first, second)
    assert gain.p < 1e-6
    assert gain.low > 0


def test_perfect_separation_has_an_exact_binomial_bound() -> None:
    labels = np.repeat([0, 1], [50, 10])
    area = roc_auc(labels, labels * 1.0)
    assert (area.auc, area.high) == (1.0, 1.0)
    assert area.low == pytest.approx(0.025**0.1)
    assert roc_auc(labels, -labels * 1.0).high == pytest.approx(1 - 0.025**0.1)


def test_equal_rankings_do_not_differ() -> None:
    labels, scores, _ = correlated(100, 0.0)
    assert roc_auc_difference(labels, scores, 3 * scores + 1) == roc_auc_difference(labels, scores, scores)
    assert roc_auc_difference(labels, scores, scores).p == 1.0


@pytest.mark.parametrize(
    ("labels", "scores", "said"),
    [
        ([0, 0, 1], [1.0, 2.0, 3.0], "1 cases"),
        ([0, 0, 2, 1], [1.0, 2.0, 3.0, 4.0], "1 for a case"),
        ([0, 0, 1, 1], [1.0, np.nan, 3.0, 4.0], "NaN"),
        ([0, 0, 1, 1], [1.0, 2.0], "shape"),
    ],
)
def test_refusals_say_what_was_found(labels: list[int], scores: list[float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        roc_auc(np.array(labels), np.array(scores))


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_lies_between_the_raw_and_the_bonferroni_p(p_values: list[float]) -> None:
    for raw, adjusted in zip(p_values, holm(p_values), strict=True):
        assert raw <= adjusted <= min(1.0, raw * len(p_values)) + 1e-12
