"""Sums over sites of which the coordinator learns nothing but the sum.

SecAgg+ (Bell, Bonawitz, Gascón, Lepoint, Raykova 2020, "Secure single-server aggregation with
(poly)logarithmic overhead") in the variant against an active coordinator (Bonawitz et al. 2017, "Practical
secure aggregation for privacy-preserving machine learning", section 4 with the consistency check). A site
adds to its vector of words, modulo 2^b,

    x_u + S(b_u) + sum over v > u of S(k_uv) - sum over v < u of S(k_uv)       v: u's neighbours

where S is a stream of AES-256, b_u the site's own secret and k_uv a key that u and v have in common. In the
sum over all of them the pairs cancel. Shares of b_u, and of the private key behind all k_uv, lie with u's
neighbours: of a site whose words came they give back b_u, of a site that was lost its private key, never
both.

    stage       to each site                        from it
    advertise   terms                               fresh public keys and a commitment to b_u, signed
    share       everybody's keys                    shares in an envelope for each neighbour, with fingerprints
    input       the envelopes, who shared           masked words; a receipt that signs keys and who shared
    agree       survivors with their receipts       a signature under keys, who shared, who survived
    reveal      at least T such signatures          one share of each neighbour: of b_v or of its private key

n sites are asked, T > 2n/3 have to survive every stage (`least_survivors`); at most c of them collude with
the coordinator.

Theorem. Let c <= 2 T - n - 1 below 32 sites, c <= n/5 from 32 on. Whatever the coordinator and the colluding
sites do, and whoever is lost or said to be lost, the honest sites' messages of one attempt tell them no more
than one sum modulo 2^b: that of the words of all honest sites on one list of survivors, which has at least
T - c honest ones; or nothing. It assumes that the sites know each other's long-term keys, that AES-256
in counter mode is pseudorandom, HKDF a random oracle, X25519 hard (gap Diffie-Hellman), ChaCha20-Poly1305
authenticated, Ed25519 unforgeable; from 32 sites on, up to a probability of 2^-40 over the graph
(`pm1_core.privacy.graph`).

Proof, in steps. (1) Keys are signed for this attempt: those between two honest sites are theirs. (2) An
honest site reveals only against T signatures under what it signed itself, and signs once. Two lists would
take 2 (T - c) honest signatures, and there are only n - c < 2 (T - c) honest sites. So all honest sites
reveal for one list, of each neighbour one kind of share; colluders hold the other kind, and they are fewer
than its threshold. (3) Every honest site on that list signed in its receipt the same keys and the same
sharing sites: any two of them that are neighbours masked for each other, with a key that nobody can know,
since neither private key is revealed. (4) By such pairs the honest survivors are connected (below 32 all are
joined; `graph` from 32 on). Replace these pairs' streams by uniform words. Along the edges of a spanning tree
they make the honest survivors' masked words uniform but for their sum (for complete graphs lemma 6.1 of
Bonawitz et al.). Honest sites that are not on the list keep their own mask.

What it does not do: hide from the coordinator who took part; tell whether a site's words make sense; or hide
what the sum itself tells (`distributed_noise` is for that). A site that deals wrong shares, or gives wrong
words, can spoil a sum; the first is named.
"""

from __future__ import annotations

from pm1_core.privacy.secure_collector import DONE, FAILED, Collector
from pm1_core.privacy.secure_member import STAGES, Member
from pm1_core.privacy.secure_terms import LEAST_SITES, Terms, least_survivors

__all__ = ["DONE", "FAILED", "LEAST_SITES", "STAGES", "Collector", "Member", "Terms", "least_survivors"]
