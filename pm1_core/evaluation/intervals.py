"""Areas under the ROC curve with DeLong's variance, and intervals for proportions and repeats.

The area is the Mann-Whitney probability that a case scores above a control (ties count a half).
Its variance is DeLong's, which makes no assumption about the distribution of the scores; it is
computed from midranks in O(n log n).

Sources: DeLong, DeLong, Clarke-Pearson, Biometrics 1988;44:837 (variance, paired test); Sun and Xu,
IEEE Signal Processing Letters 2014;21:1389 (midranks); Clopper and Pearson, Biometrika 1934;26:404;
Wilson, JASA 1927;22:209.

What happens at the edges:

    fewer than 2 cases or 2 controls   InputError: the variance is not defined
    NaN in labels or scores            InputError: leave those people out, and say so
    perfect separation (area 0 or 1)   DeLong's variance is 0; the open end of the interval is the
                                       exact binomial bound for min(cases, controls) disjoint pairs
    two scores that rank alike         difference 0, interval of width 0, p = 1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from pm1_core.errors import InputError
from pm1_core.validate import refusal, require_range, require_shape


@dataclass(frozen=True)
class Area:
    """ROC-AUC of one score.

    auc, low, high: in 0..1, the interval at the asked confidence
    variance: DeLong's variance of `auc`
    cases, controls: people behind it
    """

    auc: float
    low: float
    high: float
    variance: float
    cases: int
    controls: int


@dataclass(frozen=True)
class Difference:
    """Area of a first score minus area of a second score of the same people."""

    difference: float
    low: float
    high: float
    p: float


def _cases(labels: np.ndarray) -> np.ndarray:
    """`labels` as bool [n]; refuses anything but 0 and 1 and fewer than two of either."""
    values = np.asarray(labels)
    require_shape("labels", values, (None,))
    if not np.isin(values, (0, 1)).all():
        found = values[~np.isin(values, (0, 1))][0]
        raise InputError(refusal("labels", f"found {found!r}", "use 1 for a case and 0 for a control"))
    cases = values.astype(bool)
    for name, count in (("cases", int(cases.sum())), ("controls", int((~cases).sum()))):
        if count < 2:
            raise InputError(refusal("labels", f"found {count} {name}", "give at least 2 of each"))
    return cases


def _placements(scores: np.ndarray, cases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Structural components: per score and case the share of controls below it, and the reverse.

    scores: float64 [k, n] -> ([k, cases], [k, controls])
    """
    require_shape("scores", scores, (None, cases.size))
    if not np.isfinite(scores).all():
        raise InputError(refusal("scores", "found NaN or infinity", "leave these people out"))
    n_cases, n_controls = int(cases.sum()), int((~cases).sum())
    overall = stats.rankdata(scores, axis=1)  # [k, n]
    above = overall[:, cases] - stats.rankdata(scores[:, cases], axis=1)
    below = overall[:, ~cases] - stats.rankdata(scores[:, ~cases], axis=1)
    return above / n_controls, 1.0 - below / n_cases


def _covariance(of_cases: np.ndarray, of_controls: np.ndarray) -> np.ndarray:
    """DeLong's covariance of the k areas, float64 [k, k]."""
    return np.atleast_2d(np.cov(of_cases) / of_cases.shape[1] + np.cov(of_controls) / of_controls.shape[1])


def roc_auc(labels: np.ndarray, scores: np.ndarray, confidence: float = 0.95) -> Area:
    """ROC-AUC with DeLong's interval, cut to 0..1.

    labels [n]: 1 case, 0 control; scores [n]: higher means more likely a case
    Raises InputError as the table at the top says.

    >>> roc_auc(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])).auc
    0.75
    """
    require_range("confidence", confidence, 0.5, 0.9999)
    cases = _cases(labels)
    of_cases, of_controls = _placements(np.asarray(scores, dtype=np.float64)[None, :], cases)
    auc = float(of_cases.mean())
    variance = float(_covariance(of_cases, of_controls)[0, 0])
    reach = float(stats.norm.ppf(0.5 + confidence / 2)) * variance**0.5
    low, high = max(0.0, auc - reach), min(1.0, auc + reach)
    n_cases, n_controls = of_cases.shape[1], of_controls.shape[1]
    # Perfect separation has no DeLong variance. min(cases, controls) disjoint pairs are independent
    # draws of "the case scores higher", so the exact binomial bound of all of them holding is valid.
    bound = ((1 - confidence) / 2) ** (1 / min(n_cases, n_controls))
    if auc == 1.0:
        low = bound
    elif auc == 0.0:
        high = 1 - bound
    return Area(auc, low, high, variance, n_cases, n_controls)


def roc_auc_difference(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray, confidence: float = 0.95
) -> Difference:
    """Area of `first` minus area of `second`, of the same people, with DeLong's paired test.

    labels, first, second [n]. p is two-sided. Raises InputError as `roc_auc`.
    """
    require_range("confidence", confidence, 0.5, 0.9999)
    cases = _cases(labels)
    scores = np.stack([np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)])
    of_cases, of_controls = _placements(scores, cases)
    areas = of_cases.mean(axis=1)
    contrast = np.array([1.0, -1.0])
    variance = float(contrast @ _covariance(of_cases, of_controls) @ contrast)
    difference = float(areas[0] - areas[1])
    if variance <= 1e-15:  # the scores rank every pair alike: rounding is all that is left
        return Difference(difference, difference, difference, 1.0 if abs(difference) < 1e-12 else 0.0)
    reach = float(stats.norm.ppf(0.5 + confidence / 2)) * variance**0.5
    p = float(2 * stats.norm.sf(abs(difference) / variance**0.5))
    return Difference(difference, difference - reach, difference + reach, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: p-values that bound the chance of any false finding (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    stepped = np.asarray(p_values, dtype=np.float64)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0) if len(p_values) else stepped
    return [float(value) for value in adjusted]


def proportion_interval(successes: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a proportion. Raises InputError unless 0 <= successes <= total, total > 0.

    >>> tuple(round(bound, 3) for bound in proportion_interval(45, 45))
    (0.921, 1.0)
    """
    require_range("total", total, 1)
    require_range("successes", successes, 0, total)
    interval = stats.binomtest(successes, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)
