"""FedAdagrad of Reddi et al. 2021, see `strategies.fedopt`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strategies.fedopt import FedOpt
from strategies.server_optimiser import Doubles


@dataclass(frozen=True)
class FedAdagrad(FedOpt):
    """Steps that shrink with everything a coordinate has moved so far. No momentum, as in the paper's runs."""

    name: ClassVar[str | None] = "fedadagrad"

    beta1: float = 0.0

    def second(self, v: Doubles, square: Doubles) -> Doubles:
        """The sum of all squares."""
        return v + square
