"""What sites and coordinator agree upon before a round is added up: what is in it, of whom, and with which weight.

One attempt adds up two vectors, each a secure sum of its own under the same stages:

    train    weight * (tensor - received), tensor by tensor, in words of 16 or 32 bits (`fixed_point`)
    exact    figures times what they weigh, histograms, statistics: numbers as whole part and fraction, in 64 bits

Who has a part in a tensor or a figure is named for each *kind*: all tensors of one modality, or one entry of the
exact sum. A sum over one or two sites tells what they gave, so a kind has at least three sites, among those that
are asked and among those that are left at the end, or a site that is in it does not go on. The digest of a plan
is in the terms that all sites sign (`Terms.agreed`).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pm1_core.errors import ConfigError, DataError, PrivacyError
from pm1_core.privacy.distributed_noise import LEAST_L2, SiteNoise
from pm1_core.privacy.fixed_point import FixedPoint
from pm1_core.privacy.primitives import digest
from pm1_core.privacy.secure_terms import LEAST_SITES, Terms, least_survivors
from pm1_core.privacy.terms import SiteTerms
from pm1_core.validate import refusal, require_keys, require_range

TRAIN, EXACT = SUMS = "train", "exact"
FIGURE, TENSOR = "figure:", "tensor:"
"""Beginnings of the names of entries: a figure is a number times its weight, and the weight."""

LARGEST = 2**50
"""Absolute value of a number in the exact sum, at most: 8,000 of them add up in 64 bits."""
FRACTION = 2**40
"""Steps of a fraction in the exact sum."""
_EXACT_BITS = 64


@dataclass(frozen=True)
class Place:
    """A tensor in the train sum. size: its elements; kind: "train", or the modality that alone trains it."""

    name: str
    size: int
    kind: str


def layout_digest(places: Sequence[Place]) -> str:
    """SHA-256 over names, sizes and kinds, in order."""
    return digest([[place.name, place.size, place.kind] for place in places])


@dataclass(frozen=True)
class Entry:
    """Numbers in the exact sum. sites: who has them, sorted"""

    size: int
    sites: tuple[str, ...]


@dataclass(frozen=True)
class Secured:
    """What an order asks of sums (`Order.secure`).

    bits: of a word of the train sum, 16 or 32
    range: L, the largest change of one element that is not cut
    threshold: share of the sites that have to stay to the end, above two thirds in any case

    Raises ConfigError on a value out of bounds.
    """

    bits: int = 32
    range: float = 8.0
    threshold: float = 0.67

    def __post_init__(self) -> None:
        if self.bits not in (16, 32):
            raise ConfigError(refusal("key 'aggregation.bits'", f"found {self.bits!r}", "use 32 or 16"))
        require_range("key 'aggregation.range'", self.range, 1e-9, 1e9, ConfigError)
        require_range("key 'aggregation.threshold'", self.threshold, 0.0, 1.0, ConfigError)

    @staticmethod
    def of(secure: Mapping[str, Any]) -> Secured:
        """Read `Order.secure`. Raises ConfigError naming the first thing that is wrong."""
        names = tuple(item.name for item in dataclasses.fields(Secured))
        return Secured(**require_keys("order, secure", secure, names, error=ConfigError))

    def to_json(self) -> dict[str, Any]:
        """All fields: `Order.secure`."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Plan:
    """One attempt to add up the answers to one request.

    request: digest of the request; attempt: counts anew for a round that is tried again
    layout: digest of the tensors of the train sum; words: their elements, 0 without one
    weights: kind -> site -> what its tensors of that kind weigh, above 0
    entries: name -> what the exact sum has under it
    noise: under site-level privacy what all sites are told of noise (`SiteNoise.to_json`); {} without
    """

    request: str
    attempt: int
    layout: str
    words: int
    weights: Mapping[str, Mapping[str, float]]
    entries: Mapping[str, Entry]
    noise: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all of it."""
        return digest(json.loads(self.to_json()))

    @property
    def masked(self) -> str:
        """The name of the masked words of this attempt, as a request of their own."""
        return digest(["masked", self.request, self.attempt])

    @property
    def sums(self) -> tuple[str, ...]:
        """Which of the two there are."""
        found = {TRAIN: self.words, EXACT: len(self.entries)}
        return tuple(what for what in SUMS if found[what])

    def terms(
        self, what: str, run: str, phase: str, round: int, keys: Mapping[str, str], asked: Secured
    ) -> Terms:
        """The terms of one of the two sums.

        keys: site -> long-term public key, in hex. Raises ConfigError if they are fewer than three.
        """
        threshold = least_survivors(len(keys), asked.threshold)
        words = self.words if what == TRAIN else 2 * sum(entry.size for entry in self.entries.values())
        bits = asked.bits if what == TRAIN else _EXACT_BITS
        return Terms(run, phase, round, self.attempt, keys, words, bits, threshold, what, self.digest)

    def fixed(self, kind: str, asked: Secured) -> FixedPoint:
        """How tensors of a kind are encoded. Raises ConfigError if the weights do not fit the words."""
        if self.noise:
            return SiteNoise.from_json(self.noise).fixed
        return FixedPoint.fitting(asked.bits, asked.range, tuple(self.weights[kind].values()))

    def groups(self, what: str) -> Iterator[tuple[str, frozenset[str]]]:
        """Each kind, or name of an entry, of one of the two sums, with the sites that have a part in it."""
        if what == TRAIN:
            for kind, weights in self.weights.items():
                yield kind, frozenset(weights)
        else:
            for name, entry in self.entries.items():
                yield name, frozenset(entry.sites)

    def require_enough(self, what: str, site: str, left: Collection[str]) -> None:
        """Raise PrivacyError if `site` has a part in something of which too few sites are `left`."""
        for name, sites in self.groups(what):
            if site in sites and len(sites & set(left)) < LEAST_SITES:
                found = f"{len(sites & set(left))} sites would be in the sum"
                remedy = f"nothing is revealed; at least {LEAST_SITES} have to stay"
                raise PrivacyError(refusal(f"secure sum, {what} {name!r}", found, remedy))

    def require_own(
        self, site: str, layout: str, words: int, weights: Mapping[str, float], entries: Mapping[str, int]
    ) -> None:
        """Raise PrivacyError unless the plan says of `site` what it knows of itself.

        layout, words: of what it trained; weights: kind -> what it weighs; entries: name -> size of what it has
        """
        where = f"secure sum, plan of attempt {self.attempt}"
        remedy = "the coordinator says other things of this site than it said itself: stop"
        if words and (layout, words) != (self.layout, self.words):
            raise PrivacyError(refusal(where, "it is for other tensors than were trained here", remedy))
        for kind, by_site in self.weights.items():
            if by_site.get(site, 0.0) != weights.get(kind, 0.0):
                found = f"this site weighs {by_site.get(site, 0.0):g} for {kind!r}"
                raise PrivacyError(refusal(where, found, f"it declared {weights.get(kind, 0.0):g}"))
        for name, entry in self.entries.items():
            if site in entry.sites and entries.get(name) != entry.size:
                raise PrivacyError(refusal(where, f"entry {name!r} is none of this site", remedy))
        for what in self.sums:
            everybody: set[str] = set().union(*(sites for _, sites in self.groups(what)))
            self.require_enough(what, site, everybody)

    def to_json(self) -> str:
        """Text with sorted keys."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Plan:
        """What `to_json` gave. Raises PrivacyError on anything else."""
        try:
            content = json.loads(text)
            entries = {
                str(name): Entry(_whole(entry["size"]), tuple(sorted(map(str, entry["sites"]))))
                for name, entry in sorted(content.pop("entries").items())
            }
            weights = {
                str(kind): {str(site): float(weight) for site, weight in sorted(by_site.items())}
                for kind, by_site in sorted(content.pop("weights").items())
            }
            plan = Plan(**content, weights=weights, entries=entries)
            _whole(plan.attempt), _whole(plan.words)
            if not all(math.isfinite(w) and w > 0 for by_site in weights.values() for w in by_site.values()):
                raise ValueError("a weight is not above 0")
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            remedy = "run the same version at both ends"
            raise PrivacyError(refusal("secure sum, plan", f"cannot be read ({error})", remedy)) from None
        return plan


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no whole number")
    return value


def planned_noise(terms: SiteTerms, asked: Secured, words: int, sites: int) -> SiteNoise:
    """The noise of one attempt, with the largest scale that fits.

    words: of the train sum; sites: how many are asked

    Raises ConfigError if words are too short for it, PrivacyError if no share would be counted.
    """
    threshold = least_survivors(sites, asked.threshold)
    noise = SiteNoise.planned(
        asked.bits,
        terms.clip,
        asked.range,
        words,
        sites,
        threshold,
        terms.colluding,
        terms.noise_multiplier,
    )
    if noise.l2 < LEAST_L2:
        found = f"an update has a length of {noise.l2:.3g} whole numbers, and {LEAST_L2:g} are needed"
        raise ConfigError(refusal(f"site noise in {asked.bits} bits", found, "use aggregation.bits=32"))
    return noise


def require_noise(plan: Plan, terms: SiteTerms | None, asked: Secured, sites: int) -> None:
    """Raise PrivacyError unless a plan has the noise that an order's terms ask for; its scale is free."""
    where = f"secure sum, plan of attempt {plan.attempt}"
    if terms is None or not plan.words:
        if plan.noise:
            raise PrivacyError(refusal(where, "it has noise that the order does not ask for", "stop"))
        return
    found = SiteNoise.from_json(plan.noise)
    wanted = planned_noise(terms, asked, plan.words, sites)
    if found.l2 < LEAST_L2 or dataclasses.replace(found, scale=wanted.scale) != wanted:
        remedy = "the coordinator asks for less noise than the order says: stop"
        raise PrivacyError(refusal(where, "its noise is not that of the order's terms", remedy))


def exact_words(values: NDArray[Any]) -> NDArray[Any]:
    """Words of numbers, "<u8" [2 n]: the whole parts, then the fractions in steps of 2^-40, both towards zero.

    Raises DataError on what is no number or beyond 2^50.
    """
    flat = np.asarray(values, np.float64).reshape(-1)
    if not (np.isfinite(flat).all() and (np.abs(flat) <= LARGEST).all()):
        raise DataError(refusal("exact sum", "found a number beyond 2^50, or none", "do not send it"))
    whole = np.trunc(flat)
    fraction = np.rint((flat - whole) * FRACTION)
    return np.concatenate([whole, fraction]).astype(np.int64).astype("<u8")


def exact_numbers(words: NDArray[Any]) -> NDArray[np.float64]:
    """What `exact_words` of a sum mean, float64 [n]."""
    signed = words.view("<i8")
    half = signed.size // 2
    return signed[:half].astype(np.float64) + signed[half:].astype(np.float64) / FRACTION


def require_addable(sites: int) -> None:
    """Raise ConfigError if exact numbers of so many sites could wrap."""
    FixedPoint.whole(LARGEST, sites)
