"""A person whose data lie at several hospitals: each keeps its own budget, and none knows of the others.

What the hospitals release about her composes like what one of them releases in several rounds: a neighbour
differs in her data at all of them, and each adds its own noise. So her epsilon is that of the releases of all k
together, which is less than k times one hospital's, and more than sqrt(k) times where the budget is small.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dp_accounting import get_sigma_gaussian

from pm1_core.privacy.accounting import Epsilon, tightest
from pm1_core.privacy.mechanisms import GAUSSIAN, Mechanism
from pm1_core.validate import require_range

BUDGETS = (0.5, 1.0, 2.0, 4.0, 8.0)
MOST = 5


@dataclass(frozen=True)
class AtHospitals:
    """What holds for a person at `hospitals` hospitals that each spend the same.

    epsilon: of what they release, composed; plain: (k epsilon, k delta), which holds whatever they release
    """

    hospitals: int
    epsilon: Epsilon
    plain: tuple[float, float]


def stand_in(epsilon: float, delta: float) -> Mechanism:
    """One Gaussian mechanism that spends exactly this budget: what many steps come close to (Dong et al.
    2022).
    """
    return Mechanism(GAUSSIAN, float(get_sigma_gaussian(epsilon, delta)))


def at_hospitals(
    mechanisms: Iterable[Mechanism], delta: float, hospitals: Sequence[int] = tuple(range(1, MOST + 1))
) -> list[AtHospitals]:
    """For each number of hospitals that all release `mechanisms`, the epsilon of a person who is at all of them.

    >>> [round(row.epsilon.value, 2) for row in at_hospitals([stand_in(1.0, 1e-5)], 1e-5)]
    [1.0, 1.47, 1.83, 2.15, 2.44]
    """
    given = tuple(mechanisms)
    alone = tightest(given, delta).value
    found = []
    for count in hospitals:
        require_range("hospitals", count, 1, 1000)
        found.append(AtHospitals(count, tightest(given * count, delta), (count * alone, count * delta)))
    return found
