"""Accuracy of genotype reconstruction (section 5, supplementary figure 9).

"Weighted accuracy" is balanced accuracy: at each SNP the recall of each dosage that occurs there, averaged
over dosages, then over SNPs. A model that only knows the commonest genotype gets between a third and one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pm1_core.fields import MISSING_DOSAGE
from pm1_core.validate import require_shape

FREQUENCIES: Mapping[str, tuple[float, float]] = {
    "rarest": (0.0, 0.1),
    "middle": (0.1, 0.25),
    "commonest": (0.25, 0.5 + 1e-9),
}
"""Bins of the frequency of the rarer allele: from the first bound on, below the second. Panels of typed SNPs begin
at some hundredths, so that a bin below 0.05 would often be empty."""


def dosage_confusion(true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """People per SNP, true dosage and predicted dosage, int64 [S, 3, 3].

    true: uint8 [n, S], 3 = missing, which is left out; predicted: [n, S], 0 to 2. Tables of several batches
    or sites add up, and the accuracy of their sum is that of the pooled people.

    Raises InputError if the shapes differ.
    """
    require_shape("predicted dosages", predicted, true.shape)
    table = np.empty((true.shape[1], MISSING_DOSAGE, MISSING_DOSAGE), np.int64)
    for dosage in range(MISSING_DOSAGE):
        having = true == dosage
        for guess in range(MISSING_DOSAGE):
            table[:, dosage, guess] = (having & (predicted == guess)).sum(0)
    return table


def balanced_accuracy(confusion: np.ndarray) -> np.ndarray:
    """Balanced accuracy per SNP, float64 [S], of `dosage_confusion`; NaN where nobody was observed.

    A dosage that does not occur at a SNP is left out of its average, as scikit-learn does.
    """
    people = confusion.sum(2)  # [S, true]
    correct = np.diagonal(confusion, axis1=1, axis2=2)
    recall = correct / np.maximum(people, 1)
    occurring = (people > 0).sum(1)
    averaged: np.ndarray = np.where(occurring > 0, recall.sum(1) / np.maximum(occurring, 1), np.nan)
    return averaged


def chance_accuracy(confusion: np.ndarray) -> np.ndarray:
    """Balanced accuracy per SNP of saying one dosage that occurs of everybody, float64 [S]; NaN for nobody.

    It is one over the number of dosages that occur, whichever of them is said.
    """
    occurring = (confusion.sum(2) > 0).sum(1)
    chance: np.ndarray = np.where(occurring > 0, 1 / np.maximum(occurring, 1), np.nan)
    return chance


def adjusted_accuracy(confusion: np.ndarray) -> np.ndarray:
    """How far `balanced_accuracy` is from `chance_accuracy`, 0, to perfect, 1, per SNP, float64 [S].

    Comparable between SNPs and groups of people in which more or fewer dosages occur, as balanced accuracy is not.
    NaN where nobody differs.
    """
    chance = chance_accuracy(confusion)
    with np.errstate(invalid="ignore"):
        varies = chance < 1
    room = np.where(varies, 1 - chance, 1.0)
    adjusted: np.ndarray = np.where(varies, (balanced_accuracy(confusion) - chance) / room, np.nan)
    return adjusted


def weighted_accuracy(confusion: np.ndarray) -> float:
    """Mean over SNPs of `balanced_accuracy`; NaN if nobody was observed anywhere."""
    per_snp = balanced_accuracy(confusion)
    seen = per_snp[~np.isnan(per_snp)]
    return float(seen.mean()) if len(seen) else float("nan")


def plain_accuracy(confusion: np.ndarray) -> float:
    """Share of observed genotypes that were reconstructed; NaN if there are none."""
    total = confusion.sum()
    return float(np.trace(confusion.sum(0)) / total) if total else float("nan")


def rarer_allele(dosages: np.ndarray) -> np.ndarray:
    """Frequency of the rarer allele at each SNP, float64 [S], of uint8 dosages [n, S]; NaN where nobody is typed.

    >>> rarer_allele(np.array([[0, 2, 3], [1, 2, 3]], np.uint8)).tolist()
    [0.25, 0.0, nan]
    """
    typed = dosages != MISSING_DOSAGE
    alleles = 2 * typed.sum(0)
    share = np.where(typed, dosages, 0).sum(0) / np.maximum(alleles, 1)
    rarer: np.ndarray = np.where(alleles > 0, np.minimum(share, 1 - share), np.nan)
    return rarer


def accuracy_by_frequency(
    accuracy: np.ndarray, frequency: np.ndarray, bins: Mapping[str, tuple[float, float]] = FREQUENCIES
) -> dict[str, tuple[float, int]]:
    """Mean accuracy and number of SNPs of each bin of allele frequency that has any, by its name.

    accuracy: float [S] of `balanced_accuracy` or `adjusted_accuracy`
    frequency: float [S] of the rarer allele, see `rarer_allele`
    A SNP whose frequency is 0 or NaN is in no bin: where nobody differs, who says the same of everybody is right.
    Raises InputError if the lengths differ.
    """
    require_shape("allele frequencies", frequency, accuracy.shape)
    found = {}
    for name, (low, high) in bins.items():
        chosen = (frequency > 0) & (frequency >= low) & (frequency < high) & ~np.isnan(accuracy)
        if chosen.any():
            found[name] = float(accuracy[chosen].mean()), int(chosen.sum())
    return found
