"""Folding updates tensor by tensor, in float64 and in the order of sites, within a bounded memory.

A mean holds one tensor of one site beside its own sum, whatever the number of sites. A rule that has to see all
sites at once (a median, a distance) gets them a block of elements at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from pm1_core.update import Tensors
from strategies.updates import Updates

BLOCK = 2**16
"""Elements of one tensor that are worked on in float64 at a time: 0.5 MiB."""

STACK_BLOCK = 2**20
"""Elements of all sites together that a rule gets in float64 at a time: 8 MiB."""

STACK_BYTES = 128 * 2**20
"""Bytes of all sites' blocks of one tensor together. A larger tensor is read in several passes over its sites."""


def blocks(size: int, width: int = BLOCK) -> Iterator[slice]:
    """Slices of at most `width` that cover `size` elements.

    >>> list(blocks(5, 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    for start in range(0, size, width):
        yield slice(start, min(start + width, size))


def trainers(updates: Updates, name: str) -> tuple[str, ...]:
    """The sites that trained this tensor: whose weight for it is above 0."""
    return tuple(site for site in updates.sites if updates.weight(site, name) > 0)


def weights(updates: Updates, name: str) -> dict[str, float]:
    """Site -> weight for this tensor, without those who did not train it."""
    return {site: updates.weight(site, name) for site in trainers(updates, name)}


def total(updates: Updates, name: str, factors: Mapping[str, float]) -> np.ndarray:
    """The sum over `factors`' sites of factor * tensor, float64 and flat. At least one site."""
    folded: np.ndarray | None = None
    for site in updates.sites:
        if site in factors:
            tensor = updates.tensor(site, name).reshape(-1)
            folded = np.zeros(tensor.size, np.float64) if folded is None else folded
            for block in blocks(tensor.size):
                folded[block] += tensor[block].astype(np.float64) * factors[site]
    assert folded is not None
    return folded


def mean(updates: Updates, name: str) -> np.ndarray | None:
    """The mean of a tensor over the sites that trained it, by examples, float64 and flat; None if nobody did.

    McMahan et al. 2017, algorithm 1.
    """
    given = weights(updates, name)
    return weighted_mean(updates, name, given) if given else None


def weighted_mean(updates: Updates, name: str, by_site: Mapping[str, float]) -> np.ndarray:
    """The mean of a tensor over some sites with weights above 0, float64 and flat. At least one site."""
    whole = sum(by_site[site] for site in updates.sites if site in by_site)
    return total(updates, name, {site: weight / whole for site, weight in by_site.items()})


def rounded(flat: np.ndarray, like: np.ndarray) -> np.ndarray:
    """A flat float64 array as float32 in the shape of `like`."""
    return flat.astype(np.float32).reshape(like.shape)


def stacks(
    updates: Updates, sites: Sequence[str], name: str, size: int
) -> Iterator[tuple[slice, np.ndarray]]:
    """Pairs of a slice of the flat tensor and its elements at `sites`, float32 [sites, elements].

    The arrays are at most STACK_BYTES, unless one element of every site is more.
    """
    for part in blocks(size, max(1, STACK_BYTES // (4 * len(sites)))):
        stack = np.empty((len(sites), part.stop - part.start), np.float32)
        for row, site in enumerate(sites):
            stack[row] = updates.tensor(site, name).reshape(-1)[part]
        yield part, stack


def coordinatewise(
    previous: Tensors,
    updates: Updates,
    name: str,
    sites: Sequence[str],
    rule: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """`rule`, float64 [sites, elements] -> [elements], over a whole tensor, as float32 in its shape."""
    shape = previous[name].shape
    folded = np.empty(int(np.prod(shape)), np.float32)
    width = max(1, STACK_BLOCK // len(sites))
    for part, stack in stacks(updates, sites, name, folded.size):
        here = folded[part]
        for block in blocks(stack.shape[1], width):
            here[block] = rule(stack[:, block].astype(np.float64))
    return folded.reshape(shape)
