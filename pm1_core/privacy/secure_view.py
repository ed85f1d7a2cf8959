"""What everybody in a secure sum checks in the same way: whose keys are whose, who shares with whom, who
signed what.

A signature is by a site's long-term key over canonical JSON that names its purpose and the digest of the
terms, and with them run, phase, round and attempt: none serves in another place.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pm1_core.errors import PrivacyError
from pm1_core.privacy.graph import neighbours
from pm1_core.privacy.primitives import SECRET, agree, canonical, derive, digest, signed_by
from pm1_core.privacy.secure_messages import broken, fields, mapping, raw
from pm1_core.privacy.secure_terms import Terms
from pm1_core.validate import refusal

SIGNATURE = 64
KEYS, INPUT, SURVIVORS = "keys", "input", "survivors"
SELF, MASK = "own mask", "mask key"
_SAID = {"roll": "keys", "sharers": "sharing sites", "survivors": "survivors"}
_REMEDY = "the coordinator may be swapping keys: stop, and compare what the sites were sent"


@dataclass(frozen=True)
class Advert:
    """What a site says of itself first, signed.

    channel: X25519 public key for envelopes; mask: for masks; commitment: to the secret of its own mask
    """

    channel: str
    mask: str
    commitment: str
    signature: str

    @property
    def statement(self) -> dict[str, str]:
        """What is signed, beside terms, purpose and site."""
        return {"channel": self.channel, "mask": self.mask, "commitment": self.commitment}

    def to_json(self) -> dict[str, str]:
        """All of it."""
        return {**self.statement, "signature": self.signature}


def statement(terms: Terms, purpose: str, site: str, content: Mapping[str, Any]) -> bytes:
    """The bytes that `site` signs."""
    return canonical({**terms.context(f"signed {purpose}"), "site": site, "content": dict(content)})


def is_signed(terms: Terms, purpose: str, site: str, content: Mapping[str, Any], signature: bytes) -> bool:
    """Whether `site` signed it, by the long-term key in the terms."""
    return signed_by(bytes.fromhex(terms.sites[site]), statement(terms, purpose, site, content), signature)


@dataclass(frozen=True)
class Roll:
    """The adverts of those who are there: what the graph follows from."""

    terms: Terms
    adverts: Mapping[str, Advert]

    @staticmethod
    def read(terms: Terms, content: Any) -> Roll:
        """Adverts by site. Raises PrivacyError naming the first site whose keys are not its own.

        Also if they are fewer than the threshold, or two keys are the same.
        """
        where = "secure sum, advertised keys"
        adverts: dict[str, Advert] = {}
        for site, said in mapping(where, content).items():
            adverts[site] = advert(terms, site, said)
        keys = [key for said in adverts.values() for key in (said.channel, said.mask)]
        if len(set(keys)) != len(keys):
            raise broken(where, "two of them are the same key", _REMEDY)
        require_enough(terms, where, adverts)
        return Roll(terms, dict(sorted(adverts.items())))

    def to_json(self) -> dict[str, Any]:
        """What `read` reads."""
        return {site: said.to_json() for site, said in self.adverts.items()}

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all adverts."""
        return digest(self.to_json())

    @cached_property
    def graph(self) -> Mapping[str, frozenset[str]]:
        """Each site's neighbours."""
        return neighbours(tuple(self.adverts), self.digest, self.terms.neighbourhood.probability)

    def holders(self, site: str) -> list[str]:
        """Who holds shares of a site's secrets, sorted, at points 1, 2, ...: the site and its neighbours."""
        return sorted({site, *self.graph[site]})

    def require_openable(self, where: str, survivors: Collection[str]) -> None:
        """Raise PrivacyError if there are too few survivors, or too few hold shares of one of their secrets.

        With the second, the sum of the others could be opened without that one, which `graph` counts on not to be.
        """
        require_enough(self.terms, where, survivors)
        least, alive = self.terms.neighbourhood.threshold, frozenset(survivors)
        for site in sorted(alive):
            left = len(self.graph[site] & alive) + 1
            if left < least:
                found = f"{left} hold shares of {site!r}, {least} are needed"
                raise PrivacyError(refusal(where, found, "nothing is revealed: try again"))

    def mask_key(self, private: bytes, own: str, other: str) -> bytes:
        """The key of the mask that `own`, whose private key this is, has in common with `other`."""
        return self._pair_key("mask", private, self.adverts[other].mask, own, other, sorted((own, other)))

    def channel_key(self, private: bytes, own: str, other: str, sender: str) -> bytes:
        """The key of the envelope between `own`, whose private key this is, and `other`, from `sender`."""
        pair = [sender, other if sender == own else own]
        return self._pair_key("envelope", private, self.adverts[other].channel, own, other, pair)

    def _pair_key(
        self, purpose: str, private: bytes, public: str, own: str, other: str, pair: list[str]
    ) -> bytes:
        try:
            secret = agree(private, bytes.fromhex(public))
        except ValueError:
            remedy = "leave the site out"
            raise broken(f"secure sum, site {other!r}", "its key agrees with everybody", remedy) from None
        return derive(secret, self.terms.context(purpose, pair=pair, roll=self.digest))


def self_key(terms: Terms, site: str, secret: bytes) -> bytes:
    """The key of a site's own mask."""
    return derive(secret, terms.context("own mask", pair=[site, site]))


def commitment(terms: Terms, site: str, secret: bytes) -> str:
    """Says nothing of the secret, and fits no other one."""
    return derive(secret, terms.context("commitment", pair=[site, site])).hex()


def share_check(terms: Terms, kind: str, dealer: str, holder: str, share: bytes) -> str:
    """A fingerprint of a share: lets a wrong one be told, and says nothing of it."""
    return derive(share, terms.context(f"check of a share of the {kind}", pair=[dealer, holder])).hex()


def survivors_statement(roll: Roll, sharers: Sequence[str], survivors: Sequence[str]) -> dict[str, str]:
    """What a survivor signs before anything is revealed: the keys, who shared, and who is in the sum."""
    return {
        "roll": roll.digest,
        "sharers": digest(list(sharers)),
        "survivors": digest(list(survivors)),
    }


def require_same(terms: Terms, where: str, site: str, said: Any, own: Mapping[str, str]) -> None:
    """Raise PrivacyError if `site` did not sign `own`; it names what it signed another of, if it did."""
    stated, signature = fields(where, said, ("statement", "signature"))
    content = dict(zip(own, fields(where, stated, tuple(own)), strict=True))
    if not all(isinstance(value, str) for value in content.values()):
        raise broken(where, f"what {site!r} signed cannot be read")
    if not is_signed(terms, SURVIVORS, site, content, raw(where, signature, SIGNATURE)):
        raise broken(where, f"the signature of {site!r} is forged", _REMEDY)
    other = [_SAID[name] for name in own if content[name] != own[name]]
    if other:
        raise broken(where, f"the coordinator showed {site!r} other {' and '.join(other)} than here", _REMEDY)


def require_enough(terms: Terms, where: str, sites: Collection[str]) -> None:
    """Raise PrivacyError if there are fewer than the threshold, which is at least three."""
    if len(sites) < terms.threshold:
        found = f"{len(sites)} of {len(terms.sites)} sites are left"
        remedy = f"nothing is revealed; {terms.threshold} are needed: try again when more are there"
        raise PrivacyError(refusal(where, found, remedy))


def advert(terms: Terms, site: str, said: Any) -> Advert:
    """What a site says of itself. Raises PrivacyError naming it if it did not sign that."""
    where = f"secure sum, keys of site {site[:40]!r}"
    if site not in terms.sites:
        raise broken(where, "the terms do not name this site")
    values = fields(where, said, ("channel", "mask", "commitment", "signature"))
    for value in values[:3]:
        raw(where, value, SECRET)
    read = Advert(*values)
    if not is_signed(terms, KEYS, site, read.statement, raw(where, read.signature, SIGNATURE)):
        raise broken(where, "they are not signed by this site for this attempt", _REMEDY)
    return read
