"""What of an answer is added up over sites: kept beside the answer, which stays at the site. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pm1_core.privacy.secure_plan import EXACT, FIGURE, TRAIN, Place


@dataclass(frozen=True)
class Sealed:
    """What of an answer is added up.

    places: tensors of the train sum in their order, trained here or not
    weights: kind -> weight of this site's tensors; marks: kind or name of an entry -> SHA-256 of the bytes under it
    entries: name -> size, of what this site has for the exact sum
    """

    places: list[list[Any]]
    weights: dict[str, float]
    entries: dict[str, int]
    marks: dict[str, str]

    @property
    def layout(self) -> list[Place]:
        """The tensors of the train sum."""
        return [Place(*place) for place in self.places]

    @property
    def words(self) -> int:
        """Elements of the train sum."""
        return sum(place.size for place in self.layout)


def sealed(
    changes: Mapping[str, np.ndarray],
    places: list[Place],
    weights: Mapping[str, float],
    entries: Mapping[str, np.ndarray],
) -> tuple[Sealed, Iterator[tuple[str, np.ndarray]]]:
    """What of an answer is added up, and the arrays to keep for it.

    changes: tensor -> received to trained, float32, of those that were trained here
    entries: name -> float64 numbers for the exact sum
    """
    marks = {f"{EXACT} {name}": _mark([name], [array]) for name, array in entries.items()}
    for kind in {place.kind for place in places}:
        names = [place.name for place in places if place.kind == kind and place.name in changes]
        marks[f"{TRAIN} {kind}"] = _mark(names, (changes[name] for name in names))
    said = Sealed(
        [[place.name, place.size, place.kind] for place in places],
        {kind: weight for kind, weight in weights.items() if weight > 0},
        {name: array.size for name, array in sorted(entries.items())},
        marks,
    )
    pairs = [(f"{TRAIN}/{name}", array) for name, array in changes.items()]
    pairs += [(f"{EXACT}/{name}", array) for name, array in entries.items()]
    return said, iter(sorted(pairs, key=lambda pair: pair[0]))


def figure_entries(figures: Mapping[str, float], weigh: Callable[[str], float]) -> dict[str, np.ndarray]:
    """Entries of figures: each times its weight, and the weight. What is no number, or too large, is left out."""
    found = {}
    for name, value in figures.items():
        pair = np.array([value * weigh(name), weigh(name)], np.float64)
        if np.isfinite(pair).all() and (np.abs(pair) < 2.0**49).all():
            found[FIGURE + name] = pair
    return found


def _mark(names: list[str], arrays: Iterable[np.ndarray]) -> str:
    """SHA-256 over names and bytes of arrays."""
    found = hashlib.sha256(json.dumps(names).encode())
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
