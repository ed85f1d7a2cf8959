"""One cell of a sweep: encoders, which cells of the same terms share, then the fusion phase, then the figures.

    runs/NAME/encoders/HASH/    a run of every phase before the fusion, released for the cells that start from it
    runs/NAME/fusion/HASH/      a cell's run of the fusion phase, ledgers included
    runs/NAME/cells/HASH.json   what came of it; a cell that has this file is not run again

The study's privacy is planned as a whole and then cut in two, so that each phase keeps its share; the second run
goes on with copies of the sites' ledgers, which therefore hold both, and refuse what would pass the budget.
Encoders are trained with federated averaging, whatever strategy the fusion phase is trained with: the axis
compares strategies from one start.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pm1_core import atomic
from pm1_core.checkpoint import CheckpointFolder, State
from pm1_core.errors import ConfigError
from pm1_core.gates import Gates
from pm1_core.privacy.ledger import Ledger
from pm1_core.signing import Signer, Trust, public_file
from pm1_core.validate import refusal
from server.configure import build_study
from server.origins import start_from
from server.registry import Registry
from server.study import Study
from simulations.progress import Stages
from simulations.run import federate, with_public
from simulations.sweep_figures import figures_of
from simulations.sweep_grid import Cell
from simulations.sweep_result import read_result, result_file
from simulations.workspace import Workspace, simulated

FUSION = "fusion"
"""The task whose phases every cell runs for itself."""
ENCODERS_STRATEGY: Mapping[str, Any] = {"name": "fedavg"}
_OPEN = Gates(max_auc_fall=None, min_group_auc=None, min_sites=None, min_people=None)


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
    with _one_at_a_time(folder / ".locks" / f"encoders-{_digest([first.hash, _data(config)])}"):
        encoders = folder / "encoders" / _digest([first.hash, _data(config)])
        _train(first, workspace, encoders, stages)
        origin = _released(encoders)
    fusion = folder / "fusion" / cell.hash[:16]
    second = replace(second, start_from=origin)
    _begin(fusion, encoders)
    _train(second, workspace, fusion, stages)
    with stages.stage("figures"):
        figures = figures_of(_state(fusion), first, config, workspace)
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


def halves(study: Study) -> tuple[Study, Study]:
    """The study cut before its first fusion phase; both keep the terms that the whole study planned.

    Raises ConfigError if there is nothing before it, or no fusion phase.
    """
    places = [place for place, phase in enumerate(study.phases) if phase.task == FUSION]
    if not places or not places[0]:
        found = "it has no fusion phase after others"
        raise ConfigError(
            refusal(f"study {study.name!r}", found, "sweep a study that trains the whole model")
        )
    cut = places[0]
    # Figures of a cell that a site dropped out of would be compared with those of all sites.
    phases = [replace(phase, min_share=1.0) for phase in study.phases]
    first = replace(study, phases=tuple(phases[:cut]), strategy=dict(ENCODERS_STRATEGY), gates=_OPEN)
    return first, replace(study, phases=tuple(phases[cut:]), gates=_OPEN)


def _train(study: Study, workspace: Workspace, run: Path, stages: Stages) -> None:
    """Run what is left of `study` in `run`, unless nothing is."""
    marker = run / "trained.json"
    if marker.exists() and atomic.read_json(marker)["study"] == study.hash:
        return
    run.mkdir(parents=True, exist_ok=True)
    federate(
        study, workspace, run, "in_process", stages, ledgers=run / "ledgers" if study.guarantee else None
    )
    atomic.write_json(marker, {"study": study.hash})


def _released(run: Path) -> str:
    """The hash of the last checkpoint of `run`, released so that other runs may start from it."""
    registry = Registry(run)
    latest = registry.find()
    if not any(release.checkpoint == latest.hash for release in registry.releases.all()):
        signer = Signer.at(run / "keys" / "coordinator.pem")
        registry.promote(latest, _OPEN, signer, "pm1-sim sweep", "encoders that the sweep's cells share")
    return latest.hash


def _begin(run: Path, encoders: Path) -> None:
    """Let `run` start from the encoders' release, with the ledgers as they were when that was made."""
    key = public_file(encoders / "keys" / "coordinator.pem")
    if not (run / "ledgers").exists() and (encoders / "ledgers").exists():
        with atomic.whole_folder(run / "ledgers") as copy:
            shutil.copytree(encoders / "ledgers", copy, dirs_exist_ok=True)
    start_from(encoders, CheckpointFolder(run / "checkpoints"), Trust.load(key))


def _state(run: Path) -> State:
    checkpoints = CheckpointFolder(run / "checkpoints")
    return checkpoints.state(checkpoints.latest())


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
