"""How many people a site says it has: as they are, as one, or noised, as the order's privacy asks.

Under record-level privacy an exact number of people is a release like any other. With equal weights a site says 1
where it has anybody, which it pays nothing for: that a hospital takes part in a phase is no secret. With noised
weights it counts everybody once in cells of split and modalities, adds noise, pays, and gives sums of these cells
from then on; the cells are kept, so that the same numbers are said for the whole study.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pm1_core import atomic
from pm1_core.data.store import Store
from pm1_core.fields import Modality, Split
from pm1_core.privacy.noise import gaussian, secret_generator
from pm1_core.privacy.terms import RecordTerms

if TYPE_CHECKING:
    from pm1_core.training.tasks import Task

Counts = dict[str, int]

_SETS = tuple(frozenset(chosen) for size in (1, 2, 3) for chosen in combinations(Modality, size))


@dataclass(frozen=True)
class NoisedCells:
    """`cells` with noise, whole numbers of at least 0, int64 [3, 7]. noise_multiplier: with which it was drawn"""

    people: np.ndarray
    noise_multiplier: float


def exact(task: Task, store: Store) -> Counts:
    """People by split, and training people by modality."""
    counts: Counts = {split: task.examples(store, split) for split in Split}
    counts |= {m: len(store.people(Split.TRAIN, m)) for m in Modality if m in task.modalities}
    return counts


def equal(task: Task, store: Store) -> Counts:
    """1 for training, and for each modality that the site has at all: which those are is taken to be public."""
    has: Counts = {m: int(len(store.people(None, m)) > 0) for m in Modality if m in task.modalities}
    return {**dict.fromkeys(Split, 0), Split.TRAIN: max(has.values(), default=0), **has}


def cells(store: Store) -> np.ndarray:
    """People by split and set of modalities, int64 [3, 7]: each is in one cell, so one person moves one by one."""
    has = np.stack([np.isin(store.people(None), store.people(None, m)) for m in Modality], 1)
    found = np.zeros((len(Split), len(_SETS)), np.int64)
    for row, split in enumerate(Split):
        chosen = has[store.people(split)]
        for column, some in enumerate(_SETS):
            wanted = np.array([m in some for m in Modality])
            found[row, column] = (chosen == wanted).all(1).sum()
    return found


def noised_cells(store: Store, terms: RecordTerms, file: Path) -> NoisedCells:
    """The noised cells of this study, drawn once and kept in `file`, whatever is asked later.

    A Gaussian release of sensitivity 1 and multiplier `terms.counts`; rounding and cutting come after it.
    """
    if not file.exists():
        drawn = gaussian(cells(store).astype(np.float64), 1.0, terms.counts, secret_generator())
        people = np.maximum(0, np.rint(drawn)).astype(int).tolist()
        atomic.write_json(file, {"noise_multiplier": terms.counts, "people": people})
    content = atomic.read_json(file)
    return NoisedCells(np.array(content["people"], np.int64), float(content["noise_multiplier"]))


def from_cells(task: Task, held: np.ndarray) -> Counts:
    """People by split who have any of the task's modalities, and training people by modality, of `held` [3, 7]."""

    def people(split: Split, modalities: frozenset[Modality]) -> int:
        columns = [bool(some & modalities) for some in _SETS]
        return int(held[list(Split).index(split)][columns].sum())

    counts: Counts = {split: people(split, task.modalities) for split in Split}
    return counts | {m: people(Split.TRAIN, frozenset({m})) for m in Modality if m in task.modalities}
