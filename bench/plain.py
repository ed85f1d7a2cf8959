"""The peer of a simulation: the same training in a plain loop, without messages, checkpoints or own files."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from pm1_core.data.store import Store
from pm1_core.fields import Split
from pm1_core.training.tasks import Task, build_task
from pm1_core.update import Update
from server.study import Study
from strategies import Gathered, Summation, build


def plain_loop(
    study: Study, stores: Mapping[str, Path], folder: Path, tasks: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    """All global tensors after `study`: every site's round after another, folded by the study's strategy.

    The same figures are computed as in a federation: validation before each round but the first, validation, test
    and scores at the end of a phase. The strategy keeps no state (fedavg).
    """
    opened = {site: Store.open(path) for site, path in stores.items()}
    state: dict[str, np.ndarray] = {}
    for phase in study.phases:
        first = study.order(phase, 1)
        task = build_task(first, next(iter(opened.values())).study, tasks)
        strategy = Summation() if task.aggregation == "sum" else build(study.strategy)
        members = {site: store for site, store in opened.items() if task.examples(store)}
        tensors = dict(task.initial(state, study.seed))
        for number in range(1, phase.rounds + 1):
            updates: dict[str, Update] = {}
            for site, store in members.items():
                order, own = study.order(phase, number).at(site), folder / site
                own.mkdir(parents=True, exist_ok=True)
                if number > 1 and task.examples(store, Split.VALIDATION):
                    task.evaluate(store, order, state, tensors, own, Split.VALIDATION)
                updates[site] = task.train(store, order, state, tensors, own)
            whole = {
                site: Update({**tensors, **update.tensors}, update.weight, {}, update.examples)
                for site, update in updates.items()
            }
            folded = dict(strategy.aggregate(number, tensors, Gathered(whole, partial(_weight, task))))
            tensors = dict(task.advance(number, tensors, {**tensors, **folded}))
        for site, store in members.items():
            for split in (Split.VALIDATION, Split.TEST):
                if task.examples(store, split):
                    order = study.order(phase, phase.rounds).at(site)
                    task.evaluate(store, order, state, tensors, folder / site, split)
                    if split == Split.TEST:
                        task.scores(store, order, state, tensors, folder / site, split)
        state |= tensors
    return state


def _weight(task: Task, update: Update, name: str) -> float:
    """Examples behind a tensor: of its modality where it belongs to one."""
    modality = task.modality_of(name)
    return update.examples.get(modality, 0.0) if modality else update.weight
