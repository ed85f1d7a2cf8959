"""Training without a federation: the same task, orders and tensors, at one site or on pooled data.

What a federation of one site must equal, and what a federation of several is held against.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pm1_core.data.store import Store
from pm1_core.training.order import Order
from pm1_core.training.parts import State
from pm1_core.training.tasks.base import Task
from pm1_core.update import Tensors, Update


def train_locally(
    task: Task,
    store: Store,
    orders: list[Order],
    state: State,
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, whole: None,
) -> Tensors:
    """The task's tensors after all `orders` (one per round, in order) on this store alone."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = task.initial(state, orders[0].seed)
    for done, order in enumerate(orders, start=1):
        update: Update = task.train(store, order.at(store.site), state, tensors, folder)
        tensors = task.advance(order.round, tensors, {n: np.array(a) for n, a in update.tensors.items()})
        progress(done, len(orders))
    return tensors
