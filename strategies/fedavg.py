"""Federated averaging: McMahan et al. 2017, "Communication-efficient learning of deep networks"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pm1_core.update import Tensors
from strategies import folding
from strategies.base import Named, Strategy
from strategies.updates import Updates


@dataclass(frozen=True)
class FedAvg(Strategy):
    """The mean over sites, weighted by examples (algorithm 1), tensor by tensor.

    A tensor is averaged over the sites that trained it, with the number of examples behind that tensor. Three
    sites of 10, 30 and 60 examples with values 1, 2 and 4 give 3.1; if the second has no examples of the
    tensor's modality, (10 * 1 + 60 * 4) / 70.
    """

    name: ClassVar[str | None] = "fedavg"
    linear: ClassVar[bool] = True

    def aggregate(self, round_number: int, previous: Tensors, updates: Updates) -> Named:
        """Yield the weighted mean of every tensor that travelled back."""
        for name in updates.names:
            before, mean = previous[name], folding.mean(updates, name)
            yield name, before if mean is None else folding.rounded(mean, before)
