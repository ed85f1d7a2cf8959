"""What the robust rules share: a few sites may send anything at all, and the result stays with the others.

These rules see every update by itself, so they cannot run on secure sums, and they do not look at weights but
for 0 (the site did not train the tensor): a number of examples is a claim, and a liar would claim many.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pm1_core.errors import FederationError
from pm1_core.update import Tensors
from pm1_core.validate import refusal
from strategies import folding
from strategies.base import Named, Strategy
from strategies.updates import Updates


@dataclass(frozen=True)
class Robust(Strategy):
    """A rule that withstands some liars if there are enough sites.

    remedy: what to do where there are not
    """

    remedy: ClassVar[str]

    def require(self, name: str, sites: Sequence[str]) -> None:
        """Raise FederationError naming sites, number, bound and remedy if too few trained the tensor `name`."""
        if len(sites) < self.fewest_sites:
            given = ", ".join(f"{key}={value}" for key, value in self.options().items() if key != "name")
            bound = f"{self.name}{f' with {given}' if given else ''} needs at least {self.fewest_sites}"
            found = f"{len(sites)} sites trained it ({', '.join(sites)}), {bound}"
            raise FederationError(refusal(f"tensor {name!r}", found, self.remedy))


@dataclass(frozen=True)
class Coordinatewise(Robust):
    """A robust rule that looks at one coordinate of all sites at a time."""

    @abstractmethod
    def fold(self, values: np.ndarray) -> np.ndarray:
        """One value per coordinate, given float64 [sites, elements]."""

    def aggregate(self, round_number: int, previous: Tensors, updates: Updates) -> Named:
        """Yield every tensor folded over the sites that trained it."""
        for name in updates.names:
            sites = folding.trainers(updates, name)
            if not sites:
                yield name, previous[name]
                continue
            self.require(name, sites)
            yield name, folding.coordinatewise(previous, updates, name, sites, self.fold)


def groups(updates: Updates) -> dict[tuple[str, ...], list[str]]:
    """Tensors by the sites that trained them: a model of several modalities is several models to Krum.

    Sites without photographs send the photographs' tensors unchanged, or not trained; distances over tensors
    that only one of two sites trained would say which modalities they have, not which of them lies.
    """
    found: dict[tuple[str, ...], list[str]] = {}
    for name in updates.names:
        found.setdefault(folding.trainers(updates, name), []).append(name)
    return found


def squared_distances(
    previous: Tensors, updates: Updates, sites: Sequence[str], names: Sequence[str]
) -> np.ndarray:
    """Squared Euclidean distances between sites over all of `names`, float64 [sites, sites].

    Added up block by block. Updates are taken relative to `previous`, without which the digits in which sites
    differ would be lost in those that they have in common.
    """
    squares = np.zeros((len(sites), len(sites)))
    width = max(1, folding.STACK_BLOCK // len(sites))
    for name in names:
        before = previous[name].reshape(-1)
        for part, stack in folding.stacks(updates, sites, name, before.size):
            here = before[part]
            for block in folding.blocks(here.size, width):
                moved = stack[:, block].astype(np.float64) - here[block]
                products = moved @ moved.T
                lengths = np.diag(products)
                squares += np.maximum(lengths[:, None] + lengths[None, :] - 2 * products, 0)
    np.fill_diagonal(squares, 0)
    return squares


def krum_scores(squares: np.ndarray, malicious: int) -> np.ndarray:
    """Krum's score of each site: its squared distances to the n - f - 2 nearest others, summed (float64 [n]).

    Blanchard et al. 2017, section 4. With so few sites that n - f - 2 < 1 it is the distance to the nearest.
    """
    others = squares + np.diag(np.full(len(squares), np.inf))
    nearest = max(1, len(squares) - malicious - 2)
    scores: np.ndarray = np.sort(others, axis=1)[:, :nearest].sum(axis=1)
    return scores
