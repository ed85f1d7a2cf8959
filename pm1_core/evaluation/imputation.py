"""Imputation of tables without a network: SoftImpute, and how much of what was hidden an imputation explains.

SoftImpute completes a table X, known on the entries Omega, by the matrix Z that minimises

    1/2 sum over Omega of (X - Z)^2  +  penalty * (sum of the singular values of Z).

Its algorithm fills the unknown entries with those of Z and shrinks the singular values of the filled table, again
and again; every step lowers the objective. Where all entries are known one step is the solution.

Source: Mazumder, Hastie, Tibshirani, JMLR 2010;11:2287 (algorithm 1, lemma 1).
"""

from __future__ import annotations

import numpy as np

from pm1_core.errors import InputError
from pm1_core.validate import refusal, require_range, require_shape


def shrunk(table: np.ndarray, penalty: float) -> np.ndarray:
    """`table` [n, K] with `penalty` taken off its singular values, down to 0: the proximal map of their sum.

    >>> shrunk(np.diag([3.0, 1.0]), 1.5)
    array([[1.5, 0. ],
           [0. , 0. ]])
    """
    left, singular, right = np.linalg.svd(table, full_matrices=False)
    kept: np.ndarray = (left * np.maximum(singular - penalty, 0)) @ right
    return kept


def soft_impute(
    values: np.ndarray,
    known: np.ndarray,
    penalty: float,
    start: np.ndarray | None = None,
    tolerance: float = 1e-5,
    most: int = 500,
) -> np.ndarray:
    """The solution Z, float64 [n, K], at one penalty.

    values: float [n, K], columns centred; known: bool [n, K], the entries that are read
    start: where to begin, a solution at a larger penalty is near; None begins at 0
    tolerance: of the squared change of Z in a step, relative to its square; most: steps
    Raises InputError on another shape or a negative penalty.
    """
    require_shape("known entries", known, values.shape)
    require_range("penalty", penalty, 0.0)
    found = np.zeros(values.shape) if start is None else start
    for _ in range(most):
        before, found = found, shrunk(np.where(known, values, found), penalty)
        if np.sum((found - before) ** 2) <= tolerance * np.sum(before**2):
            break
    return found


def soft_impute_path(
    values: np.ndarray, known: np.ndarray, held: np.ndarray, count: int = 12, span: float = 50.0
) -> tuple[np.ndarray, float]:
    """The solution at the penalty that is best on entries held out, and that penalty.

    values: float [n, K], columns centred; known: bool [n, K]; held: bool [n, K], those of `known` to choose by
    count, span: penalties tried, from where the solution becomes 0 down to a `span`th of it, in equal ratios

    The path to the chosen penalty is then walked again with the entries held out known. Raises InputError if
    nothing is held out or nothing else is known.
    """
    if not (held & known).any() or not (known & ~held).any():
        found = f"held out {int((held & known).sum())} of {int(known.sum())} known entries"
        raise InputError(refusal("soft_impute_path", found, "hold out some of them"))
    errors = []
    penalties = _penalties(values, known, count, span)
    solution: np.ndarray | None = None
    for penalty in penalties:
        solution = soft_impute(values, known & ~held, penalty, solution)
        errors.append(float(np.mean((values - solution)[held & known] ** 2)))
    best = int(np.argmin(errors))
    solution = None
    for penalty in penalties[: best + 1]:
        solution = soft_impute(values, known, penalty, solution)
    assert solution is not None
    return solution, float(penalties[best])


def explained(true: np.ndarray, imputed: np.ndarray, means: np.ndarray, hidden: np.ndarray) -> float:
    """Share of the squared deviations of the hidden entries from their columns' means that an imputation explains.

    true, imputed: float [n, K]; means: float [K], of training people; hidden: bool [n, K]
    1 is perfect, 0 what the means explain, and what is worse than the means is below 0. NaN if nothing is hidden
    that differs from its mean.

    >>> true, half = np.array([[2.0], [-2.0]]), np.array([[1.0], [-1.0]])
    >>> explained(true, half, np.zeros(1), np.ones((2, 1), bool))
    0.75
    """
    require_shape("imputed values", imputed, true.shape)
    require_shape("hidden entries", hidden, true.shape)
    deviations = float(np.sum((true - means)[hidden] ** 2))
    return 1 - float(np.sum((true - imputed)[hidden] ** 2)) / deviations if deviations else float("nan")


def _penalties(values: np.ndarray, known: np.ndarray, count: int, span: float) -> np.ndarray:
    """From the largest singular value of the table with zeros where it is unknown: there the solution is 0."""
    largest = float(np.linalg.norm(np.where(known, values, 0.0), 2))
    return np.geomspace(largest, largest / span, count)
