"""The memory of a fold is that of one tensor and of bounded blocks, however many sites there are."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest

from pm1_core.update import Tensors
from strategies import Strategy, build, folding

MIB = 2**20


@dataclass(frozen=True)
class Drawn:
    """Updates of any number of sites that lie nowhere: each tensor is made when it is read."""

    sites: tuple[str, ...]
    names: tuple[str, ...]
    size: int

    def eligible(self, name: str) -> dict[str, float]:
        return {site: self.weight(site, name) for site in self.sites}

    def weight(self, site: str, name: str) -> float:
        return 1.0 + int(site)

    def tensor(self, site: str, name: str) -> np.ndarray:
        return np.full(self.size, int(site) % 7, np.float32)


def peak(strategy: Strategy, previous: Tensors, updates: Drawn) -> int:
    """Bytes at the highest point of one round whose tensors nobody keeps."""
    tracemalloc.start()
    try:
        for _, array in strategy.aggregate(1, previous, updates):
            assert np.isfinite(array[:1]).all()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        # The sum in float64, one site's tensor and the result: 8 + 4 + 4 bytes an element, and some blocks.
        ("fedavg", 18 * MIB),
        ("scaffold", 18 * MIB),
        # Beside the sum: a new tensor of each kind of moment, and the one that was yielded last.
        ("fedavgm", 28 * MIB),
        ("fedadam", 32 * MIB),
    ],
)
def test_a_mean_over_200_sites_of_4_mib_holds_one_of_them(name: str, bound: int) -> None:
    updates = Drawn(tuple(f"{i:03}" for i in range(200)), ("w",), MIB)
    strategy = build({"name": name})
    model = {"w": np.zeros(MIB, np.float32)}
    previous = {**model, **strategy.initial(model)}
    assert peak(strategy, previous, updates) < bound


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "krum", "bulyan"])
def test_a_robust_rule_over_50_sites_holds_its_stack_and_blocks(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50 sites of 0.5 MiB are 25 MiB. Here the stack is 2 MiB, and so is a block in float64."""
    monkeypatch.setattr(folding, "STACK_BYTES", 2 * MIB)
    monkeypatch.setattr(folding, "STACK_BLOCK", 2**18)
    updates = Drawn(tuple(f"{i:03}" for i in range(50)), ("w",), 2**17)
    previous = {"w": np.zeros(2**17, np.float32)}
    assert peak(build({"name": name}), previous, updates) < 16 * MIB
