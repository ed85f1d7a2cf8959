"""What all sites of a secure sum have to be told alike: its terms."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pm1_core.errors import ConfigError, PrivacyError
from pm1_core.privacy.graph import Neighbourhood, neighbourhood
from pm1_core.privacy.primitives import SECRET, canonical, digest
from pm1_core.privacy.secure_messages import parsed
from pm1_core.validate import refusal, require_keys, require_range

LEAST_SITES = 3
"""Of two sites each knows what the other gave."""
BITS = (16, 32, 64)
_LONGEST = 200


def least_survivors(sites: int, share: float = 0.0) -> int:
    """How many of `sites` have to survive: `share` of them, and always more than two thirds.

    More than two thirds, because then no two lists of survivors can both be signed by so many, unless more
    than a third of the sites sign two (Bonawitz et al. 2017, section 6.2: the threshold against an active
    coordinator).

    >>> [least_survivors(n) for n in (3, 4, 5, 6, 9, 20)]
    [3, 3, 4, 5, 7, 14]

    Raises ConfigError below three sites or for a share that is not from 0 to 1.
    """
    require_range("secure sum, sites", sites, LEAST_SITES, error=ConfigError)
    require_range("secure sum, threshold", share, 0.0, 1.0, ConfigError)
    return max(LEAST_SITES, 2 * sites // 3 + 1, math.ceil(share * sites - 1e-9))


@dataclass(frozen=True)
class Terms:
    """One attempt to add up one vector over sites.

    run, phase, round: what it belongs to attempt: counts anew for a round that is tried again; no two
    attempts have a key in common sites: long-term Ed25519 public key (32 bytes in hex) by name, of those that
    are asked words: length of the vector; bits: of a word, 16, 32 or 64 threshold: how many sites have to
    survive; 0 is as few as can be, `least_survivors` what: what is added up, for example "train" or
    "statistics" agreed: anything else that all have to be told alike, for example the digest of encoding,
    weights and names of
        tensors: sites that were told something else do not go on together

    Raises ConfigError on a value out of bounds.
    """

    run: str
    phase: str
    round: int
    attempt: int
    sites: Mapping[str, str]
    words: int
    bits: int = 32
    threshold: int = 0
    what: str = "train"
    agreed: str = ""

    def __post_init__(self) -> None:
        for name in ("run", "phase", "what", "agreed"):
            value = getattr(self, name)
            if not isinstance(value, str) or len(value) > _LONGEST:
                found = f"found {str(value)[:40]!r}"
                raise ConfigError(refusal(f"secure sum, {name}", found, f"use at most {_LONGEST} characters"))
        for name, low, high in (("round", 0, 2**40), ("attempt", 0, 2**40), ("words", 1, 2**44)):
            value = require_range(f"secure sum, {name}", getattr(self, name), low, high, ConfigError)
            if not isinstance(value, int):
                raise ConfigError(refusal(f"secure sum, {name}", f"found {value!r}", "use a whole number"))
        if self.bits not in BITS:
            raise ConfigError(refusal("secure sum, bits", f"found {self.bits!r}", "use 16, 32 or 64"))
        if not isinstance(self.sites, Mapping):
            raise ConfigError(refusal("secure sum, sites", "found no mapping", "give each site's public key"))
        for site, key in self.sites.items():
            _require_site(site, key)
        if len(set(self.sites.values())) != len(self.sites):
            raise ConfigError(refusal("secure sum, sites", "two have the same key", "make a key for each"))
        least = least_survivors(len(self.sites))
        chosen = self.threshold or least
        require_range("secure sum, threshold", chosen, least, len(self.sites), ConfigError)
        if not isinstance(chosen, int):
            raise ConfigError(refusal("secure sum, threshold", f"found {chosen!r}", "use a whole number"))
        object.__setattr__(self, "threshold", chosen)
        object.__setattr__(self, "sites", dict(sorted(self.sites.items())))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all of it: what signatures and keys are bound to."""
        return digest(self.to_json())

    @cached_property
    def neighbourhood(self) -> Neighbourhood:
        """Who shares with whom, and how many shares give a secret back."""
        return neighbourhood(len(self.sites), self.threshold)

    def context(self, purpose: str, **more: Any) -> dict[str, Any]:
        """What a key is derived for: none serves for another purpose, pair or attempt."""
        return {
            "for": f"pm1 secure sum: {purpose}",
            "run": self.run,
            "phase": self.phase,
            "round": self.round,
            "attempt": self.attempt,
            "terms": self.digest,
            **more,
        }

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return dataclasses.asdict(self)

    def to_bytes(self) -> bytes:
        """All fields as canonical JSON."""
        return canonical(self.to_json())

    @staticmethod
    def from_json(content: Any) -> Terms:
        """What `to_json` gave. Raises ConfigError naming the first thing that is wrong."""
        names = [item.name for item in dataclasses.fields(Terms)]
        return Terms(**require_keys("secure sum", content, names, error=ConfigError))

    @staticmethod
    def from_bytes(content: bytes) -> Terms:
        """What `to_bytes` gave. Raises PrivacyError if it is no JSON, ConfigError on what is wrong in it."""
        return Terms.from_json(parsed("terms of a secure sum", content))

    def require_known(self, known: Mapping[str, str]) -> None:
        """Raise PrivacyError, naming the site, if a key is not the one that is known from enrolment."""
        for site, key in self.sites.items():
            if known.get(site) != key:
                found = "its key is not known here" if site not in known else "its key is another one"
                remedy = "the coordinator may have put in its own: compare the sites' keys by telephone"
                raise PrivacyError(refusal(f"secure sum, site {site!r}", found, remedy))


def _require_site(site: Any, key: Any) -> None:
    if not isinstance(site, str) or not 0 < len(site) <= _LONGEST or not site.isprintable():
        raise ConfigError(refusal("secure sum, sites", f"found {str(site)[:40]!r}", "name each site"))
    try:
        sound = isinstance(key, str) and len(bytes.fromhex(key)) == SECRET and key == key.lower().strip()
    except ValueError:
        sound = False
    if not sound:
        remedy = "use an Ed25519 public key of 32 bytes in hex"
        raise ConfigError(refusal(f"secure sum, site {site!r}", f"found key {str(key)[:80]!r}", remedy))
