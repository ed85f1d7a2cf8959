"""Training without a federation: the same task, orders and tensors, at one site or on pooled data.

What a federation of one site must equal, and what a federation of several is held against.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from pm1_core.data.store import Store
from pm1_core.training import methods
from pm1_core.training.order import Order
from pm1_core.training.parts import State
from pm1_core.training.tasks.base import Task
from pm1_core.update import Tensors


def train_locally(
    task: Task,
    store: Store,
    orders: list[Order],
    state: State,
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, whole: None,
) -> Tensors:
    """The task's tensors after all `orders` (one per round, in order) on this store alone.

    Orders are followed with their method, as at a site of a federation of one under plain averaging. Control
    variates are left out: those of the only site are the common ones, so that nothing is corrected.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = task.initial(state, orders[0].seed)
    for done, order in enumerate(orders, start=1):
        method = {key: value for key, value in order.method.items() if key != "control"}
        asked = replace(order.at(store.site), method=method)
        update = methods.train(task, store, asked, state, tensors, folder)
        arrived = {name: np.array(array) for name, array in update.tensors.items()}
        # What nobody trained, or what stays at the site, is as it was.
        tensors = task.advance(order.round, tensors, {**tensors, **arrived})
        progress(done, len(orders))
    return tensors
