"""The coordinator's side of a secure sum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pm1_core.errors import PrivacyError
from pm1_core.privacy import secure_view as view
from pm1_core.privacy.primitives import SECRET, Keystream, apply, canonical, digest, join, public_of
from pm1_core.privacy.secure_member import ADVERTISE, AGREE, INPUT, REVEAL, SHARE, STAGES
from pm1_core.privacy.secure_messages import broken, fields, mapping, opened_state, parsed, raw, sealed_state
from pm1_core.privacy.secure_terms import Terms
from pm1_core.privacy.secure_view import Roll
from pm1_core.validate import refusal

DONE, FAILED = "done", "failed"


class Collector:
    """The coordinator in one attempt; pm1_core.privacy.secure_sum has the protocol.

    At each stage of `STAGES` it sends `request(site)` to those in `asked`, gives each answer to `receive`,
    and calls `close` when no more are waited for: whoever has not answered is lost. `close` raises
    PrivacyError when fewer than the threshold are left; then nothing can be revealed, and only a new attempt
    helps. After the last `close`, `unmask` takes the masks off the sum of the words of `survivors`.

    `to_bytes` holds everything at any time; a coordinator that comes back goes on from there, and sites that
    it asks again give the same answers.
    """

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.stage = ADVERTISE
        self._answers: dict[str, dict[str, Any]] = {stage: {} for stage in STAGES}
        self._secrets: dict[str, dict[str, str]] = {"own": {}, "mask": {}}
        self._roll: Roll | None = None
        self._streams: tuple[list[Keystream], list[Keystream]] | None = None

    def to_bytes(self) -> bytes:
        """All of it."""
        held = {"terms": self.terms.to_json(), "stage": self.stage}
        return sealed_state({**held, "answers": self._answers, "secrets": self._secrets})

    @staticmethod
    def from_bytes(content: bytes) -> Collector:
        """What `to_bytes` gave. Raises PrivacyError if it is damaged."""
        held = opened_state("secure sum, the coordinator's state", content)
        collector = Collector(Terms.from_json(held["terms"]))
        collector.stage = held["stage"]
        collector._answers = held["answers"]
        collector._secrets = held["secrets"]
        if len(collector._answers[ADVERTISE]) >= collector.terms.threshold and collector.stage != ADVERTISE:
            collector._roll = Roll.read(collector.terms, collector._answers[ADVERTISE])
        return collector

    @property
    def asked(self) -> tuple[str, ...]:
        """Whom the present stage is for: those who answered at the one before. Sorted."""
        if self.stage not in STAGES:
            return ()
        place = STAGES.index(self.stage)
        return tuple(sorted(self._answers[STAGES[place - 1]] if place else self.terms.sites))

    @property
    def answered(self) -> tuple[str, ...]:
        """Who has answered at the present stage. Sorted."""
        return tuple(sorted(self._answers.get(self.stage, ())))

    @property
    def survivors(self) -> tuple[str, ...]:
        """Whose words have come: over whom the sum is. Sorted; it is final once stage "input" is closed."""
        return tuple(sorted(self._answers[INPUT]))

    def request(self, site: str) -> bytes:
        """What `site` is sent at the present stage: the argument of the `Member` method of that name.

        At stage "advertise" the terms, from which the site makes its `Member`; at "input" what `Member.open`
        takes.
        """
        if site not in self.asked:
            found = f"{site!r} is not asked at stage {self.stage!r}"
            raise PrivacyError(refusal("secure sum", found, "ask those who answered at the stage before"))
        if self.stage == ADVERTISE:
            return self.terms.to_bytes()
        if self.stage == SHARE:
            return canonical({"keys": self._require_roll().to_json()})
        if self.stage == INPUT:
            shared = self._answers[SHARE]
            boxes = {other: said[site] for other, said in shared.items() if other != site and site in said}
            return canonical({"sharers": sorted(shared), "boxes": boxes})
        if self.stage == AGREE:
            return canonical({"survivors": self._answers[INPUT]})
        return canonical({"signatures": self._answers[AGREE]})

    def receive(self, site: str, answer: bytes) -> None:
        """Take what `Member` gave, at stage "input" its receipt, once all of its words have come.

        Raises PrivacyError, and takes nothing, if it is not what this site has to give at this stage; the
        same answer again is no error. Whose answer is refused is lost if it gives no other one.
        """
        where = f"secure sum, stage {self.stage!r}, site {site[:40]!r}"
        if site not in self.asked:
            raise broken(where, "it is not asked at this stage", "it is too late, or was never asked")
        content = dict(parsed(where, answer))
        if content.pop("site", None) != site:
            raise broken(where, "the answer is another site's")
        taken = getattr(self, f"_take_{self.stage}")(where, site, content)
        held = self._answers[self.stage].setdefault(site, taken)
        if held != taken:
            raise broken(where, "it answered twice, with different things")

    def close(self) -> None:
        """Wait for no more answers, and go on to the next stage.

        Raises PrivacyError if too few are left, which ends the attempt with nothing revealed, or if a site
        dealt shares that give nothing back, and names it.
        """
        if self.stage not in STAGES:
            raise PrivacyError(refusal("secure sum", f"the attempt is {self.stage}", "begin a new attempt"))
        stage, self.stage = self.stage, FAILED
        where = f"secure sum of {self.terms.what!r}, after stage {stage!r}"
        view.require_enough(self.terms, where, self._answers[stage])
        if stage == ADVERTISE:
            self._roll = Roll.read(self.terms, self._answers[ADVERTISE])
        if stage == INPUT:
            self._require_roll().require_openable(where, self._answers[stage])
        if stage == REVEAL:
            self._recover()
            self.stage = DONE
        else:
            self.stage = STAGES[STAGES.index(stage) + 1]

    def unmask(self, words: NDArray[Any], offset: int) -> NDArray[Any]:
        """Take the masks off a part of the sum of the survivors' words, in place, and give it back.

        words: little-endian unsigned words of `terms.bits`, one-dimensional and contiguous, added up modulo
        their size offset: where in the vector the part begins
        """
        if self.stage != DONE:
            found = f"it is at stage {self.stage!r}"
            raise PrivacyError(
                refusal("secure sum", found, "nothing can be opened before all stages are closed")
            )
        if words.dtype != np.dtype(f"<u{self.terms.bits // 8}") or words.ndim != 1:
            raise PrivacyError(refusal("secure sum", f"found {words.dtype}", f"give uint{self.terms.bits}"))
        if self._streams is None:
            self._streams = self._masks()
        return apply(words, offset, *self._streams)

    def _require_roll(self) -> Roll:
        if self._roll is None:
            raise PrivacyError(refusal("secure sum", "no keys have come", "close the first stage"))
        return self._roll

    def _take_advertise(self, where: str, site: str, content: dict[str, Any]) -> Any:
        return view.advert(self.terms, site, content).to_json()

    def _take_share(self, where: str, site: str, content: dict[str, Any]) -> Any:
        (boxes,) = fields(where, content, ("boxes",))
        roll = self._require_roll()
        if set(mapping(where, boxes)) != set(roll.holders(site)):
            raise broken(where, "its envelopes are not those for its neighbours")
        for said in boxes.values():
            box, own, mask = fields(where, said, ("box", "own", "mask"))
            raw(where, box)
            raw(where, own, SECRET)
            raw(where, mask, SECRET)
        return boxes

    def _take_input(self, where: str, site: str, content: dict[str, Any]) -> Any:
        (signature,) = fields(where, content, ("signature",))
        said = {"roll": self._require_roll().digest, "sharers": digest(sorted(self._answers[SHARE]))}
        if not view.is_signed(self.terms, view.INPUT, site, said, raw(where, signature, view.SIGNATURE)):
            raise broken(where, "its receipt is not signed by it for this attempt and these sites")
        return signature

    def _take_agree(self, where: str, site: str, content: dict[str, Any]) -> Any:
        own = view.survivors_statement(
            self._require_roll(), sorted(self._answers[SHARE]), sorted(self._answers[INPUT])
        )
        view.require_same(self.terms, where, site, content, own)
        return content

    def _take_reveal(self, where: str, site: str, content: dict[str, Any]) -> Any:
        own, mask = (mapping(where, said) for said in fields(where, content, ("own", "mask")))
        shared, roll = self._answers[SHARE], self._require_roll()
        near = {other for other in shared if other == site or other in roll.graph[site]}
        alive = near & set(self._answers[INPUT])
        if set(own) != alive or set(mask) != near - alive:
            raise broken(where, "it did not reveal one share of each neighbour that it has to")
        for name, kind, shares in (("own", view.SELF, own), ("mask", view.MASK, mask)):
            for dealer, share in shares.items():
                check = view.share_check(self.terms, kind, dealer, site, raw(where, share, SECRET))
                if check != shared[dealer][site][name]:
                    raise broken(where, f"its share of the {kind} of {dealer!r} is a wrong one")
        return {"own": dict(own), "mask": dict(mask)}

    def _recover(self) -> None:
        """Everybody's secret that is needed to take the masks off."""
        roll, revealed = self._require_roll(), self._answers[REVEAL]
        alive = set(self._answers[INPUT])
        for dealer in sorted(self._answers[SHARE]):
            name = "own" if dealer in alive else "mask"
            points = {holder: place for place, holder in enumerate(roll.holders(dealer), 1)}
            if name == "mask" and not roll.graph[dealer] & alive:
                continue
            shares = {
                points[holder]: bytes.fromhex(said[name][dealer])
                for holder, said in revealed.items()
                if dealer in said[name]
            }
            self._secrets[name][dealer] = self._joined(dealer, name, shares).hex()

    def _joined(self, dealer: str, name: str, shares: Mapping[int, bytes]) -> bytes:
        where, least = f"secure sum, shares of site {dealer!r}", self.terms.neighbourhood.threshold
        if len(shares) < least:
            found = f"{len(shares)} have come, {least} are needed"
            raise PrivacyError(refusal(where, found, "nothing is opened: try again"))
        secret = join(dict(sorted(shares.items())[:least]))
        said = self._require_roll().adverts[dealer]
        if name == "own":
            sound = view.commitment(self.terms, dealer, secret) == said.commitment
        else:
            sound = public_of(secret).hex() == said.mask
        if not sound:
            raise broken(where, "they do not give back what it committed to", "try again without this site")
        return secret

    def _masks(self) -> tuple[list[Keystream], list[Keystream]]:
        """Streams to add to and to subtract from the sum."""
        roll, bits = self._require_roll(), self.terms.bits
        plus: list[Keystream] = []
        minus = [
            Keystream(view.self_key(self.terms, site, bytes.fromhex(secret)), bits)
            for site, secret in self._secrets["own"].items()
        ]
        alive = set(self._answers[INPUT])
        for lost, secret in self._secrets["mask"].items():
            for other in sorted(roll.graph[lost] & alive):
                stream = Keystream(roll.mask_key(bytes.fromhex(secret), lost, other), bits)
                # What `other` added is subtracted, and the other way round.
                (minus if other < lost else plus).append(stream)
        return plus, minus
