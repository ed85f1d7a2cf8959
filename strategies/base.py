"""What every aggregation strategy has in common, and what it may ask of the sites."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from pm1_core.errors import ConfigError
from pm1_core.update import Tensors
from pm1_core.validate import refusal
from strategies.updates import Updates

CONTROL = "control."
"""Prefix of a strategy's tensors that travel to the sites beside the model's."""

SERVER = "server."
"""Prefix of a strategy's tensors that stay with the coordinator."""

Named = Iterator[tuple[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Strategy(ABC):
    """How the updates of a round become the next global model. A frozen dataclass of its options.

    name: under which studies select it; None makes a class that is not selectable
    linear: needs no more of the updates than weighted means, so that it could run on secure sums

    Whatever a strategy remembers from round to round is tensors in the checkpoint, never an attribute: a
    coordinator that was killed continues to the same bytes. Options are checked when one is made; a subclass
    that has bounds checks them in `__post_init__` and raises ConfigError.
    """

    name: ClassVar[str | None] = None
    linear: ClassVar[bool] = False

    def options(self) -> dict[str, Any]:
        """The options as plain values, with "name" first: what `build` takes and a study records."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        return {"name": self.name, **plain}

    @property
    def fewest_sites(self) -> int:
        """Sites that have to train a tensor for the rule to hold; with fewer `aggregate` raises."""
        return 1

    def method(self) -> dict[str, Any]:
        """What local training at the sites has to do differently; it travels in the order."""
        return {}

    def stays(self, name: str) -> bool:
        """Whether the model's tensor `name` never leaves a site."""
        return False

    def initial(self, tensors: Tensors) -> dict[str, np.ndarray]:
        """The strategy's own tensors at the start of a phase, float32, for the model's `tensors`.

        "control.NAME" travels to the sites, "server.KIND.NAME" does not. They may be read-only views.
        """
        return {}

    @abstractmethod
    def aggregate(self, round_number: int, previous: Tensors, updates: Updates) -> Named:
        """Yield the new tensors one at a time, float32: the model's by name, then the strategy's own by name.

        round_number: from 1 within the phase
        previous: the phase's global tensors before the round, the strategy's own among them; each is read
            when it is asked for, so ask once
        updates: what the sites sent
        A tensor that no site trained (every weight is 0) keeps its previous value, and so does one that is
        not yielded. Raises FederationError if the sites are too few for the rule.
        """

    def _require(
        self,
        option: str,
        low: float,
        high: float = math.inf,
        *,
        above: bool = False,
        below: bool = False,
    ) -> None:
        """Raise ConfigError unless low <= option <= high; `above` and `below` leave the bound itself out."""
        value = getattr(self, option)
        fits = math.isfinite(value) and (value > low if above else value >= low)
        if not (fits and (value < high if below else value <= high)):
            bounds = f"above {low:g}" if above else f"of at least {low:g}"
            if high < math.inf:
                bounds += f" and below {high:g}" if below else f" and at most {high:g}"
            raise ConfigError(
                refusal(f"key 'strategy.{option}'", f"found {value!r}", f"use a number {bounds}")
            )
