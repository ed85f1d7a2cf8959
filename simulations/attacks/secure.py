"""What a secure sum opens: updates passed through the protocol's own machines, all sites in one process."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pm1_core.privacy.fixed_point import FixedPoint
from pm1_core.privacy.secure_sum import STAGES, Collector, Member, Terms
from pm1_core.signing import Signer


def opened(updates: Sequence[np.ndarray], bits: int, limit: float) -> np.ndarray:
    """The mean of the sites' updates as the coordinator gets it, float64, of their shape.

    updates: float [...] of each site, at least three; limit: the largest change of an element (aggregation.range)

    Encoded, masked and added modulo 2^bits by `Member`, opened by `Collector`: nobody is lost and nobody cheats.
    """
    count, size = len(updates), updates[0].size
    encoding = FixedPoint.fitting(bits, limit, [1.0] * count)
    signers = {f"site{number:02d}": Signer(Ed25519PrivateKey.generate()) for number in range(count)}
    keys = {site: signer.key.public_key().public_bytes_raw().hex() for site, signer in signers.items()}
    given, members = dict(zip(signers, updates, strict=True)), dict[str, Member]()
    total = np.zeros(size, encoding.dtype)

    def answer(stage: str, site: str, request: bytes) -> bytes:
        nonlocal total
        if stage == "advertise":
            members[site] = Member.create(Terms.from_bytes(request), site, signers[site], keys)
            return members[site].advertise()
        if stage == "input":
            members[site].open(request)
            total += members[site].mask(encoding.encode(given[site].ravel(), 1.0), 0)
            return members[site].receipt()
        return bytes(getattr(members[site], stage)(request))

    collector = Collector(Terms("attack", "phenotype", 1, 0, keys, size, bits, 0))
    for stage in STAGES:
        for site in collector.asked:
            collector.receive(site, answer(stage, site, collector.request(site)))
        collector.close()
    return encoding.decode(collector.unmask(total, 0), float(count)).reshape(updates[0].shape)
