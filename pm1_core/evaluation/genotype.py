"""Accuracy of genotype reconstruction (section 5, supplementary figure 9).

"Weighted accuracy" is balanced accuracy: at each SNP the recall of each dosage that occurs there, averaged
over dosages, then over SNPs. A model that only knows the commonest genotype gets between a third and one.
"""

from __future__ import annotations

import numpy as np

from pm1_core.fields import MISSING_DOSAGE
from pm1_core.validate import require_shape


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


def weighted_accuracy(confusion: np.ndarray) -> float:
    """Mean over SNPs of `balanced_accuracy`; NaN if nobody was observed anywhere."""
    per_snp = balanced_accuracy(confusion)
    seen = per_snp[~np.isnan(per_snp)]
    return float(seen.mean()) if len(seen) else float("nan")


def plain_accuracy(confusion: np.ndarray) -> float:
    """Share of observed genotypes that were reconstructed; NaN if there are none."""
    total = confusion.sum()
    return float(np.trace(confusion.sum(0)) / total) if total else float("nan")
