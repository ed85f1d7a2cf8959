"""Bulyan: El Mhamdi et al. 2018, "The hidden vulnerability of distributed learning in Byzantium" (ICML)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from pm1_core.update import Tensors
from strategies import folding
from strategies.base import Named
from strategies.robust import Robust, groups, krum_scores, squared_distances
from strategies.updates import Updates


@dataclass(frozen=True)
class Bulyan(Robust):
    """Krum again and again, then of each coordinate the mean of the values nearest to their median.

    Section 4: theta = n - 2f sites are taken out one after another, each the best by Krum among those that are
    left; of each coordinate, the beta = theta - 2f values nearest to the median of the theta are averaged.
    Withstands f malicious sites if n >= 4f + 3. Tensors that different sites trained are dealt with apart, as
    by `Krum`. Flower's Bulyan takes the theta best of one ranking instead; the second step is the same.

    malicious: f, sites that may send anything
    """

    name: ClassVar[str | None] = "bulyan"
    remedy: ClassVar[str] = "wait for more sites, lower malicious, or use krum or median"

    malicious: int = 1

    def __post_init__(self) -> None:
        self._require("malicious", 0)

    @property
    def fewest_sites(self) -> int:
        """At least 4f + 3."""
        return 4 * self.malicious + 3

    def aggregate(self, round_number: int, previous: Tensors, updates: Updates) -> Named:
        """Yield every tensor; updates are read once for the distances and once more."""
        chosen: dict[str, tuple[str, ...]] = {}
        for sites, names in groups(updates).items():
            chosen |= dict.fromkeys(names, self._selected(previous, updates, sites, names))
        for name in updates.names:
            sites = chosen[name]
            if not sites:
                yield name, previous[name]
                continue
            rule = partial(mean_around_median, count=len(sites) - 2 * self.malicious)
            yield name, folding.coordinatewise(previous, updates, name, sites, rule)

    def _selected(
        self, previous: Tensors, updates: Updates, sites: tuple[str, ...], names: list[str]
    ) -> tuple[str, ...]:
        if not sites:
            return ()
        self.require(names[0], sites)
        squares = squared_distances(previous, updates, sites, names)
        return tuple(sites[row] for row in selected_by_krum(squares, self.malicious))


def selected_by_krum(squares: np.ndarray, malicious: int) -> list[int]:
    """The n - 2f rows that Krum takes out one after another, given squared distances [n, n]; sorted."""
    left, taken = list(range(len(squares))), list[int]()
    while len(taken) < len(squares) - 2 * malicious:
        scores = krum_scores(squares[np.ix_(left, left)], malicious)
        taken.append(left.pop(int(np.argmin(scores))))
    return sorted(taken)


def mean_around_median(values: np.ndarray, count: int) -> np.ndarray:
    """The mean of the `count` values nearest to the median, per column of float64 [sites, elements].

    >>> mean_around_median(np.array([[0.0], [1.0], [2.0], [3.0], [90.0]]), 3)
    array([2.])
    """
    ordered = np.sort(values, axis=0)
    nearest = np.argsort(np.abs(ordered - np.median(ordered, axis=0)), axis=0, kind="stable")[:count]
    mean: np.ndarray = np.take_along_axis(ordered, nearest, axis=0).mean(axis=0)
    return mean
