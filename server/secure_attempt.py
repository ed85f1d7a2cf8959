"""One attempt at a secure sum as the coordinator keeps it: plan, collectors and masked words on disk.

FOLDER/attempt.json     plan, and both collectors as of the last stage that was closed
FOLDER/masked/          the sites' masked words as they arrive
FOLDER/opened/          the means, once they were opened
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from pm1_core import atomic
from pm1_core.errors import FederationError, PM1Error, PrivacyError
from pm1_core.objects import ObjectStore, Reader
from pm1_core.privacy.secure_plan import EXACT, TRAIN, Place, Plan, Secured, exact_numbers
from pm1_core.privacy.secure_sum import DONE, STAGES, Collector, Terms
from pm1_core.update import Tensors
from pm1_core.validate import refusal
from server.secure_updates import Opened
from server.spool import Bounds, Spool


class Attempt:
    """One attempt under way. Both sums go through the stages together, until one of them cannot go on.

    asked: the sites; why: sum -> why it ended without being opened
    lost: who did not answer before the sites agreed upon who is left
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        asked: Sequence[str],
        collectors: Mapping[str, Collector],
        why: Mapping[str, str],
    ) -> None:
        self.folder = folder
        self.plan = plan
        self.asked = tuple(asked)
        self.collectors = dict(collectors)
        self.why = dict(why)
        self.lost: set[str] = set()

    @staticmethod
    def begun(folder: Path, plan: Plan, asked: Sequence[str], terms: Mapping[str, Terms]) -> Attempt:
        """A new one, on disk."""
        attempt = Attempt(folder, plan, asked, {what: Collector(said) for what, said in terms.items()}, {})
        attempt.save()
        return attempt

    @staticmethod
    def load(folder: Path) -> Attempt:
        """The one that is kept in `folder`."""
        held = atomic.read_json(folder / "attempt.json")
        collectors = {
            what: Collector.from_bytes(state.encode()) for what, state in held["collectors"].items()
        }
        return Attempt(folder, Plan.from_json(held["plan"]), held["asked"], collectors, held["why"])

    def save(self) -> None:
        """Everything but words, which are on disk as they come."""
        states = {what: collector.to_bytes().decode() for what, collector in self.collectors.items()}
        content = {
            "plan": self.plan.to_json(),
            "asked": self.asked,
            "collectors": states,
            "why": self.why,
        }
        atomic.write_json(self.folder / "attempt.json", content)

    @property
    def required(self) -> str:
        """The sum without which there is no result: of updates, or where there are none, of figures.

        Empty where there is nothing to add up.
        """
        return next(iter(self.plan.sums), "")

    @property
    def live(self) -> dict[str, Collector]:
        """The sums that are under way."""
        return {what: one for what, one in self.collectors.items() if one.stage in STAGES}

    @property
    def failed(self) -> bool:
        """Whether nothing can come of it."""
        return self.required in self.why

    @property
    def survivors(self) -> tuple[str, ...]:
        """Who is in the required sum."""
        return self.collectors[self.required].survivors if self.required else self.asked

    def waiting(self) -> dict[str, list[str]]:
        """Site -> sums for which it has not answered at the present stage."""
        found: dict[str, list[str]] = {}
        for what, collector in self.live.items():
            for site in sorted(set(collector.asked) - set(collector.answered)):
                found.setdefault(site, []).append(what)
        return found

    def close(self) -> None:
        """End the stage for all sums. Raises PrivacyError if the required one ends with it."""
        for what, collector in self.live.items():
            if what == self.required and STAGES.index(collector.stage) <= STAGES.index("input"):
                self.lost |= set(collector.asked) - set(collector.answered)
            try:
                collector.close()
            except PrivacyError as error:
                self.fail(what, str(error))
        self.save()
        if self.failed:
            raise PrivacyError(self.why[self.required])

    def fail(self, what: str, why: str) -> None:
        """End one of the sums without opening it."""
        self.why[what] = why
        if self.collectors[what].stage in STAGES:
            del self.collectors[what]

    def masked(self, asked: Secured, layout: Sequence[Place]) -> Spool:
        """The masked words that have come."""
        arrays = len(layout) + len(self.plan.entries) + 2
        exact = sum(entry.size for entry in self.plan.entries.values())
        size = self.plan.words * asked.bits // 8 + 16 * exact + 2048 * arrays + 2**16
        return Spool(self.folder / "masked", self.plan.masked, Bounds(objects=arrays, size=size))

    def take(self, site: str, words: Reader, layout: Sequence[Place], asked: Secured) -> None:
        """Check a site's masked words and take their receipts. Raises PM1Error if there are none for any sum."""
        errors: list[PM1Error] = []
        taken = 0
        for what, collector in self.live.items():
            if site in collector.asked and f"receipt/{what}" in words:
                try:
                    self._require_words(what, words, layout, asked)
                    collector.receive(site, words[f"receipt/{what}"].tobytes())
                    taken += 1
                except PM1Error as error:
                    errors.append(error)
        if not taken:
            raise errors[0] if errors else FederationError(refusal("masked words", "found none", "send them"))

    def open(self, asked: Secured, layout: Sequence[Place], received: Tensors) -> Opened:
        """The sums. received: what the sites started from, to which the mean change is added"""
        masked = self.masked(asked, layout)
        store, digests = ObjectStore(self.folder / "opened"), list[str]()
        numbers: dict[str, np.ndarray] = {}
        for what, collector in self.collectors.items():
            if collector.stage == DONE:
                readers = [masked.tensors(site) for site in collector.survivors]
                if what == TRAIN:
                    digests = store.put_all(self._means(collector, readers, asked, layout, received))
                else:
                    numbers = dict(self._numbers(collector, readers))
        return Opened(self.survivors, Reader(store, digests), numbers)

    def _means(
        self,
        collector: Collector,
        readers: Sequence[Reader],
        asked: Secured,
        layout: Sequence[Place],
        received: Tensors,
    ) -> Iterator[tuple[str, np.ndarray]]:
        offset = 0
        for place in layout:
            weights = self.plan.weights.get(place.kind, {})
            weight = sum(weights.get(site, 0.0) for site in collector.survivors)
            if weight > 0:
                fixed = self.plan.fixed(place.kind, asked)
                total = _sum(readers, f"{TRAIN}/{place.name}")
                change = fixed.decode(collector.unmask(total, offset), weight)
                before = received[place.name]
                yield place.name, (before + change.reshape(before.shape)).astype(np.float32)
            offset += place.size

    def _numbers(self, collector: Collector, readers: Sequence[Reader]) -> Iterator[tuple[str, np.ndarray]]:
        offset = 0
        for name in self.plan.entries:
            total = _sum(readers, f"{EXACT}/{name}")
            yield name, exact_numbers(collector.unmask(total, offset))
            offset += total.size

    def _require_words(self, what: str, words: Reader, layout: Sequence[Place], asked: Secured) -> None:
        if what == TRAIN:
            wanted = {place.name: place.size for place in layout}
            dtype = np.dtype(f"<u{asked.bits // 8}")
        else:
            wanted = {name: 2 * entry.size for name, entry in self.plan.entries.items()}
            dtype = np.dtype("<u8")
        for name, size in wanted.items():
            found = words.get(f"{what}/{name}")
            if found is None or found.shape != (size,) or found.dtype != dtype:
                have = f"{found.dtype} {found.shape}" if found is not None else "none"
                remedy = f"send {dtype} of shape ({size},)"
                raise FederationError(refusal(f"masked words of {name!r}", f"found {have}", remedy))


def _sum(readers: Sequence[Reader], name: str) -> np.ndarray:
    """Words of all sites, added up modulo their size; an array of its own."""
    total = readers[0][name].copy()
    for reader in readers[1:]:
        np.add(total, reader[name], out=total)
    return total
