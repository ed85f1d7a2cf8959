"""What an order asks of a site's answer for the sake of privacy: `Order.privacy`, checked.

A coordinator proposes terms, for all sites alike; a site keeps to them or refuses, and its ledger decides whether
it can afford them. Everything in them is public: nothing here is computed from anybody's data.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pm1_core.errors import ConfigError
from pm1_core.validate import refusal, require_choice, require_keys, require_range

RECORD, SITE = "record", "site"
UNITS = (RECORD, SITE)
WEIGHTS = ("equal", "noised")


@dataclass(frozen=True)
class RecordTerms:
    """Neighbouring data differ by one person at one site, who is added or removed.

    noise_multiplier: standard deviation of the noise over the clipping bound of one unit; 0 where the answer does
        not depend on anybody's data (`Task.mechanisms` is then empty)
    clip: L2 bound of a unit's gradient
    sample_rate: chance that a unit is in a step (Poisson)
    steps: optimiser steps of a round
    group_size: people per unit on average, where a loss couples people; 1 makes everybody a unit
    people: the public number that stands for the site's own wherever a number of people scales something
    weights: "equal" (every site weighs 1 and no count leaves) or "noised"
    counts: noise multiplier of the counts of people that a site gives once per study, for "noised"

    Raises ConfigError on a value out of bounds.
    """

    noise_multiplier: float
    clip: float = 1.0
    sample_rate: float = 1.0
    steps: int = 1
    group_size: int = 1
    people: int = 1
    weights: str = "equal"
    counts: float = 0.0

    def __post_init__(self) -> None:
        for name in ("noise_multiplier", "counts"):
            require_range(f"privacy, {name}", getattr(self, name), 0.0, 1e9, ConfigError)
        require_range("privacy, clip", self.clip, 1e-6, 1e6, ConfigError)
        require_range("privacy, sample_rate", self.sample_rate, 1e-6, 1.0, ConfigError)
        for name in ("steps", "group_size", "people"):
            value = require_range(f"privacy, {name}", getattr(self, name), 1, 2**31, ConfigError)
            if not isinstance(value, int):
                raise ConfigError(refusal(f"privacy, {name}", f"found {value!r}", "use a whole number"))
        require_choice("privacy, weights", self.weights, WEIGHTS, ConfigError)
        if self.weights == "noised" and not self.counts:
            remedy = "give the counts a share of the budget, or use equal weights"
            raise ConfigError(refusal("privacy, counts", "noised weights without noise", remedy))

    @property
    def groups(self) -> int:
        """Units at a site, where a unit is a group: from public numbers alone."""
        return max(1, -(-self.people // self.group_size))

    @property
    def units(self) -> float:
        """Units that a step takes on average, by the public numbers: what a step's sum is divided by."""
        return self.sample_rate * (self.groups if self.group_size > 1 else self.people)


@dataclass(frozen=True)
class SiteTerms:
    """Neighbouring federations differ by one whole site, which is added or removed.

    clip: L2 bound of everything that a site's update changes, all tensors together
    noise_multiplier: standard deviation of the noise in the sum over `clip`, of the counted shares alone
    colluding: sites whose shares of the noise are not counted, because they may tell them to the coordinator

    Raises ConfigError on a value out of bounds.
    """

    noise_multiplier: float
    clip: float = 1.0
    colluding: int = 1

    def __post_init__(self) -> None:
        require_range("privacy, noise_multiplier", self.noise_multiplier, 0.0, 1e9, ConfigError)
        require_range("privacy, clip", self.clip, 1e-6, 1e6, ConfigError)
        require_range("privacy, colluding", self.colluding, 0, 1e6, ConfigError)


Terms = RecordTerms | SiteTerms
_OF: Mapping[str, type[RecordTerms] | type[SiteTerms]] = {RECORD: RecordTerms, SITE: SiteTerms}


def terms_of(privacy: Mapping[str, Any]) -> Terms | None:
    """Read `Order.privacy`; None if it asks for nothing. Raises ConfigError naming the first thing that is wrong.

    >>> terms_of({"unit": "record", "noise_multiplier": 1.5, "sample_rate": 0.1}).sample_rate
    0.1
    >>> terms_of({}) is None
    True
    """
    if not privacy:
        return None
    given = dict(privacy)
    kind = _OF[require_choice("privacy, unit", given.pop("unit", None), UNITS, ConfigError)]
    names = tuple(item.name for item in dataclasses.fields(kind))
    require_keys("privacy", given, ("noise_multiplier",), names, ConfigError)
    return kind(**given)


def record_terms(privacy: Mapping[str, Any]) -> RecordTerms | None:
    """The record-level terms of an order, None if it has none."""
    terms = terms_of(privacy)
    return terms if isinstance(terms, RecordTerms) else None


def to_order(terms: Terms) -> dict[str, Any]:
    """`terms` as an order carries them: what `terms_of` reads."""
    unit = RECORD if isinstance(terms, RecordTerms) else SITE
    return {"unit": unit, **dataclasses.asdict(typing.cast(Any, terms))}
