"""Several prepared stores seen as one: what a study would have if the data could be brought together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import pandas as pd

from pm1_core.data.store import Store
from pm1_core.data.summary import StudySummary
from pm1_core.fields import Modality, Split


class PooledStore(Store):
    """The reading side of several stores, one after the other; nothing is copied on disk.

    A person who is known to two stores counts twice here, as in the federation.
    """

    def __init__(self, stores: Sequence[Store], site: str = "pooled") -> None:
        self.stores = list(stores)
        self.site = site
        self.role = "member"
        joined = "/".join(store.fingerprint for store in self.stores)
        self.fingerprint = hashlib.sha256(joined.encode()).hexdigest()
        self.study: StudySummary = self.stores[0].study
        self.subjects = pd.concat([store.subjects for store in self.stores], ignore_index=True)
        self._starts = np.cumsum([0, *(len(store.subjects) for store in self.stores)])

    def __reduce__(self) -> tuple[type[PooledStore], tuple[list[Store], str]]:  # type: ignore[override]
        """Another process opens the stores again."""
        return PooledStore, (self.stores, self.site)

    @cached_property
    def modalities(self) -> frozenset[Modality]:
        """What at least one person at any store has."""
        return frozenset[Modality]().union(*(store.modalities for store in self.stores))

    def snps(self, chromosome: int) -> int:
        """SNPs of a chromosome."""
        return self.stores[0].snps(chromosome)

    def people(self, split: Split | None, modality: Modality | None = None) -> np.ndarray:
        """Indices into `subjects`, int64."""
        return np.concatenate(
            [
                store.people(split, modality) + start
                for store, start in zip(self.stores, self._starts, strict=False)
            ]
        )

    def dosages(self, chromosome: int, people: np.ndarray) -> np.ndarray:
        """uint8 [n, S], 3 = missing."""
        return self._gather(people, lambda store, rows: (store.dosages(chromosome, rows),))[0]

    def phenotypes(self, people: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values float32 [n, K] and observed bool [n, K]."""
        values, observed = self._gather(people, lambda store, rows: store.phenotypes(rows))
        return values, observed

    def photographs(self, people: np.ndarray, eye: str) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [n, 224, 224, 3] and has bool [n]."""
        images, has = self._gather(people, lambda store, rows: store.photographs(rows, eye))
        return images, has

    def labels(self, people: np.ndarray) -> pd.DataFrame:
        """Study labels of `people`, NaN missing, indexed by subject."""
        pieces = [store.labels(rows) for store, rows, _ in self._split(people)]
        order = np.concatenate([where for _, _, where in self._split(people)])
        return pd.concat(pieces).iloc[np.argsort(order, kind="stable")]

    def _split(self, people: np.ndarray) -> list[tuple[Store, np.ndarray, np.ndarray]]:
        people = np.asarray(people)
        pieces = []
        for index, store in enumerate(self.stores):
            where = np.flatnonzero((people >= self._starts[index]) & (people < self._starts[index + 1]))
            pieces.append((store, people[where] - self._starts[index], where))
        return pieces

    def _gather(
        self, people: np.ndarray, read: Callable[[Store, np.ndarray], tuple[np.ndarray, ...]]
    ) -> tuple[np.ndarray, ...]:
        out: list[np.ndarray] = []
        for store, rows, where in self._split(people):
            arrays = read(store, rows)
            if not out:
                out = [np.zeros((len(people), *array.shape[1:]), array.dtype) for array in arrays]
            for whole, array in zip(out, arrays, strict=True):
                whole[where] = array
        return tuple(out)
