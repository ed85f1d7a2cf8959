"""Which sums over the same plain bytes a site may let be opened.

Two sums over the same bytes, over sets of sites that differ in one site, tell that site's bytes: it is their
difference. More generally, whoever has the sums over sets S_1, ..., S_k has every sum of c_1 S_1 + ... + c_k
S_k, for any numbers c, where S stands for the vector that is 1 for its sites. So a site lets a further set be
opened only if every such combination that is not zero leaves at least three sites with a coefficient that is
not zero: no sum over fewer than three sites, of whatever coefficients, can be worked out. That sites answer
differently the second time is not counted on.

Under site-level privacy an input carries noise, which is drawn anew for every attempt: opened twice, it would
be two releases. There it is opened once, or over the same sites not even again.

The combinations with the fewest sites are found among those that vanish on as many kinds of site as they can:
sites in the same sets are of one kind, k sets make at most 2^k - 1 kinds, and a combination of the least
support vanishes on independent ones of number rank - 1 (it is a cocircuit of the matroid of kinds).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations

from pm1_core.errors import PrivacyError
from pm1_core.privacy.primitives import canonical
from pm1_core.privacy.secure_messages import fields, mapping, parsed
from pm1_core.validate import refusal

LEAST_SITES = 3
MOST_SETS = 4
"""Sets over which the same bytes may be opened in all; more are refused."""
_WHERE = "file of opened sums"


@dataclass(frozen=True)
class Openings:
    """What a site has let be opened: by SHA-256 of the plain bytes, the sets of sites."""

    sets: dict[str, tuple[frozenset[str], ...]]

    @staticmethod
    def from_bytes(content: bytes) -> Openings:
        """What `to_bytes` gave, or nothing yet if it is empty. Raises PrivacyError if it is damaged."""
        if not content:
            return Openings({})
        (held,) = fields(_WHERE, parsed(_WHERE, content), ("opened",))
        sets = {}
        for plain, opened in mapping(_WHERE, held).items():
            if not isinstance(opened, list) or not all(isinstance(sites, list) for sites in opened):
                raise PrivacyError(
                    refusal(_WHERE, "it is damaged", "restore it: nothing is opened without it")
                )
            sets[plain] = tuple(frozenset(map(str, sites)) for sites in opened)
        return Openings(sets)

    def to_bytes(self) -> bytes:
        """All of it: one file, written before anything is revealed."""
        return canonical({"opened": {p: [sorted(s) for s in sets] for p, sets in self.sets.items()}})

    def with_opened(self, plain: str, sites: Collection[str], once: bool = False) -> Openings:
        """These and the sum over `sites` of what this site gave as `plain`.

        plain: SHA-256 of the plain bytes, of this site, before masks and noise
        once: refuse a second opening whatever the sites, as site-level privacy has to

        Raises PrivacyError if it may not be opened.
        """
        chosen = frozenset(sites)
        before = self.sets.get(plain, ())
        where = f"opening a sum over {len(chosen)} sites"
        if once and before:
            raise PrivacyError(
                refusal(where, "the same bytes were opened before", "use what was opened then")
            )
        if chosen in before:
            return self
        if len(before) >= MOST_SETS:
            found = f"the same bytes were opened over {len(before)} sets of sites before"
            raise PrivacyError(refusal(where, found, "use one of those"))
        left = fewest([*before, chosen])
        if left < LEAST_SITES:
            found = f"with what was opened before over other sites it tells a sum over {left}"
            raise PrivacyError(
                refusal(where, found, f"wait until the same sites are there, or {LEAST_SITES} others")
            )
        return Openings({**self.sets, plain: (*before, chosen)})


def fewest(sets: Sequence[frozenset[str]]) -> int:
    """The least number of sites in a combination of the sums over these sets that is not zero; 0 without sets.

    >>> a, b, c, d, e = "abcde"
    >>> fewest([frozenset("abcd"), frozenset("abc")]), fewest([frozenset("abcd"), frozenset("bcde")])
    (1, 2)
    >>> fewest([frozenset("abcdefg"), frozenset("abcd")])
    3
    """
    sites = sorted(frozenset().union(*sets))
    kinds = Counter(tuple(Fraction(site in chosen) for chosen in sets) for site in sites)
    columns = list(kinds)
    rank = len(_reduced(columns))
    found = len(sites) if rank else 0
    for vanishing in combinations(columns, rank - 1) if rank else ():
        if len(_reduced(list(vanishing))) == rank - 1:
            # Every combination that vanishes on these is a multiple of one; it is zero exactly on their span.
            found = min(found, sum(n for kind, n in kinds.items() if not _within(kind, vanishing)))
    return found


_Vector = tuple[Fraction, ...]


def _reduced(vectors: Sequence[_Vector]) -> list[_Vector]:
    """A basis of what these vectors span."""
    basis: list[tuple[int, _Vector]] = []
    for vector in vectors:
        for pivot, row in basis:
            factor = vector[pivot]
            vector = tuple(x - factor * y for x, y in zip(vector, row, strict=True))
        pivot = next((i for i, x in enumerate(vector) if x), -1)
        if pivot >= 0:
            basis.append((pivot, tuple(x / vector[pivot] for x in vector)))
    return [row for _, row in basis]


def _within(vector: _Vector, span: Sequence[_Vector]) -> bool:
    return len(_reduced([*span, vector])) == len(_reduced(span))
