"""Rounds of a strategy over updates made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pm1_core.update import Tensors, Update
from strategies import STRATEGIES, Gathered, Strategy, Updates, build

EVERY = list(STRATEGIES)
WEIGHTED = ["fedavg", "fedavgm", "fedprox", "fedbn", "ditto", "fedadagrad", "fedadam", "fedyogi", "scaffold"]
ROBUST = ["median", "trimmed_mean", "krum", "bulyan"]


def fold(
    strategy: Strategy, previous: Tensors, updates: Updates, round_number: int = 1
) -> dict[str, np.ndarray]:
    """What comes of one round, with what was not yielded as it was."""
    return {**previous, **dict(strategy.aggregate(round_number, previous, updates))}


def scalars(values: Mapping[str, float], weights: Mapping[str, float] | None = None) -> Gathered:
    """One tensor "w" of one element from each site."""
    given = weights or dict.fromkeys(values, 1.0)
    return Gathered({s: Update({"w": np.array([v], np.float32)}, given[s]) for s, v in values.items()})


def drawn(name: str, seed: int, sites: int = 7, size: int = 6) -> tuple[Strategy, Tensors, dict[str, Update]]:
    """A strategy, global tensors and updates of some sites around them."""
    rng = np.random.default_rng(seed)
    strategy = build({"name": name})
    model = {"a": normal(rng, size), "b.norm": normal(rng, size)}
    previous = {**model, **strategy.initial(model)}
    return strategy, previous, {f"site{i}": around(rng, previous) for i in range(sites)}


def around(rng: np.random.Generator, previous: Tensors) -> Update:
    """An update of a site near the global tensors, of 1 to 99 examples."""
    travelling = sorted(name for name in previous if not name.startswith("server."))
    tensors = {n: (previous[n] + normal(rng, previous[n].size)).astype(np.float32) for n in travelling}
    return Update(tensors, float(rng.integers(1, 100)))


def normal(rng: np.random.Generator, size: int) -> np.ndarray:
    """Standard normal float32."""
    return rng.normal(size=size).astype(np.float32)


def assert_same_bytes(one: Tensors, other: Tensors, names: Sequence[str] | None = None) -> None:
    """Assert that tensors are equal to the byte."""
    assert sorted(one) == sorted(other)
    for name in names or one:
        assert one[name].tobytes() == other[name].tobytes(), name
