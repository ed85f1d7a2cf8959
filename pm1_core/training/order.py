"""What a coordinator asks a site to do in one round, and the random numbers that follow from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from pm1_core.errors import InputError
from pm1_core.validate import refusal, require_keys, require_range


@dataclass(frozen=True)
class Order:
    """One round of one phase.

    phase: name of the phase, e.g. "genotype.22"
    task: name of the registered task that it trains
    round, rounds: from 1 to `rounds`
    seed: the study's seed; every random number of the round follows from it, see `generator`
    parameters: the task's own parameters, JSON-able (model, optimiser, batch_size, epochs, ...)
    """

    phase: str
    task: str
    round: int
    rounds: int
    seed: int
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_range(f"order for {self.phase!r}, round", self.round, 0, self.rounds)

    def at(self, site: str) -> Order:
        """The order with the random numbers of one site: no two sites draw the same noise."""
        return replace(self, seed=derived_seed(self.seed, "site", site))

    def to_json(self) -> str:
        """Text with sorted keys: equal orders give equal bytes."""
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Order:
        """Read what `to_json` wrote. Raises InputError on anything else."""
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(refusal("order", f"found no JSON ({error})", "send Order.to_json()")) from None
        names = ("phase", "task", "round", "rounds", "seed", "parameters")
        return Order(**require_keys("order", content, names))


def derived_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, e.g. (study seed, "genotype.22", "epoch", 3).

    SHA-256 of the purpose keeps streams apart without any state to carry between rounds, so that a
    resumed study draws the numbers that the undisturbed one draws.
    """
    text = json.dumps([seed, *purpose])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator seeded by `derived_seed`."""
    return torch.Generator(device).manual_seed(derived_seed(seed, *purpose))
