"""Between modules and the flat global state: the tensors of one part, by the prefix that they carry."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from pm1_core.checkpoint import State as Parts
from pm1_core.checkpoint import part_of
from pm1_core.errors import StateError
from pm1_core.update import Tensors
from pm1_core.validate import refusal

State = Mapping[str, np.ndarray]


def part(state: State, prefix: str) -> dict[str, np.ndarray]:
    """The tensors below `prefix`, with the prefix taken off. Raises StateError if there is none."""
    names = state.below(prefix) if isinstance(state, Parts) else state
    found = {name.removeprefix(prefix): state[name] for name in names if name.startswith(prefix)}
    if not found:
        raise StateError(refusal("global state", f"found nothing below {prefix!r}", "run that phase first"))
    return found


def names_of_parts(state: State) -> set[str]:
    """Parts that `state` has ("genotype.22", "fusion"), without opening one: a site may not hold them all."""
    return set(state.parts) if isinstance(state, Parts) else {part_of(name) for name in state}


def load_part(module: torch.nn.Module, tensors: Tensors, prefix: str) -> None:
    """Copy the tensors below `prefix` into `module`'s parameters. Raises StateError on any mismatch."""
    arrays = part(tensors, prefix)
    try:
        module.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise StateError(
            refusal(f"tensors {prefix!r}", reason, "use the model configuration of the study")
        ) from None


def named_part(module: torch.nn.Module, prefix: str) -> dict[str, torch.nn.Parameter]:
    """The parameters of `module` that are trained, named below `prefix` as they travel."""
    return {
        prefix + name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad
    }


def dump_part(module: torch.nn.Module, prefix: str) -> dict[str, np.ndarray]:
    """All parameters and buffers of `module` as float32 arrays, named below `prefix`."""
    return {
        prefix + name: tensor.detach().to("cpu", torch.float32).numpy().copy()
        for name, tensor in module.state_dict().items()
    }
