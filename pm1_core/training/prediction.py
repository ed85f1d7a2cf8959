"""What PM1 says of the study's targets: the scores behind the table of diseases, and a site's counts of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pm1_core.data.store import Store
from pm1_core.evaluation.cross_modal import INPUTS, TargetScores
from pm1_core.evaluation.scores import gather, subgroups
from pm1_core.fields import TOKENS_OF, Modality
from pm1_core.training.pm1 import PM1, TokenArrays
from pm1_core.training.token_set import TokenSet

LETTERS = {"G": Modality.GENOTYPE, "P": Modality.PHENOTYPE, "I": Modality.FUNDUS}
EVERYTHING = "P+I+G"
"""All modalities that a person has."""
_AT_ONCE = 1024


def keep(present: np.ndarray, inputs: str) -> np.ndarray:
    """`present` bool [n, 25] with every modality switched off that `inputs` ("P+I") does not name."""
    kept = present.copy()
    for letter, modality in LETTERS.items():
        if letter not in inputs.split("+"):
            kept[:, TOKENS_OF[modality]] = False
    return kept


def target_scores(
    model: PM1, store: Store, raw: TokenSet, inputs: Sequence[str] = INPUTS
) -> list[TargetScores]:
    """A score per target and combination of modalities, from the decoder behind the fused phenotype token.

    raw: the people's tokens before standardisation, see `PM1.raw_tokens`
    For each target its own column and all that give it away are hidden at the phenotype encoder's input
    (appendix G.1); the label is what the person's table says. NaN for a person who has none of the modalities.
    """
    study, people = store.study, raw.people
    values, observed = store.phenotypes(people)
    scored = []
    for target in study.targets:
        (feature,) = study.feature_indices([target.name])
        hidden = study.feature_indices(target.masked)
        scores = {combination: np.full(len(people), np.nan, np.float32) for combination in inputs}
        for start in range(0, len(people), _AT_ONCE):
            rows = slice(start, start + _AT_ONCE)
            tokens, present = _without(model, store, raw, rows, hidden)
            for combination, score in scores.items():
                kept = keep(present, combination)
                _, rebuilt = model.fuse(tokens, kept)
                logits = model.decode_phenotype(rebuilt[Modality.PHENOTYPE][:, 0])[:, feature]
                score[rows] = np.where(kept.any(1), logits, np.nan)
        labels = np.where(observed[:, feature], values[:, feature], np.nan)
        scored.append(TargetScores(target.name, target.label, labels, scores))
    return scored


def target_counts(model: PM1, store: Store, raw: TokenSet) -> dict[str, np.ndarray]:
    """Histograms of `evaluation.scores.gather`, of scores from all modalities that a person has.

    People of whom no target is known are passed over before any work is done.
    """
    targets = [target.name for target in store.study.targets]
    features = [int(store.study.feature_indices([name])[0]) for name in targets]
    _, observed = store.phenotypes(raw.people)
    some = np.flatnonzero(observed[:, features].any(1))
    chosen = raw.chosen(some)
    scored = target_scores(model, store, chosen, [EVERYTHING])
    shape = (len(targets), len(some))
    labels = np.reshape([target.labels for target in scored], shape).T
    scores = np.reshape([target.scores[EVERYTHING] for target in scored], shape).T
    return gather(targets, labels, scores, subgroups(store, chosen.people))


def _without(
    model: PM1, store: Store, raw: TokenSet, rows: slice, hidden: np.ndarray
) -> tuple[TokenArrays, np.ndarray]:
    """Standardised tokens and who has them, the phenotype's made without the features `hidden`."""
    masked, has = model.phenotype_tokens(store, raw.people[rows], hidden)
    present = raw.present[rows].copy()
    present[:, TOKENS_OF[Modality.PHENOTYPE].start] = has
    tokens = {m: masked[:, None] if m == Modality.PHENOTYPE else raw.rows(m, rows) for m in Modality}
    return model.standardised(tokens, present), present
