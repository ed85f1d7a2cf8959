"""Adding up a round's answers without opening one: sealed at the sites, then through the stages of secure sums.

    spool/<request>/statements.json     which sites have answered, and what they have for the sums
    spool/<request>/<attempt>/          see server.secure_attempt

A coordinator that is killed goes on with the attempt that it finds. An attempt in which too few sites stay ends
with nothing revealed, and another one begins with fresh keys, a few times.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flwr.app import Message, RecordDict

from pm1_core.errors import FederationError, PrivacyError
from pm1_core.privacy.secure_plan import (
    FIGURE,
    TRAIN,
    Entry,
    Place,
    Plan,
    Secured,
    layout_digest,
    planned_noise,
    require_addable,
)
from pm1_core.privacy.secure_sum import LEAST_SITES, STAGES
from pm1_core.privacy.terms import SiteTerms, terms_of
from pm1_core.update import Tensors
from pm1_core.validate import refusal
from server.exchange import Participant, Receive, blaming
from server.roster import Member, shortfall
from server.secure_attempt import Attempt
from server.secure_updates import Opened, Statements, carriers
from server.spool import Spool, require_answer
from strategies import records

if TYPE_CHECKING:
    from server.phase_run import PhaseRun, Question

_ATTEMPTS = 3
_INPUT = "input"


class SecureRound:
    """One round, or evaluation, whose answers are added up.

    layout: tensors of the train sum, () where there is none; received: what the sites start from
    sums: tensors that are summed exactly: name -> size; None for any histograms of scores
    needed: names of entries without which there is no result
    """

    def __init__(
        self,
        run: PhaseRun,
        question: Question,
        layout: Sequence[Place],
        received: Tensors,
        sums: Mapping[str, int] | None,
    ) -> None:
        self.run = run
        self.question = question
        self.layout = tuple(layout)
        self.received = received
        self.asked = Secured.of(run.desk.study.secure)
        base = run.desk.folder / "spool"
        self.folder = base / question.digest[:32]
        for other in base.glob("*") if question.kind == TRAIN else ():
            if other != self.folder and not other.name.startswith("evaluate-"):
                shutil.rmtree(other, ignore_errors=True)  # of rounds that are over
        if question.kind != TRAIN:
            self.folder = base / f"evaluate-{question.digest[:32]}"
        self.statements = Statements(question.digest, self.folder / "statements.json", sums)
        self.needed = tuple(sums or ())
        self.failures: dict[str, str] = {}
        self._left_out: set[str] = set()

    def opened(self, members: Sequence[Member]) -> Opened:
        """Ask for answers, add them up, and open the sum. Raises FederationError if that cannot be done."""
        why: list[str] = []
        attempt = self._latest()
        for turn in range(_ATTEMPTS):
            if attempt is None:
                members = members if turn == 0 else self._gathered()
                attempt = self._begun(members)
            try:
                self._through(attempt)
                return attempt.open(self.asked, self.layout, self.received)
            except PrivacyError as error:
                why.append(f"attempt {attempt.plan.attempt}: {error}")
                self._left_out |= attempt.lost  # whoever is lost later is needed: the others opened with it
                attempt = None
        reasons = "; ".join(f"{site}: {said}" for site, said in sorted(self.failures.items()))
        remedy = "nothing was revealed by these attempts; mend the sites and resume"
        found = " ".join(why) + (f" ({reasons})" if reasons else "")
        raise FederationError(refusal(self._where, found, remedy))

    def clear(self) -> None:
        """Remove everything: the round is over."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _where(self) -> str:
        return f"phase {self.run.phase.name!r}, {self.question.kind} {self.question.round}, secure sum"

    def _latest(self) -> Attempt | None:
        """The attempt that was under way when a coordinator was interrupted."""
        found = self._attempts()
        if not found:
            return None
        attempt = Attempt.load(self.folder / str(found[-1]))
        return None if attempt.failed else attempt

    def _attempts(self) -> list[int]:
        return sorted(int(file.parent.name) for file in self.folder.glob("[0-9]*/attempt.json"))

    def _gathered(self) -> list[Member]:
        return self.run.desk.roster.gather(self.run.phase, self.question.checkpoint)

    def _begun(self, members: Sequence[Member]) -> Attempt:
        """A new attempt, with those who have answered."""
        missing = [m for m in members if m.participant.site not in self.statements.held]
        phase, people = self.run.phase, self.run.desk.roster.people(self.run.phase)
        here = {member.participant.site for member in members}

        def enough(arrived: set[str]) -> bool:
            there = sorted(here & {*self.statements.held, *arrived})
            return len(there) >= LEAST_SITES and not shortfall(phase, there, people)

        if missing:
            self.failures |= self.run.collect(
                missing, self.question, self.statements, lambda site: None, enough
            )
        sites = sorted(here & set(self.statements.held))
        fewer = [site for site in sites if site not in self._left_out]
        if enough(set()) and len(fewer) >= LEAST_SITES and not shortfall(phase, fewer, people):
            sites = fewer
        lack = shortfall(phase, sites, people)
        if not lack and len(sites) < LEAST_SITES:
            lack = f"{len(sites)} of at least {LEAST_SITES} sites"
        if lack:
            why = "; ".join(f"{site}: {said}" for site, said in sorted(self.failures.items()))
            remedy = "mend the sites and resume; the last checkpoint stays in force"
            found = f"{lack} answered ({why or 'nobody else is connected'})"
            raise FederationError(refusal(self._where, found, remedy))
        by_site = {member.participant.site: member for member in members}
        return self._planned({site: by_site[site] for site in sites})

    def _planned(self, members: Mapping[str, Member]) -> Attempt:
        numbers = [self.statements.held[site].attempt for site in members]
        number = max([*numbers, *(one + 1 for one in self._attempts())])
        for one in self._attempts():
            shutil.rmtree(self.folder / str(one), ignore_errors=True)
        require_addable(len(members))
        counts = {site: member.counts[self.run.phase.name] for site, member in members.items()}
        weights = weights_of(self.layout, counts)
        for kind, by_site in weights.items():
            self._require_several(f"tensors of {kind!r}", by_site)
        entries = {}
        for name, sites in sorted(carriers(self.statements.held, members).items()):
            if not name.startswith(FIGURE) and self.needed:
                self._require_several(f"sums of {name!r}", sites)
            if len(sites) >= LEAST_SITES:
                entries[name] = Entry(self.statements.held[sites[0]].entries[name], tuple(sites))
        words = sum(place.size for place in self.layout)
        noise = self._noise(words, len(members))
        layout = layout_digest(self.layout)
        plan = Plan(self.question.digest, number, layout, words, weights, entries, noise)
        for kind in (kind for kind, by_site in weights.items() if by_site):
            plan.fixed(kind, self.asked)  # raises ConfigError if the weights do not fit
        keys = {site: member.identity for site, member in members.items()}
        run, phase = self.question.checkpoint.config, self.run.phase.name
        terms = {
            what: plan.terms(what, run, phase, self.question.round, keys, self.asked) for what in plan.sums
        }
        return Attempt.begun(self.folder / str(number), plan, list(keys), terms)

    def _noise(self, words: int, sites: int) -> dict[str, Any]:
        """What sites are told of noise, if the phase is under site-level privacy."""
        terms = terms_of(self.run.phase.privacy)
        if not words or not isinstance(terms, SiteTerms) or not terms.noise_multiplier:
            return {}
        return planned_noise(terms, self.asked, words, sites).to_json()

    def _require_several(self, what: str, sites: Mapping[str, float] | Sequence[str]) -> None:
        if 0 < len(sites) < LEAST_SITES:
            found = f"{what} come from {', '.join(sorted(sites))} only"
            remedy = (
                f"a sum over fewer than {LEAST_SITES} sites hides none of them: leave that out of the study"
            )
            raise FederationError(refusal(self._where, found, remedy))

    def _through(self, attempt: Attempt) -> None:
        """All stages that are left. Raises PrivacyError if the attempt ends before the last."""
        while attempt.live:
            stage = next(iter(attempt.live.values())).stage
            if stage == _INPUT:
                self._words(attempt)
            else:
                self._ask(attempt, stage)
            attempt.close()
            if stage == _INPUT:
                people = self.run.desk.roster.people(self.run.phase)
                lack = shortfall(self.run.phase, list(attempt.survivors), people)
                if lack:
                    attempt.fail(attempt.required, lack)
                    attempt.save()
                    raise PrivacyError(
                        refusal(self._where, f"{lack} gave their words", "nothing is revealed")
                    )

    def _ask(self, attempt: Attempt, stage: str) -> None:
        def receive(participant: Participant, message: Message) -> None:
            facts = records.facts_of(message.content, "site")
            require_answer(participant.site, attempt.plan.request, facts)
            said = {what: records.text_of(facts, what) for what in attempt.live if what in facts}
            if not said:
                raise FederationError(refusal(f"stage {stage!r}", "found no answer", "run the same version"))
            for what, text in said.items():
                attempt.live[what].receive(participant.site, text.encode())

        self._exchange(attempt, stage, receive)

    def _words(self, attempt: Attempt) -> None:
        """Masked words: large ones come object by object, as updates in the clear do."""
        masked = attempt.masked(self.asked, self.layout)
        announced: dict[Participant, list[str]] = {}

        def take(site: str) -> None:
            with blaming(site, self.failures), masked.kept_if_whole(site):
                attempt.take(site, masked.tensors(site), self.layout, self.asked)

        def receive(participant: Participant, message: Message) -> None:
            with masked.kept_if_whole(participant.site):
                rest = masked.accept(participant.site, message)
            if rest:
                announced[participant] = rest
            else:
                take(participant.site)

        for site in list(masked.replies):  # that came before a coordinator was interrupted
            take(site)
        self._exchange(attempt, _INPUT, receive)
        self._fetched(attempt, announced, masked)
        for participant in announced:
            if participant.site in masked.replies:
                take(participant.site)

    def _fetched(self, attempt: Attempt, announced: Mapping[Participant, list[str]], masked: Spool) -> None:
        unfetched = self.run.desk.delivery.fetch(announced, self.question.facts, masked)
        self.failures |= unfetched
        for site in unfetched:
            masked.refuse(site)

    def _exchange(self, attempt: Attempt, stage: str, receive: Receive) -> None:
        """Ask everybody who has not answered at this stage."""
        desk, roster = self.run.desk, self.run.desk.roster
        nodes: dict[str, int] = {}

        def requests(sites: Sequence[str]) -> dict[Participant, RecordDict]:
            waiting = attempt.waiting()
            made = {}
            for site in sites:
                if site in waiting and site in roster.members:
                    participant = roster.members[site].participant
                    nodes[site] = participant.node
                    made[participant] = self._request(attempt, stage, site, waiting[site])
            return made

        def moved(waiting: set[str]) -> dict[Participant, RecordDict]:
            back = roster.returned(self.question.checkpoint, {site: nodes[site] for site in waiting})
            return requests([member.participant.site for member in back])

        def enough() -> bool:
            return all(len(c.answered) >= c.terms.threshold for c in attempt.live.values())

        lost = desk.exchange(
            requests(sorted(attempt.waiting())),
            f"query.{stage}",
            f"{self.run.phase.name}, {self.question.kind} {self.question.round}, {stage}",
            desk.study.timeout,
            receive,
            enough,
            desk.study.grace,
            moved,
        )
        self.failures |= {site: f"{stage}: {why}" for site, why in lost.items()}
        for site in lost:
            roster.forget(site)

    def _request(self, attempt: Attempt, stage: str, site: str, sums: Sequence[str]) -> RecordDict:
        facts: dict[str, records.Fact] = {
            **self.question.facts,
            "request": attempt.plan.request,
            "attempt": attempt.plan.attempt,
        }
        facts |= {what: attempt.live[what].request(site).decode() for what in sums}
        if stage == STAGES[0]:
            facts["plan"] = attempt.plan.to_json()
        return records.pack("order", facts)


def weights_of(
    layout: Sequence[Place], counts: Mapping[str, Mapping[str, int]]
) -> dict[str, dict[str, float]]:
    """Kind -> site -> examples, > 0, as the sites declared them.

    counts: site -> examples in all and by modality
    """
    kinds = sorted({place.kind for place in layout})
    return {
        kind: {site: float(said[kind]) for site, said in sorted(counts.items()) if said.get(kind, 0) > 0}
        for kind in kinds
    }
