"""A site's side of a secure sum."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pm1_core.errors import PrivacyError
from pm1_core.privacy import secure_view as view
from pm1_core.privacy.primitives import (
    SECRET,
    Keystream,
    apply,
    canonical,
    digest,
    fresh_secret,
    public_of,
    seal,
    split,
    unseal,
)
from pm1_core.privacy.secure_messages import (
    broken,
    fields,
    mapping,
    names,
    opened_state,
    parsed,
    raw,
    sealed_state,
)
from pm1_core.privacy.secure_terms import Terms
from pm1_core.privacy.secure_view import Advert, Roll
from pm1_core.signing import Signer
from pm1_core.validate import refusal

ADVERTISE, SHARE, INPUT, AGREE, REVEAL = STAGES = ("advertise", "share", "input", "agree", "reveal")
_REMEDY = "the coordinator may be showing two sites different things: stop, and compare what they were sent"
_TAKEN_UP = "take part in a new attempt"


class Member:
    """A site in one attempt; pm1_core.privacy.secure_sum has the protocol.

    Its methods are called once each, in the order `advertise`, `share`, `open`, `mask` for every part of the
    vector, `receipt`, `agree`, `reveal`. Asked again with the same bytes, `share`, `open`, `agree` and
    `reveal` give the same answer; with other bytes they raise PrivacyError, as does anything out of turn.
    Between them `to_bytes` holds everything: write it (mode 0600) after each call and *before* its answer is
    sent, so that a process that comes back can neither mask another vector with the same masks nor sign
    another list.
    """

    def __init__(self, terms: Terms, site: str, signer: Signer, state: dict[str, Any]) -> None:
        self.terms = terms
        self.site = site
        self._signer = signer
        self._state = state
        self._roll: Roll | None = None
        self._streams: tuple[list[Keystream], list[Keystream]] | None = None

    @staticmethod
    def create(terms: Terms, site: str, signer: Signer, known: Mapping[str, str]) -> Member:
        """Take part: fresh keys and a fresh secret from the operating system.

        signer: the site's long-term key known: what this site knows from enrolment, not from the coordinator:
        each site's long-term public key in
            hex. Those in the terms have to be the same

        Raises PrivacyError naming a site whose key is another one, or if this site is not asked.
        """
        terms.require_known(known)
        _require_own(terms, site, signer)
        state = {
            "channel": fresh_secret().hex(),
            "mask": fresh_secret().hex(),
            "secret": fresh_secret().hex(),
            "answers": {},
            "shares": {},
            "masked": [],
        }
        return Member(terms, site, signer, state)

    def to_bytes(self) -> bytes:
        """Everything but the long-term key. It holds secrets until `reveal` was called."""
        roll = self._roll.to_json() if self._roll else None
        held = {"terms": self.terms.to_json(), "site": self.site, "roll": roll, "state": self._state}
        return sealed_state(held)

    @staticmethod
    def from_bytes(content: bytes, signer: Signer) -> Member:
        """What `to_bytes` gave. Raises PrivacyError if it is damaged or of another site's key."""
        held = opened_state("secure sum, a member's state", content)
        member = Member(Terms.from_json(held["terms"]), held["site"], signer, held["state"])
        _require_own(member.terms, member.site, signer)
        if held["roll"] is not None:
            member._roll = Roll.read(member.terms, held["roll"])
        return member

    @property
    def stage(self) -> str:
        """What was answered last; empty before the first."""
        given = [stage for stage in STAGES if stage in self._state["answers"]]
        return given[-1] if given else ""

    def advertise(self) -> bytes:
        """This site's fresh public keys, signed."""
        return self._once(ADVERTISE, b"", self._advertise)

    def share(self, request: bytes) -> bytes:
        """Shares of this site's secrets, an envelope for each neighbour.

        request: everybody's keys. Raises PrivacyError naming the site whose keys are not signed by it, or if
        fewer
            than the threshold are there.
        """
        return self._once(SHARE, request, lambda: self._share(request))

    def open(self, request: bytes) -> None:
        """Take the neighbours' shares, so that `mask` works. Raises PrivacyError naming whose are wrong."""
        self._once(INPUT, request, lambda: self._open(request))

    def mask(self, words: NDArray[Any], offset: int) -> NDArray[Any]:
        """Hide a part of the vector in place, and give it back.

        words: little-endian unsigned words of `terms.bits`, one-dimensional and contiguous: the plain ones
        offset: where in the vector of `terms.words` the part begins. Parts may come in any order, none twice

        Raises PrivacyError if a place was masked before: what it held then and holds now would differ by what
        is hidden.
        """
        where = f"secure sum, site {self.site!r}, words from {offset}"
        if self.stage != INPUT or self._receipt:
            raise PrivacyError(
                refusal(where, "this is not the time to mask", "open the shares first, mask once")
            )
        if words.dtype != np.dtype(f"<u{self.terms.bits // 8}") or words.ndim != 1:
            found = f"found {words.dtype} in {words.ndim} dimensions"
            raise PrivacyError(refusal(where, found, f"give uint{self.terms.bits} in one dimension"))
        self._take(where, offset, words.size)
        if self._streams is None:
            self._streams = self._masks()
        return apply(words, offset, *self._streams)

    def receipt(self) -> bytes:
        """Says, signed, that the whole vector was masked, and for whom; sent with the words."""
        if self._state["masked"] != [[0, self.terms.words]]:
            done = sum(end - start for start, end in self._state["masked"])
            found = f"{done} of {self.terms.words} words are masked"
            raise PrivacyError(refusal(f"secure sum, site {self.site!r}", found, "mask all of them"))
        if not self._receipt:
            content = {"roll": self._require_roll().digest, "sharers": digest(self._state["sharers"])}
            self._state["receipt"] = self._sign(view.INPUT, content)
        return canonical({"site": self.site, "signature": self._receipt})

    def agree(self, request: bytes) -> bytes:
        """Sign the list of survivors. Raises PrivacyError naming who is on it without a receipt of its own."""
        return self._once(AGREE, request, lambda: self._agree(request))

    def reveal(self, request: bytes) -> bytes:
        """One share of each neighbour: of its own mask if it survived, of its mask key if it did not.

        request: the survivors' signatures. Raises PrivacyError naming the site that signed another list, or
        if fewer
            than the threshold signed this one. Secrets are forgotten afterwards.
        """
        return self._once(REVEAL, request, lambda: self._reveal(request))

    def survivors(self) -> tuple[str, ...]:
        """Over whom the sum is, once this site has signed the list; empty before."""
        return tuple(self._state.get("survivors", ()))

    @property
    def _receipt(self) -> str:
        return str(self._state.get("receipt", ""))

    def _once(self, stage: str, request: bytes, make: Callable[[], dict[str, Any]]) -> bytes:
        where = f"secure sum, site {self.site!r}, stage {stage!r}"
        asked = hashlib.sha256(request).hexdigest()
        answers = self._state["answers"]
        if stage in answers:
            if answers[stage]["asked"] != asked:
                raise broken(where, "asked a second time, for something else", _REMEDY)
        elif STAGES.index(stage) != len(answers):
            raise PrivacyError(refusal(where, f"the last was {self.stage or 'none'!r}", _TAKEN_UP))
        else:
            answers[stage] = {"asked": asked, "answer": {"site": self.site, **make()}}
        return canonical(answers[stage]["answer"])

    def _sign(self, purpose: str, content: Mapping[str, Any]) -> str:
        return self._signer.sign(view.statement(self.terms, purpose, self.site, content))

    def _require_roll(self) -> Roll:
        if self._roll is None:
            raise PrivacyError(refusal(f"secure sum, site {self.site!r}", "it knows no keys", _TAKEN_UP))
        return self._roll

    def _secret(self, name: str) -> bytes:
        return bytes.fromhex(self._state[name])

    def _advertise(self) -> dict[str, Any]:
        channel, mask = (public_of(self._secret(name)).hex() for name in ("channel", "mask"))
        advert = Advert(channel, mask, view.commitment(self.terms, self.site, self._secret("secret")), "")
        return {**advert.statement, "signature": self._sign(view.KEYS, advert.statement)}

    def _share(self, request: bytes) -> dict[str, Any]:
        where = "secure sum, advertised keys"
        (content,) = fields(where, parsed(where, request), ("keys",))
        roll = Roll.read(self.terms, content)
        own = roll.to_json().get(self.site)
        if own != {k: v for k, v in self._state["answers"][ADVERTISE]["answer"].items() if k != "site"}:
            raise broken(where, f"those of site {self.site!r} itself are missing or others", _REMEDY)
        holders, threshold = roll.holders(self.site), self.terms.neighbourhood.threshold
        if len(holders) < threshold:
            found = f"{len(holders)} hold shares of {self.site!r}, {threshold} are needed"
            raise PrivacyError(refusal(where, found, "try again: another attempt draws another graph"))
        dealt = {
            kind: dict(zip(holders, split(self._secret(name), threshold, len(holders)), strict=True))
            for kind, name in ((view.SELF, "secret"), (view.MASK, "mask"))
        }
        boxes = {}
        for other in holders:
            pair = dealt[view.SELF][other] + dealt[view.MASK][other]
            if other == self.site:
                self._state["shares"][other] = pair.hex()
            else:
                key = roll.channel_key(self._secret("channel"), self.site, other, self.site)
                boxes[other] = {"box": seal(key, pair, self._about(self.site, other)).hex()}
            checks = {
                name: view.share_check(self.terms, kind, self.site, other, dealt[kind][other])
                for kind, name in ((view.SELF, "own"), (view.MASK, "mask"))
            }
            boxes.setdefault(other, {"box": ""}).update(checks)
        self._roll = roll
        return {"boxes": boxes}

    def _about(self, sender: str, receiver: str) -> bytes:
        return canonical([self.terms.digest, sender, receiver])

    def _open(self, request: bytes) -> dict[str, Any]:
        where, roll = "secure sum, shares", self._require_roll()
        listed, boxes = fields(where, parsed(where, request), ("sharers", "boxes"))
        sharers = names(where, listed, roll.adverts)
        view.require_enough(self.terms, where, sharers)
        expected = {other for other in sharers if other in roll.graph[self.site]}
        if self.site not in sharers or set(mapping(where, boxes)) != expected:
            raise broken(where, "they are not those of the neighbours that are listed", _REMEDY)
        if len(expected) + 1 < self.terms.neighbourhood.threshold:
            raise PrivacyError(refusal(where, "too few neighbours are left", "try again"))
        taken = {}
        for other, said in boxes.items():
            taken[other] = self._unbox(roll, other, said).hex()
        self._state["shares"] |= taken
        self._state["sharers"] = list(sharers)
        return {}

    def _unbox(self, roll: Roll, other: str, said: Any) -> bytes:
        where = f"secure sum, shares from site {other!r}"
        box, own, mask = fields(where, said, ("box", "own", "mask"))
        key = roll.channel_key(self._secret("channel"), self.site, other, other)
        try:
            pair = unseal(key, raw(where, box), self._about(other, self.site))
        except ValueError as error:
            raise broken(where, f"{error}", "the coordinator or that site changed it: stop") from None
        checks = [
            view.share_check(self.terms, kind, other, self.site, pair[i : i + SECRET])
            for kind, i in ((view.SELF, 0), (view.MASK, SECRET))
        ]
        if len(pair) != 2 * SECRET or checks != [own, mask]:
            raise broken(where, "they do not fit the fingerprints beside them", "leave that site out")
        return pair

    def _take(self, where: str, offset: int, size: int) -> None:
        start, end = offset, offset + size
        if start < 0 or end > self.terms.words or not isinstance(offset, int):
            raise PrivacyError(
                refusal(where, f"{size} words do not fit {self.terms.words}", "give the place")
            )
        if any(start < e and s < end for s, e in self._state["masked"]):
            raise PrivacyError(refusal(where, "some of them were masked before", "send what was made then"))
        merged: list[list[int]] = []
        for s, e in sorted([*self._state["masked"], [start, end]]):
            if merged and merged[-1][1] == s:
                merged[-1][1] = e
            elif e > s:
                merged.append([s, e])
        self._state["masked"] = merged

    def _masks(self) -> tuple[list[Keystream], list[Keystream]]:
        roll, bits = self._require_roll(), self.terms.bits
        plus = [Keystream(view.self_key(self.terms, self.site, self._secret("secret")), bits)]
        minus: list[Keystream] = []
        for other in self._state["sharers"]:
            if other in roll.graph[self.site]:
                stream = Keystream(roll.mask_key(self._secret("mask"), self.site, other), bits)
                (plus if self.site < other else minus).append(stream)
        return plus, minus

    def _agree(self, request: bytes) -> dict[str, Any]:
        where, roll = "secure sum, list of survivors", self._require_roll()
        if not self._receipt:
            raise PrivacyError(refusal(where, "this site has not given its words", _TAKEN_UP))
        (listed,) = fields(where, parsed(where, request), ("survivors",))
        survivors = names(where, sorted(mapping(where, listed)), self._state["sharers"])
        roll.require_openable(where, survivors)
        if self.site not in survivors:
            raise broken(where, f"{self.site!r} is missing, though it gave its words", _TAKEN_UP)
        content = {"roll": roll.digest, "sharers": digest(self._state["sharers"])}
        for other in survivors:
            signature = raw(where, listed[other], view.SIGNATURE)
            if not view.is_signed(self.terms, view.INPUT, other, content, signature):
                found = f"{other!r} did not sign that it masked for the sites that are listed here"
                raise broken(where, found, _REMEDY)
        self._state["survivors"] = list(survivors)
        said = self._statement()
        return {"statement": said, "signature": self._sign(view.SURVIVORS, said)}

    def _statement(self) -> dict[str, str]:
        return view.survivors_statement(
            self._require_roll(), self._state["sharers"], self._state["survivors"]
        )

    def _reveal(self, request: bytes) -> dict[str, Any]:
        where, roll = "secure sum, signatures of survivors", self._require_roll()
        (signed,) = fields(where, parsed(where, request), ("signatures",))
        signers = names(where, sorted(mapping(where, signed)), self._state["survivors"])
        for other in signers:
            view.require_same(self.terms, where, other, signed[other], self._statement())
        view.require_enough(self.terms, where, signers)
        own, mask = {}, {}
        for other in self._state["sharers"]:
            if other in roll.graph[self.site] or other == self.site:
                pair = bytes.fromhex(self._state["shares"][other])
                if other in self._state["survivors"]:
                    own[other] = pair[:SECRET].hex()
                else:
                    mask[other] = pair[SECRET:].hex()
        self._state |= {"channel": "", "mask": "", "secret": "", "shares": {}}
        self._streams = None
        return {"own": own, "mask": mask}


def _require_own(terms: Terms, site: str, signer: Signer) -> None:
    if terms.sites.get(site) != signer.key.public_key().public_bytes_raw().hex():
        remedy = "give the key that the site enrolled with"
        raise PrivacyError(refusal(f"secure sum, site {site!r}", "this is not its key in the terms", remedy))
