"""Distances of a person's two eyes beside those of two people."""

from __future__ import annotations

import numpy as np
import pytest

from pm1_core.errors import InputError
from pm1_core.evaluation.intervals import roc_auc
from pm1_core.evaluation.pairs import pair_distances


def test_distances_and_area_are_those_of_all_pairs_one_by_one() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=(12, 5))
    second = first + rng.normal(size=(12, 5))

    def distance(one: np.ndarray, other: np.ndarray) -> float:
        return float(1 - one @ other / np.linalg.norm(one) / np.linalg.norm(other))

    own = [distance(first[i], second[i]) for i in range(12)]
    others = [distance(first[i], second[j]) for i in range(12) for j in range(12) if i != j]
    found = pair_distances(first, second)
    assert found.own == pytest.approx(np.mean(own))
    assert found.others == pytest.approx(np.mean(others))
    assert found.ratio == pytest.approx(np.mean(others) / np.mean(own))
    mine = np.repeat([1, 0], [len(own), len(others)])
    assert found.area == pytest.approx(roc_auc(mine, -np.array(own + others)).auc)


def test_two_eyes_that_know_nothing_of_each_other_are_told_apart_by_chance() -> None:
    rng = np.random.default_rng(1)
    found = pair_distances(rng.normal(size=(400, 8)), rng.normal(size=(400, 8)))
    assert abs(found.area - 0.5) < 0.03
    assert abs(found.ratio - 1) < 0.1


def test_lengths_do_not_matter_and_ties_count_a_half() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(2, 9, 4))
    scaled = pair_distances(first * 7, second * rng.uniform(0.1, 9, (9, 1)))
    assert scaled.area == pytest.approx(pair_distances(first, second).area)
    assert scaled.own == pytest.approx(pair_distances(first, second).own)
    alike = pair_distances(np.ones((5, 3)), np.ones((5, 3)))
    assert alike.area == 0.5


def test_one_person_has_nobody_to_be_held_against() -> None:
    with pytest.raises(InputError, match="people"):
        pair_distances(np.ones((1, 3)), np.ones((1, 3)))
