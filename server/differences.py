"""Two checkpoints side by side: figures, areas, and how far the tensors of each part lie apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pm1_core.checkpoint import Checkpoint, CheckpointFolder
from server.shards import Entry, entries


@dataclass(frozen=True)
class Pair:
    """A figure in both checkpoints; None where one does not hold it."""

    name: str
    first: float | None
    second: float | None

    @property
    def difference(self) -> float | None:
        """Second minus first."""
        return None if self.first is None or self.second is None else self.second - self.first


@dataclass(frozen=True)
class PartDistance:
    """One part in both checkpoints.

    distance: |second - first| / |first| in the L2 norm over all tensors that both hold in one shape; None where
        `first` has norm 0 or nothing is held by both
    tensors: held by both in one shape
    unmatched: names that only one holds, or both in different shapes
    """

    part: str
    distance: float | None
    tensors: int
    unmatched: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Everything that `compare` found; figures are "OF/NAME", areas "TARGET.GROUP"."""

    figures: tuple[Pair, ...]
    areas: tuple[Pair, ...]
    parts: tuple[PartDistance, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain data, with the difference of every pair."""
        content = asdict(self)
        for kind, pairs in (("figures", self.figures), ("areas", self.areas)):
            content[kind] = [{**asdict(pair), "difference": pair.difference} for pair in pairs]
        return content


def compare(checkpoints: CheckpointFolder, first: Checkpoint, second: Checkpoint) -> Comparison:
    """Compare two checkpoints of one folder. Tensors are read one at a time; equal objects are not read at all.

    Raises CheckpointError if an object is absent or damaged.
    """
    shared = sorted(set(first.parts) & set(second.parts))
    return Comparison(
        figures=_pairs(_figures(first), _figures(second)),
        areas=_pairs(_areas(first), _areas(second)),
        parts=tuple(_distance(checkpoints, first, second, part) for part in shared),
        only_first=tuple(sorted(set(first.parts) - set(second.parts))),
        only_second=tuple(sorted(set(second.parts) - set(first.parts))),
    )


def _distance(
    checkpoints: CheckpointFolder, first: Checkpoint, second: Checkpoint, part: str
) -> PartDistance:
    one, other = (_entries(checkpoints, checkpoint.parts[part]) for checkpoint in (first, second))
    names = [name for name in sorted(one) if name in other and one[name].shape == other[name].shape]
    unmatched = tuple(sorted({*one, *other} - set(names)))
    if tuple(first.parts[part]) == tuple(second.parts[part]):
        return PartDistance(part, 0.0, len(names), unmatched)
    apart = size = 0.0
    for name in names:
        before = one[name].read()
        size += float(np.square(before, dtype=np.float64).sum())
        apart += float(np.square(other[name].read() - before, dtype=np.float64).sum())
    distance = math.sqrt(apart / size) if size else None
    return PartDistance(part, distance, len(names), unmatched)


def _entries(checkpoints: CheckpointFolder, digests: Sequence[str]) -> dict[str, Entry]:
    files = (checkpoints.objects.check(digest) for digest in digests)
    return {entry.name: entry for file in files for entry in entries(file)}


def _figures(checkpoint: Checkpoint) -> dict[str, float]:
    return {
        f"{who}/{name}": value
        for who, figures in checkpoint.metrics.items()
        for name, value in figures.items()
    }


def _areas(checkpoint: Checkpoint) -> dict[str, float]:
    return {name: area["auc"] for name, area in checkpoint.areas.items()}


def _pairs(first: Mapping[str, float], second: Mapping[str, float]) -> tuple[Pair, ...]:
    names: Iterable[str] = sorted({*first, *second})
    return tuple(Pair(name, first.get(name), second.get(name)) for name in names)
