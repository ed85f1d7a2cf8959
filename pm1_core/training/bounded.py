"""Sums over people that one person moves by a known length at most, released with Gaussian noise.

A release is several blocks of numbers. A person has one row in a block, which is cut to the block's bound in L2
norm; so all blocks together, each divided by its bound, move by at most sqrt(number of blocks) when a person is
added or removed. That is the sensitivity S of the Gaussian mechanism N(0, (z S)^2) (Dwork and Roth 2014, appendix
A), and a block's own numbers carry noise of z S times its bound.
"""

from __future__ import annotations

import numpy as np

from pm1_core.privacy.noise import gaussian
from pm1_core.validate import require_shape


class BoundedSums:
    """Sums of one release. bounds: block -> largest L2 norm of a person's row in it.

    Unit: a person, whose rows are added at most once to each block. Neighbours: add or remove one.
    """

    def __init__(self, bounds: dict[str, float]) -> None:
        self.bounds = bounds
        self._sums: dict[str, np.ndarray] = {}

    def add(self, block: str, rows: np.ndarray) -> None:
        """Add people's rows [n, ...], each cut to the block's bound; what is not finite counts as zero."""
        rows = np.asarray(rows, np.float64)
        if not len(rows):
            return
        flat = np.where(np.isfinite(rows), rows, 0.0).reshape(len(rows), -1)
        norms = np.linalg.norm(flat, axis=1)
        cut = np.minimum(1.0, self.bounds[block] / np.maximum(norms, 1e-300))
        total = (flat * cut[:, None]).sum(0).reshape(rows.shape[1:])
        held = self._sums.get(block)
        self._sums[block] = total if held is None else held + require_shape(block, total, held.shape)

    def released(
        self, noise_multiplier: float, secret: np.random.Generator, shapes: dict[str, tuple[int, ...]]
    ) -> dict[str, np.ndarray]:
        """Noised sums, float64, by block; a block to which nobody was added is noise around zero.

        shapes: of every block, from public knowledge: whether anybody was added cannot be seen
        """
        sensitivity = len(self.bounds) ** 0.5
        out = {}
        for block, bound in self.bounds.items():
            scaled = self._sums.get(block, np.zeros(shapes[block])) / bound
            noised = gaussian(scaled, sensitivity, noise_multiplier, secret)
            out[block] = noised * bound
        return out
