"""A study cut before its fusion phase: encoders, which several runs share, and the runs that start from them.

The study's privacy is planned as a whole and then cut in two, so that each phase keeps its share; a second run goes
on with copies of the sites' ledgers, which therefore hold both, and refuse what would pass the budget.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from pm1_core import atomic
from pm1_core.checkpoint import CheckpointFolder, State
from pm1_core.errors import ConfigError
from pm1_core.gates import Gates
from pm1_core.signing import Signer, Trust, public_file
from pm1_core.validate import refusal
from server.origins import start_from
from server.registry import Registry
from server.study import Study
from simulations.progress import Stages
from simulations.run import federate
from simulations.workspace import Workspace

FUSION = "fusion"
"""The task whose phases every second run trains for itself."""
_OPEN = Gates(max_auc_fall=None, min_group_auc=None, min_sites=None, min_people=None)


def halves(study: Study) -> tuple[Study, Study]:
    """The study cut before its first fusion phase; both keep the terms that the whole study planned.

    Raises ConfigError if there is nothing before it, or no fusion phase.
    """
    places = [place for place, phase in enumerate(study.phases) if phase.task == FUSION]
    if not places or not places[0]:
        found = "it has no fusion phase after others"
        raise ConfigError(refusal(f"study {study.name!r}", found, "take a study that trains the whole model"))
    cut = places[0]
    # Figures of a run that a site dropped out of would be compared with those of all sites.
    phases = [replace(phase, min_share=1.0) for phase in study.phases]
    first = replace(study, phases=tuple(phases[:cut]), gates=_OPEN)
    return first, replace(study, phases=tuple(phases[cut:]), gates=_OPEN)


def train(study: Study, workspace: Workspace, run: Path, stages: Stages, workers: int = 1) -> None:
    """Run what is left of `study` in `run`, unless nothing is."""
    marker = run / "trained.json"
    if marker.exists() and atomic.read_json(marker)["study"] == study.hash:
        return
    run.mkdir(parents=True, exist_ok=True)
    ledgers = run / "ledgers" if study.guarantee else None
    federate(study, workspace, run, "in_process", stages, workers, ledgers=ledgers)
    atomic.write_json(marker, {"study": study.hash})


def released(run: Path) -> str:
    """The hash of the last checkpoint of `run`, released so that other runs may start from it."""
    registry = Registry(run)
    latest = registry.find()
    if not any(release.checkpoint == latest.hash for release in registry.releases.all()):
        signer = Signer.at(run / "keys" / "coordinator.pem")
        registry.promote(latest, _OPEN, signer, "pm1-sim", "encoders that several runs share")
    return latest.hash


def train_from(
    encoders: Path,
    origin: str,
    study: Study,
    workspace: Workspace,
    run: Path,
    stages: Stages,
    workers: int = 1,
) -> None:
    """Run what is left of a second half, which starts from the release `origin` of the run `encoders`."""
    study = replace(study, start_from=origin)
    if not (run / "ledgers").exists() and (encoders / "ledgers").exists():
        with atomic.whole_folder(run / "ledgers") as copy:
            shutil.copytree(encoders / "ledgers", copy, dirs_exist_ok=True)
    key = public_file(encoders / "keys" / "coordinator.pem")
    start_from(encoders, CheckpointFolder(run / "checkpoints"), Trust.load(key))
    train(study, workspace, run, stages, workers)


def last_state(run: Path) -> State:
    """The tensors of the last checkpoint of `run`."""
    checkpoints = CheckpointFolder(run / "checkpoints")
    return checkpoints.state(checkpoints.latest())
