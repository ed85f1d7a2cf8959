"""Areas from histograms of scores: what sites may add up, and how near it comes to the area of the scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from pm1_core.data.store import Store
from pm1_core.errors import InputError
from pm1_core.evaluation.scores import BINS, LIMIT, areas, auc_of, bins_of, gather, resolution, subgroups
from pm1_core.fields import Split

_SCORES = st.lists(st.floats(-15, 15), min_size=1, max_size=40)


def counts(cases: list[float], controls: list[float]) -> np.ndarray:
    labels = np.repeat([1.0, 0.0], [len(cases), len(controls)])[:, None]
    scores = np.array([*cases, *controls])[:, None]
    return gather(["ill"], labels, scores, {})["scores.ill.all"]


def labelled(cases: list[float], controls: list[float]) -> tuple[np.ndarray, np.ndarray]:
    return np.repeat([1, 0], [len(cases), len(controls)]), np.array([*cases, *controls])


@given(_SCORES, _SCORES)
def test_area_from_counts_is_that_of_the_binned_scores(cases: list[float], controls: list[float]) -> None:
    label, score = labelled(cases, controls)
    expected = roc_auc_score(label, bins_of(score))
    assert auc_of(counts(cases, controls)) == pytest.approx(expected, abs=1e-12)


@given(_SCORES, _SCORES)
def test_area_from_counts_is_within_the_stated_bound_of_the_exact_one(
    cases: list[float], controls: list[float]
) -> None:
    found = counts(cases, controls)
    exact = roc_auc_score(*labelled(cases, controls))
    assert abs(auc_of(found) - exact) <= resolution(found) + 1e-12


def test_scores_of_unit_spread_lose_less_than_three_thousandths() -> None:
    rng = np.random.default_rng(0)
    found = counts(rng.normal(1, 1, 2000).tolist(), rng.normal(0, 1, 2000).tolist())
    assert resolution(found) < 0.003


@settings(deadline=None)
@given(st.lists(st.tuples(_SCORES, _SCORES), min_size=1, max_size=4))
def test_counts_of_sites_add_up_to_those_of_everybody(sites: list[tuple[list[float], list[float]]]) -> None:
    summed = np.sum([counts(*site) for site in sites], axis=0)
    pooled = counts([x for cases, _ in sites for x in cases], [x for _, controls in sites for x in controls])
    np.testing.assert_array_equal(summed, pooled)
    assert summed.dtype == np.float32


def test_a_score_falls_into_the_same_bin_in_single_and_double_precision() -> None:
    score = np.random.default_rng(1).normal(0, 4, 5000).astype(np.float32)
    np.testing.assert_array_equal(bins_of(score), bins_of(score.astype(np.float64)))
    assert bins_of(np.array([-np.inf, -LIMIT, LIMIT, np.inf])).tolist() == [0, 0, BINS - 1, BINS - 1]


def test_people_without_label_or_score_are_not_counted() -> None:
    labels = np.array([[1.0], [np.nan], [0.0], [0.0]])
    scores = np.array([[0.5], [0.5], [np.nan], [-0.5]])
    found = gather(["ill"], labels, scores, {})["scores.ill.all"]
    assert found.sum(1).tolist() == [1, 1]


def test_groups_with_few_cases_or_controls_are_left_out() -> None:
    labels = np.array([[1.0], [1.0], [1.0], [0.0], [0.0], [0.0]])
    scores = np.array([[3.0], [2.0], [0.0], [1.0], [-1.0], [-2.0]])
    some = np.array([True, True, False, True, True, True])
    found = gather(["ill"], labels, scores, {"sex=1": some})
    assert areas(found) == {}
    assert areas(found, fewest=3) == {"ill.all": {"auc": 8 / 9, "cases": 3, "controls": 3}}
    assert areas(found, fewest=2)["ill.sex=1"] == {"auc": 1.0, "cases": 2, "controls": 3}
    assert list(areas({**found, "other": np.zeros(3)}, fewest=2)) == ["ill.all", "ill.sex=1"]


def test_groups_follow_from_the_study_so_that_all_sites_give_the_same(hospitals: dict[str, Path]) -> None:
    everywhere = {}
    for site, path in hospitals.items():
        store = Store.open(path)
        people = store.people(Split.TRAIN)
        everywhere[site] = subgroups(store, people)
        assert all(members.shape == people.shape for members in everywhere[site].values())
    assert {tuple(groups) for groups in everywhere.values()} == {
        ("ancestry=X", "ancestry=Y", "sex=0", "sex=1")
    }
    north = everywhere["north"]
    assert (north["ancestry=X"] ^ north["ancestry=Y"]).all()
    assert (north["sex=0"] ^ north["sex=1"]).all()
    assert not any(members.any() for members in everywhere["clinic"].values())


def test_a_column_with_categories_gives_a_group_for_each(hospitals: dict[str, Path]) -> None:
    store = Store.open(hospitals["south"])
    people = store.people(None)
    groups = subgroups(store, people, ["smoking"])
    smoking = {name: members for name, members in groups.items() if name.startswith("smoking")}
    assert list(smoking) == ["smoking=never", "smoking=previous", "smoking=current"]
    _, observed = store.phenotypes(people)
    known = observed[:, store.study.feature_indices(["smoking"])].all(1)
    np.testing.assert_array_equal(np.sum(list(smoking.values()), axis=0), known)


@pytest.mark.parametrize(
    ("counted", "sentence"),
    [
        (np.zeros((2, 3)), "found shape"),
        (np.full((2, BINS), -1.0), "negative"),
        (np.full((2, BINS), np.nan), "no number"),
        (np.vstack([np.zeros(BINS), np.ones(BINS)]), "0 cases"),
    ],
)
def test_what_is_no_sum_of_counts_is_refused(counted: np.ndarray, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        auc_of(counted)


def test_labels_other_than_case_and_control_are_refused() -> None:
    with pytest.raises(InputError, match="0, 1 and NaN"):
        gather(["ill"], np.array([[2.0]]), np.array([[0.0]]), {})
