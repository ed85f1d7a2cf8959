"""Federated beside pooled beside each site alone: the same task, orders and epochs, on other people's data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pm1_core.checkpoint import State
from pm1_core.data.store import Store
from pm1_core.evaluation.cross_modal import TargetScores, cross_modal_table
from pm1_core.fields import Modality
from pm1_core.training.local import train_locally
from pm1_core.training.pm1 import PM1
from pm1_core.training.tasks import build_task
from pm1_core.update import Tensors
from server.study import Study
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
    orders = [study.order(phase, number) for number in range(1, phase.rounds + 1)]
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
            model = PM1(_Overlay(state, trained), store.study, encoders, config["model"]["fusion"])
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


class _Overlay(dict[str, np.ndarray]):
    """A state with some tensors replaced."""

    def __init__(self, state: State, tensors: Tensors) -> None:
        super().__init__({name: state[name] for name in state if name not in tensors})
        self.update(tensors)
