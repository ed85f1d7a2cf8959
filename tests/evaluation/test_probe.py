"""The linear probe: finds what is there, nothing in noise, and says what it did."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from pm1_core.errors import InputError
from pm1_core.evaluation.probe import STRENGTHS, _fit, _rotated, balanced_accuracy, linear_probe


def people(n: int, d: int, signal: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(["EUR", "AFR", "ASN"], size=n, p=[0.7, 0.2, 0.1])
    centres = np.random.default_rng(99).standard_normal((3, d))
    codes = np.unique(labels, return_inverse=True)[1]
    return rng.standard_normal((n, d)) + signal * centres[codes], labels


def test_balanced_accuracy_equals_scikit_learn() -> None:
    rng = np.random.default_rng(4)
    labels, predictions = rng.integers(4, size=(2, 300))
    assert balanced_accuracy(labels, predictions) == pytest.approx(
        balanced_accuracy_score(labels, predictions)
    )


def test_separable_classes_are_named_and_noise_is_not() -> None:
    train, test = people(300, 20, 1.5), people(200, 20, 1.5, seed=1)
    probe = linear_probe(*train, *test)
    assert probe.balanced_accuracy > 0.95
    assert probe.chosen
    assert probe.strength in STRENGTHS
    noise = linear_probe(*people(300, 20, 0.0), *people(200, 20, 0.0, seed=1))
    assert noise.balanced_accuracy < 0.45


def test_recalls_average_to_the_balanced_accuracy() -> None:
    train, test = people(200, 5, 0.5), people(150, 5, 0.5, seed=1)
    probe = linear_probe(*train, *test, strength=0.1)
    assert not probe.chosen
    assert np.mean([r.recall for r in probe.recalls.values()]) == pytest.approx(probe.balanced_accuracy)
    assert sum(r.people for r in probe.recalls.values()) == probe.test_people == 150
    assert all(r.low <= r.recall <= r.high for r in probe.recalls.values())


def test_test_people_do_not_move_the_scaling() -> None:
    train, test = people(200, 5, 1.0), people(50, 5, 1.0, seed=1)
    whole = linear_probe(*train, *test, strength=0.1)
    outlier = np.vstack([test[0], np.full((1, 5), 1e6)])
    again = linear_probe(*train, outlier, np.append(test[1], "EUR"), strength=0.1)
    for name in ("AFR", "ASN"):
        assert again.recalls[name] == whole.recalls[name]


def test_more_features_than_people_are_fitted_as_without_the_rotation() -> None:
    train, labels = people(60, 200, 0.4)
    test, _ = people(40, 200, 0.4, seed=1)
    small_train, small_test = _rotated(train, test)
    assert small_train.shape[1] <= 60
    plain = LogisticRegression(C=0.01, class_weight="balanced", max_iter=5000, tol=1e-8).fit(train, labels)
    np.testing.assert_allclose(
        _fit(small_train, labels, 0.01).decision_function(small_test),
        plain.decision_function(test),
        atol=5e-3,
    )


def test_constant_features_are_left_out() -> None:
    train, test = people(100, 4, 1.0), people(50, 4, 1.0, seed=1)
    padded = [np.column_stack([x, np.full(len(x), 7.0)]) for x in (train[0], test[0])]
    with_constant = linear_probe(padded[0], train[1], padded[1], test[1], strength=0.1)
    without = linear_probe(*train, *test, strength=0.1)
    assert with_constant.balanced_accuracy == without.balanced_accuracy


def test_one_class_is_refused() -> None:
    features, _ = people(20, 3, 0.0)
    with pytest.raises(InputError, match="2 classes"):
        linear_probe(features, np.repeat("EUR", 20), features, np.repeat("EUR", 20))
