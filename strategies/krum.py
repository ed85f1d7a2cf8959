"""Krum and multi-Krum: Blanchard et al. 2017, "Machine learning with adversaries" (NeurIPS)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pm1_core.update import Tensors
from strategies import folding
from strategies.base import Named
from strategies.robust import Robust, groups, krum_scores, squared_distances
from strategies.updates import Updates


@dataclass(frozen=True)
class Krum(Robust):
    """The update of the site that is nearest to its n - f - 2 nearest others, or the mean of the `select` best.

    Withstands f malicious sites if n >= 2f + 3 (proposition 1). Tensors that different sites trained are
    chosen among those sites, each group by itself and each within that bound. Ties go to the first name.

    malicious: f, sites that may send anything
    select: 1 is Krum; more, up to n - f - 2, is multi-Krum, the plain mean of as many
    """

    name: ClassVar[str | None] = "krum"
    remedy: ClassVar[str] = "wait for more sites or lower malicious or select"

    malicious: int = 1
    select: int = 1

    def __post_init__(self) -> None:
        self._require("malicious", 0)
        self._require("select", 1)

    @property
    def fewest_sites(self) -> int:
        """The larger of 2f + 3 and, so that there are n - f - 2 to select from, f + 2 + select."""
        return max(2 * self.malicious + 3, self.malicious + 2 + self.select)

    def aggregate(self, round_number: int, previous: Tensors, updates: Updates) -> Named:
        """Yield the tensors of those who were chosen; updates are read once for the distances and once more."""
        chosen: dict[str, tuple[str, ...]] = {}
        for sites, names in groups(updates).items():
            chosen |= dict.fromkeys(names, self._chosen(previous, updates, sites, names))
        for name in updates.names:
            before, equal = previous[name], dict.fromkeys(chosen[name], 1.0)
            yield (
                name,
                folding.rounded(folding.weighted_mean(updates, name, equal), before) if equal else before,
            )

    def _chosen(
        self, previous: Tensors, updates: Updates, sites: tuple[str, ...], names: list[str]
    ) -> tuple[str, ...]:
        if not sites:
            return ()
        self.require(names[0], sites)
        scores = krum_scores(squared_distances(previous, updates, sites, names), self.malicious)
        return tuple(sites[row] for row in np.argsort(scores, kind="stable")[: self.select])
