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
from pm1_core.privacy.mechanisms import Mechanism
from pm1_core.privacy.terms import record_terms
from pm1_core.training.guide import UNGUIDED, Guide
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
    guided: `train` hands its `guide` on to `train_epochs`, or does itself what `Guide` says. A task with a training
        loop of its own that does neither says False here; a strategy that needs a guide is then refused by name
        instead of being ignored in silence
    private: `train` keeps to record-level terms in `Order.privacy`. A study that asks for them refuses a task that
        does not say so
    divides: `train` computes its network by `pm1_core.training.processes.divided`, so that several GPUs of a site
        can share its batches; one process trains a task that does not say so
    grouped: its loss couples people, who are therefore clipped as groups (`RecordTerms.group_size`)

    `parameters` are those of an Order; `study` is what all sites share. Global tensors are float32 arrays
    whose names begin with the part they belong to ("genotype.22.", "statistics.phenotype.").
    """

    name: ClassVar[str]
    aggregation: ClassVar[Literal["mean", "sum"]] = "mean"
    modalities: ClassVar[frozenset[Modality]]
    guided: ClassVar[bool] = True
    private: ClassVar[bool] = False
    grouped: ClassVar[bool] = False
    divides: ClassVar[bool] = False

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
    def train(
        self,
        store: Store,
        order: Order,
        state: State,
        tensors: Tensors,
        folder: Path,
        guide: Guide = UNGUIDED,
    ) -> Update:
        """One round at one site, from `tensors` as the coordinator sent them.

        folder: the site's own disk for this study, shared by its phases and by the runs of a phase (a personal
            model is trained under an order whose phase has a name of its own). What is to be remembered from
            round to round goes through `Memory(folder, order)`, so that a round that is asked for again gives the
            same bytes; a cache goes by what it is made from
        guide: what the strategy adds to gradients; hand it on to `train_epochs`

        The update of a mean has a tensor for every name in `tensors`, in its shape, float32, with one exception:
        it may leave out what nobody here trained, which is a tensor whose `modality_of` has no examples here.
        Others do not miss it, it would have weighed nothing. Its `weight` is the number of training people, and
        `examples` has their number for each of the task's modalities. The update of a sum has all tensors.
        """

    def mechanisms(self, order: Order) -> tuple[Mechanism, ...]:
        """What one round of `order` releases of the people here, for the site's ledger; () if nothing of them.

        By default sums are one Gaussian release, and training is as many Poisson-sampled ones as it takes steps.
        """
        terms = record_terms(order.privacy)
        if terms is None:
            return ()
        if self.aggregation == "sum":
            return (Mechanism("gaussian", terms.noise_multiplier),)
        return (Mechanism("sampled", terms.noise_multiplier, terms.sample_rate, terms.steps),)

    def evaluate(
        self, store: Store, order: Order, state: State, tensors: Tensors, folder: Path, split: Split
    ) -> Metrics:
        """Figures on a split, averaged over people, with their number under "examples"."""
        return {"examples": float(self.examples(store, split))}

    def scores(
        self, store: Store, order: Order, state: State, tensors: Tensors, folder: Path, split: Split
    ) -> Tensors:
        """Sums over the people of a split from which areas under ROC curves are computed, float32 histograms.

        Only their sum over sites is looked at, see `pm1_core.evaluation.scores`. A task that predicts no target has
        none.
        """
        return {}

    def modality_of(self, name: str) -> Modality | None:
        """The modality whose examples alone train the tensor `name`, or None if all of the task's do.

        Such a tensor is averaged over the sites that have the modality, weighted by the people who have it.
        """
        return None

    def advance(self, round_number: int, tensors: Tensors, aggregate: Tensors) -> Tensors:
        """What the coordinator sends next, given what it sent and the sites' mean or sum."""
        return aggregate
