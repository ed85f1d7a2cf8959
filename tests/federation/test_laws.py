"""What a federation must equal: local training with one site, pooled gradient descent with several."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from studies import coordinate, site_paths, tiny_study

from pm1_core.checkpoint import CheckpointFolder, State
from pm1_core.data.store import Store
from pm1_core.fields import Modality, Split
from pm1_core.training.local import train_locally
from pm1_core.training.order import Order
from pm1_core.training.tasks import build_task
from pm1_core.update import Update
from simulations.grid import run_in_process
from simulations.pooled import PooledStore
from strategies import Gathered, build

FULL_BATCH = {"batch_size": 0, "epochs": 1, "optimiser": {"name": "sgd", "learning_rate": 0.05}}


def test_one_site_federated_equals_local_training(hospitals: dict[str, Path], tmp_path: Path) -> None:
    study = tiny_study()
    only = {"north": hospitals["north"]}
    run_in_process(coordinate(study, only, tmp_path), site_paths(only, tmp_path))
    store = Store.open(hospitals["north"])
    checkpoints = CheckpointFolder(tmp_path / "checkpoints")
    state = checkpoints.state(checkpoints.latest())
    for phase in study.phases:
        orders = [study.order(phase, number) for number in range(1, phase.rounds + 1)]
        task = build_task(orders[0], store.study)
        local = train_locally(task, store, orders, state, tmp_path / "local" / phase.name)
        for name, array in local.items():
            np.testing.assert_allclose(state[name], array, atol=1e-6, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("phase", "model"),
    [
        ("genotype.3", {"latent": 4, "width": 8, "depth": 1, "beta": 0.1, "kl_anneal_steps": 1}),
        ("phenotype", {"latent": 4, "depth": 2, "copy_mask": 0.0, "reduction": "sum"}),
    ],
)
def test_full_batch_gradient_descent_over_sites_equals_pooled(
    phase: str, model: dict, hospitals: dict[str, Path], tmp_path: Path
) -> None:
    """Losses that are means over people with the people as declared weights, and nothing drawn."""
    stores = [Store.open(hospitals["north"]), Store.open(hospitals["south"])]
    state = _statistics(stores, tmp_path)
    parameters = {"model": model, "loop": FULL_BATCH}
    if phase.startswith("genotype"):
        parameters["chromosome"] = 3
    order = Order(phase, phase.split(".")[0], 1, 1, 0, parameters)
    task = build_task(order, stores[0].study)
    start = dict(task.initial(state, 0))
    if phase == "genotype.3":
        # The posterior's noise is drawn per batch; with a log variance of -40 it is nothing.
        start["genotype.3.posterior.bias"][model["latent"] :] = -40.0
    updates = {
        store.site: task.train(store, order, state, start, _folder(tmp_path / store.site)) for store in stores
    }
    pooled = task.train(PooledStore(stores), order, state, start, _folder(tmp_path / "pooled"))  # type: ignore[arg-type]
    mean = _averaged(updates)
    assert any(not np.array_equal(mean[name], start[name]) for name in mean)
    for name, array in mean.items():
        np.testing.assert_allclose(array, pooled.tensors[name], atol=1e-6, err_msg=name)


def test_statistics_over_sites_are_those_of_the_pooled_people(
    hospitals: dict[str, Path], tmp_path: Path
) -> None:
    stores = [Store.open(hospitals[site]) for site in ("north", "south")]
    state = _statistics(stores, tmp_path)
    pooled = PooledStore(stores)
    people = pooled.people(Split.TRAIN, Modality.PHENOTYPE)
    values, observed = pooled.phenotypes(people)
    age = values[observed[:, 0], 0].astype(np.float64)
    assert state["statistics.phenotype.count"][0] == len(age)
    np.testing.assert_allclose(state["statistics.phenotype.mean"][0], age.mean(), rtol=1e-6)
    np.testing.assert_allclose(state["statistics.phenotype.std"][0], age.std(), rtol=1e-5)
    carriers = pooled.people(Split.TRAIN, Modality.GENOTYPE)
    dosages = pooled.dosages(3, carriers)
    expected = np.stack([(dosages == d).sum(0) for d in range(3)], axis=1)
    np.testing.assert_array_equal(state["statistics.genotype.3.counts"], expected)


def _averaged(updates: dict[str, Update]) -> dict[str, np.ndarray]:
    """What FedAvg makes of them."""
    previous = next(iter(updates.values())).tensors
    return dict(build({"name": "fedavg"}).aggregate(1, previous, Gathered(updates)))


def _statistics(stores: list[Store], tmp_path: Path) -> dict[str, np.ndarray] | State:
    """Federated statistics of `stores`, as the study's first phase makes them."""
    paths = {store.site: store.path for store in stores}
    study = tiny_study()
    first = type(study)(study.name, study.seed, study.phases[:1])
    run_in_process(
        coordinate(first, paths, tmp_path / "statistics"), site_paths(paths, tmp_path / "statistics")
    )
    checkpoints = CheckpointFolder(tmp_path / "statistics" / "checkpoints")
    return checkpoints.state(checkpoints.latest())


def _folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path
