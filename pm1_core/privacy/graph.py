"""Who is whose neighbour in a secure sum: who has masks in common, and who holds shares of whose secrets.

Below 32 sites everybody is everybody's neighbour. From 32 on the graph is random, as in SecAgg+ (Bell,
Bonawitz, Gascón, Lepoint and Raykova 2020, "Secure single-server aggregation with (poly)logarithmic
overhead", sections 3 and 4): every pair of sites is joined with probability p, independently of all others,
by a hash of everybody's fresh public keys, so that nobody chooses it. A secret is shared among a site and its
neighbours, and t of them give it back.

Two things must hold whatever the coordinator does; c is the number of colluding sites, one in five (fixed
before the graph is), n the number of sites, T the threshold of survivors.

(a) No site has more than t - 1 - g colluding neighbours. Then the colluders cannot open anybody's secret; and
    since no site signs a list on which fewer than t of a survivor and its neighbours are left, every honest
    survivor has at least g honest surviving neighbours.
(b) The honest survivors are connected, whichever n - T sites the coordinator calls lost *after* it has seen the
    graph. Otherwise there is a set A of a > g of them, a at most half of the m = n - c - d honest survivors
    when d are lost, without one pair between A and the rest.

    P(not a) <= n P[Bin(c, p) > t - 1 - g]
    P(not b) <= sum over d <= n - T and g < a <= m/2 of C(n - c, d) C(n - c - d, a) (1 - p)^(a (m - a))

Each is held below 2^-81. As the graph is fixed by a hash of keys that colluders and coordinator have a part
in, they can try out graphs: with 2^40 hashes the probability of a bad one is still below 2^-40 (union bound).
Bell et al. bound the same two events for the losses of one random set; the sum over d is what it takes that
the coordinator picks them.

A third thing is only convenience: if as many as n - T sites are lost at random, some secret cannot be put
together with probability below 2^-10,

    P(c) <= n P[Bin(T - 1, p) < t - 1],

and then the attempt ends with nothing revealed. p is the least multiple of 1/64 for which some t and g keep
all three.

In a complete graph t = T: no error, and colluders may be as many as 2 T - n - 1
(`pm1_core.privacy.secure_sum`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp
from scipy.stats import binom

COMPLETE_BELOW = 32
COLLUDING = 0.2
"""Share of the sites that may collude with the coordinator in a random graph."""
GRINDING = 40
"""log2 of the graphs that an adversary may try out."""
SECURITY = 40
"""-log2 of the probability that one of these is bad."""
_LOSS = 10
_GRAIN = 64


@dataclass(frozen=True)
class Neighbourhood:
    """How a graph is drawn.

    probability: p, that a pair is joined; threshold: t, how many shares give a secret back
    """

    probability: float
    threshold: int


def colluding(sites: int, threshold: int) -> int:
    """How many of `sites` may collude with the coordinator, at most, for what is said of the sum to hold."""
    if sites < COMPLETE_BELOW:
        return 2 * threshold - sites - 1
    return math.floor(COLLUDING * sites)


@lru_cache(maxsize=64)
def neighbourhood(sites: int, threshold: int) -> Neighbourhood:
    """The sparsest graph that keeps the bounds above; complete if there is none.

    sites: n; threshold: T, how many have to survive
    """
    if sites >= COMPLETE_BELOW:
        for grains in range(4, _GRAIN):
            chosen = _kept(sites, threshold, grains / _GRAIN)
            if chosen:
                return chosen
    return Neighbourhood(1.0, threshold)


def _kept(n: int, threshold: int, p: float) -> Neighbourhood | None:
    c = math.floor(COLLUDING * n)
    target = -(SECURITY + GRINDING + 1) * math.log(2)
    # The largest t for which a random loss of n - T sites leaves enough shares of everybody's secrets.
    tail = math.log(n) + binom.logcdf(np.arange(n), threshold - 1, p)
    enough = int(
        np.searchsorted(tail, -_LOSS * math.log(2))
    )  # P(fewer than `enough` neighbours survive) is small
    t = min(enough + 1, threshold)
    # The smallest number of colluding neighbours that nobody has more of.
    over = math.log(n) + binom.logsf(np.arange(c + 1), c, p)
    most = int(np.argmax(over <= target))
    g = t - 1 - most
    if g < 1 or _parts(n, c, threshold, p, g) > target:
        return None
    return Neighbourhood(p, t)


def _parts(n: int, c: int, threshold: int, p: float, g: int) -> float:
    """Logarithm of the bound on (b)."""
    terms = [-math.inf]
    honest = n - c
    for d in range(n - threshold + 1):
        m = honest - d
        a = np.arange(g + 1, m // 2 + 1)
        if a.size:
            ways = _log_choose(honest, np.array(d)) + _log_choose(m, a)
            terms.append(float(logsumexp(ways + a * (m - a) * math.log1p(-p))))
    return float(logsumexp(terms))


def _log_choose(n: int, k: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1), np.float64)


def neighbours(sites: Sequence[str], seed: str, probability: float) -> dict[str, frozenset[str]]:
    """The graph: each site's neighbours, the site itself not among them.

    sites: sorted; seed: everybody derives the same graph from the same one
    """
    found: dict[str, set[str]] = {site: set() for site in sites}
    pairs = len(sites) * (len(sites) - 1) // 2
    if probability < 1:
        stream = hashlib.shake_256(f"pm1 secure sum: graph {seed}".encode()).digest(4 * pairs)
        drawn = iter((np.frombuffer(stream, "<u4") < math.floor(probability * 2**32)).tolist())
    else:
        drawn = iter([True] * pairs)
    for place, one in enumerate(sites):
        for other in sites[place + 1 :]:
            if next(drawn):
                found[one].add(other)
                found[other].add(one)
    return {site: frozenset(joined) for site, joined in found.items()}
