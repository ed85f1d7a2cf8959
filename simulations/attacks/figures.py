"""How well a score tells members from others: the figures by which attacks are compared.

An area under the ROC curve says how an attack does on average over people. What harms a person is to be
named with certainty, so the rate of members found at a low rate of false alarms stands beside it (Carlini et al.
2022, "Membership inference attacks from first principles", section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve

from pm1_core.errors import InputError
from pm1_core.validate import refusal
from simulations.sweep_table import band

FALSE_POSITIVES = (0.001, 0.01)
_REPEATS = 200
_LEVEL = 0.95


def proportion(hits: float, of: int) -> dict[str, float]:
    """{"value", "low", "high"} of a proportion, 95% interval of Clopper and Pearson.

    >>> found = proportion(0, 100)
    >>> found["value"], found["low"], round(found["high"], 3)
    (0.0, 0.0, 0.036)
    """
    if of < 1:
        raise InputError(refusal("proportion", "found nobody to count", "give at least one person"))
    tail = (1 - _LEVEL) / 2
    low = stats.beta.ppf(tail, hits, of - hits + 1) if hits > 0 else 0.0
    high = stats.beta.ppf(1 - tail, hits + 1, of - hits) if hits < of else 1.0
    return {"value": float(hits / of), "low": float(low), "high": float(high)}


def average(values: Sequence[float]) -> dict[str, float]:
    """{"value", "low", "high"} of the mean of independent repetitions, 95% interval of Student's t."""
    found = band(values, _LEVEL)
    return {"value": found.mean, "low": found.low, "high": found.high}


def found_at(scores: np.ndarray, member: np.ndarray, false_positives: float) -> float:
    """Share of members above the lowest threshold that at most a share `false_positives` of the others pass.

    Equal scores are not told apart: a threshold lies between two values. With fewer than 1 / false_positives
    others no false alarm is allowed at all.

    >>> found_at(np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, True, False, False]), 0.01)
    1.0
    """
    others = np.sort(scores[~member])[::-1]
    allowed = int(np.floor(false_positives * len(others) + 1e-9))
    if allowed >= len(others):
        return 1.0
    return float(np.mean(scores[member] > others[allowed]))


def separation(
    scores: np.ndarray,
    member: np.ndarray,
    people: np.ndarray | None = None,
    models: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The figures of an attack.

    scores: float [n], larger is a member; member: bool [n]
    people, models: int [n], of whom and in which model, where several models were attacked; by default everybody
        once, in one model

    Returns {"auc", "tpr_0.001", "tpr_0.01": {"value", "low", "high"}, "members", "others": people on either
    side, "scores": n}. The area's interval is a bootstrap over people and, independently, over models (Owen 2007,
    "The pigeonhole bootstrap"). Those of the rates are of Clopper and Pearson and count everybody once, however
    many models they were sought in.

    Raises InputError if a score is not finite, or there are no members or no others.
    """
    scores, member = np.asarray(scores, np.float64), np.asarray(member, bool)
    if not np.isfinite(scores).all():
        raise InputError(refusal("attack, scores", "found NaN or infinity", "leave these people out"))
    if member.all() or not member.any():
        raise InputError(refusal("attack, members", "all are on one side", "give members and others"))
    known = np.arange(len(scores)) if people is None else np.unique(people, return_inverse=True)[1]
    factors = [known] if models is None else [known, np.unique(models, return_inverse=True)[1]]
    areas = _areas(scores, member, factors, np.random.default_rng(seed))
    low, high = np.quantile(areas, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    inside, outside = len(np.unique(known[member])), len(np.unique(known[~member]))
    area = float(roc_auc_score(member, scores))
    figures: dict[str, Any] = {
        "auc": {"value": area, "low": float(min(low, area)), "high": float(max(high, area))}
    }
    for rate in FALSE_POSITIVES:
        figures[f"tpr_{rate:g}"] = proportion(found_at(scores, member, rate) * inside, inside)
    return {**figures, "members": inside, "others": outside, "scores": len(scores)}


def _areas(
    scores: np.ndarray, member: np.ndarray, factors: Sequence[np.ndarray], rng: np.random.Generator
) -> np.ndarray:
    """Areas [k] with the levels of every factor (int [n], from 0) drawn anew."""
    found = []
    for _ in range(_REPEATS):
        weights = np.ones(len(scores))
        for levels in factors:
            count = int(levels.max()) + 1
            weights *= np.bincount(rng.integers(0, count, count), minlength=count)[levels]
        if weights[member].sum() and weights[~member].sum():
            found.append(roc_auc_score(member, scores, sample_weight=weights))
    return np.array(found)


def curve(scores: np.ndarray, member: np.ndarray, points: int = 200) -> dict[str, list[float]]:
    """The ROC curve {"fpr", "tpr"}, thinned to about `points` that are even on a logarithmic axis."""
    false, true, _ = roc_curve(member, scores)
    others = max(2, int((~np.asarray(member, bool)).sum()))
    at: Sequence[float] = np.concatenate([[0.0], np.geomspace(1 / others, 1.0, points)]).tolist()
    place = np.searchsorted(false, np.asarray(at) + 1e-12, side="right") - 1
    keep = np.unique(place)
    return {"fpr": false[keep].tolist(), "tpr": true[keep].tolist()}
