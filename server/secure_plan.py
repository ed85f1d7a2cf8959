"""How a study's privacy budget becomes the terms of its phases where the unit is a whole site.

    privacy: {unit: site, epsilon: 8, delta: 1e-5, shares: {...}, clip, colluding}    with aggregation=secure
        -> a noise multiplier for each phase, by shares of 1/z^2 per round, for which all rounds keep to the budget
        -> Phase.privacy, which sites get with every order

Each round of a training phase is one sum with Skellam noise (pm1_core.privacy.distributed_noise). It is accounted
for at the least sensitivity in whole numbers that sites accept, which costs the most.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pm1_core.errors import ConfigError
from pm1_core.privacy.accounting import Epsilon, tightest
from pm1_core.privacy.distributed_noise import nominal
from pm1_core.privacy.mechanisms import Mechanism
from pm1_core.privacy.terms import SiteTerms, to_order
from pm1_core.training.tasks import task_class
from pm1_core.validate import refusal, require_range
from server.privacy_plan import alike, require_known_shares, share_of
from server.study import Phase

PUBLIC = "reference"
_TIGHT = 1e-4
_ROUNDING = 1e-9


def with_site_terms(
    phases: Sequence[Phase],
    privacy: Mapping[str, Any],
    secure: Mapping[str, Any],
    allowed: Collection[str] = (),
) -> tuple[tuple[Phase, ...], Epsilon]:
    """The phases with the terms under which sites answer, and what all their rounds amount to.

    Raises ConfigError without secure aggregation or a budget, naming a phase that sums something from the sites or
    has no share, and if no noise keeps to the budget.
    """
    if not secure:
        remedy = "add aggregation=secure: each site's share of the noise is too small alone"
        raise ConfigError(refusal("key 'privacy.unit'", "found 'site', with aggregation=clear", remedy))
    if privacy["epsilon"] is None:
        raise ConfigError(refusal("key 'privacy.epsilon'", "it is not set", "give the study's budget, say 8"))
    epsilon = float(require_range("key 'privacy.epsilon'", privacy["epsilon"], 1e-3, 1e2, ConfigError))
    delta = float(privacy["delta"])
    groups = alike(phases)
    require_known_shares(privacy["shares"], groups)
    sums: dict[str, int] = {}
    for name, members in groups.items():
        cls = task_class(members[0].task, allowed, f"phase {name!r}, task")
        if cls.aggregation == "mean":
            sums[name] = sum(phase.rounds for phase in members)
        elif members[0].task != PUBLIC:
            found = f"task {members[0].task!r} sums what sites have, and nobody pays for that"
            remedy = "use privacy.statistics=public with a reference, and privacy.tokens=identity"
            raise ConfigError(refusal(f"phase {name!r}, privacy", found, remedy))
    if not sums:
        raise ConfigError(refusal("key 'privacy.unit'", "no phase releases anything", "use privacy=none"))
    shares = {name: share_of(name, privacy["shares"]) for name in sums}
    noise = _noise(sums, shares, epsilon, delta)
    planned = []
    for phase in phases:
        name = next(name for name, members in groups.items() if phase in members)
        terms = SiteTerms(noise.get(name, 0.0), float(privacy["clip"]), int(privacy["colluding"]))
        planned.append(replace(phase, privacy=to_order(terms)))
    return tuple(planned), replace(_cost(sums, noise, delta), delta=delta)


def _noise(
    sums: Mapping[str, int], shares: Mapping[str, float], epsilon: float, delta: float
) -> dict[str, float]:
    """Noise multiplier of each phase: the least for which all sums keep to the budget, divided by shares."""
    whole = math.fsum(shares.values())

    def noised(precision: float) -> dict[str, float]:
        return {
            name: float(f"{math.sqrt(count * whole / (precision * shares[name])) * (1 + 5e-6):.6g}")
            for name, count in sums.items()
        }

    low, high = 1e-8, 1e8  # of the sum of 1/z^2 over all sums
    while high / low > 1 + _TIGHT:
        middle = math.sqrt(low * high)
        if _cost(sums, noised(middle), delta).value <= epsilon * (1 - _ROUNDING):
            low = middle
        else:
            high = middle
    return noised(low)


def _cost(sums: Mapping[str, int], noise: Mapping[str, float], delta: float) -> Epsilon:
    released: list[Mechanism] = [nominal(noise[name], steps=count) for name, count in sums.items()]
    return tightest(released, delta)
