"""Mixed precision: matrix products in 16 bits, parameters, losses and moments in 32 (F.1, F.4; F.5 turned it off).

    float32     as it is
    bfloat16    float32's range with 8 bits of precision: nothing can overflow that did not before
    float16     11 bits, but nothing above 65,504 or below 6e-8: the loss is multiplied before it goes back through
                the network, and its gradient divided afterwards

The factor is torch's GradScaler's: halved when a gradient overflows, whose step is skipped, and doubled after 2,000
steps without. It follows from a site's own gradients, so it is remembered there from round to round.
"""

from __future__ import annotations

import numpy as np
import torch

from pm1_core.errors import ConfigError
from pm1_core.training.memory import Memory
from pm1_core.training.processes import add_up
from pm1_core.validate import refusal

FLOAT32 = "float32"
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
PRECISIONS = (FLOAT32, *_DTYPES)
_SCALE = "loss_scale"


def computing(precision: str, device: str) -> torch.autocast:
    """A context in which networks on a device ("cpu", "cuda") compute in `precision`."""
    return torch.autocast(device, _DTYPES.get(precision), enabled=precision != FLOAT32)


def require_exact(where: str, precision: str) -> None:
    """Raise ConfigError unless gradients are computed in float32, as bounds on a person's gradient presume."""
    if precision != FLOAT32:
        found = f"found {precision!r} under record-level privacy, whose gradients are cut in {FLOAT32}"
        raise ConfigError(refusal(f"{where}, loop.precision", found, f"use {FLOAT32}"))


class LossScale:
    """The factor of float16 over a round; with another precision it does nothing.

    memory: where it is kept between rounds, None to start anew
    """

    def __init__(self, precision: str, device: str, memory: Memory | None) -> None:
        self._scaler = torch.amp.GradScaler(device, enabled=precision == "float16")
        self._memory = memory
        held = memory.load(_SCALE) if memory and self._scaler.is_enabled() else None
        if held:
            self._scaler.load_state_dict({name: value.item() for name, value in held.items()})

    def backward(self, loss: torch.Tensor, optimiser: torch.optim.Optimizer) -> None:
        """Put the gradient of `loss` where the optimiser finds it; not finite if it overflowed."""
        torch.autograd.backward(self._scaler.scale(loss))
        add_up(parameter for group in optimiser.param_groups for parameter in group["params"])
        self._scaler.unscale_(optimiser)
        # Now rather than after the step: the next factor follows from this gradient alone.
        self._scaler.update()

    def kept(self) -> dict[str, float]:
        """Remember the factor, and return it as a figure; nothing if there is none."""
        if not self._scaler.is_enabled():
            return {}
        if self._memory:
            self._memory.save(_SCALE, {n: np.array(v) for n, v in self._scaler.state_dict().items()})
        return {_SCALE: self._scaler.get_scale()}
