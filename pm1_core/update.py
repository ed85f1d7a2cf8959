"""What leaves a site: named float32 arrays, a weight, and numbers about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from pm1_core.errors import InputError
from pm1_core.validate import refusal

Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Update:
    """One site's answer to one order.

    tensors: name -> float32 array, of the names that the order sent (or, for sums, all that the task declares);
        a mean may lack tensors that nobody here trained, see `Task.train`
    weight: number of examples of the phase's modalities in the training split, or 1 for sums
    metrics: name -> finite float; per-site figures exist in the clear only
    examples: modality -> number of examples of that modality in the training split, the weight of tensors that
        belong to one modality (`Task.modality_of`)

    Raises InputError if an array is not float32 or not finite, or a weight is not a finite number >= 0.
    """

    tensors: Tensors
    weight: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    examples: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        weights = {"update weight": self.weight}
        weights |= {f"update weight of {modality}": count for modality, count in self.examples.items()}
        for where, count in weights.items():
            if not (np.isfinite(count) and count >= 0):
                raise InputError(refusal(where, f"found {count}", "use a finite count >= 0"))
        for name, array in self.tensors.items():
            if array.dtype != np.float32:
                raise InputError(
                    refusal(f"update tensor {name!r}", f"found dtype {array.dtype}", "send float32")
                )
            if not np.isfinite(array).all():
                raise InputError(
                    refusal(f"update tensor {name!r}", "found NaN or infinity", "do not send it")
                )
