from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from pm1_core.data.definition import Column, StudySummary
from pm1_core.data.store import Store
from pm1_core.errors import ConfigError, InputError
from pm1_core.fields import Modality, Split
from pm1_core.privacy.accounting import tightest
from pm1_core.privacy.mechanisms import Mechanism
from pm1_core.training.order import Order
from simulations.attacks.figures import curve, found_at, proportion, separation
from simulations.attacks.membership import (
    Candidates,
    Models,
    Target,
    candidates_of,
    likelihood_ratios,
    phenotype_target,
    record_privacy,
    rows_of,
    statistics_of,
    train_models,
)

FEATURES, PEOPLE = 60, 80
STUDY = StudySummary(
    "noise",
    "GRCh38",
    tuple(Column(f"c{number}", "continuous", "1", (), {}) for number in range(FEATURES)),
    (),
    (),
    {},
)
PRIVACY = {"sample_rate": 0.2, "delta": 1e-5, "clip": 1.0}


class Noise:
    """A store of people whose columns are independent: whoever is predicted well was learnt by heart."""

    def __init__(self, seed: int, people: int) -> None:
        self.values = np.random.default_rng(seed).normal(size=(people, FEATURES)).astype(np.float32)
        self.site, self.fingerprint, self.study = f"noise{seed}", str(seed), STUDY
        self.modalities = frozenset({Modality.PHENOTYPE})
        self.subjects = pd.DataFrame({"subject": [f"{seed}-{number}" for number in range(people)]})

    def people(self, split: Split | None, modality: Modality | None = None) -> np.ndarray:
        return np.arange(len(self.values) if modality is not Modality.GENOTYPE else 0, dtype=np.int64)

    def phenotypes(self, people: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.values[people], np.ones((len(people), FEATURES), bool)


@pytest.fixture(scope="module")
def stores() -> list[Store]:
    return [cast(Store, Noise(1, 50)), cast(Store, Noise(2, 30))]


@pytest.fixture(scope="module")
def target(stores: list[Store], tmp_path_factory: pytest.TempPathFactory) -> tuple[Target, Any]:
    everybody = Candidates(stores, np.arange(PEOPLE))
    state = statistics_of(everybody, tmp_path_factory.mktemp("statistics"))
    optimiser = {"name": "adam", "learning_rate": 5e-3}
    loop = {"batch_size": 8, "epochs": 60, "device": "cpu", "optimiser": optimiser}
    order = Order("phenotype", "phenotype", 1, 1, 3, {"model": {"latent": 24, "depth": 2}, "loop": loop})
    return phenotype_target(everybody, state, order), state


def models(stores: list[Store], target: tuple[Target, Any], folder: Path, **privacy: Any) -> Models:
    return train_models(target[0], stores, np.arange(PEOPLE), target[1], 4, 5, folder, **privacy)


def test_areas_are_those_of_scikit_learn_and_lie_in_their_intervals() -> None:
    rng = np.random.default_rng(0)
    member = rng.random(300) < 0.4
    scores = rng.normal(size=300) + member
    found = separation(scores, member)
    assert found["auc"]["value"] == roc_auc_score(member, scores)
    assert found["auc"]["low"] < roc_auc_score(member, scores) < found["auc"]["high"]
    assert (found["members"], found["others"]) == (member.sum(), (~member).sum())


def test_intervals_count_a_person_once_however_many_models_were_attacked() -> None:
    rng = np.random.default_rng(1)
    member = rng.random(100) < 0.5
    scores = rng.normal(size=100) + member
    once = separation(scores, member)
    people = np.tile(np.arange(100), 20)
    often = separation(np.tile(scores, 20), np.tile(member, 20), people)
    assert often["auc"]["value"] == pytest.approx(once["auc"]["value"])
    assert often["auc"]["low"] == pytest.approx(once["auc"]["low"], abs=0.02)
    assert (often["scores"], often["members"]) == (2000, member.sum())


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 0.25), (0.25, 0.75), (0.5, 0.75), (1.0, 1.0)])
def test_rates_at_a_number_of_false_alarms(rate: float, expected: float) -> None:
    scores = np.array([9, 7, 6, 1, 8, 3, 2, 0.5])
    member = np.arange(8) < 4
    assert found_at(scores, member, rate) == expected


def test_equal_scores_find_nobody_and_a_rate_of_none_has_an_upper_end() -> None:
    assert found_at(np.zeros(10), np.arange(10) < 5, 0.01) == 0.0
    assert proportion(0, 30)["high"] > 0.1
    assert proportion(30, 30) == {"value": 1.0, "low": pytest.approx(0.884, abs=1e-3), "high": 1.0}


def test_curves_run_from_nothing_to_all() -> None:
    rng = np.random.default_rng(2)
    member = rng.random(500) < 0.5
    found = curve(rng.normal(size=500) + member, member)
    assert found["fpr"][0] == 0.0
    assert (found["fpr"][-1], found["tpr"][-1]) == (1.0, 1.0)
    assert found["tpr"] == sorted(found["tpr"])


def test_scores_without_sides_or_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="all are on one side"):
        separation(np.zeros(3), np.ones(3, bool))
    with pytest.raises(InputError, match="NaN"):
        separation(np.array([np.nan, 1.0]), np.array([True, False]))


def test_likelihood_ratios_see_what_a_threshold_does_not() -> None:
    """People differ far more in their loss than membership moves it."""
    rng = np.random.default_rng(6)
    member = rng.random((20, 200)) < 0.5
    hard = rng.normal(0, 2, 200)
    losses = np.exp(hard - 0.5 * member + rng.normal(0, 0.2, member.shape))
    offline, online = likelihood_ratios(losses, member)
    areas = {
        name: roc_auc_score(member.ravel(), scores.ravel())
        for name, scores in (("threshold", -losses), ("offline", offline), ("online", online))
    }
    assert areas["threshold"] < 0.6 < 0.9 < areas["offline"] <= areas["online"]


def test_likelihood_ratios_of_losses_that_membership_does_not_move_say_nothing() -> None:
    rng = np.random.default_rng(7)
    member = rng.random((20, 200)) < 0.5
    losses = np.exp(rng.normal(0, 1, (20, 200)))
    for scores in likelihood_ratios(losses, member):
        assert roc_auc_score(member.ravel(), scores.ravel()) == pytest.approx(0.5, abs=0.04)
        people, number = np.tile(np.arange(200), 20), np.repeat(np.arange(20), 200)
        found = separation(scores.ravel(), member.ravel(), people, number)["auc"]
        assert found["low"] < 0.5 < found["high"]


def test_candidates_without_a_shadow_on_one_side_are_scored_nevertheless() -> None:
    rng = np.random.default_rng(8)
    member = rng.random((4, 30)) < 0.5
    member[:, 0], member[:, 1] = True, False
    for scores in likelihood_ratios(np.exp(rng.normal(size=(4, 30))), member):
        assert np.isfinite(scores).all()


def test_who_is_chosen_is_in_training_and_nobody_else(stores: list[Store]) -> None:
    chosen = Candidates(stores, np.array([70, 3, 49]))
    np.testing.assert_array_equal(chosen.people(Split.TRAIN, Modality.PHENOTYPE), [3, 49, 70])
    np.testing.assert_array_equal(
        chosen.phenotypes(np.array([70]))[0][0], stores[1].phenotypes(np.array([20]))[0][0]
    )


def test_more_candidates_than_people_are_refused(stores: list[Store]) -> None:
    with pytest.raises(ConfigError, match="10 of 0 people"):
        candidates_of(stores, 10, 0)


def test_a_model_that_learnt_people_by_heart_gives_them_away_and_privacy_hides_them(
    stores: list[Store], target: tuple[Target, Any], tmp_path: Path
) -> None:
    plain = models(stores, target, tmp_path / "plain")
    assert plain.member.sum(1).tolist() == [PEOPLE // 2] * 4
    found = {row["attack"]: row for row in rows_of(plain)}
    assert cast(Any, found["threshold"]["auc"])["low"] > 0.9
    assert cast(Any, found["LiRA"]["auc"])["low"] > 0.9
    assert cast(Any, found["LiRA"]["tpr_0.01"])["value"] > 0.5
    terms = record_privacy(target[0].orders[0], PEOPLE // 2, 0.5, PRIVACY)
    private = models(stores, target, tmp_path / "private", privacy=terms)
    for row in rows_of(private):
        area = cast(Any, row["auc"])
        assert area["low"] < 0.55, row["attack"]
        assert area["value"] < 0.7, row["attack"]


def test_terms_keep_to_the_epsilon_that_is_claimed(target: tuple[Target, Any]) -> None:
    order = replace(target[0].orders[0])
    terms = record_privacy(order, 40, 2.0, PRIVACY)
    assert terms["steps"] == 60 * 5
    mechanism = Mechanism("sampled", terms["noise_multiplier"], terms["sample_rate"], terms["steps"])
    assert 1.9 < tightest([mechanism], 1e-5).value <= 2.0
