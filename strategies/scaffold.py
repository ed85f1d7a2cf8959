"""SCAFFOLD: Karimireddy et al. 2020, "SCAFFOLD: stochastic controlled averaging for federated learning"."""

from __future__ import annotations

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

    S are the sites that answered and trained anything, N those that are eligible for the phase. Of a tensor that
    only some of S trained, both means are over those, and |S| / N stays what it is: the share that took part.

    weighting: "examples" weighs both means as FedAvg does, "uniform" counts every site once, as the paper does.
        While all sites answer, c is the mean of all c_i under either. Where sites come and go, it stays so
        under "uniform" only; under "examples" it is an estimate, as the examples of the absent are not known
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
        active = {site for name in updates.names for site in folding.trainers(updates, _model_name(name))}
        share = len(active) / updates.population
        for name in sorted(updates.names, key=lambda name: (name.startswith(CONTROL), name)):
            before = previous[name]
            weights = folding.weights(updates, _model_name(name))
            if self.weighting == "uniform":
                weights = dict.fromkeys(weights, 1.0)
            new = folding.mean(updates, name, weights)
            if new is None:
                yield name, before
                continue
            old = before.reshape(-1)
            for block in folding.blocks(old.size):
                if name.startswith(CONTROL):
                    new[block] = old[block] + share * new[block]
                else:
                    new[block] = old[block] + self.server_learning_rate * (new[block] - old[block])
            yield name, folding.rounded(new, before)


def _model_name(name: str) -> str:
    """The tensor of the model that a control variate belongs to."""
    return name.removeprefix(CONTROL)
