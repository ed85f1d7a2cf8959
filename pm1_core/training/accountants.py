"""A third opinion on Poisson-sampled Gaussian noise: Opacus' PRV accountant, which bounds epsilon from both
sides.

It stands apart from `pm1_core.privacy.accounting`, which never imports torch: Opacus does.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable

from opacus.accountants import PRVAccountant

from pm1_core.errors import ConfigError
from pm1_core.privacy.mechanisms import GAUSSIAN, SAMPLED, Mechanism, merged
from pm1_core.validate import refusal


def prv_epsilon(
    mechanisms: Iterable[Mechanism], delta: float, epsilon_error: float = 0.01
) -> tuple[float, float, float]:
    """Lower bound, estimate and upper bound of epsilon (Gopi, Lee and Wutschitz 2021).

    The true epsilon lies between the bounds up to the truncation of losses, for which `delta` / 1000 is set
    aside.

    Raises ConfigError if there is another mechanism than "gaussian" and "sampled", or none.
    """
    composed = merged(mechanisms)
    others = sorted({item.kind for item in composed} - {GAUSSIAN, SAMPLED})
    if others or not composed:
        found = f"found {', '.join(others) or 'no mechanism'}"
        raise ConfigError(refusal("PRV accountant", found, f"use {GAUSSIAN} and {SAMPLED} ones"))
    accountant = PRVAccountant()
    # Without sampling the loss has a closed form that this accountant does not know; a rate just
    # below 1 stands for it.
    accountant.history = [
        (item.noise_multiplier, min(item.sample_rate, math.nextafter(1.0, 0.0)), item.steps)
        for item in composed
    ]
    error = delta / 1000
    with warnings.catch_warnings():
        # Its Rényi accountant only decides how far losses are followed; a wider range does no harm.
        warnings.filterwarnings("ignore", "Optimal order is the")
        discretised = accountant._get_dprv(eps_error=epsilon_error, delta_error=error)
    low, estimate, high = discretised.compute_epsilon(delta, error, epsilon_error)
    return float(low), float(estimate), float(high)
