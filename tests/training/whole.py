"""Every trained part of PM1 at size tiny over one prepared store, each ready for a round."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from configs import compose
from pm1_core.data.store import Store
from pm1_core.training.local import train_locally
from pm1_core.training.order import Order
from pm1_core.training.tasks import Task, build_task
from pm1_core.update import Tensors, Update
from server.configure import build_study
from server.study import Study

PARTS = ("genotype.22", "phenotype", "fundus", "fusion")


@dataclass(frozen=True)
class Part:
    """A task before a round: the state it finds, and the tensors it starts from."""

    task: Task
    order: Order
    state: dict[str, np.ndarray]
    tensors: Tensors

    def with_loop(self, **loop: Any) -> Part:
        """The same round with other keys of the loop; those of the optimiser under "optimiser"."""
        before = self.order.parameters["loop"]
        optimiser = {**before["optimiser"], **loop.pop("optimiser", {})}
        parameters = {**self.order.parameters, "loop": {**before, **loop, "optimiser": optimiser}}
        task = type(self.task)(parameters, self.task.study)
        return replace(self, task=task, order=replace(self.order, parameters=parameters))

    def train(self, store: Store, folder: Path) -> Update:
        """One round."""
        folder.mkdir(parents=True, exist_ok=True)
        return self.task.train(store, self.order, self.state, self.tensors, folder)


def tiny() -> Study:
    """The default study at size tiny with one chromosome."""
    overrides = ["model=tiny", "study.phases.genotype.chromosomes=[22]", "site.device=cpu"]
    return build_study(compose.load("simulation", overrides))


def parts(store: Store, folder: Path) -> dict[str, Part]:
    """Phase -> its first round, after one round of every phase before it."""
    found: dict[str, Part] = {}
    state: dict[str, np.ndarray] = {}
    study = tiny()
    for phase in study.phases:
        rounds = phase.rounds if phase.task in ("statistics", "tokens") else 1
        orders = [study.order(phase, number) for number in range(1, rounds + 1)]
        task = build_task(orders[0], store.study)
        found[phase.name] = Part(task, orders[0], dict(state), task.initial(state, study.seed))
        state |= train_locally(task, store, orders, state, folder / phase.name)
    return found
