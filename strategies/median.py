"""The coordinate-wise median: Yin et al. 2018, "Byzantine-robust distributed learning" (algorithm 1, option I)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import flwr.serverapp.strategy as flower
import numpy as np

from strategies import flower_rules
from strategies.robust import Coordinatewise, require_sites


@dataclass(frozen=True)
class Median(Coordinatewise):
    """The median over sites of each coordinate: bounded by honest values while fewer than half of them lie.

    Needs three sites for each tensor. Flower's FedMedian does it, block by block, in float64.
    """

    name: ClassVar[str | None] = "median"

    def fold(self, values: np.ndarray) -> np.ndarray:
        """Flower's median."""
        return flower_rules.fold(flower.FedMedian(), values)

    def require(self, where: str, sites: Sequence[str]) -> None:
        """A median of two is their mean, which one of them can put anywhere."""
        require_sites(where, sites, 3, "a median that one site cannot move", "wait for more or use fedavg")
