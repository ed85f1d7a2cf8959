"""What a strategy asks of a site's training beside the task's own loss: a term that is added to its gradients.

The training loop (`pm1_core.training.loop.train_epochs`) calls a guide once before the first step and once in every
step that is taken, between clipping and the optimiser. So every guide works with every optimiser, and a task that
hands its guide on to the loop works with every strategy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from pm1_core.errors import InputError
from pm1_core.update import Tensors
from pm1_core.validate import refusal

Trained = Mapping[str, torch.nn.Parameter]
"""The parameters that a task trains, by the names under which they travel."""


class Guide:
    """Asks for nothing; the base of those that do. A guide is used for one round."""

    def begin(self, trained: Trained) -> None:
        """Before the first step: the parameters hold what training starts from."""

    def adjust(self, trained: Trained) -> None:
        """In each step that is taken: `grad` of the parameters holds the task's gradient, clipped, or None."""


UNGUIDED = Guide()


class Proximal(Guide):
    """Pulls towards `anchor`: adds mu (w - anchor) to the gradient, that of mu/2 |w - anchor|^2.

    With the received model as anchor, this is FedProx (Li et al. 2020, "Federated optimization in heterogeneous
    networks", eq. 2); with it and a personal model as w, Ditto (Li et al. 2021, "Ditto: fair and robust federated
    learning through personalization", algorithm 1). Parameters that `anchor` does not name are left alone.
    """

    def __init__(self, mu: float, anchor: Tensors) -> None:
        self.mu = mu
        self._given = anchor
        self._anchor: dict[str, torch.Tensor] = {}

    def begin(self, trained: Trained) -> None:
        """Put the anchor where the parameters are."""
        self._anchor = {
            name: _beside(p, self._given[name]) for name, p in trained.items() if name in self._given
        }

    @torch.no_grad()
    def adjust(self, trained: Trained) -> None:
        """Add the pull."""
        for name, anchor in self._anchor.items():
            _add(trained[name], (trained[name] - anchor) * self.mu)


class Control(Guide):
    """Steers against client drift: adds c - c_i to the gradient, and takes the mean of the site's own gradients.

    SCAFFOLD (Karimireddy et al. 2020, "SCAFFOLD: stochastic controlled averaging for federated learning",
    algorithm 1). `renewed` gives c_i+ as the mean of the gradients g_k (clipped, before the correction) of the K
    steps that were taken. With plain SGD of a constant rate that is the paper's option II to the letter:

        y = x - lr sum_k (g_k + c - c_i)     =>    (x - y) / (K lr) = mean_k g_k + c - c_i
        c_i+ = c_i - c + (x - y) / (K lr)    =     mean_k g_k

    and unlike (x - y) / (K lr) it is a gradient whatever the optimiser, its momentum and its rate are.

    common: c, own: c_i, by the names of the tensors; a tensor without c_i yet has c_i = 0 (as algorithm 1 starts)
    Parameters that `common` does not name are left alone.
    """

    def __init__(self, common: Tensors, own: Tensors) -> None:
        self._common, self._own = common, own
        self._corrections: dict[str, torch.Tensor] = {}
        self._sums: dict[str, torch.Tensor] = {}
        self._steps = 0

    def begin(self, trained: Trained) -> None:
        """Put c - c_i where the parameters are."""
        for name, parameter in trained.items():
            if name in self._common:
                correction = _beside(parameter, self._common[name])
                if name in self._own:
                    correction -= _beside(parameter, self._own[name])
                self._corrections[name] = correction
                self._sums[name] = torch.zeros_like(parameter)

    @torch.no_grad()
    def adjust(self, trained: Trained) -> None:
        """Note the gradient, then correct it."""
        self._steps += 1
        for name, correction in self._corrections.items():
            parameter = trained[name]
            if parameter.grad is not None:
                self._sums[name] += parameter.grad
            _add(parameter, correction)

    def renewed(self) -> dict[str, np.ndarray]:
        """c_i+ of every tensor that was trained; nothing where no step was taken, c_i then stays."""
        if not self._steps:
            return {}
        return {name: (total / self._steps).cpu().numpy() for name, total in self._sums.items()}


class Together(Guide):
    """Several guides at once, in order. `begun` tells whether a training loop took notice of them."""

    def __init__(self, guides: Sequence[Guide]) -> None:
        self._guides = tuple(guides)
        self.begun = False

    def begin(self, trained: Trained) -> None:
        """Begin all of them."""
        self.begun = True
        for guide in self._guides:
            guide.begin(trained)

    def adjust(self, trained: Trained) -> None:
        """Adjust by all of them."""
        for guide in self._guides:
            guide.adjust(trained)


def _beside(parameter: torch.nn.Parameter, array: np.ndarray) -> torch.Tensor:
    """A copy of `array` with the device and dtype of `parameter`. Raises InputError if the shapes differ."""
    if tuple(array.shape) != tuple(parameter.shape):
        found = f"found shape {tuple(array.shape)} for a tensor of shape {tuple(parameter.shape)}"
        raise InputError(refusal("guide of a training", found, "use tensors of the same model"))
    return torch.from_numpy(np.array(array)).to(parameter)


def _add(parameter: torch.nn.Parameter, term: torch.Tensor) -> None:
    """Add to a gradient; a parameter that the loss did not touch has the gradient 0, not none."""
    parameter.grad = term if parameter.grad is None else parameter.grad.add_(term)
