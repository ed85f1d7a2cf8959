"""Scores of the study's targets: what sites count separately gives the areas over everybody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation.studies import tiny_study

from pm1_core.data.store import Store
from pm1_core.evaluation.intervals import roc_auc
from pm1_core.evaluation.scores import areas, resolution
from pm1_core.fields import Modality, Split
from pm1_core.training.local import train_locally
from pm1_core.training.order import Order
from pm1_core.training.pm1 import PM1
from pm1_core.training.prediction import EVERYTHING
from pm1_core.training.tasks import Task, build_task
from simulations.pooled import PooledStore
from simulations.prediction import disease_scores

Trained = dict[str, tuple[Task, Order]]


@pytest.fixture(scope="module")
def stores(hospitals: dict[str, Path]) -> list[Store]:
    return [Store.open(path) for path in hospitals.values()]


@pytest.fixture(scope="module")
def trained(
    stores: list[Store], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, np.ndarray], Trained]:
    """The state after every phase of a small study on pooled data, and each phase's task and order."""
    folder, pooled, state, tasks = tmp_path_factory.mktemp("pooled"), PooledStore(stores), {}, {}
    for phase in tiny_study().phases:
        orders = [tiny_study().order(phase, number) for number in range(1, phase.rounds + 1)]
        task = build_task(orders[0], pooled.study)
        state |= train_locally(task, pooled, orders, state, folder)
        tasks[phase.name] = task, orders[-1]
    return state, tasks


def counted(phase: str, trained: Any, store: Store, folder: Path) -> dict[str, np.ndarray]:
    state, tasks = trained
    task, order = tasks[phase]
    here = folder / store.site
    here.mkdir(exist_ok=True)
    tensors = {name: array for name, array in state.items() if name.startswith(f"{phase}.")}
    return dict(task.scores(store, order, state, tensors, here, Split.TRAIN))


@pytest.mark.parametrize("phase", ["fusion", "phenotype"])
def test_counts_of_all_sites_add_up_to_those_of_the_pooled_people(
    phase: str, trained: Any, stores: list[Store], tmp_path: Path
) -> None:
    each = [counted(phase, trained, store, tmp_path) for store in stores]
    pooled = counted(phase, trained, PooledStore(stores), tmp_path)
    assert {tuple(sorted(counts)) for counts in each} == {tuple(sorted(pooled))}
    assert set(pooled) == {
        f"scores.disease.{group}" for group in ("all", "ancestry=X", "ancestry=Y", "sex=0", "sex=1")
    }
    for name, counts in pooled.items():
        summed = np.sum([site[name] for site in each], axis=0)
        # A score at the edge of a bin may fall to either side: batches differ, and with them the last digit.
        assert np.abs(np.cumsum(summed - counts, axis=1)).max() <= 1, name
        np.testing.assert_array_equal(summed.sum(1), counts.sum(1), err_msg=name)


def test_areas_are_those_of_the_report(trained: Any, stores: list[Store], tmp_path: Path) -> None:
    state, tasks = trained
    _, order = tasks["fusion"]
    pooled = PooledStore(stores)
    sums = counted("fusion", trained, pooled, tmp_path)
    model = PM1(state, pooled.study, order.parameters["encoders"], order.parameters["model"])
    people = pooled.people(Split.TRAIN, Modality.PHENOTYPE)
    (target,) = disease_scores(model, pooled, people, [EVERYTHING])
    known = np.isfinite(target.labels)
    exact = roc_auc(target.labels[known], target.scores[EVERYTHING][known])
    found = areas(sums)["disease.all"]
    assert (found["cases"], found["controls"]) == (exact.cases, exact.controls)
    assert abs(found["auc"] - exact.auc) <= resolution(sums["scores.disease.all"]) + 1e-6


def test_a_site_where_no_target_is_known_counts_nobody(
    trained: Any, stores: list[Store], tmp_path: Path
) -> None:
    (clinic,) = [store for store in stores if store.site == "clinic"]
    for phase in ("fusion", "phenotype"):
        assert not any(array.any() for array in counted(phase, trained, clinic, tmp_path).values())
