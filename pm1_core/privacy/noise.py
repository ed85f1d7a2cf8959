"""Randomness that nobody can guess, and Gaussian noise whose bits tell nothing.

Two ways in which noise that is Gaussian on paper gives its data away:

- *An ordinary generator.* Whoever learns a few hundred outputs, or the seed, knows all the noise and takes it
  away. `secret_generator` is AES-128 in counter mode, keyed by the operating system. It is made where it is
  used, in the process that uses it, and never stored: two processes that share one (a fork) would draw the same
  noise.
- *Floating point.* The sums x + noise that a machine can make differ from one x to another, so that the low
  bits of a release tell which x it was (Mironov 2012, "On significance of the least significant bits for
  differential privacy"). `gaussian` therefore adds whole numbers: it is a function of a whole number of grid
  steps, with noise that is a whole number of grid steps, whose set of possible outcomes is the same for every x.

Theorem (`gaussian`). Let f move by at most S in L2 norm when one unit is added or removed, D <= 2^32 be the
number of values released together, g <= S 2^-26 the grid, and R rounding to it. Then R(f) moves by at most S +
g sqrt(D) <= S (1 + 2^-10), since each value of each neighbour is moved by at most g/2. As R(f)/g is whole, R(f)
+ R(N) = R(R(f) + N) for every N: what is released is post-processing of the Gaussian mechanism on R(f). With N
of standard deviation z S (1 + 2^-10) it is exactly as private as the Gaussian mechanism of noise multiplier z
on f. Assumption: numpy's ziggurat, in double precision, draws from a normal distribution. Its steps (2^-52 of a
layer) are far smaller than g, and whether they are does not depend on x.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from randomgen import AESCounter

from pm1_core.errors import PrivacyError
from pm1_core.validate import refusal, require_range

_GRID_BITS = 26
_MOST_VALUES = 2**32
_SLACK = 1.0 + 2.0**-10
"""1 + 2^-26 sqrt(2^32): what rounding to the grid can add to the sensitivity."""
_LARGEST = 2.0**51
"""Grid steps to which a value is cut, which moves no two values apart; sums of two such are exact in float64."""
_AT_ONCE = 1 << 15


def secret_generator() -> np.random.Generator:
    """A generator over AES-128 in counter mode (FIPS 197) with a fresh key from the operating system."""
    return _keyed(secrets.randbits(128))


def _keyed(key: int) -> np.random.Generator:
    return np.random.Generator(AESCounter(key=key, counter=0))


def grid(sensitivity: float) -> float:
    """The grid of a release: the largest power of two that is at most 2^-26 of its sensitivity.

    >>> grid(1.0) == 2.0**-26, grid(1.99) == 2.0**-26
    (True, True)
    """
    return 2.0 ** (math.floor(math.log2(sensitivity)) - _GRID_BITS)


def gaussian(
    values: NDArray[Any], sensitivity: float, noise_multiplier: float, generator: np.random.Generator
) -> NDArray[Any]:
    """`gaussian_each` of a single array."""
    return gaussian_each([values], sensitivity, noise_multiplier, generator)[0]


def gaussian_each(
    arrays: Sequence[NDArray[Any]],
    sensitivity: float,
    noise_multiplier: float,
    generator: np.random.Generator,
    divisor: float = 1.0,
    threads: int = 1,
) -> list[NDArray[Any]]:
    """Arrays with noise of standard deviation `noise_multiplier * sensitivity` (and 0.1% more), on the grid.

    arrays: float32 or float64, any shapes; what is not a number counts as zero. What comes back has the same
        shapes and dtypes; where float32 is too short for the grid it is rounded, which is post-processing
    sensitivity: how far in L2 norm one unit moves everything that is released together; up to 2^32 numbers in
        all, in one call or several
    generator: from `secret_generator`
    divisor: a public number by which what is released is divided afterwards
    threads: that draw noise at the same time, each under a key of its own that `generator` drew

    Raises PrivacyError if there would be no noise, or the release is too large for the theorem above.
    """
    for name, value in (("sensitivity", sensitivity), ("noise multiplier", noise_multiplier)):
        if not (math.isfinite(value) and value > 0):
            remedy = "give a number above 0, or release nothing that depends on people"
            raise PrivacyError(refusal(name, f"found {value!r}", remedy))
    if (size := sum(values.size for values in arrays)) > _MOST_VALUES:
        remedy = f"release at most {_MOST_VALUES} numbers together"
        raise PrivacyError(refusal("noise", f"found {size} numbers", remedy))
    step = grid(sensitivity)
    scale = noise_multiplier * sensitivity * _SLACK / step
    if scale > _LARGEST / 64:
        raise PrivacyError(
            refusal("noise multiplier", f"found {noise_multiplier:g}", "use less noise, or send nothing")
        )
    given = [np.ascontiguousarray(values).reshape(-1) for values in arrays]
    noised = [np.empty_like(flat) for flat in given]
    pieces = [
        (flat[start : start + _AT_ONCE], out[start : start + _AT_ONCE])
        for flat, out in zip(given, noised, strict=True)
        for start in range(0, flat.size, _AT_ONCE)
    ]
    noise = _Noise(step, scale, step / divisor)
    if threads <= 1 or len(pieces) < 2 * threads:
        noise.add(pieces, generator)
    else:
        keys = [int.from_bytes(generator.bytes(16), "little") for _ in range(threads)]
        with ThreadPoolExecutor(threads) as pool:
            found = [pool.submit(noise.add, pieces[k::threads], _keyed(key)) for k, key in enumerate(keys)]
            for one in found:
                one.result()  # raises what a thread raised
    return [out.reshape(values.shape) for out, values in zip(noised, arrays, strict=True)]


@dataclass(frozen=True)
class _Noise:
    """step: of the grid; scale: the noise's standard deviation in steps; unit: what a step becomes."""

    step: float
    scale: float
    unit: float

    def add(
        self, pieces: Sequence[tuple[NDArray[Any], NDArray[Any]]], generator: np.random.Generator
    ) -> None:
        """Write each piece's first, up to _AT_ONCE numbers, with noise into its second; in steps until the end."""
        numbers, noises = np.empty(_AT_ONCE), np.empty(_AT_ONCE)
        for flat, out in pieces:
            steps, noise = numbers[: flat.size], noises[: flat.size]
            np.multiply(flat, 1 / self.step, out=steps, dtype=np.float64)  # exact: a power of two
            if not max(steps.max(), -steps.min()) <= _LARGEST:  # or something is not a number
                np.nan_to_num(steps, copy=False, nan=0.0, posinf=_LARGEST, neginf=-_LARGEST)
                np.clip(steps, -_LARGEST, _LARGEST, out=steps)
            np.rint(steps, out=steps)
            generator.standard_normal(out=noise)
            np.multiply(noise, self.scale, out=noise)
            np.rint(noise, out=noise)
            np.add(steps, noise, out=steps)
            np.multiply(steps, self.unit, out=out, casting="same_kind")


def poisson_sample(n: int, rate: float, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Who is in a step: each of `n` units with probability `rate`, independently of all others, bool [n].

    That is what accounting by Poisson sampling assumes; batches of a fixed size, or a shuffled pass over
    everybody, are other mechanisms with other figures (Chua et al. 2024, "How private are DP-SGD
    implementations?").

    generator: from `secret_generator`, never one that follows from an order's seed. The gain of sampling is that
        nobody knows who was in a step; the coordinator knows the seed, and would know that.

    Raises InputError if `rate` is not from 0 to 1.
    """
    require_range("sampling rate", rate, 0.0, 1.0)
    taken: NDArray[np.bool_] = generator.random(n) < rate
    return taken
