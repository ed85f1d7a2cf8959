"""`pm1-sim run`: a study over simulated or real hospitals on one machine, from files to the report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from flwr.serverapp import Grid

from configs import compose
from pm1_core import atomic
from pm1_core.checkpoint import CheckpointFolder
from pm1_core.data.definition import load_definition
from pm1_core.errors import ConfigError
from pm1_core.signing import Signer, Trust, public_file
from pm1_core.training.adapters import pin_base
from pm1_core.training.tasks import allowed_tasks
from pm1_core.validate import refusal, require_choice
from server.configure import build_study
from server.coordinator import Coordinator
from server.registry import Registry
from server.study import Study
from simulations import panel
from simulations.assessment import assess
from simulations.grid import run_in_process, run_on_ray
from simulations.progress import Stages
from simulations.report import write_report
from simulations.request import Request
from simulations.workspace import Workspace, members_of, simulated

ENGINES = ("in_process", "ray")
REQUEST = Request("request.json", apart=("resume", "runs", "attack", "search"))


def run(config: dict[str, Any], stages: Stages) -> Path:
    """Run the study that `config` (configs.schema.Simulation) describes and return its folder.

    A run of the same name with the same configuration is continued after its last checkpoint; one with
    another configuration is refused, unless that is asked for by another name.
    """
    began = time.time()
    folder = run_folder(config)
    config = REQUEST.settled(config, folder)
    require_choice("key 'engine'", config["engine"], ENGINES, ConfigError)
    if config["site"]["threads"]:
        torch.set_num_threads(config["site"]["threads"])
    if not panel.wanted(config):
        build_study(config)  # what is wrong with it is said before anything is written
    folder.mkdir(parents=True, exist_ok=True)  # a folder that cannot be written to is said before the work
    workspace = simulated(config, stages)
    REQUEST.remember(config, folder)
    config = with_public(config, workspace)
    atomic.write_text(folder / "config.yaml", compose.to_yaml(config))
    study = build_study(config)
    tasks = allowed_tasks(config["site"]["tasks"])
    machine = {key: config["site"][key] for key in ("batch_size", "precision", "processes", "cache")}
    federate(study, workspace, folder, config["engine"], stages, config["workers"], tasks, machine=machine)
    # A finished run is not assessed twice: the figures follow from the checkpoint and the configuration.
    latest = CheckpointFolder(folder / "checkpoints").latest()
    key = {
        "checkpoint": latest.hash if latest else "",
        "compare": config["compare"],
        "baselines": config["baselines"],
    }
    marker = folder / "assessed.json"
    if not marker.exists() or atomic.read_json(marker) != key:
        assess(folder, config, study, workspace, stages, began)
        atomic.write_json(marker, key)
    return write_report(folder)


def finished(config: dict[str, Any], stages: Stages) -> tuple[Path, Study, Workspace]:
    """Folder, study and data of a run that has ended. Raises ConfigError if it has not."""
    folder = run_folder(config)
    if not (folder / "assessed.json").exists():
        raise ConfigError(refusal(f"run {folder}", "it is not finished", "finish it with pm1-sim run first"))
    config = REQUEST.settled({**config, "resume": folder.name}, folder)
    workspace = simulated(config, stages)
    return folder, build_study(with_public(config, workspace)), workspace


def run_folder(config: Mapping[str, Any]) -> Path:
    """runs/NAME; the name defaults to study and size."""
    name = config["resume"] or config["name"] or f"{config['study']['name']}-{config['model']['size']}"
    if Path(name).name != name or name.startswith("."):
        raise ConfigError(refusal("key 'name'", f"found {name!r}", "use a plain folder name"))
    return Path(config["runs"]) / name


def with_public(config: dict[str, Any], workspace: Workspace) -> dict[str, Any]:
    """`config` with what is public in the workspace: a base of the fundus encoder, a panel's statistics."""
    config = panel.added(config, workspace)
    if workspace.base is None:
        return config
    fundus = pin_base({**config["model"]["fundus"], "base": str(workspace.base)})
    return {**config, "model": {**config["model"], "fundus": fundus}}


def federate(
    study: Study,
    workspace: Workspace,
    folder: Path,
    engine: str,
    stages: Stages,
    workers: int = 1,
    tasks: tuple[str, ...] = (),
    ledgers: Path | None = None,
    machine: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Run what is left of `study` over the workspace's members; `ledgers` and `machine` as for `members_of`."""
    summary = load_definition(workspace.definition).summary
    key = folder / "keys" / "coordinator.pem"
    signer = Signer.at(key)
    trust = str(public_file(key).resolve())
    sites = members_of(study, workspace.stores, folder, trust, tasks, ledgers, machine)
    with stages.stage(f"federated training ({engine})") as step:

        def coordinate(grid: Grid) -> Coordinator:
            return Coordinator(study, summary, folder, grid, signer, tasks, step)

        if engine == "ray":
            run_on_ray(coordinate, sites)
        else:
            with atomic.without_sync():  # what power loss takes can be run again
                run_in_process(coordinate, sites, workers)
    registry = Registry(folder)
    registry.verify(Trust.load(public_file(key)), registry.origin_trust(Trust.load(public_file(key))))
