"""The coordinate-wise trimmed mean: Yin et al. 2018 (algorithm 1, option II)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import flwr.serverapp.strategy as flower
import numpy as np

from strategies import flower_rules
from strategies.robust import Coordinatewise, require_sites


@dataclass(frozen=True)
class TrimmedMean(Coordinatewise):
    """Of each coordinate, the mean without the floor(trim * n) largest and as many smallest values.

    Bounded by honest values while no more sites than that lie. Fewer sites than 1 / trim would trim nobody:
    they are refused, not averaged. Flower's FedTrimmedAvg does it, block by block, in float64.

    trim: the paper's beta, the share cut off at each end; 0 <= trim < 1/2
    """

    name: ClassVar[str | None] = "trimmed_mean"

    trim: float = 0.2

    def __post_init__(self) -> None:
        self._require("trim", 0, 0.5, below=True)

    def fold(self, values: np.ndarray) -> np.ndarray:
        """Flower's trimmed mean."""
        return flower_rules.fold(flower.FedTrimmedAvg(beta=self.trim), values)

    def require(self, where: str, sites: Sequence[str]) -> None:
        """At least one value has to go at each end, if any are to."""
        if self.trim > 0:
            needed = next(n for n in range(1, math.ceil(1 / self.trim) + 2) if int(self.trim * n) >= 1)
            more = f"raise trim to {1 / len(sites) + 0.005:.2f}" if len(sites) > 2 else "use fedavg"
            require_sites(
                where, sites, needed, f"a trim of {self.trim:g} at each end", f"wait for more or {more}"
            )
