"""What a site sets for its own machine: batches that fit, a precision that it can, and how many devices train.

Sites of one study may differ in all of them. A batch size and a precision change what a site computes, not what it
is asked for: its update is still weighed by its people.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pm1_core.errors import ConfigError, PrivacyError
from pm1_core.privacy.terms import record_terms
from pm1_core.training.loop import LoopConfig
from pm1_core.training.order import Order
from pm1_core.training.precision import FLOAT32
from pm1_core.validate import refusal

ALL = "all"


@dataclass(frozen=True)
class Machine:
    """A site's own keys of the loop, by task; "all" stands for every task that is not named.

    batch_size: people in a step; precision: see LoopConfig
    """

    batch_size: Mapping[str, int] = field(default_factory=dict)
    precision: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(batch_size: str = "", precision: str = "") -> Machine:
        """Read two lists of TASK:VALUE, or one VALUE for all tasks. Raises ConfigError naming what is wrong.

        >>> Machine.of("genotype:16,fusion:64", "bfloat16").batch_size
        {'genotype': 16, 'fusion': 64}
        """
        sizes = _listed(batch_size)
        for task, size in sizes.items():
            if not size.isdecimal():
                where = f"site's batch_size, {task}"
                raise ConfigError(refusal(where, f"found {size!r}", "use a whole number, 0 takes everybody"))
        precisions = _listed(precision)
        for chosen in precisions.values():
            LoopConfig(precision=chosen)
        return Machine({task: int(size) for task, size in sizes.items()}, precisions)

    def own(self, order: Order) -> Order:
        """The order as it is trained here.

        Under record-level terms a batch size bounds memory only, and is taken. Raises PrivacyError if a precision
        other than float32 would change what bounds a person's gradient.
        """
        if "loop" not in order.parameters:
            return order
        loop = dict(order.parameters["loop"])
        for key in ("batch_size", "precision"):
            given = getattr(self, key)
            if (value := given.get(order.task, given.get(ALL))) is not None:
                loop[key] = value
        if loop.get("precision", FLOAT32) != FLOAT32 and record_terms(order.privacy):
            found = f"{loop['precision']!r} here would change the mechanism of record-level privacy"
            remedy = f'set precision="{order.task}:{FLOAT32}" at this site'
            raise PrivacyError(refusal(f"phase {order.phase!r}, precision", found, remedy))
        return replace(order, parameters={**order.parameters, "loop": loop})


def _listed(text: str) -> dict[str, str]:
    pieces = [piece.strip() for piece in str(text).split(",") if piece.strip()]
    named = (piece.rpartition(":") for piece in pieces)
    return {task.strip() or ALL: value.strip() for task, _, value in named}
