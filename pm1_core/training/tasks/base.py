"""What every trainable part of PM1 has in common: the interface between a study's phases and the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from pm1_core.data.definition import StudySummary
from pm1_core.data.store import Store
from pm1_core.errors import StateError
from pm1_core.fields import Modality, Split
from pm1_core.training.order import Order
from pm1_core.update import Tensors, Update
from pm1_core.validate import refusal

State = Mapping[str, np.ndarray]
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


def part(state: State, prefix: str) -> dict[str, np.ndarray]:
    """The tensors below `prefix`, with the prefix taken off. Raises StateError if there is none."""
    found = {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
    if not found:
        raise StateError(refusal("global state", f"found nothing below {prefix!r}", "run that phase first"))
    return found


def load_part(module: torch.nn.Module, tensors: Tensors, prefix: str) -> None:
    """Copy the tensors below `prefix` into `module`'s parameters. Raises StateError on any mismatch."""
    arrays = part(tensors, prefix)
    try:
        module.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise StateError(
            refusal(f"tensors {prefix!r}", reason, "use the model configuration of the study")
        ) from None


def dump_part(module: torch.nn.Module, prefix: str) -> dict[str, np.ndarray]:
    """All parameters and buffers of `module` as float32 arrays, named below `prefix`."""
    return {
        prefix + name: tensor.detach().to("cpu", torch.float32).numpy().copy()
        for name, tensor in module.state_dict().items()
    }
