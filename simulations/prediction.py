"""What PM1 says about held-out people: diseases from each combination of modalities, genotypes from the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pm1_core.evaluation.cross_modal import INPUTS, TargetScores
from pm1_core.evaluation.genotype import dosage_confusion, weighted_accuracy
from pm1_core.fields import TOKENS_OF, Modality, Split
from pm1_core.training.pm1 import PM1, TokenArrays
from pm1_core.training.prediction import keep, target_scores
from pm1_core.training.token_set import TokenSet
from simulations.pooled import PooledStore


def complete_people(store: PooledStore, split: Split) -> np.ndarray:
    """People of `split` who have all the modalities that the data have anywhere, int64."""
    people = store.people(split)
    for modality in sorted(store.modalities):
        people = np.intersect1d(people, store.people(split, modality))
    return people


def disease_scores(
    model: PM1, store: PooledStore, people: np.ndarray, inputs: Sequence[str] = INPUTS
) -> list[TargetScores]:
    """A score per target and combination of modalities, see `target_scores`."""
    return target_scores(model, store, TokenSet(people, *model.raw_tokens(store, people)), inputs)


def genotype_accuracies(
    model: PM1, store: PooledStore, people: np.ndarray, inputs: Sequence[str] = ("G+P+I", "P+I", "P", "I")
) -> list[tuple[str, int, float]]:
    """(inputs, chromosome, weighted accuracy) of genotypes decoded from fused tokens (supplementary figure 10)."""
    tokens, present = model.raw_tokens(store, people)
    standard = model.standardised(tokens, present)
    rows = []
    for combination in inputs:
        _, rebuilt = model.fuse(standard, keep(present, combination))
        for chromosome in model.genotype:
            logits = model.decode_genotype(chromosome, rebuilt[Modality.GENOTYPE][:, chromosome - 1])
            confusion = dosage_confusion(store.dosages(chromosome, people), logits.argmax(-1))
            rows.append((combination, chromosome, weighted_accuracy(confusion)))
    return rows


def pooled_embedding(
    model: PM1, tokens: TokenArrays, present: np.ndarray, modalities: Sequence[Modality] = tuple(Modality)
) -> np.ndarray:
    """Mean hidden state per modality, concatenated: float32 [n, len(modalities) * h] (appendix C).

    A modality that a person lacks is zero.
    """
    hidden, _ = model.fuse(tokens, present)
    pieces = []
    for modality in modalities:
        span = TOKENS_OF[modality]
        weights = present[:, span, None].astype(np.float32)
        total = (hidden[:, 1:][:, span] * weights).sum(1)
        pieces.append(total / np.maximum(weights.sum(1), 1))
    return np.concatenate(pieces, axis=1)
