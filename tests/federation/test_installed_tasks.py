"""A federation of a task that an installed package offers (examples/tabular): who runs it, and what comes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from studies import coordinate, site_paths

from pm1_core.checkpoint import CheckpointFolder
from pm1_core.data.store import Store
from pm1_core.errors import ConfigError
from pm1_core.fields import Split
from pm1_core.training.local import train_locally
from pm1_core.training.tasks import build_task
from server.study import Phase, Study
from simulations.grid import run_in_process

ALLOWED = ("tabular",)
LOOP = {"batch_size": 0, "device": "cpu", "optimiser": {"name": "sgd", "learning_rate": 0.5, "momentum": 0.9}}
STUDY = Study(
    "tables",
    7,
    (
        Phase("statistics", "statistics", 2),
        Phase("risk", "tabular", 3, parameters={"target": "disease", "loop": LOOP}),
    ),
)


def federate(
    stores: dict[str, Path],
    folder: Path,
    tasks: dict[str, tuple[str, ...]],
    coordinator: tuple[str, ...] = ALLOWED,
) -> CheckpointFolder:
    """Run STUDY; `tasks` are the lists of the sites."""
    sites = [
        replace(paths, tasks=tasks[site])
        for site, paths in zip(stores, site_paths(stores, folder), strict=True)
    ]

    def make(grid: Any) -> Any:
        made = coordinate(STUDY, stores, folder)(grid)
        made.tasks = coordinator
        return made

    run_in_process(make, sites)
    return CheckpointFolder(folder / "checkpoints")


def test_one_site_federated_equals_local_training(hospitals: dict[str, Path], tmp_path: Path) -> None:
    only = {"north": hospitals["north"]}
    checkpoints = federate(only, tmp_path, {"north": ALLOWED})
    state = checkpoints.state(checkpoints.latest())
    store = Store.open(only["north"])
    orders = [STUDY.order(STUDY.phases[1], number) for number in (1, 2, 3)]
    local = train_locally(
        build_task(orders[0], store.study, ALLOWED), store, orders, state, tmp_path / "local"
    )
    assert set(local) == {"tabular-disease.0.weight", "tabular-disease.0.bias"}
    for name, array in local.items():
        np.testing.assert_allclose(state[name], array, atol=1e-6, err_msg=name)


def test_a_phase_ends_with_areas_over_all_sites(hospitals: dict[str, Path], tmp_path: Path) -> None:
    latest = federate(hospitals, tmp_path, dict.fromkeys(hospitals, ALLOWED)).latest()
    assert latest is not None
    assert set(latest.sites) == {"north", "south"}
    stores = [Store.open(hospitals[site]) for site in latest.sites]
    task = build_task(STUDY.order(STUDY.phases[1], 1), stores[0].study, ALLOWED)
    found = latest.areas["disease.all"]
    assert found["cases"] + found["controls"] == sum(task.examples(store, Split.TEST) for store in stores)
    assert 0 <= found["auc"] <= 1


def test_a_site_that_does_not_allow_it_stays_out_and_says_why(
    hospitals: dict[str, Path], tmp_path: Path
) -> None:
    latest = federate(hospitals, tmp_path, {"north": ALLOWED, "south": (), "clinic": ALLOWED}).latest()
    assert latest is not None
    assert set(latest.sites) == {"north"}
    told = json.dumps(json.loads((tmp_path / "phases.json").read_text())["risk"])
    assert "add it to the site's own list" in told
    assert "south" in told


def test_a_coordinator_that_does_not_allow_it_says_so(hospitals: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not on the list of allowed tasks"):
        federate(hospitals, tmp_path, dict.fromkeys(hospitals, ALLOWED), coordinator=())
