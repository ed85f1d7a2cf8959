"""Do two representations of a person lie closer than those of two people? Figure 2 of the paper, as a number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pm1_core.validate import require_range, require_shape


@dataclass(frozen=True)
class PairDistances:
    """Cosine distances, 0 where directions agree, 1 where they are at right angles, 2 where they are opposite.

    own, others: mean between the two of a person, and between one of a person and the other one of another person
    area: probability that the two of a person lie closer than those of two people; 0.5 where nothing tells them
    """

    own: float
    others: float
    area: float

    @property
    def ratio(self) -> float:
        """How many times farther two people's lie apart than one person's."""
        return self.others / self.own if self.own else float("inf")


def pair_distances(first: np.ndarray, second: np.ndarray) -> PairDistances:
    """Distances of `first` [n, d] and `second` [n, d], whose rows are the same people, two or more.

    All n people's own pairs are held against all n (n - 1) pairs of two people. A row of zeros has distance 1 from
    everything. Raises InputError on other shapes or fewer people.

    >>> eyes = np.eye(3)
    >>> pair_distances(eyes, eyes)
    PairDistances(own=0.0, others=1.0, area=1.0)
    """
    require_shape("first", first, (None, None))
    require_shape("second", second, first.shape)
    n = int(require_range("people", len(first), 2))
    distances = 1 - _unit(first) @ _unit(second).T  # [n, n]
    own, others = np.diagonal(distances), np.sort(distances[~np.eye(n, dtype=bool)])
    below, upto = (np.searchsorted(others, own, side) for side in ("left", "right"))
    farther = others.size - (below + upto) / 2  # ties count a half
    return PairDistances(float(own.mean()), float(others.mean()), float(farther.mean() / others.size))


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1.0)
