"""Plain sums over sites: how federated statistics are added up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pm1_core.update import Tensors
from strategies import folding
from strategies.base import Named, Strategy
from strategies.updates import Updates


@dataclass(frozen=True)
class Summation(Strategy):
    """The sum of what the sites send. Weights are not looked at. No study selects it by name."""

    linear: ClassVar[bool] = True

    def aggregate(self, round_number: int, previous: Tensors, updates: Updates) -> Named:
        """Yield the sum of every tensor, added in float64."""
        everybody = dict.fromkeys(updates.sites, 1.0)
        for name in updates.names:
            yield name, folding.rounded(folding.total(updates, name, everybody), previous[name])
