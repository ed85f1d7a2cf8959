"""FedAdam of Reddi et al. 2021, see `strategies.fedopt`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strategies.fedopt import FedOpt
from strategies.server_optimiser import Doubles


@dataclass(frozen=True)
class FedAdam(FedOpt):
    """Steps scaled by a decaying mean of squares.

    beta2: decay of the second moment
    """

    name: ClassVar[str | None] = "fedadam"

    beta2: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("beta2", 0, 1, below=True)

    def second(self, v: Doubles, square: Doubles) -> Doubles:
        """The decaying mean."""
        return self.beta2 * v + (1 - self.beta2) * square
