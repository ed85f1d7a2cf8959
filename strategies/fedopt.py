"""Adaptive federated optimisation: Reddi et al. 2021 (ICLR), algorithm 2. FedAdagrad, FedAdam, FedYogi follow.

In round t, with Delta_t the sites' mean change:

    m_t = beta1 * m_(t-1) + (1 - beta1) * Delta_t                                 m_0 = 0
    v_t = v_(t-1) + Delta_t^2                                          FedAdagrad
    v_t = v_(t-1) - (1 - beta2) * Delta_t^2 * sign(v_(t-1) - Delta_t^2)   FedYogi
    v_t = beta2 * v_(t-1) + (1 - beta2) * Delta_t^2                       FedAdam   v_0 = tau^2
    x_(t+1) = x_t + server_learning_rate * m_t / (sqrt(v_t) + tau)

The paper asks for v_0 >= tau^2, and corrects no bias; both are so here. Flower's classes of these names begin
with v_0 = 0, and its FedAdam multiplies the step of round t by sqrt(1 - beta2^(t+1)) / (1 - beta1^(t+1)), which
is Kingma and Ba's correction one round ahead. From the same moments, and with that factor divided out, both
give the same numbers.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from strategies.server_optimiser import Doubles, Moments, ServerOptimiser


@dataclass(frozen=True)
class FedOpt(ServerOptimiser):
    """What the three have in common.

    server_learning_rate: the paper's eta; about the size of a round's step of every coordinate
    beta1: decay of the first moment; tau: adaptivity, changes well below it are not scaled up
    """

    kinds: ClassVar[tuple[str, ...]] = ("m", "v")

    server_learning_rate: float = 0.01
    beta1: float = 0.9
    tau: float = 1e-3

    def __post_init__(self) -> None:
        self._require("server_learning_rate", 0, above=True)
        self._require("beta1", 0, 1, below=True)
        self._require("tau", 0, above=True)

    @abstractmethod
    def second(self, v: Doubles, square: Doubles) -> Doubles:
        """v_t, given v_(t-1) and Delta_t^2."""

    def start(self, kind: str) -> float:
        """0 for m, tau^2 for v."""
        return self.tau**2 if kind == "v" else 0.0

    def step(self, delta: Doubles, moments: Moments) -> tuple[Doubles, Moments]:
        """Lines 10 to 14 of algorithm 2."""
        m = self.beta1 * moments["m"] + (1 - self.beta1) * delta
        v = self.second(moments["v"], np.square(delta))
        return self.server_learning_rate * m / (np.sqrt(v) + self.tau), {"m": m, "v": v}
