"""What every trainable part of PM1 has in common: the interface between a study's phases and the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from pm1_core.data.store import Store
from pm1_core.data.summary import StudySummary
from pm1_core.fields import Modality, Split
from pm1_core.training.order import Order
from pm1_core.training.parts import State
from pm1_core.update import Tensors, Update

Metrics = dict[str, float]


class Task(ABC):
    """One trainable part (or one set of statistics).

    name: under which phases name it
    aggregation: "mean" over sites weighted by examples, or "sum" for statistics
    modalities: a site takes part if it has people with any of them in its training split
    needs: prefixes of the global state that a site gets frozen before the first round

    `parameters` are those of an Order; `study` is what all sites share. Global tensors are float32 arrays
    whose names begin with the part they belong to ("genotype.22.", "statistics.phenotype.").
    """

    name: ClassVar[str]
    aggregation: ClassVar[Literal["mean", "sum"]] = "mean"
    modalities: ClassVar[frozenset[Modality]]

    def __init__(self, parameters: Mapping[str, Any], study: StudySummary) -> None:
        self.parameters = parameters
        self.study = study

    @property
    def needs(self) -> tuple[str, ...]:
        """Prefixes of the frozen global state that `train` and `evaluate` read."""
        return ()

    def examples(self, store: Store, split: Split = Split.TRAIN) -> int:
        """People of `split` who have any of the task's modalities: the weight of this site."""
        people = [store.people(split, modality) for modality in self.modalities]
        return len(np.unique(np.concatenate(people)))

    @abstractmethod
    def initial(self, state: State, seed: int) -> Tensors:
        """The tensors that the coordinator sends in the first round."""

    @abstractmethod
    def train(self, store: Store, order: Order, state: State, tensors: Tensors, folder: Path) -> Update:
        """One round at one site. `folder` is the site's own disk for this study."""

    def evaluate(
        self, store: Store, order: Order, state: State, tensors: Tensors, folder: Path, split: Split
    ) -> Metrics:
        """Figures on a split, averaged over people, with their number under "examples"."""
        return {"examples": float(self.examples(store, split))}

    def advance(self, round_number: int, tensors: Tensors, aggregate: Tensors) -> Tensors:
        """What the coordinator sends next, given what it sent and the sites' mean or sum."""
        return aggregate
