"""The coordinate-wise trimmed mean: Yin et al. 2018 (algorithm 1, option II)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import flwr.serverapp.strategy as flower
import numpy as np

from pm1_core.errors import ConfigError
from pm1_core.validate import refusal
from strategies import flower_rules
from strategies.robust import Coordinatewise


@dataclass(frozen=True)
class TrimmedMean(Coordinatewise):
    """Of each coordinate, the mean without the floor(trim * n) largest and as many smallest values.

    Bounded by honest values while no more sites than that lie. Fewer sites than 1 / trim would trim nobody:
    they are refused, not averaged. Flower's FedTrimmedAvg does it, block by block, in float64.

    trim: the paper's beta, the share cut off at each end; 0 <= trim < 1/2
    """

    name: ClassVar[str | None] = "trimmed_mean"
    remedy: ClassVar[str] = "wait for more sites, raise trim, or use median"

    trim: float = 0.2

    def __post_init__(self) -> None:
        self._require("trim", 0, 0.5, below=True)
        if 0 < self.trim < 1e-4:
            raise ConfigError(
                refusal("key 'strategy.trim'", f"found {self.trim}", "use 0, or at least 0.0001")
            )

    def fold(self, values: np.ndarray) -> np.ndarray:
        """Flower's trimmed mean."""
        return flower_rules.fold(flower.FedTrimmedAvg(beta=self.trim), values)

    @property
    def fewest_sites(self) -> int:
        """As many as make floor(trim * n) one: at least one value has to go at each end, if any are to."""
        return next(n for n in itertools.count(1) if int(self.trim * n) >= 1) if self.trim > 0 else 1
