"""The coordinate-wise median: Yin et al. 2018, "Byzantine-robust distributed learning" (algorithm 1, option I)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import flwr.serverapp.strategy as flower
import numpy as np

from strategies import flower_rules
from strategies.robust import Coordinatewise


@dataclass(frozen=True)
class Median(Coordinatewise):
    """The median over sites of each coordinate: bounded by honest values while fewer than half of them lie.

    Needs three sites for each tensor. Flower's FedMedian does it, block by block, in float64.
    """

    name: ClassVar[str | None] = "median"
    remedy: ClassVar[str] = "wait for more sites or use fedavg"

    def fold(self, values: np.ndarray) -> np.ndarray:
        """Flower's median."""
        return flower_rules.fold(flower.FedMedian(), values)

    @property
    def fewest_sites(self) -> int:
        """Three: a median of two is their mean, which one of them can put anywhere."""
        return 3
