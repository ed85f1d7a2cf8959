"""An optimiser's state between rounds, on the site's own disk."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch

from pm1_core.training.guide import Trained
from pm1_core.training.memory import Memory

_MOMENTS = "moments"


def load_moments(optimiser: torch.optim.Optimizer, trained: Trained, memory: Memory) -> int:
    """Restore what the last round here left, and return the steps taken so far in the phase.

    By the names of tensors: one that was not trained here before starts afresh beside the others.
    """
    held = memory.load(_MOMENTS)
    if held is None:
        return 0
    state: dict[int, dict[str, torch.Tensor]] = defaultdict(dict)
    places = {name: place for place, name in enumerate(trained)}
    for key, array in held.items():
        name, _, what = key.rpartition("/")
        if name in places:
            state[places[name]][what] = torch.from_numpy(array)
    (group,) = optimiser.state_dict()["param_groups"]
    group |= {
        key.removeprefix("/group/"): array.item() for key, array in held.items() if key.startswith("/group/")
    }
    optimiser.load_state_dict({"state": dict(state), "param_groups": [group]})
    return int(held["/step"])


def save_moments(optimiser: torch.optim.Optimizer, trained: Trained, memory: Memory, step: int) -> None:
    """Keep "NAME/what" per tensor, "/group/what" of what an optimiser counts once for all, and "/step"."""
    (group,) = optimiser.param_groups
    held = {
        f"{name}/{what}": value.detach().cpu().numpy()
        for name, parameter in trained.items()
        for what, value in optimiser.state[parameter].items()
        if value is not None
    }
    counted = {key: value for key, value in group.items() if key not in ("params", *optimiser.defaults)}
    held |= {f"/group/{key}": np.array(value) for key, value in counted.items()}
    memory.save(_MOMENTS, {**held, "/step": np.array(step)})
