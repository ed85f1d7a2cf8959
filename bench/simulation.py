"""What a simulation costs beside the same training in a plain loop: a logistic regression, and the study at `small`.

python -m bench.simulation [--small]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.plain import plain_loop
from bench.tables import prepared
from client.site import SitePaths
from pm1_core import atomic
from pm1_core.checkpoint import CheckpointFolder
from pm1_core.data.store import Store
from pm1_core.signing import Signer, public_file
from server.coordinator import Coordinator
from server.study import Phase, Study
from simulations.grid import run_in_process, run_on_ray

REPEATS = 3


def logistic_study(rounds: int = 15, epochs: int = 10) -> Study:
    """Statistics, then a logistic regression by the installed task "tabular"."""
    loop = {"epochs": epochs, "batch_size": 32, "device": "cpu", "optimiser": {"name": "sgd", "learning_rate": 0.1}}
    return Study(
        "logistic",
        1,
        (
            Phase("statistics", "statistics", 2),
            Phase("disease", "tabular", rounds, parameters={"target": "disease", "loop": loop}),
        ),
        gather=0.0,
    )


def simulated(study: Study, stores: dict[str, Path], folder: Path, ray: bool = False) -> None:
    """The study over Flower's apps, in this process or on Ray."""
    key = folder / "keys" / "coordinator.pem"
    signer, trust = Signer.at(key), str(public_file(key))
    sites = [SitePaths(str(s), str(folder / "sites" / n), trust, ("tabular",)) for n, s in stores.items()]
    summary = Store.open(next(iter(stores.values()))).study

    def coordinate(grid: Any) -> Coordinator:
        return Coordinator(study, summary, folder, grid, signer, ("tabular",))

    if ray:
        run_on_ray(coordinate, sites)
    else:
        with atomic.without_sync():
            run_in_process(coordinate, sites)


def logistic(scratch: Path) -> dict[str, Any]:
    """Seconds of plain loop, simulation in process and Flower's on Ray; the same weights come out of the first two."""
    stores, study = prepared(scratch / "tables", sites=4, rows=300), logistic_study()
    seconds: dict[str, list[float]] = {"plain": [], "in process": []}
    for turn in range(REPEATS):
        began = time.perf_counter()
        with atomic.without_sync():
            plain = plain_loop(study, stores, scratch / f"plain{turn}", ("tabular",))
        middle = time.perf_counter()
        simulated(study, stores, scratch / f"run{turn}")
        seconds["plain"].append(middle - began)
        seconds["in process"].append(time.perf_counter() - middle)
        _require_equal(plain, scratch / f"run{turn}")
    began = time.perf_counter()
    simulated(study, stores, scratch / "ray", ray=True)
    return _result(seconds, {"ray": time.perf_counter() - began})


def _require_equal(plain: dict[str, np.ndarray], folder: Path) -> None:
    checkpoints = CheckpointFolder(folder / "checkpoints")
    state = checkpoints.state(checkpoints.latest())
    for name, array in plain.items():
        np.testing.assert_allclose(state[name], array, rtol=1e-6, atol=1e-6, err_msg=name)


def _result(seconds: dict[str, list[float]], single: dict[str, float]) -> dict[str, Any]:
    best = {name: min(times) for name, times in seconds.items()} | single
    return {"seconds": best, "ratios": {n: s / best["plain"] for n, s in best.items() if n != "plain"}}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        print(logistic(Path(place)))
    sys.exit(0)
