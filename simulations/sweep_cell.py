"""One cell of a sweep: encoders, which cells of the same terms share, then the fusion phase, then the figures.

    runs/NAME/encoders/HASH/    a run of every phase before the fusion, released for the cells that start from it
    runs/NAME/fusion/HASH/      a cell's run of the fusion phase, ledgers included
    runs/NAME/cells/HASH.json   what came of it; a cell that has this file is not run again

The two runs are the halves of one study (simulations/halves.py). Encoders are trained with federated averaging,
whatever strategy the fusion phase is trained with: the axis compares strategies from one start.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pm1_core import atomic
from pm1_core.privacy.ledger import Ledger
from server.configure import build_study
from server.study import Study
from simulations.halves import halves, last_state, released, train, train_from
from simulations.progress import Stages
from simulations.run import with_public
from simulations.sweep_figures import figures_of
from simulations.sweep_grid import Cell
from simulations.sweep_result import read_result, result_file
from simulations.workspace import simulated

ENCODERS_STRATEGY: Mapping[str, Any] = {"name": "fedavg"}


def run_cell(cell: Cell, folder: Path, stages: Stages) -> dict[str, Any]:
    """Run what is left of `cell` and return its result, which is also written to `result_file`.

    {"hash", "values" (of the cell), "figures" (name -> number), "budget", "spent" (epsilon that the fullest ledger
    holds), "delta", "seconds"}; budget, spent and delta are None without privacy
    Cells of one sweep may run in several processes: one that needs what another makes waits for it.
    """
    done = read_result(folder, cell)
    if done is not None:
        return done
    began = time.monotonic()
    config = dict(cell.config)
    with _one_at_a_time(Path(config["cohorts"]) / ".locks" / _digest(_data(config))):
        workspace = simulated(config, stages)
    config = with_public(config, workspace)
    first, second = halves(build_study(config))
    first = replace(first, strategy=dict(ENCODERS_STRATEGY))
    with _one_at_a_time(folder / ".locks" / f"encoders-{_digest([first.hash, _data(config)])}"):
        encoders = folder / "encoders" / _digest([first.hash, _data(config)])
        train(first, workspace, encoders, stages)
        origin = released(encoders)
    fusion = folder / "fusion" / cell.hash[:16]
    train_from(encoders, origin, second, workspace, fusion, stages)
    with stages.stage("figures"):
        figures = figures_of(last_state(fusion), first, config, workspace)
    result = {
        "hash": cell.hash,
        "values": dict(cell.axes),
        "figures": figures,
        "budget": second.guarantee.get("budget"),
        "spent": _spent(fusion, second),
        "delta": second.guarantee.get("delta"),
        "seconds": round(time.monotonic() - began, 1),
    }
    atomic.write_json(result_file(folder, cell), result)
    return result


def _spent(run: Path, study: Study) -> float | None:
    """What the fullest ledger holds, of both halves of the study."""
    if not study.guarantee:
        return None
    unit = study.guarantee["unit"]
    return max(Ledger(file).spent(unit).value for file in (run / "ledgers").glob("*.jsonl"))


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, after whichever process holds it now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _data(config: Mapping[str, Any]) -> list[Any]:
    """What the people of a run follow from."""
    keys = ("sites", "people", "test_people", "public_photographs", "seed", "pretrain")
    return [config["study"]["scenario"], *(config[key] for key in keys)]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
