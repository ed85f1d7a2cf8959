"""Noise that hides a whole site in a sum, of which each site adds a share that is too small alone.

Each site cuts its update x to L2 norm C, rounds s x to whole numbers q, and adds a difference of two Poisson
numbers of mean mu / (2 h) to each of its d words before it masks them (Skellam noise of variance mu / h). T
sites have to survive, at most c of them collude with the coordinator and take their own shares away again, h
= T - c: the sum carries noise of variance mu or more whoever is lost, since Skellam variables add up to
Skellam variables.

Unit and neighbours: one honest site's update, which is what it is in one case and zero in the other. That the
site takes part, with a share of noise, is not hidden. The coordinator, the colluding sites and everybody who
gets the sum are kept from more than the bound below; masks that hide the words of each site are assumed
(`pm1_core.privacy.secure_sum`).

Sensitivity, rounding included. y = s x has |y| <= s C. Rounded at random to one of the two next whole
numbers, q has E |q|^2 <= |y|^2 + d/4, and with probability 1 - b at least (Kairouz, Liu and Steinke 2021,
"The distributed discrete Gaussian mechanism ...", section 4.1, for b = 2^-40)

    |q|^2 <= l2^2 = (s C)^2 + d/4 + sqrt(2 log(1/b)) (s C + sqrt(d)/2).

It holds always: `SiteRounding` rounds a chunk towards zero, which lengthens nothing, where it would come too
close to the bound. As q is whole, |q|_1 <= l1 = min(sqrt(d) l2, l2^2). Zero is the neighbour of every q, so
l2 and l1 are the sensitivities.

Theorem (Agarwal, Kairouz and Liu 2021, "The Skellam mechanism for differentially private federated learning",
section 3, the bound for vectors). For whole alpha > 1 the sum's Rényi divergence of order alpha between
neighbours is at most

    alpha l2^2 / (2 mu) + min(((2 alpha - 1) l2^2 + 6 l1) / (4 mu^2), 3 l1 / (2 mu)).

The sum is opened modulo 2^b. That is post-processing: a sum that wraps costs accuracy and no privacy, so
nothing of it goes into delta. It happens with probability below 2^-40 in any of d words, with noise of all n
sites, by the Chernoff bound P(|N| >= B) <= 2 exp(v (sqrt(1 + (B/v)^2) - 1) - B asinh(B/v)) for Skellam noise
of variance v; B is the encoding's `reserve`.

Assumption: numpy draws Poisson numbers from their distribution. Its rejection test (Hörmann 1993, PTRS)
compares logarithms of about lambda log(lambda) in double precision; lambda is kept at most 2^30, where that
is off by less than 1e-5.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pm1_core.errors import ConfigError, DataError, PrivacyError
from pm1_core.privacy.fixed_point import FixedPoint
from pm1_core.privacy.mechanisms import SITE, SKELLAM, Mechanism
from pm1_core.validate import refusal, require_keys, require_range

WRAPS = 2.0**-40
"""Probability that a sum wraps in any of its words, at most."""
LEAST_L2 = 1000.0
"""Sensitivity in whole numbers, at least: from here on Skellam noise costs what Gaussian noise does."""
_ROUNDED_DOWN = 2.0**-40
_LARGEST_MEAN = 2.0**30
_FLOAT = 1.0 + 2.0**-30
_AT_ONCE = 1 << 16


def skellam_rdp(
    alpha: NDArray[np.float64] | float, variance: float, l1: float, l2: float
) -> NDArray[np.float64]:
    """Rényi divergence of order `alpha` that Skellam noise leaves, at most: the theorem above.

    alpha: one or several orders; infinite where it is not a whole number above 1, for which no bound is known
    variance: mu, of the noise that is counted, in whole numbers
    l1, l2: how far a unit moves the whole numbers
    """
    orders = np.asarray(alpha, np.float64)
    far = np.minimum(((2 * orders - 1) * l2**2 + 6 * l1) / (4 * variance**2), 3 * l1 / (2 * variance))
    known = (orders == np.floor(orders)) & (orders > 1)
    return np.where(known, orders * l2**2 / (2 * variance) + far, np.inf)


def nominal(noise_multiplier: float, steps: int = 1) -> Mechanism:
    """What `steps` sums cost at most, whatever their words, sites and scale, of sensitivity `LEAST_L2` or more.

    The second term of the bound falls with l2 at the same noise multiplier, and l1 is at most l2^2.
    """
    return Mechanism(SKELLAM, noise_multiplier, steps=steps, unit=SITE, l1=LEAST_L2**2, l2=LEAST_L2)


@dataclass(frozen=True)
class SiteNoise:
    """What all sites have to be told alike about noise: public numbers only.

    bits: of a word; clip: C, L2 bound of a site's update; limit: largest absolute value of one element, to
    which it is cut before the clipping; scale: s; words: d; sites: n; threshold: T; colluding: c
    noise_multiplier: z, sqrt(mu) / l2

    Raises ConfigError on what is out of bounds or could wrap, PrivacyError if no share would be counted.
    """

    bits: int
    clip: float
    limit: float
    scale: float
    words: int
    sites: int
    threshold: int
    colluding: int
    noise_multiplier: float

    def __post_init__(self) -> None:
        for name in ("clip", "limit", "scale", "noise_multiplier"):
            require_range(f"site noise, {name}", getattr(self, name), 1e-12, 1e12, ConfigError)
        for name, low in (("words", 1), ("sites", 1), ("threshold", 1), ("colluding", 0)):
            value = require_range(f"site noise, {name}", getattr(self, name), low, 2**44, ConfigError)
            if not isinstance(value, int):
                raise ConfigError(refusal(f"site noise, {name}", f"found {value!r}", "use a whole number"))
        if self.colluding >= self.threshold or self.threshold > self.sites:
            found = f"{self.colluding} of {self.threshold} survivors of {self.sites} sites may collude"
            raise PrivacyError(refusal("site noise", found, "no share of noise is left: ask more sites"))
        if self.share > 2 * _LARGEST_MEAN * _FLOAT:
            raise ConfigError(refusal("site noise, scale", f"found {self.scale:g}", "use a smaller one"))
        if self.l2 > 2 * self.scale * self.clip:
            length = self.scale * self.clip
            found = f"rounding {self.words} words lengthens an update from {length:.3g} to {self.l2:.3g}"
            raise ConfigError(
                refusal(f"site noise in {self.bits} bits", found, "use more bits, or fewer sites")
            )
        assert self.fixed  # raises ConfigError if a sum could wrap

    @staticmethod
    def planned(
        bits: int,
        clip: float,
        limit: float,
        words: int,
        sites: int,
        threshold: int,
        colluding: int,
        noise_multiplier: float,
    ) -> SiteNoise:
        """With the largest scale for which a sum does not wrap and Poisson numbers are drawn well."""
        rest = (words, sites, threshold, colluding, noise_multiplier)
        limit = min(limit, clip)
        low, high = 1e-12, 2.0 ** (bits - 1) / limit
        for _ in range(60):
            middle = math.sqrt(low * high)
            if _fits(bits, clip, limit, middle, *rest):
                low = middle
            else:
                high = middle
        return SiteNoise(bits, clip, limit, low, *rest)

    @cached_property
    def l2(self) -> float:
        """L2 norm of a site's whole numbers, at most."""
        return _l2(self.scale * self.clip, self.words)

    @property
    def l1(self) -> float:
        """L1 norm of a site's whole numbers, at most."""
        return min(math.sqrt(self.words) * self.l2, self.l2**2)

    @property
    def variance(self) -> float:
        """Of the noise in a word of the sum that is counted: mu."""
        return (self.noise_multiplier * self.l2) ** 2

    @property
    def share(self) -> float:
        """Variance of the noise that one site adds to a word: mu / (T - c)."""
        return self.variance / (self.threshold - self.colluding)

    @cached_property
    def fixed(self) -> FixedPoint:
        """How words are encoded: every site weighs one."""
        reserve = reach(self.share * self.sites, self.words)
        return FixedPoint(self.bits, self.limit, self.scale, (1.0,) * self.sites, reserve)

    def mechanism(self, steps: int = 1) -> Mechanism:
        """What a site's ledger is charged for `steps` sums."""
        return Mechanism(SKELLAM, self.noise_multiplier, steps=steps, unit=SITE, l1=self.l1, l2=self.l2)

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> SiteNoise:
        """What `to_json` gave. Raises ConfigError naming the first thing that is wrong."""
        names = [item.name for item in dataclasses.fields(SiteNoise)]
        return SiteNoise(**require_keys("site noise", content, names, error=ConfigError))


class SiteRounding:
    """One site's update on its way into words, tensor by tensor: cut, rounded, with this site's share of the
    noise.

    plan: as all sites were told
    norm: L2 norm of the whole update, all tensors together, its elements cut to `plan.limit`
    generator: from `pm1_core.privacy.noise.secret_generator`
    """

    def __init__(self, plan: SiteNoise, norm: float, generator: np.random.Generator) -> None:
        if not (math.isfinite(norm) and norm >= 0):
            raise DataError(refusal("site noise, norm", f"found {norm!r}", "send no such update"))
        self.plan = plan
        self._factor = min(1.0, plan.clip / norm) if norm else 1.0
        self._generator = generator
        # What has not been used of |y|^2, and of |q|^2; the second is never smaller than the first.
        self._left = (plan.scale * plan.clip) ** 2 * _FLOAT
        self._budget = plan.l2**2
        self._words = 0

    def words(self, values: NDArray[Any]) -> NDArray[Any]:
        """Words of `values`, any shape and floating type; one-dimensional, of `plan.fixed.dtype`, not masked
        yet.

        Raises DataError on NaN; PrivacyError if the update is longer than `norm` said, or has more than
        `plan.words`.
        """
        flat = np.ascontiguousarray(values).reshape(-1)
        self._words += flat.size
        if self._words > self.plan.words:
            found = f"found {self._words} values of {self.plan.words}"
            raise PrivacyError(refusal("site noise", found, "the update is not what was planned for"))
        out = np.empty(flat.size, self.plan.fixed.dtype)
        mean = self.plan.share / 2
        for start in range(0, flat.size, _AT_ONCE):
            whole = self._rounded(flat[start : start + _AT_ONCE])
            whole += self._generator.poisson(mean, whole.size)
            whole -= self._generator.poisson(mean, whole.size)
            out[start : start + _AT_ONCE] = whole.astype(out.dtype)
        return out

    def _rounded(self, values: NDArray[Any]) -> NDArray[np.int64]:
        y = values.astype(np.float64)
        np.clip(y, -self.plan.limit, self.plan.limit, out=y)
        np.multiply(y, self._factor * self.plan.scale, out=y)
        used = float(y @ y)
        if math.isnan(used):
            raise DataError(refusal("site noise", "found a value that is no number", "do not send it"))
        self._left -= used
        if self._left < 0:
            raise PrivacyError(refusal("site noise", "the update is longer than its norm", "give its norm"))
        q = np.floor(y + self._generator.random(y.size))
        if self._budget - float(q @ q) < self._left:
            q = np.trunc(y)
        self._budget -= float(q @ q)
        return q.astype(np.int64)


def reach(variance: float, words: int, probability: float = WRAPS) -> int:
    """The least B that Skellam noise of this variance passes in any of `words` words with at most
    `probability`.

    >>> reach(100.0, 1)
    78
    """
    least = math.log(probability / (2 * words))

    def passes(bound: float) -> bool:
        ratio = bound / variance
        # sqrt(1 + r^2) - 1 as r^2 / (1 + sqrt(1 + r^2)), which does not cancel for small r.
        exponent = variance * ratio**2 / (1 + math.sqrt(1 + ratio**2)) - bound * math.asinh(ratio)
        return exponent <= least

    low, high = 0, 1
    while not passes(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high


def _l2(length: float, words: int) -> float:
    slack = math.sqrt(2 * math.log(1 / _ROUNDED_DOWN)) * (length + math.sqrt(words) / 2)
    return math.sqrt((length**2 + words / 4 + slack) * _FLOAT)


def _fits(
    bits: int,
    clip: float,
    limit: float,
    scale: float,
    words: int,
    sites: int,
    threshold: int,
    colluding: int,
    noise_multiplier: float,
) -> bool:
    share = (noise_multiplier * _l2(scale * clip, words)) ** 2 / max(1, threshold - colluding)
    if share > 2 * _LARGEST_MEAN:
        return False
    room = 2 ** (bits - 1) - 1 - sites - reach(share * sites, words)
    return bool(limit * scale * sites * (1 + 2.0**-49) <= room)
