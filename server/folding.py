"""Between a strategy's stream of folded tensors and the checkpoint that is written from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from pm1_core.checkpoint import State, part_of
from pm1_core.errors import CheckpointError, FederationError, StateError
from pm1_core.objects import Reader
from pm1_core.training.tasks import Task
from pm1_core.update import Tensors
from pm1_core.validate import refusal

Pairs = Iterable[tuple[str, np.ndarray]]

STATE = ("control", "server")
"""Parts that hold a strategy's own state; they live as long as a phase, and "server" never travels."""


def complete(previous: Reader, folded: Pairs) -> Iterator[tuple[str, np.ndarray]]:
    """`folded`, with the previous value of every tensor that it leaves out, in the order of folding.

    Raises StateError if a tensor comes out of order or is none of `previous`, FederationError if one is not finite:
    updates that each are may overflow together.
    """
    waiting = sorted(previous, key=_place)
    for name, array in folded:
        while waiting and _place(waiting[0]) < _place(name):
            skipped = waiting.pop(0)
            yield skipped, previous[skipped]
        if not waiting or waiting.pop(0) != name:
            raise StateError(
                refusal(f"tensor {name!r}", "the strategy yields it out of order", "yield names in order")
            )
        if not np.isfinite(array).all():
            raise FederationError(
                refusal(
                    f"tensor {name!r}",
                    "the sites' updates fold to NaN or infinity",
                    "lower the learning rates or the study's norm_limit; the last checkpoint stays in force",
                )
            )
        yield name, array
    for name in waiting:
        yield name, previous[name]


def advanced(task: Task, number: int, before: Reader, folded: Pairs) -> Pairs:
    """What a task with a rule of its own makes of the sites' mean or sum; its tensors are then all in memory."""
    if type(task).advance is Task.advance:
        return folded
    state: dict[str, np.ndarray] = {}
    model: dict[str, np.ndarray] = {}
    for name, array in folded:
        (state if part_of(name) in STATE else model)[name] = array
    return [*sorted(task.advance(number, dict(before), model).items()), *sorted(state.items())]


def start_of(task: Task, state: State, seed: int) -> Tensors:
    """What a phase starts from: the part as it is, if it has been trained before, else the task's first tensors.

    A study that starts from a released checkpoint goes on with its parts in this way. Sums begin anew. Raises
    CheckpointError if the part has other tensors than the task.
    """
    initial = task.initial(state, seed)
    parts = {part_of(name) for name in initial}
    if task.aggregation == "sum" or not parts <= set(state.parts):
        return initial
    for name, array in initial.items():
        part = state.part(part_of(name))
        found = part.shape(name) if name in part else None
        if found != array.shape:
            raise CheckpointError(
                refusal(
                    f"tensor {name!r} of the checkpoint that this phase goes on with",
                    f"found {f'shape {found}' if found else 'no such tensor'}, not shape {array.shape}",
                    "use the sizes that it was trained with",
                )
            )
    return {name: state[name] for name in initial}


def _place(name: str) -> tuple[bool, str]:
    """The model's tensors come first, then the strategy's own."""
    return part_of(name) in STATE, name
