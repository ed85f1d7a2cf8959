"""Kinds of noisy release, as an accountant sees them.

`steps` releases of one kind are made one after another, each of which may depend on those before it.
Neighbouring data differ by one unit that is added or removed: a person at a site ("record"), or a whole site
("site"). S is how far the unclipped part of a release moves in L2 norm, C a clipping bound; z the noise
multiplier.

gaussian  f + N(0, (z S)^2).
sampled   every person is in a step with probability q (Poisson); sums of gradients clipped to C, plus N(0, (z
          C)^2). Adding a person changes nothing with probability 1 - q, and moves the sum by at most C otherwise.
grouped   every person belongs to one group, which a keyed hash fixes without looking at anybody else; there is a
          public number of groups, which may be empty. Every group is in a step with probability q; a group's
          gradient is clipped to C, plus N(0, (z C)^2). Adding a person *changes* one group's gradient from one
          vector of norm <= C to another, which moves the sum by up to 2C, not C.
skellam   whole numbers in the sum of all sites, plus a difference of two Poisson numbers of total variance
          mu = (z l2)^2 in each; a unit moves the numbers by at most l2 in L2 and l1 in L1 norm, rounding
          included.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pm1_core.errors import ConfigError
from pm1_core.validate import refusal, require_choice, require_keys, require_range

GAUSSIAN, SAMPLED, GROUPED, SKELLAM = KINDS = ("gaussian", "sampled", "grouped", "skellam")
RECORD, SITE = UNITS = ("record", "site")
_OF_SITES = (GAUSSIAN, SKELLAM)


@dataclass(frozen=True)
class Mechanism:
    """One kind of noisy release, `steps` times.

    kind: see above
    noise_multiplier: z, above 0
    sample_rate: q, for "sampled" and "grouped"
    unit: whose presence it hides
    l1, l2: for "skellam", in whole numbers

    Raises ConfigError on what is out of bounds or does not go together.
    """

    kind: str
    noise_multiplier: float
    sample_rate: float = 1.0
    steps: int = 1
    unit: str = RECORD
    l1: float = 0.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        require_choice("mechanism, kind", self.kind, KINDS, ConfigError)
        require_choice("mechanism, unit", self.unit, UNITS, ConfigError)
        where = f"mechanism {self.kind!r}"
        require_range(f"{where}, noise_multiplier", self.noise_multiplier, 1e-12, 1e9, ConfigError)
        require_range(f"{where}, sample_rate", self.sample_rate, 1e-9, 1.0, ConfigError)
        require_range(f"{where}, steps", self.steps, 1, 2**40, ConfigError)
        if not isinstance(self.steps, int):
            raise ConfigError(refusal(f"{where}, steps", f"found {self.steps!r}", "use a whole number"))
        if self.sample_rate < 1 and self.kind in _OF_SITES:
            remedy = "use 'sampled' or 'grouped', or a rate of 1"
            raise ConfigError(refusal(where, f"found a sampling rate of {self.sample_rate}", remedy))
        if self.unit == SITE and self.kind not in _OF_SITES:
            raise ConfigError(refusal(where, "found unit 'site'", f"use one of {', '.join(_OF_SITES)}"))
        if self.kind == SKELLAM:
            for name in ("l1", "l2"):
                require_range(f"{where}, {name}", getattr(self, name), 1e-9, 1e18, ConfigError)

    @property
    def kind_alone(self) -> Mechanism:
        """This mechanism once."""
        return replace(self, steps=1)

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Mechanism:
        """What `to_json` gave. Raises ConfigError naming the first thing that is wrong."""
        names = [item.name for item in dataclasses.fields(Mechanism)]
        return Mechanism(**require_keys("mechanism", content, names[:2], names[2:], ConfigError))


def as_record(mechanism: Mechanism) -> Mechanism:
    """What hides a site, as it hides one person there.

    A person who is added *changes* the site's clipped vector from one of norm <= S to another, which moves the
    sum by up to 2 S: half the noise multiplier, twice the sensitivities.
    """
    if mechanism.unit == RECORD:
        return mechanism
    return replace(
        mechanism,
        unit=RECORD,
        noise_multiplier=mechanism.noise_multiplier / 2,
        l1=2 * mechanism.l1,
        l2=2 * mechanism.l2,
    )


def merged(mechanisms: Iterable[Mechanism]) -> tuple[Mechanism, ...]:
    """Equal mechanisms as one with the sum of their steps, in an order that does not depend on the given one.

    Gaussian mechanisms without sampling, of the same unit, become a single one, exactly: z^-2 = sum of steps
    z_i^-2 (their composition is the Gaussian mechanism on the concatenation of f_i / z_i).

    >>> merged([Mechanism("gaussian", 2.0, steps=3), Mechanism("gaussian", 2.0)])
    (Mechanism(kind='gaussian', noise_multiplier=1.0, sample_rate=1.0, steps=1, unit='record', l1=0.0, l2=0.0),)
    """
    steps: dict[Mechanism, int] = {}
    for item in mechanisms:
        steps[item.kind_alone] = steps.get(item.kind_alone, 0) + item.steps
    out: list[Mechanism] = []
    precision: dict[str, list[float]] = {}
    for item, count in steps.items():
        if item.kind != SKELLAM and item.sample_rate == 1:
            moves = 2 if item.kind == GROUPED else 1
            precision.setdefault(item.unit, []).append(count * (moves / item.noise_multiplier) ** 2)
        else:
            out.append(replace(item, steps=count))
    out += [Mechanism(GAUSSIAN, math.sqrt(1 / math.fsum(p)), unit=unit) for unit, p in precision.items()]
    return tuple(sorted(out, key=dataclasses.astuple))
