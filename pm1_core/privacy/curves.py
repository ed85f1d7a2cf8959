"""One release of each kind: its hockey-stick curve, its Rényi divergences, its discretised privacy loss.

E_gamma(P || Q) = sup over events A of P(A) - gamma Q(A) is the delta that goes with epsilon = log gamma. For
groups (`pm1_core.privacy.mechanisms`, "grouped") no tight pair of distributions is known, so a curve above
theirs is used.

Theorem. Let M and M' be the distributions of a step without and with a person. For t >= 0,
    E_{e^t}(M || M') <= h(t) = q delta(s) and E_{e^t}(M' || M) <= h(t), with t = log(1 + q (e^s - 1)),
    delta(s) = Phi(1/z - s z/2) - e^s Phi(-1/z - s z/2), the curve of N(2, z^2) against N(0, z^2).
Extended by h(-t) = 1 - e^-t + e^-t h(t), h bounds both curves everywhere, and any number of such steps, each
chosen with those before in view, is bounded by the composition of h with itself.

Proof. Fix who is in the step of all other groups, which does not depend on this one; E_gamma is jointly convex, so
a bound for each such case is one for their mixture. Then M = (1 - q) A + q B and M' = (1 - q) A + q B' with
Gaussians of covariance (z C)^2: A without the person's group, B with it as it was, B' as it became. The means of
B and B' are at most 2C apart, those of A and either at most C. By advanced joint convexity (Balle, Barthe and
Gaboardi 2018, "Privacy amplification by subsampling", theorem 2), with b = e^(t - s),
    E_{e^t}(M || M') = q E_{e^s}(B || (1 - b) A + b B') <= q ((1 - b) E_{e^s}(B || A) + b E_{e^s}(B || B')),
and both terms are at most delta(s), since a Gaussian's curve grows with the distance. M and M' can be swapped. For
t < 0 use E_gamma(P || Q) = 1 - gamma + gamma E_{1/gamma}(Q || P). As a function of gamma = e^t, h is convex: the
change from e^t to e^s is affine, the part below 1 is the perspective of the part above, and the slopes at 1 are in
order as h(0) = q delta(0) <= delta(0). It falls from 1 to 0 and is at least max(0, 1 - gamma). So it is the curve
of some pair of distributions, which dominates (M, M') and (M', M), and dominating pairs compose adaptively (Zhu,
Dong and Wang 2022, "Optimal accounting of differential privacy via characteristic function").
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import pld_pmf
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution, from_gaussian_mechanism
from dp_accounting.rdp import RdpAccountant
from numpy.typing import NDArray
from scipy.special import log_ndtr, logsumexp

from pm1_core.privacy.distributed_noise import skellam_rdp
from pm1_core.privacy.mechanisms import GROUPED, SKELLAM, Mechanism

Floats = NDArray[np.float64]

ORDERS: tuple[float, ...] = (
    *(float(x) for x in range(2, 65)),
    80.0, 96.0, 128.0, 192.0, 256.0, 384.0, 512.0, 1024.0,
)  # fmt: skip
"""Orders of Rényi divergences that are looked at: whole ones, where sums are finite and exact."""

_TAIL = 40.0
"""Standard deviations beyond which a Gaussian's mass, below 1e-349, is not integrated."""
_MOST_CELLS = 400_000
_QUADRATURE = 1e-6
"""By how much Simpson's rule may be wrong, as a share of alpha (alpha - 1) times the integral; added to it."""


def gaussian_delta(epsilon: Floats, distance: float) -> Floats:
    """Curve of N(distance, 1) against N(0, 1), of epsilon >= 0 (Balle and Wang 2018, theorem 8)."""
    upper = log_ndtr(distance / 2 - epsilon / distance)
    lower = epsilon + log_ndtr(-distance / 2 - epsilon / distance)
    return np.asarray(np.exp(upper) * -np.expm1(np.minimum(lower - upper, 0.0)), np.float64)


def grouped_delta(epsilon: Floats, noise_multiplier: float, sample_rate: float, moves: float = 2.0) -> Floats:
    """The curve h of a "grouped" step, of any epsilon; `moves` is how far a group's gradient goes, over C."""
    ahead = np.abs(epsilon)
    inner = np.log1p(np.expm1(np.minimum(ahead, 700.0)) / sample_rate)
    h = sample_rate * gaussian_delta(inner, moves / noise_multiplier)
    return np.where(epsilon >= 0, h, -np.expm1(-ahead) + np.exp(-ahead) * h)


@lru_cache(maxsize=256)
def rdp(mechanism: Mechanism) -> Floats:
    """Rényi divergences of one step at `ORDERS`; infinite where no bound is known."""
    if mechanism.kind == SKELLAM:
        variance = (mechanism.noise_multiplier * mechanism.l2) ** 2
        return skellam_rdp(np.asarray(ORDERS), variance, mechanism.l1, mechanism.l2)
    if mechanism.kind == GROUPED and mechanism.sample_rate < 1:
        return _grouped_rdp(mechanism.noise_multiplier, mechanism.sample_rate)
    z = mechanism.noise_multiplier / (2 if mechanism.kind == GROUPED else 1)
    accountant = RdpAccountant(ORDERS)
    accountant.compose(PoissonSampledDpEvent(mechanism.sample_rate, GaussianDpEvent(z)))
    return np.maximum(np.asarray(accountant.rdp, np.float64), 0.0)


def _grouped_rdp(noise_multiplier: float, q: float) -> Floats:
    """Rényi divergences of the dominating curve, by its hockey-stick integral.

    exp((alpha - 1) D_alpha) = 1 + alpha (alpha - 1) int_0^inf (e^((alpha - 1) t) + e^(-alpha t)) h(t) dt
    (Sason and Verdu 2016, "f-divergence inequalities", on E_gamma, for f(x) = x^alpha - 1 and gamma = e^t,
    with the same h both ways), in the variable s of the theorem, dt = q e^s / (1 + q (e^s - 1)) ds, by
    Simpson's rule.
    """
    distance = 2 / noise_multiplier
    found = np.full(len(ORDERS), np.inf)
    for place, alpha in enumerate(ORDERS):
        end = distance**2 * (alpha + 1) + _TAIL * distance
        cells = 2 * math.ceil(max(2000, 20 * end / min(distance, 1.0)) / 2)
        if cells > _MOST_CELLS:
            break
        s = np.linspace(0.0, end, cells + 1)
        t = np.logaddexp(math.log1p(-q), math.log(q) + s)
        upper = log_ndtr(distance / 2 - s / distance)
        ratio = np.minimum(s + log_ndtr(-distance / 2 - s / distance) - upper, 0.0)
        with np.errstate(divide="ignore"):
            log_delta = upper + np.log(-np.expm1(ratio))
        weights = np.full(cells + 1, 2.0)
        weights[1::2] = 4.0
        weights[[0, -1]] = 1.0
        both = np.logaddexp((alpha - 1) * t, -alpha * t)
        terms = both + math.log(q) + log_delta + math.log(q) + s - t + np.log(weights * (end / cells / 3))
        log_integral = float(logsumexp(terms)) + math.log(alpha * (alpha - 1)) + math.log1p(_QUADRATURE)
        found[place] = np.logaddexp(0.0, log_integral) / (alpha - 1)
    return found


def spread(mechanism: Mechanism) -> float:
    """About the variance of one step's privacy loss: log(1 + chi^2). What discretisation goes by; no bound."""
    precision = ((2 if mechanism.kind == GROUPED else 1) / mechanism.noise_multiplier) ** 2
    return math.log1p(mechanism.sample_rate**2 * math.expm1(min(precision, 500.0)))


def largest_loss(mechanism: Mechanism) -> float:
    """About the largest privacy loss of one step that is not put at infinity."""
    distance = (2 if mechanism.kind == GROUPED else 1) / mechanism.noise_multiplier
    most = distance**2 / 2 + 10 * distance
    return (
        most + math.log(mechanism.sample_rate)
        if most > 30
        else math.log1p(mechanism.sample_rate * math.expm1(most))
    )


@lru_cache(maxsize=64)
def loss(mechanism: Mechanism, step: float) -> PrivacyLossDistribution:
    """One step's privacy loss, pessimistic, on multiples of `step` (Doroshenko et al. 2022, connect-the-dots)."""
    z, q = mechanism.noise_multiplier, mechanism.sample_rate
    if mechanism.kind == GROUPED and q < 1:
        last = max(2, math.ceil(max(largest_loss(mechanism), 2 * step) / step))
        grid = np.arange(-last, last + 1)
        deltas = np.clip(grouped_delta(np.asarray(grid * step, np.float64), z, q), 0.0, 1.0)
        pmf = pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(step, -last, last, deltas)
        return PrivacyLossDistribution(pmf)  # the same both ways
    return from_gaussian_mechanism(
        z / (2 if mechanism.kind == GROUPED else 1),
        sampling_prob=q,
        value_discretization_interval=step,
        use_connect_dots=True,
    )
