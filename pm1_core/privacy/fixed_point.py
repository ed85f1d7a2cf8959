"""Numbers as words that can be added up modulo 2^b, so that the sum over sites is exact.

A site's element x, of weight w, becomes the whole number q = R(w clip(x, -L, L) s), modulo 2^b in two's
complement: L is the largest element there may be, s the scale, R rounding to the nearest whole number (an
error of at most 1/2), or to one of the two next to it at random, so that the mean is right (an error below
1). Sums of q over any of the sites lie within

    L s sum(w) (1 + 2^-50) + n + reserve,       n: number of sites; reserve: what noise may add

where the factor covers float64's own rounding; that has to be at most 2^(b-1) - 1, or the encoding is
refused. Then no sum wraps, and decoding is its division by s and the weight of the sites in it: the mean of
the clipped elements but for rounding, which is at most n / (s sum(w)) and the same whichever order the sites
are added in.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pm1_core.errors import ConfigError, DataError
from pm1_core.validate import refusal, require_keys, require_range

_ROUNDING = 1.0 + 2.0**-50
_AT_ONCE = 1 << 16
_MOST_BITS = 64


@dataclass(frozen=True)
class FixedPoint:
    """One encoding, the same at all sites.

    bits: 16, 32 or 64
    limit: L, the largest absolute value of one element, before the weight
    scale: s
    weights: the weight of each site that is asked, above 0
    reserve: whole numbers kept free for noise

    Raises ConfigError if a sum could wrap, or a value is out of bounds.
    """

    bits: int
    limit: float
    scale: float
    weights: tuple[float, ...]
    reserve: int = 0

    def __post_init__(self) -> None:
        if self.bits not in (16, 32, 64):
            raise ConfigError(refusal("fixed point, bits", f"found {self.bits!r}", "use 16, 32 or 64"))
        require_range("fixed point, limit", self.limit, 1e-30, 1e30, ConfigError)
        require_range("fixed point, scale", self.scale, 1e-30, 1e30, ConfigError)
        require_range("fixed point, reserve", self.reserve, 0, 2**63, ConfigError)
        if not self.weights:
            raise ConfigError(refusal("fixed point, weights", "found none", "give one for each site"))
        for weight in self.weights:
            require_range("fixed point, weights", weight, 1e-30, 1e30, ConfigError)
        object.__setattr__(self, "weights", tuple(float(weight) for weight in self.weights))
        if self.largest_sum > self.most:
            found = f"a sum over {len(self.weights)} sites may reach {self.largest_sum:.6g}, past {self.most}"
            remedy = "lower the scale, the limit or the weights, or use more bits"
            raise ConfigError(refusal(f"fixed point of {self.bits} bits", found, remedy))

    @staticmethod
    def fitting(bits: int, limit: float, weights: Sequence[float], reserve: int = 0) -> FixedPoint:
        """With the largest scale that fits.

        Raises ConfigError if it leaves less than one step to an element of the site that weighs least.
        """
        room = 2 ** (bits - 1) - 1 - len(weights) - reserve
        total = math.fsum(weights)
        if not (total > 0 and limit > 0 and math.isfinite(total * limit)):
            remedy = "give weights and a limit above 0"
            raise ConfigError(refusal("fixed point", f"found limit {limit!r}, weights {total!r}", remedy))
        scale = room / (limit * total * _ROUNDING) * (1 - 2.0**-50)
        if scale * limit * min(weights) < 1:
            found = f"{room} whole numbers are left for weights from {min(weights):g} of {total:g}"
            raise ConfigError(refusal(f"fixed point of {bits} bits", found, "use more bits"))
        return FixedPoint(bits, limit, scale, tuple(weights), reserve)

    @staticmethod
    def whole(limit: int, sites: int) -> FixedPoint:
        """For whole numbers of at most `limit`, in 64 bits: their sums are exact."""
        return FixedPoint(_MOST_BITS, float(limit), 1.0, (1.0,) * sites)

    @property
    def most(self) -> int:
        """The largest whole number that a word can mean."""
        return int(2 ** (self.bits - 1)) - 1

    @property
    def largest_sum(self) -> float:
        """What no sum over sites exceeds, in whole numbers, noise included."""
        total = math.fsum(self.weights)
        return self.limit * self.scale * total * _ROUNDING + len(self.weights) + self.reserve

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the words: unsigned, little-endian."""
        return np.dtype(f"<u{self.bits // 8}")

    def encode(
        self, values: NDArray[Any], weight: float, generator: np.random.Generator | None = None
    ) -> NDArray[Any]:
        """Words of weight times values, one-dimensional, of `dtype`.

        values: any shape; of a floating type: what is beyond the limit is cut to it; of an integer type, with
        a scale
            and a weight that are whole: encoded exactly
        generator: rounds at random; without it, to the nearest

        Raises DataError on NaN, and on whole numbers beyond the limit, which are not cut; ConfigError on a
        weight that is not one of `weights`.
        """
        if float(weight) not in self.weights:
            remedy = "use the weight that was declared"
            raise ConfigError(refusal("fixed point, weight", f"found {weight!r}", remedy))
        flat = np.ascontiguousarray(values).reshape(-1)
        if flat.dtype.kind in "iub":
            return self._encode_whole(flat, weight)
        out = np.empty(flat.size, self.dtype)
        signed = np.dtype(f"<i{self.bits // 8}")
        for start in range(0, flat.size, _AT_ONCE):
            part = flat[start : start + _AT_ONCE].astype(np.float64)
            np.clip(part, -self.limit, self.limit, out=part)
            np.multiply(part, weight * self.scale, out=part)
            if generator is None:
                np.rint(part, out=part)
            else:
                np.add(part, generator.random(part.size), out=part)
                np.floor(part, out=part)
            if not math.isfinite(part.sum()):
                raise DataError(refusal("fixed point", "found a value that is no number", "do not send it"))
            out[start : start + _AT_ONCE] = part.astype(signed).view(self.dtype)
        return out

    def _encode_whole(self, flat: NDArray[Any], weight: float) -> NDArray[Any]:
        factor = weight * self.scale
        if factor != int(factor):
            remedy = "give floating values, or a scale and a weight that are whole"
            raise ConfigError(refusal("fixed point", f"whole numbers times {factor:g}", remedy))
        if flat.size and max(int(flat.max()), -int(flat.min())) > self.limit:
            found = f"found whole numbers from {flat.min()} to {flat.max()}"
            raise DataError(refusal("fixed point", found, f"the limit is {self.limit:g}: raise it"))
        return (flat.astype(np.int64) * int(factor)).astype(self.dtype)

    def outside(self, values: NDArray[Any]) -> int:
        """How many values are beyond the limit and would be cut."""
        return int(np.count_nonzero(np.abs(values) > self.limit))

    def integers(self, words: NDArray[Any]) -> NDArray[np.int64]:
        """The whole numbers that words of a sum mean."""
        return words.view(np.dtype(f"<i{self.bits // 8}")).astype(np.int64)

    def decode(self, words: NDArray[Any], weight: float = 1.0) -> NDArray[np.float64]:
        """The sum over sites divided by scale and `weight`: their mean, if it is the survivors' summed weight."""
        decoded = words.view(np.dtype(f"<i{self.bits // 8}")).astype(np.float64)
        np.divide(decoded, self.scale * weight, out=decoded)
        return decoded

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return {**dataclasses.asdict(self), "weights": list(self.weights)}

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> FixedPoint:
        """What `to_json` gave. Raises ConfigError naming the first thing that is wrong."""
        names = [item.name for item in dataclasses.fields(FixedPoint)]
        values = dict(require_keys("fixed point", content, names, error=ConfigError))
        if not isinstance(values["weights"], list):
            raise ConfigError(refusal("fixed point, weights", "found no list", "give one for each site"))
        return FixedPoint(**{**values, "weights": tuple(values["weights"])})
