"""Accuracy of genotypes by the frequency of the rarer allele."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pm1_core.errors import InputError
from pm1_core.evaluation.genotype import (
    FREQUENCIES,
    accuracy_by_frequency,
    adjusted_accuracy,
    balanced_accuracy,
    chance_accuracy,
    dosage_confusion,
    rarer_allele,
    weighted_accuracy,
)


def _people(seed: int, people: int = 400, snps: int = 60) -> np.ndarray:
    rng = np.random.default_rng(seed)
    frequency = rng.uniform(0.005, 0.995, snps)
    dosages = rng.binomial(2, frequency, (people, snps)).astype(np.uint8)
    dosages[rng.random(dosages.shape) < 0.03] = 3
    return dosages


@given(st.integers(0, 2**32 - 1))
def test_the_rarer_allele_is_the_same_whichever_allele_is_counted(seed: int) -> None:
    dosages = _people(seed, 40, 12)
    other = np.where(dosages == 3, 3, 2 - dosages).astype(np.uint8)
    np.testing.assert_allclose(rarer_allele(dosages), rarer_allele(other))
    assert (rarer_allele(dosages) <= 0.5).all()


@given(st.integers(0, 2**32 - 1))
def test_bins_share_out_the_snps_and_average_to_the_whole(seed: int) -> None:
    dosages = _people(seed)
    rng = np.random.default_rng(seed)
    guess = np.where(rng.random(dosages.shape) < 0.3, rng.integers(0, 3, dosages.shape), dosages % 3)
    confusion, frequency = dosage_confusion(dosages, guess), rarer_allele(dosages)
    binned = accuracy_by_frequency(balanced_accuracy(confusion), frequency)
    varying = frequency > 0
    assert sum(count for _, count in binned.values()) == varying.sum()
    mean = sum(accuracy * count for accuracy, count in binned.values()) / varying.sum()
    assert mean == pytest.approx(weighted_accuracy(confusion[varying]))


def test_who_says_the_commonest_dosage_of_everybody_has_the_chance_of_that_bin() -> None:
    dosages = _people(3, 4000)
    commonest = np.stack([np.bincount(c[c < 3], minlength=3).argmax() for c in dosages.T])
    confusion = dosage_confusion(dosages, np.broadcast_to(commonest, dosages.shape))
    binned = accuracy_by_frequency(balanced_accuracy(confusion), rarer_allele(dosages))
    assert set(binned) == set(FREQUENCIES)
    np.testing.assert_allclose(balanced_accuracy(confusion), chance_accuracy(confusion))
    np.testing.assert_allclose(adjusted_accuracy(confusion), 0, atol=1e-12)
    np.testing.assert_allclose(adjusted_accuracy(dosage_confusion(dosages, dosages)), 1)
    # One dosage of the two or three that occur is always right, the others never.
    assert binned["commonest"][0] == pytest.approx(1 / 3)
    assert 1 / 3 <= binned["rarest"][0] <= 1 / 2


def test_snps_where_nobody_differs_or_nobody_is_typed_are_in_no_bin() -> None:
    dosages = np.array([[0, 3, 0], [0, 3, 1], [0, 3, 2]], np.uint8)
    confusion = dosage_confusion(dosages, dosages % 3)
    found = accuracy_by_frequency(balanced_accuracy(confusion), rarer_allele(dosages))
    assert found == {"commonest": (1.0, 1)}
    assert np.isnan(adjusted_accuracy(confusion)).tolist() == [True, True, False]


def test_lengths_have_to_agree() -> None:
    dosages = _people(1, 10, 4)
    with pytest.raises(InputError, match="allele frequencies"):
        accuracy_by_frequency(rarer_allele(dosages), np.zeros(3))
