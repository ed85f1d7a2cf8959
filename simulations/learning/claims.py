"""A claim held against the figures of several seeds: a difference with its interval, and a verdict.

A claim compares two sets of figures of a seed, key by key (a chromosome, a disease), and gives the seed one number:
the mean of the differences, or the smallest one where the claim says "every". People and starting weights of a seed
are the same on both sides, so that the interval over seeds is that of a paired difference, by Student's t.

    appears           the whole interval is above 0 (above -margin where the claim is "not worse")
    does not appear   no part of it is
    undecided         otherwise, and with one seed, which has no interval
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simulations.sweep_table import Band, band

APPEARS, ABSENT, UNDECIDED = "appears", "does not appear", "undecided"

Seed = Mapping[str, Mapping[str, float]]
"""Part ("encoders", or a variant of the fusion phase) -> figure -> number, of one seed."""


def figures_of(seed: Seed, pattern: str | float) -> dict[str, float]:
    """Figures of a part by what stands for the asterisk, sorted, or one figure, or a number that all seeds share.

    >>> seed = {"full": {"auc.P.glaucoma": 0.7, "auc.P.cataract": 0.6, "auc.P+I.glaucoma": 0.8}}
    >>> figures_of(seed, "full/auc.P.*"), figures_of(seed, "full/auc.P.glaucoma"), figures_of(seed, 0.5)
    ({'cataract': 0.6, 'glaucoma': 0.7}, {'': 0.7}, {'': 0.5})
    """
    if not isinstance(pattern, str):
        return {"": pattern}
    part, _, name = pattern.partition("/")
    head, star, _ = name.partition("*")
    own = seed[part]
    if not star:
        return {"": own[name]} if name in own else {}
    return {figure.removeprefix(head): own[figure] for figure in sorted(own) if figure.startswith(head)}


@dataclass(frozen=True)
class Claim:
    """That `first` is better than `second`, patterns of `figures_of`.

    name: of the claim, and in `place` of the paper; text: the claim in words
    sides: what the two are, in words
    keys: those that count, if not all; every: the smallest difference counts, not the mean
    lower: smaller figures are better; margin: by how much `first` may be worse
    """

    name: str
    place: str
    text: str
    sides: tuple[str, str]
    first: str
    second: str | float
    keys: tuple[str, ...] = ()
    every: bool = False
    lower: bool = False
    margin: float = 0.0

    def compared(self, seed: Seed) -> tuple[float, float, float] | None:
        """Mean of each side, and what `first` is better by; None if the seed has no such figures."""
        first, second = figures_of(seed, self.first), figures_of(seed, self.second)
        keys = [key for key in first if key in second and (not self.keys or key in self.keys)]
        if not keys:
            return None
        gains = [(second[key] - first[key]) if self.lower else (first[key] - second[key]) for key in keys]
        one, other = (sum(side[key] for key in keys) / len(keys) for side in (first, second))
        return one, other, min(gains) if self.every else sum(gains) / len(gains)

    def held(self, seeds: Mapping[str, Seed], reason: str = "") -> dict[str, Any] | None:
        """The claim with its numbers by seed and its verdict, plain types; None if no seed has figures for it.

        reason: why it does not appear, where somebody found out
        """
        found = {name: numbers for name, seed in seeds.items() if (numbers := self.compared(seed))}
        if not found:
            return None
        first, second, gain = ({name: row[place] for name, row in found.items()} for place in range(3))
        over = band(list(gain.values()))
        return {
            "name": self.name,
            "place": self.place,
            "claim": self.text,
            "first": {"what": self.sides[0], "mean": band(list(first.values())).mean, "seeds": first},
            "second": {"what": self.sides[1], "mean": band(list(second.values())).mean, "seeds": second},
            "difference": {**interval(over), "seeds": gain},
            "smallest": self.every,
            "lower": self.lower,
            "margin": self.margin,
            "verdict": verdict(over, self.margin),
            "reason": reason,
        }


def verdict(over: Band, margin: float = 0.0) -> str:
    """What an interval says of "above -margin".

    >>> verdict(Band(0.2, 0.1, 0.3, (0.2,))), verdict(Band(0.0, 0.0, 0.0, (0.0,)))
    ('appears', 'does not appear')
    >>> verdict(Band(0.0, -0.1, 0.1, (0.0,))), verdict(Band(0.2, math.nan, math.nan, (0.2,)))
    ('undecided', 'undecided')
    """
    if over.low > -margin:
        return APPEARS
    return ABSENT if over.high <= -margin else UNDECIDED


def interval(over: Band) -> dict[str, float | None]:
    """{"mean", "low", "high"} for JSON, which has no NaN."""
    return {
        "mean": over.mean,
        "low": None if math.isnan(over.low) else over.low,
        "high": None if math.isnan(over.high) else over.high,
    }
