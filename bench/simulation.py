"""What a simulation costs beside the same training in a plain loop, and what thousands of sites take.

python -m bench.simulation [logistic] [small] [many]
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.plain import plain_loop
from bench.report import keep, scratch_folder, show
from bench.tables import prepared
from client.site import SitePaths
from configs import compose
from pm1_core import atomic
from pm1_core.checkpoint import CheckpointFolder
from pm1_core.data.store import Store
from pm1_core.signing import Signer, public_file
from server.configure import build_study
from server.coordinator import Coordinator
from server.study import Phase, Study
from simulations.grid import run_in_process, run_on_ray
from simulations.progress import Stages
from simulations.workspace import simulated as simulated_workspace

REPEATS = 3


def logistic_study(rounds: int = 15, epochs: int = 10) -> Study:
    """Statistics, then a logistic regression by the installed task "tabular"."""
    loop = {
        "epochs": epochs,
        "batch_size": 32,
        "device": "cpu",
        "optimiser": {"name": "sgd", "learning_rate": 0.1},
    }
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
    """Seconds of plain loop, simulation in process (with the same weights in the end), and Flower's on Ray."""
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


def small(scratch: Path) -> dict[str, Any]:
    """The study of `make simulate` with two chromosomes, its federated training, beside the plain loop."""
    overrides = [
        f"cohorts={scratch / 'cohorts'}",
        "test_people=50",
        "study.phases.genotype.chromosomes=[21,22]",
    ]
    config = compose.load("simulation", overrides)
    workspace = simulated_workspace(config, Stages())
    study, stores = build_study(config), dict(workspace.stores)
    began = time.perf_counter()
    with atomic.without_sync():
        plain = plain_loop(study, stores, scratch / "plain")
    middle = time.perf_counter()
    simulated(study, stores, scratch / "run")
    seconds = {"plain": [middle - began], "in process": [time.perf_counter() - middle]}
    _require_equal(plain, scratch / "run", tolerance=1e-4)
    return _result(seconds, {})


def many(scratch: Path, counts: tuple[int, ...] = (100, 1000)) -> dict[str, Any]:
    """Peak memory of processes that simulate some hundred and some thousand sites, beside one that imports."""
    prepared(scratch / "tables", sites=max(counts), rows=12)
    found: dict[str, Any] = {"peak_mib": {}, "seconds_a_site_round": {}}
    for count in (0, *counts):
        command = [sys.executable, "-m", "bench.simulation", "child", str(scratch), str(count)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        found["peak_mib"][str(count)], seconds = int(said[-2]) / 1024, float(said[-1])
        if count:
            found["seconds_a_site_round"][str(count)] = seconds / (5 * count)
    peaks = found["peak_mib"]
    more = (peaks[str(counts[1])] - peaks[str(counts[0])]) / (counts[1] - counts[0])
    return {**found, "kib_a_further_site": more * 1024}


def _child(scratch: Path, count: int) -> None:
    """Prints peak memory in KiB and seconds of a study of 5 rounds over `count` sites."""
    began = time.perf_counter()
    if count:
        names = sorted(path.name for path in (scratch / "tables" / "stores").iterdir())[:count]
        stores = {name: scratch / "tables" / "stores" / name for name in names}
        simulated(logistic_study(rounds=3, epochs=1), stores, scratch / f"many{count}")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter() - began)


def _require_equal(plain: dict[str, np.ndarray], folder: Path, tolerance: float = 1e-6) -> None:
    checkpoints = CheckpointFolder(folder / "checkpoints")
    state = checkpoints.state(checkpoints.latest())
    for name, array in plain.items():
        np.testing.assert_allclose(state[name], array, rtol=tolerance, atol=tolerance, err_msg=name)


def _result(seconds: dict[str, list[float]], single: dict[str, float]) -> dict[str, Any]:
    best = {name: min(times) for name, times in seconds.items()} | single
    return {"seconds": best, "ratios": {n: s / best["plain"] for n, s in best.items() if n != "plain"}}


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["child"]:
        _child(Path(sys.argv[2]), int(sys.argv[3]))
        sys.exit(0)
    for name, measure in (("logistic", logistic), ("small", small), ("many", many)):
        if name in sys.argv[1:] or len(sys.argv) == 1:
            with scratch_folder() as place:
                found = measure(place)
            keep(f"simulation.{name}", found)
            show(found)
