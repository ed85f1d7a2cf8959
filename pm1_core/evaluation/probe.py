"""Linear probe: how much of a label a frozen representation holds (appendix C of the paper).

Features are standardised with the training people's mean and deviation; the probe is a multinomial
logistic regression with an L2 penalty. Its strength C is chosen by inner cross-validation over
`STRENGTHS` on the training people only, unless it is given; the result says which C was used.
The score is balanced accuracy, the mean of the recalls, because the classes are never of one size
(the paper's own ancestry task has a majority share of 87.4%).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from pm1_core.errors import InputError
from pm1_core.evaluation.intervals import proportion_interval
from pm1_core.validate import refusal, require_range, require_shape

STRENGTHS: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)


@dataclass(frozen=True)
class Recall:
    """Share of one class's test people that the probe names rightly, with Wilson's interval."""

    recall: float
    low: float
    high: float
    people: int


@dataclass(frozen=True)
class Probe:
    """What a probe found on the test people.

    recalls: class -> Recall, for the classes that the test people have
    strength: the C that was used; chosen: whether inner cross-validation chose it
    """

    balanced_accuracy: float
    accuracy: float
    recalls: Mapping[str, Recall]
    strength: float
    chosen: bool
    dimensions: int
    train_people: int
    test_people: int

    def to_json(self) -> dict[str, Any]:
        """Plain types, for results.json."""
        return asdict(self)


def balanced_accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Mean over the classes in `labels` of the share that is predicted rightly.

    labels, predictions [n] of any comparable type. Raises InputError on empty or unequal arrays.

    >>> balanced_accuracy(np.array(["a", "a", "a", "b"]), np.array(["a", "a", "b", "b"]))
    0.8333333333333333
    """
    require_shape("labels", np.asarray(labels), (None,))
    require_shape("predictions", np.asarray(predictions), (np.asarray(labels).size,))
    require_range("number of people", np.asarray(labels).size, 1)
    _, codes = np.unique(labels, return_inverse=True)
    right = np.asarray(labels) == np.asarray(predictions)
    return float((np.bincount(codes, weights=right) / np.bincount(codes)).mean())


def linear_probe(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    strength: float | None = None,
    folds: int = 3,
    seed: int = 0,
) -> Probe:
    """Fit on `train`, score on `test`.

    train [n, d], test [m, d] float; labels [n], [m] (strings or integers, none missing)
    strength: C of the logistic regression; None chooses it among STRENGTHS, ties go to the smallest
    folds, seed: of the inner cross-validation

    Classes weigh alike in the fit, as they do in the score. Features that are constant in the
    training people are left out. Raises InputError on fewer than two classes, on fewer than two
    training people of a class, and on NaN.
    """
    train, test = np.asarray(train, dtype=np.float64), np.asarray(test, dtype=np.float64)
    y_train, y_test = np.asarray(train_labels).astype(str), np.asarray(test_labels).astype(str)
    require_shape("training features", train, (y_train.size, None))
    require_shape("test features", test, (y_test.size, train.shape[1]))
    if not (np.isfinite(train).all() and np.isfinite(test).all()):
        raise InputError(refusal("probe features", "found NaN or infinity", "leave these people out"))
    classes, counts = np.unique(y_train, return_counts=True)
    if classes.size < 2 or counts.min() < 2:
        found = ", ".join(f"{name} {count}" for name, count in zip(classes, counts, strict=True))
        raise InputError(
            refusal("training labels", f"found {found or 'nobody'}", "give at least 2 people of 2 classes")
        )
    require_range("number of test people", y_test.size, 1)

    mean, deviation = train.mean(axis=0), train.std(axis=0)
    varies = deviation > 1e-12 * (1 + np.abs(mean))
    x_train = (train[:, varies] - mean[varies]) / deviation[varies]
    x_test = (test[:, varies] - mean[varies]) / deviation[varies]
    x_train, x_test = _rotated(x_train, x_test)

    chosen = strength is None
    used = _choose(x_train, y_train, min(folds, int(counts.min())), seed) if strength is None else strength
    predictions = _fit(x_train, y_train, used).predict(x_test)
    return Probe(
        balanced_accuracy(y_test, predictions),
        float((predictions == y_test).mean()),
        _recalls(y_test, predictions),
        used,
        chosen,
        int(train.shape[1]),
        int(y_train.size),
        int(y_test.size),
    )


def _rotated(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in the basis of the training people's span when there are more features than people.

    An L2-penalised linear model has its weights in that span and the penalty does not see a rotation,
    so predictions are unchanged; 2,816 features of 800 people cost as much as 800.
    """
    if train.shape[1] <= train.shape[0]:
        return train, test
    _, singular, axes = np.linalg.svd(train, full_matrices=False)
    axes = axes[singular > 1e-10 * singular.max(initial=1e-300)]
    return train @ axes.T, test @ axes.T


def _fit(features: np.ndarray, labels: np.ndarray, strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, class_weight="balanced", max_iter=5000).fit(features, labels)


def _choose(features: np.ndarray, labels: np.ndarray, folds: int, seed: int) -> float:
    """The C with the best mean balanced accuracy over stratified folds; the smallest of equals."""
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    parts = list(splitter.split(features, labels))
    scores = [
        np.mean(
            [
                balanced_accuracy(labels[held], _fit(features[kept], labels[kept], c).predict(features[held]))
                for kept, held in parts
            ]
        )
        for c in STRENGTHS
    ]
    return STRENGTHS[int(np.argmax(scores))]


def _recalls(labels: np.ndarray, predictions: np.ndarray) -> dict[str, Recall]:
    result = {}
    for name in np.unique(labels):
        mine = labels == name
        right, total = int((predictions[mine] == name).sum()), int(mine.sum())
        result[str(name)] = Recall(right / total, *proportion_interval(right, total), total)
    return result
