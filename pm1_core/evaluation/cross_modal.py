"""Table 1: how well is a disease told from each combination of modalities?

For each target the scores come from the phenotype decoder, with the target's own column and all that
give it away masked at the input (appendix G.1). Rows of one target are for the same people, those who
have a label and a score from every combination, so that the differences can be tested in pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pm1_core.errors import InputError
from pm1_core.evaluation.intervals import holm, roc_auc, roc_auc_difference
from pm1_core.validate import refusal, require_range, require_shape

INPUTS: tuple[str, ...] = ("P", "P+I", "P+G", "P+I+G")


@dataclass(frozen=True)
class TargetScores:
    """What is needed of one target.

    labels float [n]: 1 case, 0 control, NaN unknown
    scores: name of the inputs -> float [n], NaN where the model gave none
    """

    target: str
    label: str
    labels: np.ndarray
    scores: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class AreaRow:
    """ROC-AUC of one target from one combination of inputs, with DeLong's 95% interval."""

    target: str
    label: str
    inputs: str
    auc: float
    low: float
    high: float
    cases: int
    controls: int


@dataclass(frozen=True)
class DifferenceRow:
    """Area of `inputs` minus area of `versus`, paired; p_holm is adjusted over all rows of the table."""

    target: str
    label: str
    inputs: str
    versus: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float


@dataclass(frozen=True)
class OmittedRow:
    """A target without a figure, because too few people have it or do not."""

    target: str
    label: str
    cases: int
    controls: int


@dataclass(frozen=True)
class CrossModalTable:
    """Areas, their paired differences, and what could not be computed."""

    rows: tuple[AreaRow, ...]
    differences: tuple[DifferenceRow, ...]
    omitted: tuple[OmittedRow, ...]

    def to_json(self) -> dict[str, Any]:
        """{"rows": [...], "differences": [...], "omitted": [...]}, plain types."""
        return {
            name: [asdict(row) for row in getattr(self, name)] for name in ("rows", "differences", "omitted")
        }


def cross_modal_table(
    targets: list[TargetScores], versus: str = "P", fewest: int = 5, confidence: float = 0.95
) -> CrossModalTable:
    """Areas of every target and combination, and their differences from the combination `versus`.

    fewest: targets with fewer cases or controls than this are omitted, by name and count
    Raises InputError if arrays differ in length or a target lacks `versus` while it has other inputs.
    """
    require_range("fewest cases", fewest, 2)
    rows: list[AreaRow] = []
    differences: list[DifferenceRow] = []
    omitted: list[OmittedRow] = []
    for target in targets:
        labels = np.asarray(target.labels, dtype=np.float64)
        where = f"target {target.target!r}"
        require_shape(f"{where}, labels", labels, (None,))
        if len(target.scores) > 1 and versus not in target.scores:
            found = ", ".join(target.scores)
            raise InputError(refusal(where, f"found scores for {found}", f"give {versus!r} too"))
        known = np.isfinite(labels)
        for inputs, scores in target.scores.items():
            require_shape(f"{where}, scores of {inputs}", np.asarray(scores), (labels.size,))
            known &= np.isfinite(scores)
        cases, controls = int((labels[known] == 1).sum()), int((labels[known] == 0).sum())
        if min(cases, controls) < fewest:
            omitted.append(OmittedRow(target.target, target.label, cases, controls))
            continue
        kept = {inputs: np.asarray(scores)[known] for inputs, scores in target.scores.items()}
        for inputs, scores in kept.items():
            area = roc_auc(labels[known], scores, confidence)
            rows.append(
                AreaRow(target.target, target.label, inputs, area.auc, area.low, area.high, cases, controls)
            )
            if inputs == versus:
                continue
            gain = roc_auc_difference(labels[known], scores, kept[versus], confidence)
            differences.append(
                DifferenceRow(
                    target.target,
                    target.label,
                    inputs,
                    versus,
                    gain.difference,
                    gain.low,
                    gain.high,
                    gain.p,
                    gain.p,
                )
            )
    adjusted = holm([row.p for row in differences])
    final = tuple(
        DifferenceRow(**{**asdict(row), "p_holm": p}) for row, p in zip(differences, adjusted, strict=True)
    )
    return CrossModalTable(tuple(rows), final, tuple(omitted))
