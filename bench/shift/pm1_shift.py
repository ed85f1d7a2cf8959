"""The fusion transformer without its training: every weight moves by a fixed step, one tensor at a time.

Benchmarks of a round measure what travels and is folded; a site then needs no more memory than a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from pm1_core.data.store import Store
from pm1_core.fields import Modality, Split
from pm1_core.training.guide import UNGUIDED, Guide
from pm1_core.training.order import Order
from pm1_core.training.parts import State
from pm1_core.training.tasks.fusion import FusionTask
from pm1_core.update import Tensors, Update

STEP = np.float32(1e-3)


class ShiftTask(FusionTask):
    """FusionTask's tensors; keys of `parameters` are model (fields of FusionConfig) and loop."""

    name = "shift"
    modalities = frozenset({Modality.PHENOTYPE})
    guided = False

    @property
    def needs(self) -> tuple[str, ...]:
        """Nothing but the tensors themselves."""
        return ()

    def modality_of(self, name: str) -> Modality | None:
        """Everybody moves everything."""
        return None

    def train(
        self,
        store: Store,
        order: Order,
        state: State,
        tensors: Tensors,
        folder: Path,
        guide: Guide = UNGUIDED,
    ) -> Update:
        """The received tensors, each STEP further when it is read."""
        return Update(_Shifted(tensors), float(self.examples(store)))

    def evaluate(
        self, store: Store, order: Order, state: State, tensors: Tensors, folder: Path, split: Split
    ) -> dict[str, float]:
        """The number of people and nothing else."""
        return {"examples": float(self.examples(store, split))}

    def scores(
        self, store: Store, order: Order, state: State, tensors: Tensors, folder: Path, split: Split
    ) -> Tensors:
        """None."""
        return {}


class _Shifted(Mapping[str, np.ndarray]):
    """A mapping whose arrays are computed when they are asked for."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> np.ndarray:
        array: np.ndarray = self._tensors[name] + STEP
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
