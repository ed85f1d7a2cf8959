"""What of a site's answer is added up under secure aggregation: from updates and figures to tensors and entries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from client.sealed import Sealed, figure_entries, sealed
from pm1_core.data.store import Store
from pm1_core.fields import Modality, Split
from pm1_core.privacy.secure_plan import TENSOR, Place
from pm1_core.training import methods
from pm1_core.training.order import Order
from pm1_core.training.tasks import Task
from pm1_core.training.tasks.reference import ReferenceTask
from pm1_core.update import Tensors, Update

ENERGY = "energy_joules"
_EXAMPLES = "examples"

Kept = tuple[Sealed, Iterator[tuple[str, np.ndarray]]]


def trained(
    task: Task, store: Store, order: Order, update: Update, received: Tensors, figures: Mapping[str, float]
) -> Kept:
    """An update of a mean as changes of what was received, to be weighed; of a sum, its tensors as they are."""
    entries = figure_entries(
        {name: value for name, value in figures.items() if name.rpartition(".")[2] != _EXAMPLES},
        lambda name: 1.0 if name == ENERGY else update.weight,
    )
    if isinstance(task, ReferenceTask):  # zeros: there is nothing to add up
        return sealed({}, [], {}, {})
    if task.aggregation == "sum":
        split = None if order.privacy else Split.TRAIN
        has = {m for m in Modality if len(store.people(split, m))}
        for name, array in update.tensors.items():
            if modality_in(name) in {None, *has}:
                entries[TENSOR + name] = array.astype(np.float64).reshape(-1)
        return sealed({}, [], {}, entries)
    stays = methods.Method.of(order).stays
    names = [name for name in sorted(received) if not stays(name)]
    places = [Place(name, int(received[name].size), task.modality_of(name) or Split.TRAIN) for name in names]
    kinds = {place.name: place.kind for place in places}
    weights = {Split.TRAIN.value: update.weight, **update.examples}
    weights = {str(kind): weight for kind, weight in weights.items() if kind in kinds.values()}
    changes = {
        name: array - received[name]
        for name, array in update.tensors.items()
        if name in kinds and weights.get(kinds[name], 0.0) > 0
    }
    return sealed(changes, places, weights, entries)


def evaluated(figures: Mapping[str, float], scores: Tensors) -> Kept:
    """Figures of a model, weighed by the people behind them, and histograms of scores."""

    def people(name: str) -> float:
        split = name.partition(".")[0]
        return 1.0 if name == f"{split}.{_EXAMPLES}" else figures.get(f"{split}.{_EXAMPLES}", 0.0)

    counted = {name: value for name, value in figures.items() if people(name) > 0}
    entries = figure_entries(counted, people)
    entries |= {TENSOR + name: array.astype(np.float64).reshape(-1) for name, array in scores.items()}
    return sealed({}, [], {}, entries)


def modality_in(name: str) -> Modality | None:
    """The modality that the name of a summed tensor says: sums have no `Task.modality_of`.

    >>> modality_in("statistics.genotype.22.counts"), modality_in("table.count")
    (<Modality.GENOTYPE: 'genotype'>, None)
    """
    pieces = name.split(".")
    return next((modality for modality in Modality if modality in pieces), None)
