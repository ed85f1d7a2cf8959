"""What the coordinator has of a secure round: one mean for each tensor, sums of figures, and whose they are."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flwr.app import Message

from pm1_core import atomic
from pm1_core.errors import FederationError
from pm1_core.evaluation.scores import BINS, PREFIX
from pm1_core.objects import Reader
from pm1_core.privacy.secure_plan import FIGURE, TENSOR
from pm1_core.update import Tensors
from pm1_core.validate import refusal
from server.spool import require_answer
from strategies import records

ALL = "all"
"""The one site that a strategy sees."""
_ABSENT = "absent"
_MOST_ENTRIES = 8192


@dataclass(frozen=True)
class Statement:
    """What a site says of its sealed answer.

    entries: name -> size, of what it has for the exact sum; attempt: the lowest that it takes part in
    """

    entries: Mapping[str, int]
    attempt: int


class Statements:
    """The sites' statements to one request, kept in `file` as they arrive: who has trained, or evaluated.

    tensors: name -> size, of tensors that may be in the exact sum; None for any histograms of scores
    """

    def __init__(self, request: str, file: Path, tensors: Mapping[str, int] | None) -> None:
        self.request = request
        self.tensors = tensors
        self.held: dict[str, Statement] = {}
        self._file = file
        if file.exists():
            self.held = {site: Statement(**said) for site, said in atomic.read_json(file).items()}

    def accept(self, site: str, message: Message) -> list[str]:
        """Keep an answer of `site`. Raises FederationError if it answers something else, or says what cannot be."""
        facts = records.facts_of(message.content, "site")
        require_answer(site, self.request, facts)
        remedy = "run the same version at both ends"
        try:
            entries = {str(name): int(size) for name, size in json.loads(str(facts["entries"])).items()}
            attempt = int(str(facts["attempt"]))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            raise FederationError(refusal("statement", "it cannot be read", remedy)) from None
        if len(entries) > _MOST_ENTRIES or not 0 <= attempt < 2**40:
            raise FederationError(refusal("statement", f"{len(entries)} entries, attempt {attempt}", remedy))
        for name, size in entries.items():
            if size != self._size(name):
                raise FederationError(
                    refusal(f"entry {name[:80]!r}", f"{size} numbers were not asked for", remedy)
                )
        self.held[site] = Statement(entries, attempt)
        self._write()
        return []

    @contextmanager
    def kept_if_whole(self, site: str) -> Iterator[None]:
        """Forget what `site` said if the block raises."""
        try:
            yield
        except BaseException:
            self.refuse(site)
            raise

    def refuse(self, site: str) -> None:
        """Forget what a site said."""
        if self.held.pop(site, None):
            self._write()

    def _size(self, name: str) -> int | None:
        if name.startswith(FIGURE):
            return 2
        tensor = name.removeprefix(TENSOR)
        if tensor == name:
            return None
        if self.tensors is not None:
            return self.tensors.get(tensor)
        return 2 * BINS if tensor.startswith(PREFIX) else None

    def _write(self) -> None:
        atomic.write_json(
            self._file,
            {s: {"entries": dict(said.entries), "attempt": said.attempt} for s, said in self.held.items()},
        )


@dataclass(frozen=True)
class Folded:
    """strategies.Updates of one pseudo-site, "all": weighted means over the sites that are in a secure sum.

    names: tensors that travel; means: those that anybody trained, float32
    weights: tensor -> summed weight of the sites in the sum that trained it; eligible: of all sites of the phase
    """

    names: tuple[str, ...]
    means: Tensors
    weights: Mapping[str, float]
    could: Mapping[str, float]

    @property
    def sites(self) -> tuple[str, ...]:
        """One."""
        return (ALL,)

    def eligible(self, name: str) -> Mapping[str, float]:
        """The sites in the sum together, and all others together."""
        rest = self.could.get(name, 0.0) - self.weights.get(name, 0.0)
        shares = {ALL: self.weights.get(name, 0.0), _ABSENT: rest}
        return {site: weight for site, weight in shares.items() if weight > 0}

    def weight(self, site: str, name: str) -> float:
        """Of all sites in the sum that trained the tensor."""
        return self.weights.get(name, 0.0)

    def tensor(self, site: str, name: str) -> np.ndarray:
        """The mean, or the sum."""
        return self.means[name]


@dataclass(frozen=True)
class Opened:
    """A secure sum that was opened.

    sites: over whom; tensors: the train sum's means, read from disk
    numbers: entry -> sums, float64; {} if the exact sum was not opened
    """

    sites: tuple[str, ...]
    tensors: Reader
    numbers: Mapping[str, np.ndarray]

    def means(self) -> dict[str, float]:
        """Each figure over all who gave it, by what they weigh."""
        return {
            name.removeprefix(FIGURE): float(value / weight)
            for name, (value, weight) in self._figures()
            if weight > 0
        }

    def total(self, figure: str) -> tuple[float, float]:
        """A figure's sum over its sites, and their summed weight; zeros if nobody gave it."""
        value, weight = self.numbers.get(FIGURE + figure, (0.0, 0.0))
        return float(value), float(weight)

    def summed(self) -> dict[str, np.ndarray]:
        """Tensors of the exact sum by name, flat."""
        return {
            name.removeprefix(TENSOR): array
            for name, array in self.numbers.items()
            if name.startswith(TENSOR)
        }

    def _figures(self) -> Iterator[tuple[str, Sequence[float]]]:
        for name, array in sorted(self.numbers.items()):
            if name.startswith(FIGURE):
                yield name, array.tolist()


def carriers(statements: Mapping[str, Statement], asked: Collection[str]) -> dict[str, list[str]]:
    """Entry -> which of the asked sites have it."""
    found: dict[str, list[str]] = {}
    for site in sorted(asked):
        for name in statements[site].entries:
            found.setdefault(name, []).append(site)
    return found
