"""SCAFFOLD: Karimireddy et al. 2020, "SCAFFOLD: stochastic controlled averaging for federated learning"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pm1_core.errors import ConfigError
from pm1_core.update import Tensors
from pm1_core.validate import require_choice
from strategies import folding
from strategies.base import CONTROL, Named, Strategy
from strategies.updates import Updates


@dataclass(frozen=True)
class Scaffold(Strategy):
    """Sites correct their steps by how their gradients differ from everybody's (algorithm 1).

    The control variate c travels as "control.NAME" beside the model. Site i takes steps along
    gradient - c_i + c, keeps its c_i, and returns its model y_i and c_i+ - c_i under the names of c:

        x <- x + server_learning_rate * mean over S of (y_i - x)                  line 16
        c <- c + |S| / N * mean over S of (c_i+ - c_i)                            line 17

    S are the sites that trained the tensor in this round, N those of the phase that could. So c is the mean of
    all c_i at any time, also of the sites that were absent for a while.

    weighting: "examples" weighs all means as FedAvg does, and |S| / N is then a share of the examples; "uniform"
        counts every site once, as the paper does
    server_learning_rate: the paper's global step size
    """

    name: ClassVar[str | None] = "scaffold"
    linear: ClassVar[bool] = True

    weighting: str = "examples"
    server_learning_rate: float = 1.0

    def __post_init__(self) -> None:
        require_choice("key 'strategy.weighting'", self.weighting, ("examples", "uniform"), ConfigError)
        self._require("server_learning_rate", 0, above=True)

    def method(self) -> dict[str, Any]:
        """Sites keep and send control variates."""
        return {"control": True}

    def initial(self, tensors: Tensors) -> dict[str, np.ndarray]:
        """Zeros for c, as views of one number."""
        return {
            CONTROL + name: np.broadcast_to(np.float32(0), tensors[name].shape) for name in sorted(tensors)
        }

    def aggregate(self, round_number: int, previous: Tensors, updates: Updates) -> Named:
        """Yield the model, then c."""
        for name in sorted(updates.names, key=lambda name: (name.startswith(CONTROL), name)):
            before, of_model = previous[name], name.removeprefix(CONTROL)
            weights = self._weighed(folding.weights(updates, of_model))
            if not weights:
                yield name, before
                continue
            old = before.reshape(-1)
            if name.startswith(CONTROL):
                whole = sum(self._weighed(updates.eligible(of_model)).values())
                new = folding.total(updates, name, {site: weight / whole for site, weight in weights.items()})
                for block in folding.blocks(old.size):
                    new[block] += old[block]
            else:
                new = folding.weighted_mean(updates, name, weights)
                for block in folding.blocks(old.size):
                    new[block] = old[block] + self.server_learning_rate * (new[block] - old[block])
            yield name, folding.rounded(new, before)

    def _weighed(self, examples: Mapping[str, float]) -> dict[str, float]:
        """Site -> its weight in a mean, given its examples."""
        return {site: examples[site] if self.weighting == "examples" else 1.0 for site in sorted(examples)}
