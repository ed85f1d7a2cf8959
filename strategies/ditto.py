"""Ditto: Li et al. 2021, "Ditto: fair and robust federated learning through personalization"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from strategies.fedavg import FedAvg


@dataclass(frozen=True)
class Ditto(FedAvg):
    """FedAvg for everybody, and at each site a personal model that stays close to it (algorithm 1).

    A site trains its own model with lambda/2 * |v - w|^2 added to its loss; it never leaves the site, and the
    global model is exactly FedAvg's.

    regularisation: lambda; 0 is each site alone, a large one the global model. The paper tunes 0.05 to 2
    """

    name: ClassVar[str | None] = "ditto"

    regularisation: float = 0.1

    def __post_init__(self) -> None:
        self._require("regularisation", 0)

    def method(self) -> dict[str, Any]:
        """The pull towards the global model."""
        return {"personal": self.regularisation}
