"""FedYogi of Reddi et al. 2021, see `strategies.fedopt`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from strategies.fedopt import FedOpt
from strategies.server_optimiser import Doubles


@dataclass(frozen=True)
class FedYogi(FedOpt):
    """Like FedAdam, but the second moment moves by no more than the new square: it forgets slowly.

    beta2: decay of the second moment
    """

    name: ClassVar[str | None] = "fedyogi"

    beta2: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("beta2", 0, 1, below=True)

    def second(self, v: Doubles, square: Doubles) -> Doubles:
        """Towards the new square, by a share of it."""
        return v - (1 - self.beta2) * square * np.sign(v - square)
