"""What a site sets for its own machine: batches that fit, a precision that it can, and how many devices train.

Sites of one study may differ in all of them. A batch size and a precision change what a site computes, not what it
is asked for: its update is still weighed by its people.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pm1_core.errors import ConfigError, PrivacyError
from pm1_core.privacy.terms import record_terms
from pm1_core.training.loop import LoopConfig
from pm1_core.training.order import Order
from pm1_core.training.precision import FLOAT32
from pm1_core.training.token_cache import KINDS
from pm1_core.validate import refusal, require_choice

ALL = "all"


@dataclass(frozen=True)
class Machine:
    """A site's own keys of the loop, by task; "all" stands for every task that is not named.

    batch_size: people in a step; precision: see LoopConfig
    processes: that share every batch, one on each GPU, see pm1_core.training.processes
    cache: how tokens are kept, one of pm1_core.training.token_cache.KINDS; "" is float32
    """

    batch_size: Mapping[str, int] = field(default_factory=dict)
    precision: Mapping[str, str] = field(default_factory=dict)
    processes: Mapping[str, int] = field(default_factory=dict)
    cache: str = ""

    @staticmethod
    def of(batch_size: str = "", precision: str = "", processes: str = "", cache: str = "") -> Machine:
        """Read lists of TASK:VALUE, or one VALUE for all tasks. Raises ConfigError naming what is wrong.

        >>> Machine.of("genotype:16,fusion:64", "bfloat16").batch_size
        {'genotype': 16, 'fusion': 64}
        """
        precisions = _listed(precision)
        for chosen in precisions.values():
            LoopConfig(precision=chosen)
        if cache:
            require_choice("site's cache", cache, KINDS, ConfigError)
        return Machine(
            _whole("batch_size", batch_size, 0, "use a whole number, 0 takes everybody"),
            precisions,
            _whole("processes", processes, 1, "use a whole number, as many as there are GPUs"),
            cache,
        )

    def own(self, order: Order) -> Order:
        """The order as it is trained here.

        Under record-level terms a batch size bounds memory only, and is taken. Raises PrivacyError if a precision
        other than float32 would change what bounds a person's gradient, or if several processes would each draw
        their own people and noise.
        """
        if self.cache and "encoders" in order.parameters:
            order = replace(order, parameters={**order.parameters, "cache": self.cache})
        if "loop" not in order.parameters:
            return order
        loop = dict(order.parameters["loop"])
        for key in ("batch_size", "precision"):
            if (value := _for(getattr(self, key), order)) is not None:
                loop[key] = value
        if record_terms(order.privacy):
            precision, processes = loop.get("precision", FLOAT32), self.together(order)
            _require_mechanism(order, "precision", precision, FLOAT32)
            _require_mechanism(order, "processes", processes, 1)
        return replace(order, parameters={**order.parameters, "loop": loop})

    def together(self, order: Order) -> int:
        """How many processes train an order."""
        return _for(self.processes, order) or 1


def _for(given: Mapping[str, Any], order: Order) -> Any:
    return given.get(order.task, given.get(ALL))


def _require_mechanism(order: Order, key: str, value: object, proven: object) -> None:
    if value != proven:
        found = f"{value!r} here would change the mechanism of record-level privacy"
        remedy = f'set {key}="{order.task}:{proven}" at this site'
        raise PrivacyError(refusal(f"phase {order.phase!r}, {key}", found, remedy))


def _whole(key: str, text: str, least: int, remedy: str) -> dict[str, int]:
    listed = _listed(text)
    for task, value in listed.items():
        if not value.isdecimal() or int(value) < least:
            raise ConfigError(refusal(f"site's {key}, {task}", f"found {value!r}", remedy))
    return {task: int(value) for task, value in listed.items()}


def _listed(text: str) -> dict[str, str]:
    pieces = [piece.strip() for piece in str(text).split(",") if piece.strip()]
    named = (piece.rpartition(":") for piece in pieces)
    return {task.strip() or ALL: value.strip() for task, _, value in named}
