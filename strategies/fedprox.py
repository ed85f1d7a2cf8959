"""FedProx: Li et al. 2020, "Federated optimization in heterogeneous networks"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from strategies.fedavg import FedAvg


@dataclass(frozen=True)
class FedProx(FedAvg):
    """FedAvg over sites that are held back: each adds mu/2 * |w - w_received|^2 to its loss (algorithm 2).

    mu: how firmly; 0 is FedAvg. The paper tunes it among 0.001, 0.01, 0.1 and 1
    """

    name: ClassVar[str | None] = "fedprox"

    mu: float = 0.01

    def __post_init__(self) -> None:
        self._require("mu", 0)

    def method(self) -> dict[str, Any]:
        """The weight of the proximal term."""
        return {"proximal": self.mu}
