"""Server momentum: Hsu, Qi and Brown 2019, "Measuring the effects of non-identical data distribution" (FedAvgM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strategies.server_optimiser import Doubles, Moments, ServerOptimiser


@dataclass(frozen=True)
class FedAvgM(ServerOptimiser):
    """Momentum over rounds: v <- momentum * v + Delta; x <- x + server_learning_rate * v.

    Section 4.3 of the paper, with a server learning rate that is 1 there. momentum 0 and rate 1 are FedAvg.
    """

    name: ClassVar[str | None] = "fedavgm"
    kinds: ClassVar[tuple[str, ...]] = ("momentum",)

    server_learning_rate: float = 1.0
    momentum: float = 0.9

    def __post_init__(self) -> None:
        self._require("server_learning_rate", 0, above=True)
        self._require("momentum", 0, 1, below=True)

    def step(self, delta: Doubles, moments: Moments) -> tuple[Doubles, Moments]:
        """One step of momentum."""
        velocity = self.momentum * moments["momentum"] + delta
        return self.server_learning_rate * velocity, {"momentum": velocity}
