"""Aggregation rules on plain arrays: no Flower, no torch, nothing random.

Every rule gets the sites' updates and folds them in the order of their names, in float64, so that a result
depends neither on who answered first nor on the number of workers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pm1_core.errors import FederationError
from pm1_core.update import Update
from pm1_core.validate import refusal

Updates = Mapping[str, Update]


def _names(updates: Updates) -> list[str]:
    """The tensors that the updates carry. Raises FederationError unless all carry the same."""
    if not updates:
        raise FederationError(refusal("aggregation", "found no update", "wait for at least one site"))
    first = sorted(updates)[0]
    names = sorted(updates[first].tensors)
    for site in sorted(updates):
        for name in sorted(set(names).symmetric_difference(updates[site].tensors)):
            raise FederationError(
                refusal(
                    f"update of site {site!r}",
                    f"tensor {name!r} differs from {first!r}",
                    "refuse that update",
                )
            )
        for name in names:
            shape, wanted = updates[site].tensors[name].shape, updates[first].tensors[name].shape
            if shape != wanted:
                raise FederationError(
                    refusal(f"update of site {site!r}, tensor {name!r}", f"shape {shape}", f"send {wanted}")
                )
    return names


def weighted_mean(updates: Updates) -> dict[str, np.ndarray]:
    """Mean over sites weighted by examples (McMahan et al. 2017, algorithm 1).

    Raises FederationError if the weights sum to zero.
    """
    names = _names(updates)
    whole = sum(updates[site].weight for site in sorted(updates))
    if whole <= 0:
        raise FederationError(refusal("aggregation", f"weights sum to {whole}", "give sites with examples"))
    mean = {}
    for name in names:
        folded = np.zeros(next(iter(updates.values())).tensors[name].shape, np.float64)
        for site in sorted(updates):
            folded += updates[site].tensors[name].astype(np.float64) * (updates[site].weight / whole)
        mean[name] = folded.astype(np.float32)
    return mean


def total(updates: Updates) -> dict[str, np.ndarray]:
    """Plain sum over sites, for statistics. Weights are not looked at."""
    sums = {}
    for name in _names(updates):
        folded = np.zeros(next(iter(updates.values())).tensors[name].shape, np.float64)
        for site in sorted(updates):
            folded += updates[site].tensors[name]
        sums[name] = folded.astype(np.float32)
    return sums
