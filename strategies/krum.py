"""Krum and multi-Krum: Blanchard et al. 2017, "Machine learning with adversaries" (NeurIPS)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pm1_core.errors import FederationError
from pm1_core.update import Tensors
from pm1_core.validate import refusal
from strategies import folding
from strategies.base import Named, Strategy
from strategies.robust import groups, krum_scores, require_sites, squared_distances
from strategies.updates import Updates


@dataclass(frozen=True)
class Krum(Strategy):
    """The update of the site that is nearest to its n - f - 2 nearest others, or the mean of the `select` best.

    Withstands f malicious sites if n >= 2f + 3 (proposition 1). Tensors that different sites trained are
    chosen among those sites, each group by itself and each within that bound. Ties go to the first name.

    malicious: f, sites that may send anything
    select: 1 is Krum; more, up to n - f - 2, is multi-Krum, the plain mean of as many
    """

    name: ClassVar[str | None] = "krum"

    malicious: int = 1
    select: int = 1

    def __post_init__(self) -> None:
        self._require("malicious", 0)
        self._require("select", 1)

    def aggregate(self, round_number: int, previous: Tensors, updates: Updates) -> Named:
        """Yield the tensors of those who were chosen; updates are read once for the distances and once more."""
        chosen: dict[str, tuple[str, ...]] = {}
        for sites, names in groups(updates).items():
            chosen |= dict.fromkeys(names, self._chosen(previous, updates, sites, names))
        for name in updates.names:
            new = folding.mean(updates, name, dict.fromkeys(chosen[name], 1.0))
            yield name, previous[name] if new is None else folding.rounded(new, previous[name])

    def _chosen(
        self, previous: Tensors, updates: Updates, sites: tuple[str, ...], names: list[str]
    ) -> tuple[str, ...]:
        if not sites:
            return ()
        where = f"strategy {self.name!r}, tensor {names[0]!r}"
        needed = 2 * self.malicious + 3
        require_sites(
            where, sites, needed, f"Krum against {self.malicious}", "wait for more or lower malicious"
        )
        most = len(sites) - self.malicious - 2
        if self.select > most:
            found = f"select {self.select} of {len(sites)} sites with {self.malicious} malicious"
            raise FederationError(refusal(where, found, f"select at most n - f - 2 = {most}"))
        scores = krum_scores(squared_distances(previous, updates, sites, names), self.malicious)
        return tuple(sites[row] for row in np.argsort(scores, kind="stable")[: self.select])
