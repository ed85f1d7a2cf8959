"""What a coordinator asks a site to do in one round, and the random numbers that follow from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from pm1_core.encoding import ENCODINGS
from pm1_core.errors import InputError
from pm1_core.validate import refusal, require_choice, require_keys, require_range

MOST_ROUNDS = 10_000
_KINDS: Mapping[str, type] = {
    "round": int,
    "rounds": int,
    "seed": int,
    "parameters": dict,
    "method": dict,
    "privacy": dict,
    "secure": dict,
}
"""What JSON has to hold under a key of an order; text under all others."""


@dataclass(frozen=True)
class Order:
    """One round of one phase.

    phase: name of the phase, e.g. "genotype.22"
    task: name of the registered task that it trains
    round, rounds: from 1 to `rounds`
    seed: the study's seed; every random number of the round follows from it, see `generator`
    parameters: the task's own parameters, JSON-able (model, optimiser, batch_size, epochs, ...)
    method: what the strategy asks of local training, see `pm1_core.training.methods`; {} asks for nothing
    encoding: how the update travels, see `pm1_core.encoding`
    privacy: the guarantee under which the round is answered, see `pm1_core.privacy.terms`; {} asks for none
    secure: how the answers are added up without being opened; {} sends each in the clear

    Raises InputError if the round is out of bounds or the encoding unknown.
    """

    phase: str
    task: str
    round: int
    rounds: int
    seed: int
    parameters: Mapping[str, Any] = field(default_factory=dict)
    method: Mapping[str, Any] = field(default_factory=dict)
    encoding: str = "full"
    privacy: Mapping[str, Any] = field(default_factory=dict)
    secure: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_range(f"order for {self.phase!r}, rounds", self.rounds, 0, MOST_ROUNDS)
        require_range(f"order for {self.phase!r}, round", self.round, 0, self.rounds)
        require_choice(f"order for {self.phase!r}, encoding", self.encoding, ENCODINGS)

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
        except (ValueError, RecursionError) as error:
            raise InputError(refusal("order", f"found no JSON ({error})", "send Order.to_json()")) from None
        names = ("phase", "task", "round", "rounds", "seed", "parameters")
        given = require_keys("order", content, names, ("method", "encoding", "privacy", "secure"))
        for name, value in given.items():
            kind = _KINDS.get(name, str)
            if not isinstance(value, kind) or isinstance(value, bool):
                found = f"found {type(value).__name__}"
                raise InputError(refusal(f"order, key {name!r}", found, f"send {kind.__name__}"))
        return Order(**given)


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
