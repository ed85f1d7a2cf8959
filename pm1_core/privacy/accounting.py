"""What a list of releases costs together: the smallest epsilon that an accountant can show for a delta.

Three accountants bound the same thing. Rényi divergences ("rdp") add up and are quick; privacy loss distributions
("pld", dp-accounting) are discretised so that the true epsilon is never above the figure, and close to it; if
all is plain Gaussian noise, the closed form ("analytic", Balle and Wang 2018) is exact. Each is an upper bound
by itself, so the smallest is one too. A fourth, Opacus' PRV, bounds from both sides and is what the others are
tested against (`pm1_core.training.accountants`).

Statement: for any two data sets that differ in one unit (added or removed), and any set of outcomes Y of all
releases together, P(Y) <= e^epsilon P'(Y) + delta, where each release may have been chosen with the earlier
ones in view. Assumed are the mechanisms as described in `pm1_core.privacy.mechanisms`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from dp_accounting import get_epsilon_gaussian
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
from dp_accounting.rdp.rdp_privacy_accountant import compute_delta, compute_epsilon

from pm1_core.errors import ConfigError
from pm1_core.privacy import curves
from pm1_core.privacy.mechanisms import GAUSSIAN, RECORD, SKELLAM, Mechanism, merged
from pm1_core.validate import refusal, require_range

_LOOSE = 100.0
"""Above this epsilon nothing is protected, and it is not worked out more closely than by Rényi divergences."""
_SMALLEST_DELTA = 1e-10
"""Below it the rounding errors of the Fourier transforms matter, and only the other accountants are asked."""
_DISCRETISATION = 2e-3
"""Share of the composed loss' variance that rounding to the grid may add."""
_MOST_POINTS = 1 << 21
_FINEST, _COARSEST = 2.0**-20, 2.0**-5


@dataclass(frozen=True)
class Epsilon:
    """An upper bound on epsilon at `delta`, of which accountant, for a unit that is added or removed.

    >>> print(Epsilon(1.2345, "pld", 1e-5, "record"))
    epsilon 1.234 at delta 1e-05 (unit record, accountant pld)
    """

    value: float
    accountant: str
    delta: float
    unit: str = RECORD

    def __str__(self) -> str:
        figure = f"epsilon {self.value:.3f} at delta {self.delta:g}"
        return f"{figure} (unit {self.unit}, accountant {self.accountant})"


def tightest(mechanisms: Iterable[Mechanism], delta: float) -> Epsilon:
    """The smallest epsilon shown for `mechanisms` composed; infinite if no accountant has a bound, 0 for none.

    Raises ConfigError if they are of several units, or delta is not between 0 and 1.
    """
    composed, unit = _composed(mechanisms, delta)
    if not composed:
        return Epsilon(0.0, "none", delta, unit)
    found = {"rdp": rdp_epsilon(composed, delta)}
    if found["rdp"] <= _LOOSE and len(composed) == 1 and composed[0].kind == GAUSSIAN:
        found["analytic"] = get_epsilon_gaussian(composed[0].noise_multiplier, delta)
    elif found["rdp"] <= _LOOSE:
        found["pld"] = pld_epsilon(composed, delta)
    accountant = min(found, key=lambda name: found[name])
    return Epsilon(found[accountant], accountant, delta, unit)


def within(mechanisms: Iterable[Mechanism], epsilon: float, delta: float) -> bool:
    """Whether `mechanisms` composed are (epsilon, delta)-private by any accountant, the quick one first."""
    composed, _ = _composed(mechanisms, delta)
    return rdp_epsilon(composed, delta) <= epsilon or tightest(composed, delta).value <= epsilon


def rdp_epsilon(mechanisms: Iterable[Mechanism], delta: float) -> float:
    """Epsilon by Rényi divergences (Mironov 2017), converted by Canonne et al. 2020, proposition 12."""
    composed, _ = _composed(mechanisms, delta)
    if not composed:
        return 0.0
    return float(compute_epsilon(curves.ORDERS, _rdp(composed), delta)[0])


def pld_epsilon(mechanisms: Iterable[Mechanism], delta: float) -> float:
    """Epsilon by discretised privacy loss; infinite where there is none (Skellam noise, a tiny delta)."""
    composed, _ = _composed(mechanisms, delta)
    if not composed:
        return 0.0
    if delta < _SMALLEST_DELTA or any(item.kind == SKELLAM for item in composed):
        return math.inf
    return float(_pld(composed).get_epsilon_for_delta(delta))


def delta_of(mechanisms: Iterable[Mechanism], epsilon: float) -> float:
    """The smallest delta shown for `epsilon` >= 0; what a fixed epsilon leaves as a chance of failure."""
    require_range("epsilon", epsilon, 0.0, None, ConfigError)
    composed, _ = _composed(mechanisms, 0.5)
    if not composed:
        return 0.0
    found = [float(compute_delta(curves.ORDERS, _rdp(composed), epsilon)[0])]
    if len(composed) == 1 and composed[0].kind == GAUSSIAN:
        distance = 1 / composed[0].noise_multiplier
        found.append(float(curves.gaussian_delta(np.asarray(epsilon), distance)))
    elif all(item.kind != SKELLAM for item in composed) and rdp_epsilon(composed, 1e-5) <= _LOOSE:
        by_loss = float(_pld(composed).get_delta_for_epsilon(epsilon))
        found += [by_loss] if by_loss >= _SMALLEST_DELTA else []
    return min(1.0, *found)


def _composed(mechanisms: Iterable[Mechanism], delta: float) -> tuple[tuple[Mechanism, ...], str]:
    """Equal ones counted together, and their unit."""
    if not 0 < delta < 1:
        raise ConfigError(refusal("delta", f"found {delta!r}", "use a number between 0 and 1"))
    composed = merged(mechanisms)
    units = sorted({item.unit for item in composed})
    if len(units) > 1:
        remedy = "account for each unit by itself"
        raise ConfigError(refusal("composition", f"found units {', '.join(units)}", remedy))
    return composed, units[0] if units else RECORD


def _rdp(composed: tuple[Mechanism, ...]) -> curves.Floats:
    return np.asarray(sum(item.steps * curves.rdp(item.kind_alone) for item in composed), np.float64)


def _pld(composed: tuple[Mechanism, ...]) -> PrivacyLossDistribution:
    """The composed privacy loss, on a grid that is as fine as the number of compositions asks for."""
    step = _grid(composed)
    parts = sorted((_self_composed(item, step) for item in composed), key=_points)
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.compose(part)
    return whole


@lru_cache(maxsize=32)
def _self_composed(mechanism: Mechanism, step: float) -> PrivacyLossDistribution:
    alone = curves.loss(replace(mechanism, steps=1), step)
    return alone if mechanism.steps == 1 else alone.self_compose(mechanism.steps)


def _points(loss: PrivacyLossDistribution) -> int:
    return int(loss._pmf_remove.size)


def _grid(composed: tuple[Mechanism, ...]) -> float:
    """The grid's step, a power of two, so that equal mechanisms share their losses between compositions.

    Connecting the dots spreads each of n losses by a triangle of variance step^2 / 6; that is kept a small
    share of the variance V of them all. A larger step is only looser.
    """
    count = sum(item.steps for item in composed)
    variance = sum(item.steps * curves.spread(item) for item in composed)
    wanted = math.sqrt(6 * _DISCRETISATION * variance / count)
    reach = max(*(curves.largest_loss(item) for item in composed), 20 * math.sqrt(variance) + 2 * variance)
    step = max(wanted, 2 * reach / _MOST_POINTS)
    return min(_COARSEST, max(_FINEST, 2.0 ** math.floor(math.log2(step))))
