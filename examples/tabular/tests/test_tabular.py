"""What the tabular task promises, over the installed package, as a site and a coordinator come by it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pm1_tabular import TabularTask

from pm1_core.data.manifest import load_manifest
from pm1_core.data.preparation import prepare
from pm1_core.data.store import Store
from pm1_core.data.summary import Target
from pm1_core.errors import ConfigError, StateError
from pm1_core.evaluation.intervals import roc_auc
from pm1_core.evaluation.scores import areas, bins_of, resolution
from pm1_core.fields import Modality, Split
from pm1_core.model.baselines import fit_logistic
from pm1_core.training import methods
from pm1_core.training.local import train_locally
from pm1_core.training.order import Order
from pm1_core.training.tasks import Task, build_task
from pm1_core.update import Tensors
from simulations.pooled import PooledStore
from simulations.real_cohort import RealData, write_real_cohort

REAL = os.environ.get("PM1_REAL_DATA")
FULL_BATCH = {
    "batch_size": 0,
    "epochs": 1,
    "device": "cpu",
    "optimiser": {"name": "sgd", "learning_rate": 0.5, "momentum": 0.9},
}
LOGISTIC = {"target": "disease", "loop": FULL_BATCH}
NETWORK = {"target": "disease", "hidden": [8, 4], "loop": {"batch_size": 16, "epochs": 8, "device": "cpu"}}


def orders(task: str, parameters: dict[str, Any], rounds: int) -> list[Order]:
    return [Order(task, task, number, rounds, 0, parameters) for number in range(1, rounds + 1)]


def tabular(store: Store, parameters: dict[str, Any]) -> TabularTask:
    task = build_task(orders("tabular", parameters, 1)[0], store.study, ["tabular"])
    assert isinstance(task, TabularTask)
    return task


def federate(
    task: Task, sites: Sequence[Store], rounds: list[Order], state: Tensors, folder: Path
) -> dict[str, np.ndarray]:
    """The tensors after all rounds, folded as a coordinator does."""
    tensors = dict(task.initial(state, rounds[0].seed))
    for order in rounds:
        updates = []
        for store in sites:
            here = folder / store.site
            here.mkdir(parents=True, exist_ok=True)
            updates.append(task.train(store, order.at(store.site), state, tensors, here))
        weights = [
            1.0 if task.aggregation == "sum" else u.weight / sum(v.weight for v in updates) for u in updates
        ]
        folded = {
            name: sum(w * u.tensors[name].astype(np.float64) for w, u in zip(weights, updates, strict=True))
            for name in tensors
        }
        tensors = dict(
            task.advance(order.round, tensors, {n: a.astype(np.float32) for n, a in folded.items()})
        )
    return tensors


def statistics(sites: Sequence[Store], folder: Path) -> dict[str, np.ndarray]:
    rounds = orders("statistics", {}, 2)
    return federate(build_task(rounds[0], sites[0].study), sites, rounds, {}, folder / "statistics")


@pytest.mark.parametrize("parameters", [LOGISTIC, NETWORK])
def test_one_site_federated_equals_local_training(
    parameters: dict[str, Any], sites: list[Store], tmp_path: Path
) -> None:
    state, task = statistics(sites, tmp_path), tabular(sites[0], parameters)
    rounds = orders("tabular", parameters, 4)
    federated = federate(task, sites[:1], rounds, state, tmp_path / "federated")
    local = train_locally(task, sites[0], rounds, state, tmp_path / "local")
    for name, array in federated.items():
        np.testing.assert_array_equal(array, local[name], err_msg=name)


@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_logistic_regression_over_sites_equals_that_of_the_pooled_people(
    penalty: float, sites: list[Store], tmp_path: Path
) -> None:
    parameters = {**LOGISTIC, "penalty": penalty}
    state, task = statistics(sites, tmp_path), tabular(sites[0], parameters)
    rounds = orders("tabular", parameters, 30)
    federated = federate(task, sites, rounds, state, tmp_path / "federated")
    pooled = train_locally(task, PooledStore(sites), rounds, state, tmp_path / "pooled")
    assert not np.allclose(
        federated["tabular-disease.0.weight"], task.initial(state, 0)["tabular-disease.0.weight"]
    )
    for name, array in federated.items():
        np.testing.assert_allclose(array, pooled[name], atol=1e-6, err_msg=name)


@pytest.mark.parametrize("parameters", [LOGISTIC, NETWORK])
def test_it_learns_and_the_same_seed_gives_the_same_bytes(
    parameters: dict[str, Any], sites: list[Store], tmp_path: Path
) -> None:
    state, task = statistics(sites, tmp_path), tabular(sites[0], parameters)
    rounds = orders("tabular", parameters, 12)
    once, again = (federate(task, sites, rounds, state, tmp_path / name) for name in ("once", "again"))
    everybody = PooledStore(sites)
    before, after = (
        task.evaluate(everybody, rounds[-1], state, tensors, tmp_path, Split.TRAIN)
        for tensors in (task.initial(state, 0), once)
    )
    assert after["loss"] < 0.8 * before["loss"]
    assert after["auc"] > 0.7
    assert after["accuracy"] > 0.65
    assert after["examples"] == task.examples(everybody)
    for name, array in once.items():
        np.testing.assert_array_equal(array, again[name], err_msg=name)


def test_a_strategy_may_guide_its_training(sites: list[Store], tmp_path: Path) -> None:
    state, task = statistics(sites, tmp_path), tabular(sites[0], NETWORK)
    (plain,), start = orders("tabular", NETWORK, 1), task.initial(state, 0)
    moved = []
    for number, order in enumerate((plain, replace(plain, method={"proximal": 10.0}))):
        folder = tmp_path / str(number)
        folder.mkdir()
        update = methods.train(task, sites[0], order, state, start, folder)
        moved.append(sum(float(((update.tensors[name] - start[name]) ** 2).sum()) for name in start))
    assert moved[1] < 0.9 * moved[0]


def test_counts_of_the_sites_give_the_area_over_all_of_them(sites: list[Store], tmp_path: Path) -> None:
    state, task = statistics(sites, tmp_path), tabular(sites[0], LOGISTIC)
    rounds = orders("tabular", LOGISTIC, 5)
    tensors = federate(task, sites, rounds, state, tmp_path)
    given = rounds[-1], state, tensors, tmp_path, Split.TRAIN
    each = [task.scores(store, *given) for store in sites]
    sums = {name: each[0][name] + each[1][name] for name in each[0]}
    found = areas(sums)
    exact = task.evaluate(PooledStore(sites), *given)["auc"]
    assert abs(found["disease.all"]["auc"] - exact) <= resolution(sums["scores.disease.all"])
    assert {"disease.all", "disease.sex=0", "disease.sex=1", "disease.ancestry=X"} <= set(found)
    assert found["disease.all"]["cases"] + found["disease.all"]["controls"] == task.examples(
        PooledStore(sites)
    )


def test_columns_that_give_the_target_away_are_no_inputs(sites: list[Store]) -> None:
    plain = tabular(sites[0], LOGISTIC)
    study = replace(sites[0].study, targets=(Target("disease", "Disease", ("disease", "smoking")),))
    masked = build_task(orders("tabular", LOGISTIC, 1)[0], study, ["tabular"])
    # age, pressure, sex and three of smoking, each with a mark for "missing"
    assert plain.initial({}, 0)["tabular-disease.0.weight"].shape == (1, 2 * 6)
    assert masked.initial({}, 0)["tabular-disease.0.weight"].shape == (1, 2 * 3)


def test_a_missing_value_is_marked(sites: list[Store], tmp_path: Path) -> None:
    state, task = statistics(sites, tmp_path), tabular(sites[0], LOGISTIC)
    tensors = {name: np.zeros_like(array) for name, array in task.initial(state, 0).items()}
    tensors["tabular-disease.0.weight"][0, 6 + 3] = 1.0  # "smoking=never" is missing
    order = orders("tabular", LOGISTIC, 1)[0]
    counted = task.scores(sites[0], order, state, tensors, tmp_path, Split.TRAIN)["scores.disease.all"].sum(0)
    people = sites[0].people(Split.TRAIN, Modality.PHENOTYPE)
    _, observed = sites[0].phenotypes(people)
    missing = (~observed[:, sites[0].study.feature_indices(["smoking"])[0]]).sum()
    assert 0 < missing < len(people)
    assert counted[bins_of(np.array([0.0, 1.0]))].tolist() == [len(people) - missing, missing]


def test_a_site_without_tables_has_no_examples(sites: list[Store], tmp_path: Path) -> None:
    clinic = Store.open(sites[0].path.parent / "clinic")
    task = tabular(clinic, LOGISTIC)
    state = statistics(sites, tmp_path)
    order = orders("tabular", LOGISTIC, 1)[0]
    assert task.examples(clinic) == 0
    tensors = task.initial(state, 0)
    assert task.evaluate(clinic, order, state, tensors, tmp_path, Split.TEST) == {"examples": 0.0}
    counted = task.scores(clinic, order, state, tensors, tmp_path, Split.TEST)
    assert not any(array.any() for array in counted.values())


def test_without_statistics_it_says_which_phase_has_to_come_before(
    sites: list[Store], tmp_path: Path
) -> None:
    task = tabular(sites[0], LOGISTIC)
    with pytest.raises(StateError, match=r"statistics.phenotype.*run that phase first"):
        task.train(sites[0], orders("tabular", LOGISTIC, 1)[0], {}, task.initial({}, 0), tmp_path)


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({}, "key 'target' is missing"),
        ({"target": "diseas"}, "did you mean 'disease'"),
        ({"target": "disease", "hiden": [8]}, "did you mean 'hidden'"),
        ({"target": "disease", "hidden": [0]}, "of at least 1"),
        ({"target": "disease", "penalty": -1}, "of at least 0"),
    ],
)
def test_wrong_parameters_are_refused_by_name(
    parameters: dict[str, Any], sentence: str, sites: list[Store]
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        tabular(sites[0], parameters)


@pytest.mark.skipif(REAL is None, reason="PM1_REAL_DATA is not set")
def test_on_real_hospitals_it_comes_to_what_scikit_learn_finds_on_pooled_rows(tmp_path: Path) -> None:
    """Penalised logistic regression has one optimum: log odds agree to 0.01, areas to 0.002."""
    manifests = write_real_cohort(RealData(Path(str(REAL))), tmp_path / "cohort", "1", photographs=False)
    sites = []
    for site in ("cleveland", "hungarian"):
        prepare(load_manifest(manifests[site]), tmp_path / site)
        sites.append(Store.open(tmp_path / site))
    everybody, (target,) = PooledStore(sites), sites[0].study.targets
    state = statistics(sites, tmp_path)
    steep = {**FULL_BATCH, "optimiser": {"name": "sgd", "learning_rate": 1.0, "momentum": 0.9}}
    people = tabular(sites[0], {"target": target.name}).examples(everybody)
    parameters = {"target": target.name, "penalty": 10 / people, "loop": steep}
    task, rounds = tabular(sites[0], parameters), orders("tabular", parameters, 150)
    tensors = federate(task, sites, rounds, state, tmp_path)
    weight = tensors[f"tabular-{target.name}.0.weight"][0]
    bias = tensors[f"tabular-{target.name}.0.bias"]
    train, held_out = (task.rows(everybody, state, split) for split in (Split.TRAIN, Split.TEST))
    fitted = fit_logistic(*(array.numpy() for array in train), penalty=10.0)
    inputs, cases = (array.numpy() for array in held_out)
    odds, expected = inputs @ weight + bias, fitted.logits(inputs)
    np.testing.assert_allclose(odds, expected, atol=0.01)
    assert abs(roc_auc(cases, odds).auc - roc_auc(cases, expected).auc) <= 0.002
    assert roc_auc(cases, odds).auc > 0.8
