"""Brings the coordinator's objects to the sites that lack them, and large updates back, piece by piece.

What is small travels inside the request itself. Of what is large, one object at a time is on its way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from flwr.app import Message, RecordDict

from pm1_core.checkpoint import Checkpoint
from pm1_core.errors import FederationError
from pm1_core.objects import ObjectStore
from pm1_core.validate import refusal
from server.exchange import Exchange, Participant, batched
from server.roster import Member
from server.spool import Spool, require_answer
from strategies import records

_FETCHED_AT_ONCE = 4


class Delivery:
    """Deliveries of one run. timeout: seconds that one exchange may take."""

    def __init__(self, exchange: Exchange, objects: ObjectStore, timeout: float) -> None:
        self.exchange = exchange
        self.objects = objects
        self.timeout = timeout

    def prepare(
        self, members: Sequence[Member], parts: Sequence[str], checkpoint: Checkpoint, facts: records.Facts
    ) -> tuple[dict[Participant, RecordDict], dict[str, str]]:
        """A request with `facts` for each member, with the objects of `parts` that it lacks.

        Objects too large to go along are delivered before; who could not take them is returned with the reason.
        """
        large = [
            m for m in members if self._bytes(self._lacking(m, parts, checkpoint)) > records.INLINE_BYTES
        ]
        failures = self.send(large, parts, checkpoint, facts)
        contents: dict[tuple[str, ...], RecordDict] = {}
        requests = {}
        for member in members:
            if member.participant.site not in failures:
                lacking = tuple(self._lacking(member, parts, checkpoint))
                if lacking not in contents:
                    contents[lacking] = records.pack("order", facts, self._read(lacking))
                requests[member.participant] = contents[lacking]
                # A site does not keep the round's own tensors if they go along with the request.
                own = {d for part in checkpoint.trained for d in checkpoint.parts.get(part, ())}
                member.held |= set(lacking) - (own if own <= set(lacking) else set())
        return requests, failures

    def send(
        self, members: Sequence[Member], parts: Sequence[str], checkpoint: Checkpoint, facts: records.Facts
    ) -> dict[str, str]:
        """Deliver the objects of `parts` that members lack; return who could not take them and why."""
        failures: dict[str, str] = {}
        lacking = {member.participant: self._lacking(member, parts, checkpoint) for member in members}
        everything = sorted({digest for digests in lacking.values() for digest in digests})
        for batch in self._batches(everything):
            contents: dict[tuple[str, ...], RecordDict] = {}
            requests = {}
            for participant, digests in lacking.items():
                theirs = tuple(digest for digest in batch if digest in digests)
                if theirs and participant.site not in failures:
                    if theirs not in contents:
                        contents[theirs] = records.pack("order", facts, self._read(theirs))
                    requests[participant] = contents[theirs]
            failures |= self.exchange(requests, "query.objects", "delivery", self.timeout, _accept)
        for member in members:
            if member.participant.site not in failures:
                member.held |= set(lacking[member.participant])
        return failures

    def finish(
        self, members: Sequence[Member], checkpoint: Checkpoint, facts: records.Facts
    ) -> dict[str, str]:
        """Deliver the whole model, and tell every member that the study is over, also who lacks nothing of it."""
        facts, parts = {**facts, "over": 1}, list(checkpoint.parts)
        whole = [member.participant for member in members if not self._lacking(member, parts, checkpoint)]
        failures = self.send(members, parts, checkpoint, facts)
        if whole:
            told = dict.fromkeys(whole, records.pack("order", facts))
            failures |= self.exchange(told, "query.objects", "delivery", self.timeout, _accept)
        return failures

    def fetch(
        self,
        announced: Mapping[Participant, Sequence[str]],
        facts: records.Facts,
        spool: Spool,
    ) -> dict[str, str]:
        """Bring the large objects of announced updates into `spool`; return who did not hand them over and why.

        A few sites at a time, one object each, so that little is on its way at once.
        """
        failures: dict[str, str] = {}
        for few in batched(sorted(announced, key=lambda p: p.site), _FETCHED_AT_ONCE):
            for turn in range(max(len(announced[participant]) for participant in few)):
                asked = {
                    participant: announced[participant][turn]
                    for participant in few
                    if turn < len(announced[participant]) and participant.site not in failures
                }
                failures |= self._fetch_one(asked, facts, spool)
        return failures

    def _fetch_one(
        self, asked: Mapping[Participant, str], facts: records.Facts, spool: Spool
    ) -> dict[str, str]:
        """One object of each site."""

        def keep(participant: Participant, message: Message) -> None:
            require_answer(participant.site, spool.request, records.facts_of(message.content, "site"))
            digest = asked[participant]
            spool.keep(participant.site, message, [digest])
            if digest not in spool.objects(participant.site):
                raise FederationError(
                    refusal(f"object {digest[:12]}", "it is not in the answer", "ask for the round again")
                )

        requests = {
            participant: records.pack("order", {**facts, "request": spool.request, "object": digest})
            for participant, digest in asked.items()
        }
        return self.exchange(requests, "query.release", "collection", self.timeout, keep, at_once=1)

    def _lacking(self, member: Member, parts: Sequence[str], checkpoint: Checkpoint) -> list[str]:
        member.held &= {digest for held in checkpoint.parts.values() for digest in held}
        return sorted({digest for part in parts for digest in checkpoint.parts[part]} - member.held)

    def _read(self, digests: Sequence[str]) -> list[tuple[str, bytes]]:
        return [(digest, self.objects.read(digest)) for digest in digests]

    def _bytes(self, digests: Sequence[str]) -> int:
        return sum(self.objects.size(digest) for digest in digests)

    def _batches(self, digests: Sequence[str]) -> Iterator[list[str]]:
        """Digests in groups of at most records.INLINE_BYTES, larger objects alone."""
        batch: list[str] = []
        for digest in digests:
            if batch and self._bytes([*batch, digest]) > records.INLINE_BYTES:
                yield batch
                batch = []
            batch.append(digest)
        if batch:
            yield batch


def _accept(_: Participant, message: Message) -> None:
    """A delivery is answered with what is still lacking; the request after it will tell if that mattered."""
    records.facts_of(message.content, "site")
