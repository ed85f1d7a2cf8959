"""What a strategy sees of the sites' answers: one tensor of one site at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from pm1_core.errors import FederationError
from pm1_core.update import Update
from pm1_core.validate import refusal


class Updates(Protocol):
    """The updates of one round, wherever they lie."""

    @property
    def sites(self) -> tuple[str, ...]:
        """Who answered, in the order of names: the one order in which anything is folded."""

    @property
    def names(self) -> tuple[str, ...]:
        """Tensors that travelled back, sorted; those of the strategy ("control.") among them."""

    def eligible(self, name: str) -> Mapping[str, float]:
        """Site -> examples behind this tensor, > 0, of all sites of the phase, answered this round or not."""

    def weight(self, site: str, name: str) -> float:
        """Training examples behind this tensor at this site, >= 0; 0: the site did not train it."""

    def tensor(self, site: str, name: str) -> np.ndarray:
        """The tensor as the site would have it, float32 and whole. Read anew each time: do not keep it."""


def whole_update(update: Update, name: str) -> float:
    """The weight of the whole update, for every one of its tensors."""
    return update.weight


class Gathered:
    """Updates that are all in memory: for tests, notebooks and whatever is small.

    updates: by site, in any order
    weigh: (update, tensor's name) -> weight; by default the update's own
    absent: site -> weight of all its tensors, for sites of the phase that did not answer

    Raises FederationError if there is no update, or they differ in names or shapes of tensors.
    """

    def __init__(
        self,
        updates: Mapping[str, Update],
        weigh: Callable[[Update, str], float] = whole_update,
        absent: Mapping[str, float] | None = None,
    ) -> None:
        if not updates:
            raise FederationError(refusal("aggregation", "found no update", "wait for at least one site"))
        self.sites = tuple(sorted(updates))
        self.names = tuple(sorted(updates[self.sites[0]].tensors))
        self._absent = dict(absent or {})
        self._updates = dict(updates)
        self._weigh = weigh
        for site in self.sites[1:]:
            self._require_like_first(site)

    def eligible(self, name: str) -> Mapping[str, float]:
        """Those who answered and trained the tensor, and the absent."""
        present = {site: self.weight(site, name) for site in self.sites}
        return {**self._absent, **{site: weight for site, weight in present.items() if weight > 0}}

    def weight(self, site: str, name: str) -> float:
        """Training examples behind this tensor at this site."""
        return self._weigh(self._updates[site], name)

    def tensor(self, site: str, name: str) -> np.ndarray:
        """The tensor that the site sent."""
        return self._updates[site].tensors[name]

    def _require_like_first(self, site: str) -> None:
        first, tensors = self._updates[self.sites[0]].tensors, self._updates[site].tensors
        for name in sorted(set(first).symmetric_difference(tensors)):
            found = f"tensor {name!r} differs from {self.sites[0]!r}"
            raise FederationError(refusal(f"update of site {site!r}", found, "refuse that update"))
        for name in self.names:
            if tensors[name].shape != first[name].shape:
                where = f"update of site {site!r}, tensor {name!r}"
                raise FederationError(
                    refusal(where, f"shape {tensors[name].shape}", f"send {first[name].shape}")
                )
