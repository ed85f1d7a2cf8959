"""How much noise each phase of a study needs, so that all of them together keep to one budget.

A phase's share is one of squared Gaussian privacy, mu^2 = sum of steps (q^2 (exp(1/z^2) - 1)) (Bu et al. 2020,
"Deep learning with Gaussian differential privacy", corollary 4; 1/z^2 without sampling): that adds up over
phases, epsilon does not. From its share of a total mu^2 follows each phase's noise multiplier; the total is
then the largest for which the composition of everything, by `pm1_core.privacy.accounting`, stays within the
budget. The approximation decides only how the budget is divided, never whether it is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pm1_core.errors import ConfigError
from pm1_core.privacy.accounting import Epsilon, tightest
from pm1_core.privacy.mechanisms import GAUSSIAN, GROUPED, RECORD, SAMPLED, Mechanism
from pm1_core.validate import refusal, require_choice, require_range

_KINDS = (GAUSSIAN, SAMPLED, GROUPED)
_TIGHT = 0.995
"""The share of the budget that is used at least."""
_ROUNDING = 1e-9
"""Left of the budget, so that a ledger that adds up in another order stays below it."""
_DIGITS = 5
_TRIES = 60


@dataclass(frozen=True)
class Plan:
    """A phase, or `compositions` phases alike, as it will be run.

    name: of the phase, or of the phases together ("genotype")
    share: of the budget, for all compositions together, relative to other plans
    kind: "gaussian", "sampled" or "grouped"; sample_rate: q; steps: of one phase from its first round to its last

    Raises ConfigError on what is out of bounds.
    """

    name: str
    share: float
    kind: str
    sample_rate: float = 1.0
    steps: int = 1
    compositions: int = 1

    def __post_init__(self) -> None:
        where = f"phase {self.name!r}"
        require_range(f"{where}, share", self.share, 1e-6, 1e6, ConfigError)
        require_choice(f"{where}, kind", self.kind, _KINDS, ConfigError)
        require_range(f"{where}, compositions", self.compositions, 1, 1e6, ConfigError)
        self.mechanism(1.0)

    def mechanism(self, noise_multiplier: float, unit: str = RECORD) -> Mechanism:
        """What one of the phases releases in all its rounds."""
        return Mechanism(self.kind, noise_multiplier, self.sample_rate, self.steps, unit)

    def noise(self, precision: float) -> float:
        """The noise multiplier for mu^2 = `precision` of all compositions together, rounded up to five digits."""
        moves = 2.0 if self.kind == GROUPED else 1.0
        each = precision / (self.steps * self.compositions)
        if self.sample_rate < 1:
            each = math.log1p(each / self.sample_rate**2)
        exact = moves / math.sqrt(each)
        unit = 10.0 ** (math.floor(math.log10(exact)) + 1 - _DIGITS)
        return float(f"{math.ceil(exact / unit) * unit:.{_DIGITS}g}")


@dataclass(frozen=True)
class Calibration:
    """noise: noise multiplier of each plan; alone: what each costs by itself; epsilon: what all cost together."""

    noise: Mapping[str, float]
    mechanisms: Mapping[str, tuple[Mechanism, ...]]
    alone: Mapping[str, Epsilon]
    epsilon: Epsilon


def calibrate(plans: Sequence[Plan], epsilon: float, delta: float, unit: str = RECORD) -> Calibration:
    """The least noise, divided by shares, with which all `plans` composed are (epsilon, delta)-private.

    The composed epsilon is at most `epsilon`, and at least 99% of it. Deterministic: equal plans give equal
    noise.

    Raises ConfigError if there is no plan, two have the same name, or no noise does.
    """
    require_range("epsilon", epsilon, 1e-3, 1e2, ConfigError)
    names = [plan.name for plan in plans]
    if not names or len(set(names)) < len(names):
        raise ConfigError(refusal("phases", f"found {names}", "give each phase that reads people one plan"))
    whole = sum(plan.share for plan in plans)

    def noised(log_precision: float) -> dict[str, float]:
        total = math.exp(log_precision)
        return {plan.name: plan.noise(total * plan.share / whole) for plan in plans}

    def cost(log_precision: float) -> float:
        return tightest(_released(plans, noised(log_precision), unit), delta).value

    # mu^2 of one Gaussian mechanism of about this epsilon, far enough to either side of the answer.
    guess = 2 * math.log(epsilon / math.sqrt(2 * math.log(1.25 / delta)))
    best = _largest(cost, epsilon * (1 - _ROUNDING), guess)
    noise = noised(best)
    released = {plan.name: _released([plan], noise, unit) for plan in plans}
    return Calibration(
        noise,
        released,
        {name: tightest(items, delta) for name, items in released.items()},
        tightest([item for items in released.values() for item in items], delta),
    )


def _released(plans: Sequence[Plan], noise: Mapping[str, float], unit: str) -> tuple[Mechanism, ...]:
    return tuple(plan.mechanism(noise[plan.name], unit) for plan in plans for _ in range(plan.compositions))


def _largest(cost: Callable[[float], float], bound: float, guess: float) -> float:
    """About the largest x with cost(x) <= bound, of a growing cost, whose cost is close to the bound.

    A bracket is widened from `guess`, then narrowed by regula falsi on log cost with bisection where that is
    slow.
    """
    low, high, width = guess, guess, 0.5
    low_cost = high_cost = cost(guess)
    while low_cost > bound:
        high, high_cost = low, low_cost
        low, width = low - width, 2 * width
        low_cost = cost(low)
        if width > 100:
            remedy = "use fewer steps, a lower sampling rate, or a larger budget"
            raise ConfigError(refusal("budget", f"no noise keeps epsilon at {bound:g}", remedy))
    while high_cost <= bound:
        low, low_cost = high, high_cost
        high, width = high + width, 2 * width
        high_cost = cost(high)
    for attempt in range(_TRIES):
        if low_cost >= _TIGHT * bound or high - low < 1e-9:
            break
        middle = (low + high) / 2
        if attempt % 3 < 2 and low_cost > 0 and math.isfinite(high_cost):
            aim = math.log((1 + _TIGHT) / 2 * bound / low_cost) / math.log(high_cost / low_cost)
            middle = low + (high - low) * min(0.99, max(0.01, aim))
        found = cost(middle)
        if found <= bound:
            low, low_cost = middle, found
        else:
            high, high_cost = middle, found
    return low
