"""One phase of a study: round 0, training rounds, and the figures at its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Message, RecordDict

from pm1_core.checkpoint import Checkpoint, CheckpointFolder, part_of
from pm1_core.errors import FederationError
from pm1_core.evaluation.scores import areas
from pm1_core.objects import Reader
from pm1_core.training.tasks import Task
from pm1_core.validate import refusal
from server.delivery import Delivery
from server.exchange import Exchange, Participant, blaming
from server.figures import mean_figures, pooled, require_counts, summed
from server.folding import STATE, Pairs, advanced, complete, start_of
from server.gathered import Gathered
from server.journal import Journal
from server.patience import LOSS, best_round, kept_loss, validated
from server.provenance import code_hash
from server.roster import Member, Roster, shortfall
from server.secure_phase import secure_evaluated, secure_gathered
from server.secure_updates import Statements
from server.spool import Spool
from server.study import Phase, Study
from server.updates import Expected, Spooled, far_beyond
from strategies import Strategy, records

Figures = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Further fields of a checkpoint: metrics and areas."""
_SITES_NAMED = 100
"""Figures of more sites than this stay in metrics.jsonl: every site gets the manifest with every request."""


@dataclass(frozen=True)
class Desk:
    """What a coordinator works with throughout a run."""

    study: Study
    folder: Path
    checkpoints: CheckpointFolder
    journal: Journal
    exchange: Exchange
    roster: Roster
    delivery: Delivery


@dataclass(frozen=True)
class Question:
    """What is asked of sites in one exchange: an order on a checkpoint. kind: "train" or "evaluate"."""

    kind: str
    order: str
    checkpoint: Checkpoint
    validate: bool = False

    @property
    def digest(self) -> str:
        """What both ends know it by."""
        return records.request_digest(self.kind, self.order, self.checkpoint.hash)

    @property
    def round(self) -> int:
        """The round that is trained, or whose model is evaluated."""
        return self.checkpoint.round + (self.kind == "train")

    @property
    def facts(self) -> dict[str, records.Fact]:
        """What travels of it."""
        manifest = self.checkpoint.to_json()
        return {"order": self.order, "checkpoint": manifest, "validate": int(self.validate)}


class PhaseRun:
    """A phase under way."""

    def __init__(self, desk: Desk, phase: Phase, task: Task, strategy: Strategy) -> None:
        self.desk = desk
        self.phase = phase
        self.task = task
        self.strategy = strategy

    def run(self, latest: Checkpoint | None, progress: Callable[[int], None]) -> Checkpoint:
        """What is left of the phase after `latest`; `progress` is called with the number of each round done.

        Raises FederationError if a round finds too few sites; the checkpoint before it stays in force.
        """
        if latest is None or latest.phase != self.phase.name:
            latest = self._begin(latest)
        while latest.round < latest.rounds:
            latest = self._round(latest.round + 1, latest)
            progress(latest.round)
        return latest

    def _begin(self, latest: Checkpoint | None) -> Checkpoint:
        """Round 0: the model's tensors that the phase trains, and the strategy's state."""
        checkpoints = self.desk.checkpoints
        state = checkpoints.state(latest or checkpoints.origin())
        model = start_of(self.task, state, self.desk.study.seed)
        own = self.strategy.initial(model)
        travels = {part_of(name) for name in (*model, *own)} - {"server"}
        return checkpoints.save(
            latest,
            [*sorted(model.items()), *sorted(own.items())],
            trained=tuple(sorted(travels)),
            **self._manifest(0),
        )

    def _round(self, number: int, latest: Checkpoint) -> Checkpoint:
        """One round: gather, deliver, train, check, fold, and a checkpoint."""
        began = time.monotonic()
        desk, phase = self.desk, self.phase
        desk.exchange.pulse.round(phase.name, number)
        members = desk.roster.gather(phase, latest)
        present = {member.participant.site: member.counts[phase.name] for member in members}
        desk.journal.took_part(phase.name, present, desk.roster.absent(phase))
        order = desk.study.order(phase, number).to_json()
        question = Question("train", order, latest, validate=number > 1 and not phase.privacy)
        gather = self._gathered_securely if desk.study.secure else self._gathered
        return self._close(number, latest, gather(question, members), members, began)

    def _gathered(self, question: Question, members: Sequence[Member]) -> Gathered:
        """Every site's update in the clear, checked. Raises FederationError if there are too few."""
        desk, phase, number = self.desk, self.phase, question.round
        people = desk.roster.people(phase)
        expected = self._expected(question.checkpoint)
        updates = Spooled(Spool(desk.folder / "spool", question.digest, expected.bounds), expected)
        norms: dict[str, float] = {}

        def check(site: str) -> None:
            norms[site] = updates.check(site)

        self._look_again(updates, check)
        failures = self.collect(
            [member for member in members if member.participant.site not in norms],
            question,
            updates.spool,
            check,
            lambda arrived: not shortfall(phase, sorted({*norms, *arrived}), people),
        )
        if self.task.aggregation == "mean":
            far = far_beyond(norms, people, desk.study.norm_limit)
            failures |= far
            for site in far:
                updates.spool.refuse(site)
        desk.journal.lost(phase.name, f"round {number}", failures)
        lack = shortfall(phase, list(updates.sites), people)
        if lack:
            why = "; ".join(f"{site}: {reason}" for site, reason in sorted(failures.items()))
            raise FederationError(
                refusal(
                    f"phase {phase.name!r}, round {number}",
                    f"{lack} answered ({why or 'nobody else is connected'})",
                    "mend the sites and resume; the last checkpoint stays in force",
                )
            )
        replies = {site: updates.spool.replies[site] for site in updates.sites}
        energy = [r.metrics["energy_joules"] for r in replies.values() if "energy_joules" in r.metrics]
        return Gathered(
            updates,
            sites={site: reply.weight for site, reply in replies.items()},
            means=mean_figures({site: (reply.weight, reply.metrics) for site, reply in replies.items()}),
            clear=updates.spool.clear,
            figures={site: reply.metrics for site, reply in replies.items()},
            energy={"energy_joules": sum(energy), "energy_sites": float(len(energy))} if energy else {},
        )

    def _gathered_securely(self, question: Question, members: Sequence[Member]) -> Gathered:
        """Sums over the sites, none of whose updates is opened. Raises FederationError if there are too few."""
        expected = self._expected(question.checkpoint)
        gathered, failures = secure_gathered(self, question, members, expected)
        self.desk.journal.lost(self.phase.name, f"round {question.round}", failures)
        return gathered

    def _expected(self, latest: Checkpoint) -> Expected:
        members = self.desk.roster.members.values()
        return Expected(
            tensors=self._tensors(latest, latest.trained),
            modality_of=self.task.modality_of,
            stays=self.strategy.stays,
            encoding=self.desk.study.encoding,
            summed=self.task.aggregation == "sum",
            declared={
                m.participant.site: m.counts[self.phase.name] for m in members if self.phase.name in m.counts
            },
        )

    def _look_again(self, updates: Spooled, check: Callable[[str], None]) -> None:
        """Updates that arrived before a coordinator was interrupted count; whose is not good is asked again."""
        for site in updates.sites:
            with blaming(site, {}), updates.spool.kept_if_whole(site):
                check(site)

    def collect(
        self,
        members: Sequence[Member],
        question: Question,
        spool: Spool | Statements,
        check: Callable[[str], None],
        enough: Callable[[set[str]], bool] = lambda arrived: False,
    ) -> dict[str, str]:
        """Ask `members`, keep their checked answers in `spool`, and return who failed and why."""
        desk, checkpoint = self.desk, question.checkpoint
        needed = [*desk.checkpoints.state(checkpoint).selected(self.task.needs), *checkpoint.trained]
        held = [part for part in needed if part in checkpoint.parts]
        requests, failures = desk.delivery.prepare(members, held, checkpoint, question.facts)
        nodes = {participant.site: participant.node for participant in requests}
        announced: dict[Participant, list[str]] = {}
        arrived: set[str] = set()

        def checked(participant: Participant) -> None:
            with blaming(participant.site, failures), spool.kept_if_whole(participant.site):
                check(participant.site)
            if participant.site in failures:
                arrived.discard(participant.site)

        def receive(participant: Participant, message: Message) -> None:
            with spool.kept_if_whole(participant.site):
                rest = spool.accept(participant.site, message)
            arrived.add(participant.site)
            if rest:
                announced[participant] = rest
            else:
                checked(participant)

        def moved(waiting: set[str]) -> dict[Participant, RecordDict]:
            back = desk.roster.returned(checkpoint, {site: nodes[site] for site in waiting})
            again, refused = desk.delivery.prepare(back, held, checkpoint, question.facts)
            nodes.update({member.participant.site: member.participant.node for member in back})
            failures.update(refused)
            return again

        lost = desk.exchange(
            requests,
            question.kind,
            f"{self.phase.name}, {question.kind} {question.round}",
            desk.study.timeout,
            receive,
            lambda: enough(arrived),
            desk.study.grace,
            moved,
        )
        for site in lost:
            desk.roster.forget(site)
        unfetched = desk.delivery.fetch(announced, question.facts, spool) if isinstance(spool, Spool) else {}
        for site in unfetched:
            spool.refuse(site)
        for participant in announced:
            if participant.site not in unfetched:
                checked(participant)
        return {**failures, **lost, **unfetched}

    def _close(
        self, number: int, latest: Checkpoint, gathered: Gathered, members: Sequence[Member], began: float
    ) -> Checkpoint:
        """Fold the updates into the next checkpoint, evaluate it at the phase's end, and put it in force."""
        checkpoints, journal, phase = self.desk.checkpoints, self.desk.journal, self.phase
        pulse = self.desk.exchange.pulse
        pulse.doing(f"{phase.name}, round {number}: folding")
        best = self._best(latest, gathered.means)
        last = number == phase.rounds or best is not None
        ended = STATE if last else ()  # not even written: no checkpoint would name it
        if best:
            kept = self._tensors(best, best.trained)
            tensors: Pairs = ((name, kept[name]) for name in kept)
        else:
            previous = self._tensors(latest, [*latest.trained, "server"])
            folded = complete(previous, self.strategy.aggregate(number, previous, gathered.updates))
            tensors = advanced(self.task, number, self._tensors(latest, latest.trained), folded)
        draft = checkpoints.draft(
            latest,
            (pair for pair in tensors if part_of(pair[0]) not in ended),
            without=ended,
            trained=latest.trained,
            sites=gathered.sites,
            **{**self._manifest(number), "rounds": number if last else phase.rounds},
        )
        seconds = time.monotonic() - began
        for site, metrics in gathered.figures.items():
            journal.write(draft.sequence, phase.name, number, site, metrics, gathered.sites[site], seconds)
        whole = sum(gathered.sites.values())
        journal.write(draft.sequence, phase.name, number, None, gathered.means, whole, seconds)
        # Under terms of privacy figures on people would be releases too, and nobody has paid for them.
        figures: Figures = kept_loss(gathered.means) if phase.patience else {}
        if last and not phase.privacy:
            figures = self._evaluate(draft, members)
        measured = {"seconds": round(seconds, 3), **pulse.bytes_of_round(), **gathered.energy}
        checkpoint = checkpoints.commit(draft, measured=measured, **figures)
        gathered.clear()
        return checkpoint

    def _best(self, latest: Checkpoint, means: Mapping[str, float]) -> Checkpoint | None:
        """The checkpoint on whose model the phase ends with this round, if patience has run out."""
        losses = validated(self.desk.checkpoints, latest) if self.phase.patience else {}
        if LOSS in means:
            losses[latest.round] = means[LOSS]
        best = best_round(losses, self.phase.patience)
        return None if best is None else self.desk.checkpoints.load(latest.sequence - latest.round + best)

    def _evaluate(self, draft: Checkpoint, members: Sequence[Member]) -> Figures:
        """Figures of the phase's last model on validation and test people, and areas from the sites' sums."""
        began = time.monotonic()
        desk, phase = self.desk, self.phase
        question = Question("evaluate", desk.study.order(phase, phase.rounds).to_json(), draft)
        spool = Spool(desk.folder / "spool" / "evaluation", question.digest)
        people = {member.participant.site: member.counts[phase.name] for member in members}
        if desk.study.secure:
            means, sums, failures = secure_evaluated(self, question, members)
            desk.journal.lost(phase.name, "evaluation", failures)
            seconds = time.monotonic() - began
            desk.journal.write(draft.sequence, phase.name, phase.rounds, None, means, 0.0, seconds)
            return {"metrics": {"all": means}, "areas": areas(sums)}

        def check(site: str) -> None:
            require_counts(spool.replies[site].metrics, spool.tensors(site), people[site])

        failures = self.collect(members, question, spool, check)
        desk.journal.lost(phase.name, "evaluation", failures)
        figures = {site: dict(spool.replies[site].metrics) for site in sorted(spool.replies)}
        seconds = time.monotonic() - began
        for site, found in figures.items():
            weight = spool.replies[site].weight
            desk.journal.write(draft.sequence, phase.name, phase.rounds, site, found, weight, seconds)
        everybody = pooled(figures)
        desk.journal.write(draft.sequence, phase.name, phase.rounds, None, everybody, 0.0, seconds)
        sums = summed({site: spool.tensors(site) for site in figures})
        spool.clear()
        named = figures if len(figures) <= _SITES_NAMED else {}
        return {"metrics": {"all": everybody, **named}, "areas": areas(sums)}

    def _manifest(self, number: int) -> dict[str, object]:
        study = self.desk.study
        return {
            "study": study.name,
            "config": study.hash,
            "code": code_hash(),
            "phase": self.phase.name,
            "round": number,
            "rounds": self.phase.rounds,
            "privacy": study.privacy,
        }

    def _tensors(self, checkpoint: Checkpoint, parts: Sequence[str]) -> Reader:
        """The tensors of some parts of a checkpoint, read one by one."""
        held = [digest for part in parts for digest in checkpoint.parts.get(part, ())]
        return Reader(self.desk.checkpoints.objects, held)
