"""Who was in a pool: told by its allele frequencies, and not by what is released under privacy."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pm1_core.data.store import Store
from pm1_core.fields import CHROMOSOMES, MISSING_DOSAGE, Modality
from simulations.attacks.figures import separation
from simulations.attacks.frequencies import (
    PUBLIC,
    frequencies_of,
    likelihood_ratio,
    measured,
    noised_frequencies,
    public_frequencies,
    real_europeans,
    released_frequencies,
)
from simulations.attacks.inference import accuracies, commonest
from simulations.attacks.membership import Candidates


def people(count: int, snps: int, seed: int) -> np.ndarray:
    """Dosages in Hardy-Weinberg proportions, with holes."""
    rng = np.random.default_rng(seed)
    frequency = np.random.default_rng(0).uniform(0.1, 0.5, snps)
    dosages = rng.binomial(2, frequency, (count, snps)).astype(np.uint8)
    dosages[rng.random(dosages.shape) < 0.01] = MISSING_DOSAGE
    return dosages


def area(told: np.ndarray, pool: np.ndarray, others: np.ndarray, reference: np.ndarray) -> float:
    scores = likelihood_ratio(np.concatenate([pool, others]), told, frequencies_of(reference))
    member = np.arange(len(pool) + len(others)) < len(pool)
    return float(separation(scores, member)["auc"]["value"])


def test_exact_frequencies_give_members_away_and_noised_ones_do_not() -> None:
    pool, others, reference = (people(60, 4000, seed) for seed in (1, 2, 3))
    assert area(frequencies_of(pool), pool, others, reference) > 0.99
    assert abs(area(frequencies_of(reference), pool, others, reference) - 0.5) < 0.15
    assert area(noised_frequencies(pool, 1.0, 1e-5), pool, others, reference) < 0.75


@given(dosage=st.sampled_from([0, 1, 2, 3]), p=st.floats(0.01, 0.99), q=st.floats(0.01, 0.99))
def test_the_statistic_is_the_likelihood_ratio(dosage: int, p: float, q: float) -> None:
    found = likelihood_ratio(np.array([[dosage]], np.uint8), np.array([p]), np.array([q]))[0]
    if dosage == MISSING_DOSAGE:
        assert found == 0
        return
    # The binomial coefficients cancel.
    wanted = np.log((p**dosage * (1 - p) ** (2 - dosage)) / (q**dosage * (1 - q) ** (2 - dosage)))
    assert found == pytest.approx(wanted, abs=1e-9)


def test_the_statistics_phase_tells_one_frequency_a_chromosome(
    hospitals: dict[str, Path], tmp_path: Path
) -> None:
    store = Store.open(hospitals["north"])
    found = released_frequencies(store, 4.0, 1e-5, tmp_path)
    assert found.shape == (22 * 12,)
    assert len(np.unique(found.reshape(22, 12), axis=1).T) == 1


def test_public_statistics_are_the_panels_and_nothing_of_the_pool(
    hospitals: dict[str, Path], tmp_path: Path
) -> None:
    pool, other = (Candidates([Store.open(hospitals["north"])], np.arange(k, k + 10)) for k in (0, 10))
    panel = Candidates([Store.open(hospitals["south"])], np.arange(20))
    told = [public_frequencies(people, panel, tmp_path / str(k)) for k, people in enumerate((pool, other))]
    np.testing.assert_array_equal(*told)
    everybody = panel.people(None, Modality.GENOTYPE)
    dosages = np.concatenate([panel.dosages(chromosome, everybody) for chromosome in CHROMOSOMES], axis=1)
    np.testing.assert_allclose(told[0], frequencies_of(dosages), atol=1e-6)


@pytest.mark.skipif("PM1_REAL_DATA" not in os.environ, reason="needs PM1_REAL_DATA")
def test_real_europeans_are_named_by_exact_frequencies_and_not_by_released_ones(tmp_path: Path) -> None:
    store = real_europeans(tmp_path)
    assert store is not None
    rows, _ = measured("Europeans", [store], 1, [1.0], 1e-5, tmp_path)
    areas = {str(row["told"]): row["auc"]["value"] for row in rows}  # type: ignore[index,call-overload]
    assert areas["exact frequencies"] > 0.95
    assert areas["frequencies noised, epsilon 1"] < 0.7
    assert areas["statistics phase, epsilon 1"] < 0.7
    assert 0.4 < areas[PUBLIC] < 0.6


def test_a_guess_from_frequencies_is_at_chance_and_the_truth_at_one() -> None:
    true = people(80, 50, 1)
    true[true == MISSING_DOSAGE] = 0
    usual = np.tile(commonest(true), (len(true), 1))
    assert accuracies(true, usual)["above"]["value"] == pytest.approx(0.0, abs=1e-9)  # type: ignore[index,call-overload]
    assert accuracies(true, true)["above"]["value"] == pytest.approx(1.0)  # type: ignore[index,call-overload]
