"""This site's share of the noise that hides a whole site in a sum: drawn once, kept, paid for, and then sent.

    sealed/sums/<request>/noised/<plan>.json, objects/      words with noise, before masks

A new attempt over other numbers of sites needs another share: it is drawn anew and paid for again. What was opened
with one share is never opened with another.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from client.outbox import Release
from pm1_core import atomic
from pm1_core.objects import ObjectStore, Reader
from pm1_core.privacy.distributed_noise import SiteNoise, SiteRounding
from pm1_core.privacy.noise import secret_generator
from pm1_core.privacy.opened import Openings
from pm1_core.privacy.primitives import digest
from pm1_core.privacy.secure_plan import Place
from pm1_core.update import Tensors


class NoisedWords:
    """The words of one update with noise, as one plan asks for them.

    folder: of the request; noise: as all sites were told
    """

    def __init__(self, folder: Path, noise: SiteNoise) -> None:
        self.noise = noise
        self.key = digest(noise.to_json())
        self._request = folder.name
        self._file = folder / "noised" / f"{self.key}.json"
        self._objects = ObjectStore(folder / "noised" / "objects")

    def drawn(self, layout: Sequence[Place], changes: Tensors) -> Reader:
        """The words by tensor: drawn now if they are not on disk yet.

        changes: tensor -> what this site changed, float32; where it has none, only noise is added
        """
        if not self._file.exists():
            digests = self._objects.put_all(self._words(layout, changes))
            atomic.write_json(self._file, digests)
        return Reader(self._objects, self.digests)

    @property
    def digests(self) -> list[str]:
        """Of the objects with the words."""
        return list(atomic.read_json(self._file))

    def release(self, answer: Release) -> Release:
        """What the ledger is charged for: once for these words, however often they are masked and sent."""
        return replace(
            answer,
            request=hashlib.sha256(json.dumps([answer.request, self.key]).encode()).hexdigest(),
            objects=self.digests,
            figures={},
            mechanisms=[self.noise.mechanism().to_json()],
            protected=True,
        )

    def opened(self, openings: Openings, mark: str, name: str, sites: frozenset[str]) -> Openings:
        """With the opening of these words over `sites`. Raises PrivacyError on any other opening of the update.

        mark: SHA-256 of the update without noise; name: of what is opened
        """
        own = digest([self.digests, name])
        if openings.sets.get(own) == (sites,):
            return openings
        # Another request may have the same update, as zeros; its noise was paid for as another release.
        update = digest([self._request, mark])
        return openings.with_opened(update, sites, once=True).with_opened(own, sites)

    def _words(self, layout: Sequence[Place], changes: Tensors) -> Iterator[tuple[str, np.ndarray]]:
        rounding = SiteRounding(self.noise, self._norm(changes), secret_generator())
        for place in layout:
            values = changes[place.name] if place.name in changes else np.zeros(place.size, np.float32)
            yield place.name, rounding.words(values)

    def _norm(self, changes: Mapping[str, np.ndarray]) -> float:
        """L2 norm of everything, elements cut to the plan's limit."""
        limit = self.noise.limit
        squares = (
            float(np.square(np.clip(changes[n].astype(np.float64), -limit, limit)).sum()) for n in changes
        )
        return math.sqrt(math.fsum(squares))
