"""Sites, their keys and whole rounds of secure sums, for tests."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pm1_core.privacy.secure_sum import STAGES, Collector, Member, Terms
from pm1_core.signing import Signer


@lru_cache(maxsize=128)
def signer(site: str) -> Signer:
    return Signer(Ed25519PrivateKey.from_private_bytes(site.encode().ljust(32, b".")))


def keys(count: int) -> dict[str, str]:
    names = [f"site{i:02d}" for i in range(count)]
    return {name: signer(name).key.public_key().public_bytes_raw().hex() for name in names}


def terms(count: int, words: int = 8, bits: int = 32, attempt: int = 0, threshold: int = 0) -> Terms:
    return Terms("run", "fusion", 3, attempt, keys(count), words, bits, threshold)


def plain(site: str, words: int, bits: int) -> np.ndarray:
    generator = np.random.default_rng(list(site.encode()))
    return generator.integers(0, 2**bits - 1, words, dtype=f"<u{bits // 8}", endpoint=True)


@dataclass
class Sum:
    """A whole round in one process.

    vectors: what sites give, `plain` where there is none
    sent: the masked words; requests, answers: what passed, by stage and site
    """

    terms: Terms
    vectors: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.collector = Collector(self.terms)
        self.members: dict[str, Member] = {}
        self.sent: dict[str, np.ndarray] = {}
        self.requests: dict[str, dict[str, bytes]] = {stage: {} for stage in STAGES}
        self.answers: dict[str, dict[str, bytes]] = {stage: {} for stage in STAGES}

    def vector(self, site: str) -> np.ndarray:
        return self.vectors.get(site, plain(site, self.terms.words, self.terms.bits))

    def answer(self, site: str, request: bytes, stage: str) -> bytes:
        if stage == "advertise":
            known = dict(self.terms.sites)
            self.members[site] = Member.create(Terms.from_bytes(request), site, signer(site), known)
            return self.members[site].advertise()
        member = self.members[site]
        if stage == "input":
            member.open(request)
            words = self.vector(site).copy()
            cut = words.size // 3
            member.mask(words[cut:], cut)
            member.mask(words[:cut], 0)
            self.sent[site] = words
            return member.receipt()
        return bytes(getattr(member, stage)(request))

    def step(self, lost: Collection[str] = ()) -> None:
        """One stage, in which `lost` do not answer."""
        stage = self.collector.stage
        for site in self.collector.asked:
            if site not in lost:
                self.requests[stage][site] = self.collector.request(site)
                self.answers[stage][site] = self.answer(site, self.requests[stage][site], stage)
                self.collector.receive(site, self.answers[stage][site])
        self.collector.close()

    def until(self, stage: str) -> Sum:
        """Everything before `stage`, with nobody lost."""
        while self.collector.stage != stage:
            self.step()
        return self

    def run(self, lost: Mapping[str, Collection[str]] | None = None) -> np.ndarray:
        """All stages and the opened sum; lost: who does not answer from a stage on."""
        for stage in STAGES:
            self.step((lost or {}).get(stage, ()))
        return self.opened()

    def masked(self) -> np.ndarray:
        return sum_of([self.sent[site] for site in self.collector.survivors])

    def opened(self) -> np.ndarray:
        total = self.masked()
        cut = total.size // 2
        self.collector.unmask(total[cut:], cut)
        self.collector.unmask(total[:cut], 0)
        return total

    def expected(self) -> np.ndarray:
        return sum_of([self.vector(site) for site in self.collector.survivors])


def sum_of(vectors: list[np.ndarray]) -> np.ndarray:
    """Modulo the size of a word."""
    total = vectors[0].copy()
    for words in vectors[1:]:
        total += words
    return total
