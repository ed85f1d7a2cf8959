"""Federated beside pooled beside each site alone: the same task, orders and epochs, on other people's data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pm1_core import atomic
from pm1_core.checkpoint import CheckpointFolder, State
from pm1_core.data.store import Store
from pm1_core.evaluation.cross_modal import TargetScores, cross_modal_table
from pm1_core.fields import Modality, Split
from pm1_core.training.local import train_locally
from pm1_core.training.order import Order
from pm1_core.training.pm1 import PM1
from pm1_core.training.tasks import allowed_tasks, build_task, task_class
from pm1_core.update import Tensors
from server.configure import fusion_model
from server.study import Phase, Study
from simulations.pooled import PooledStore
from simulations.prediction import disease_scores
from simulations.progress import Stages

INPUTS = "P+I+G"


def fusion_beside_pooled_and_alone(
    config: Mapping[str, Any],
    study: Study,
    state: State,
    members: Mapping[str, Store],
    everybody: PooledStore,
    people: np.ndarray,
    federated: list[TargetScores],
    folder: Path,
    stages: Stages,
) -> dict[str, Any]:
    """The report's `Methods` for the fusion phase, on the same test people. Encoders are the federation's."""
    phase = next(phase for phase in study.phases if phase.task == "fusion")
    orders = _orders(study, phase)
    encoders = {part: config["model"][part] for part in ("genotype", "phenotype", "fundus")}
    rows = _rows("federated", None, federated)
    candidates: dict[str, Any] = {"pooled": PooledStore(list(members.values()))}
    # A site without phenotypes cannot learn to write one.
    candidates |= {site: store for site, store in members.items() if Modality.PHENOTYPE in store.modalities}
    with stages.stage("fusion: pooled and alone") as step:
        for done, (site, store) in enumerate(candidates.items()):
            step(site, done, len(candidates))
            task = build_task(orders[0], store.study)
            trained = train_locally(task, store, orders, state, folder / site)
            model = PM1(_Overlay(state, trained), store.study, encoders, fusion_model(config))
            scores = disease_scores(model, everybody, people, [INPUTS])
            rows += _rows(
                "pooled" if site == "pooled" else "alone", None if site == "pooled" else site, scores
            )
        step("", len(candidates), len(candidates))
    return {"phase": phase.name, "rows": rows}


def _rows(method: str, site: str | None, scores: list[TargetScores]) -> list[dict[str, Any]]:
    chosen = [TargetScores(s.target, s.label, s.labels, {INPUTS: s.scores[INPUTS]}) for s in scores]
    table = cross_modal_table(chosen, versus=INPUTS)
    extra = {"method": method} | ({"site": site} if site else {})
    return [{**row, **extra} for row in table.to_json()["rows"]]


def compare_phases(config: dict[str, Any], stages: Stages) -> list[dict[str, Any]]:
    """Every trained phase of a finished run beside pooled and alone; also written to RUN/comparison.json.

    A row: {"phase", "trained" ("federated", "pooled" or a site), "people" (in training), "validation", "test"
    (losses on the people of all sites)}. Frozen parts are the federation's in all of them.
    """
    from simulations.run import finished

    run, study, workspace = finished(config, stages)
    checkpoints = CheckpointFolder(run / "checkpoints")
    state = checkpoints.state(checkpoints.latest())
    members = workspace.open()
    everybody = PooledStore(list(members.values()))
    rows: list[dict[str, Any]] = []
    allowed = allowed_tasks(config["site"]["tasks"])
    phases = [phase for phase in study.phases if task_class(phase.task, allowed).aggregation == "mean"]
    for phase in phases:
        orders = _orders(study, phase)
        task = build_task(orders[0], everybody.study, allowed)
        stores = {"pooled": everybody} | {
            site: store for site, store in members.items() if task.examples(store)
        }
        with stages.stage(phase.name) as step:
            for done, (name, store) in enumerate([("federated", None), *stores.items()]):
                step(name, done, len(stores) + 1)
                folder = run / "comparison" / phase.name / name
                if store is None:
                    tensors: Tensors = {key: state[key] for key in task.initial(state, study.seed)}
                else:
                    tensors = train_locally(task, store, orders, state, folder)
                losses = {
                    str(split): task.evaluate(everybody, orders[-1], state, tensors, _made(folder), split)[
                        "loss"
                    ]
                    for split in (Split.VALIDATION, Split.TEST)
                }
                people = task.examples(store or everybody)
                rows.append({"phase": phase.name, "trained": name, "people": people, **losses})
    atomic.write_json(run / "comparison.json", rows)
    return rows


def _orders(study: Study, phase: Phase) -> list[Order]:
    """A phase's orders without privacy: data that are pooled, or stay at one site, are released to nobody."""
    unprotected = next(p for p in study.unprotected.phases if p.name == phase.name)
    return [study.unprotected.order(unprotected, number) for number in range(1, phase.rounds + 1)]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class _Overlay(dict[str, np.ndarray]):
    """A state with some tensors replaced."""

    def __init__(self, state: State, tensors: Tensors) -> None:
        super().__init__({name: state[name] for name in state if name not in tensors})
        self.update(tensors)
