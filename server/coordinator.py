"""Runs a study over the sites of a grid, phase by phase, with a signed checkpoint after every round."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

import strategies
from pm1_core import atomic
from pm1_core.checkpoint import Checkpoint, CheckpointFolder, State, part_of
from pm1_core.data.summary import StudySummary
from pm1_core.errors import CheckpointError, FederationError, PM1Error, StateError
from pm1_core.evaluation.scores import areas
from pm1_core.objects import Reader
from pm1_core.signing import Signer
from pm1_core.training.tasks import Task, build_task
from pm1_core.update import Tensors
from pm1_core.validate import refusal
from server.delivery import Delivery
from server.exchange import Exchange, Participant
from server.figures import mean_figures, pooled, summed
from server.journal import Journal
from server.provenance import code_hash
from server.roster import Member, Roster, shortfall
from server.spool import Expected, Spool, Spooled, far_beyond
from server.study import Phase, Study
from strategies import records

Progress = Callable[[str, int, int], None]
Pairs = Iterable[tuple[str, np.ndarray]]

STATE = ("control", "server")
"""Parts that hold a strategy's own state; they live as long as a phase, and "server" never travels."""


@dataclass
class Coordinator:
    """A study, the folder of its run, the grid of its sites and the key that checkpoints are signed with.

    folder: runs/NAME; `checkpoints/`, `study.json`, `metrics.jsonl`, `phases.json` and `tensorboard/` appear in it
    tasks: tasks of installed packages that this coordinator agrees to run
    progress: called with (phase, rounds done, rounds) over the whole study
    """

    study: Study
    summary: StudySummary
    folder: Path
    grid: Grid
    signer: Signer
    tasks: tuple[str, ...] = ()
    progress: Progress = lambda phase, done, whole: None

    def run(self) -> Checkpoint:
        """Run what is left of the study and return its last checkpoint.

        Continues after the newest checkpoint in `folder`. Raises CheckpointError if that belongs to another
        study, FederationError if a phase finds too few sites.
        """
        self.checkpoints = CheckpointFolder(self.folder / "checkpoints", self.signer)
        latest = self.checkpoints.latest()
        if latest and latest.config != self.study.hash:
            raise CheckpointError(
                refusal(
                    self.folder,
                    f"its checkpoints are of study configuration {latest.config[:12]}",
                    "resume with the configuration it was started with, or choose another run name",
                )
            )
        atomic.write_text(self.folder / "study.json", self.study.to_json() + "\n")
        self.journal = Journal(self.folder, latest.sequence if latest else 0)
        self.exchange = Exchange(self.grid, self.journal.strange)
        self.roster = Roster(self.study, self.summary.hash, self.exchange)
        self.delivery = Delivery(self.exchange, self.checkpoints.objects, self.study.timeout)
        whole, done = sum(phase.rounds for phase in self.study.phases), 0
        try:
            for phase in self.study.phases:
                latest = self._run_phase(phase, latest, partial(self._progress, phase, done, whole))
                done += phase.rounds
            self._give_all(latest)
        finally:
            self.journal.close()
        assert latest is not None  # a study has at least one phase of at least one round
        return latest

    def _progress(self, phase: Phase, before: int, whole: int, number: int) -> None:
        self.progress(phase.name, before + number, whole)

    def _run_phase(
        self, phase: Phase, latest: Checkpoint | None, progress: Callable[[int], None]
    ) -> Checkpoint:
        """What is left of a phase, from its round 0, which holds what it starts from."""
        names = [other.name for other in self.study.phases]
        if latest and names.index(phase.name) < names.index(latest.phase):
            return latest
        task = build_task(self.study.order(phase, 0), self.summary, self.tasks)
        summed = task.aggregation == "sum"
        strategy = strategies.Summation() if summed else strategies.build(self.study.strategy)
        if latest is None or latest.phase != phase.name:
            latest = self._begin(phase, task, strategy, latest)
        for number in range(latest.round + 1, phase.rounds + 1):
            latest = self._round(phase, number, task, strategy, latest)
            progress(number)
        return latest

    def _begin(
        self, phase: Phase, task: Task, strategy: strategies.Strategy, latest: Checkpoint | None
    ) -> Checkpoint:
        """Round 0: the model's tensors that the phase trains, and the strategy's state."""
        state = self.checkpoints.state(latest or self.checkpoints.origin())
        initial = task.initial(state, self.study.seed)
        if task.aggregation == "mean" and _same(state, initial):
            initial = {name: state[name] for name in initial}  # trained before: this phase goes on with it
        trained = sorted({part_of(name) for name in initial})
        held = strategy.initial(initial)
        travels = sorted({part_of(name) for name in held} - {"server"})
        return self.checkpoints.save(
            latest,
            [*sorted(initial.items()), *sorted(held.items())],
            without=[part for part in STATE if part not in {part_of(name) for name in held}],
            trained=(*trained, *travels),
            **self._manifest(phase, 0),
        )

    def _round(
        self, phase: Phase, number: int, task: Task, strategy: strategies.Strategy, latest: Checkpoint
    ) -> Checkpoint:
        """One round: gather, deliver, train, check, fold, and a checkpoint."""
        began = time.monotonic()
        members = self.roster.gather(phase, latest)
        people = self.roster.people(phase)
        self.journal.took_part(
            phase.name,
            {m.participant.site: m.counts[phase.name] for m in members},
            self.roster.absent(phase),
        )
        order = self.study.order(phase, number).to_json()
        spool = Spool(self.folder / "spool", records.request_digest("train", order, latest.hash))
        declared = {
            **{site: m.counts[phase.name] for site, m in self.roster.members.items() if site in people}
        }
        updates = Spooled(
            spool,
            Expected(
                tensors=self._trained(latest),
                modality_of=task.modality_of,
                stays=strategy.stays,
                encoding=self.study.encoding,
                summed=task.aggregation == "sum",
                declared=declared,
            ),
        )
        norms: dict[str, float] = {}
        for site in updates.sites:  # arrived before this coordinator was interrupted
            norms[site] = updates.check(site)
        failures = self._collect(
            [m for m in members if m.participant.site not in norms],
            order,
            latest,
            task,
            spool,
            lambda site: norms.__setitem__(site, updates.check(site)),
            lambda: not shortfall(phase, sorted(norms), people),
            {"validate": int(number > 1)},
        )
        if task.aggregation == "mean":
            far = far_beyond(norms, people, self.study.norm_limit)
            failures |= far
            for site in far:
                spool.refuse(site)
        self.journal.lost(phase.name, f"round {number}", failures)
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
        return self._close(phase, number, task, strategy, latest, updates, members, began)

    def _collect(
        self,
        members: list[Member],
        order: str,
        checkpoint: Checkpoint,
        task: Task,
        spool: Spool,
        check: Callable[[str], None],
        enough: Callable[[], bool],
        facts: Mapping[str, int],
        kind: str = "train",
    ) -> dict[str, str]:
        """Ask `members`, keep their answers in `spool`, and return who failed and why."""
        needed = [
            *State(self.checkpoints.objects, checkpoint.parts).selected(task.needs),
            *(part for part in checkpoint.trained if part in checkpoint.parts),
        ]
        content: dict[str, records.Fact] = {"order": order, "checkpoint": checkpoint.to_json(), **facts}
        requests, failures = self.delivery.prepare(members, needed, checkpoint, content)
        announced: dict[Participant, list[str]] = {}

        def receive(participant: Participant, message: Message) -> None:
            site = participant.site
            try:
                rest = spool.accept(site, message)
                if rest:
                    announced[participant] = rest
                else:
                    check(site)
            except PM1Error:
                spool.refuse(site)
                raise

        grace = self.study.grace
        lost = self.exchange(
            requests, kind, _group(checkpoint, order), self.study.timeout, receive, enough, grace
        )
        for site in lost:
            self.roster.forget(site)
        failures |= lost
        unfetched = self.delivery.fetch(announced, content, spool)
        failures |= unfetched
        for participant in announced:
            site = participant.site
            try:
                if site not in unfetched:
                    check(site)
            except PM1Error as error:
                failures[site] = str(error)
            if site in failures:
                spool.refuse(site)
        return failures

    def _close(
        self,
        phase: Phase,
        number: int,
        task: Task,
        strategy: strategies.Strategy,
        latest: Checkpoint,
        updates: Spooled,
        members: list[Member],
        began: float,
    ) -> Checkpoint:
        """Fold the updates into the next checkpoint, evaluate it at the phase's end, and put it in force."""
        last = number == phase.rounds
        previous = self._trained(latest, with_state=True)
        folded: Pairs = _complete(previous, strategy.aggregate(number, previous, updates))
        if type(task).advance is not Task.advance:
            folded = _advanced(task, number, self._trained(latest), folded)
        replies = [updates.spool.replies[site] for site in updates.sites]
        draft = self.checkpoints.draft(
            latest,
            folded,
            without=STATE if last else (),
            trained=latest.trained,
            sites={reply.site: reply.weight for reply in replies},
            **self._manifest(phase, number),
        )
        seconds = time.monotonic() - began
        for reply in replies:
            self.journal.write(
                draft.sequence, phase.name, number, reply.site, reply.metrics, reply.weight, seconds
            )
        means = mean_figures({reply.site: (reply.weight, reply.metrics) for reply in replies})
        weight = sum(reply.weight for reply in replies)
        self.journal.write(draft.sequence, phase.name, number, None, means, weight, seconds)
        energy = [r.metrics["energy_joules"] for r in replies if "energy_joules" in r.metrics]
        measured = {"seconds": round(seconds, 3)}
        if energy:
            measured |= {"energy_joules": sum(energy), "energy_sites": float(len(energy))}
        figures = self._evaluate(phase, task, draft, members) if last else {}
        checkpoint = self.checkpoints.commit(draft, measured=measured, **figures)
        updates.spool.clear()
        return checkpoint

    def _evaluate(
        self, phase: Phase, task: Task, draft: Checkpoint, members: list[Member]
    ) -> dict[str, Mapping[str, Mapping[str, float]]]:
        """Figures of the phase's last model on validation and test people, and areas from the sites' sums."""
        began = time.monotonic()
        order = self.study.order(phase, phase.rounds).to_json()
        spool = Spool(
            self.folder / "spool" / "evaluation", records.request_digest("evaluate", order, draft.hash)
        )

        def check(site: str) -> None:
            areas(spool.tensors(site), fewest=1)  # refuses what is no count of scores

        failures = self._collect(members, order, draft, task, spool, check, lambda: False, {}, "evaluate")
        self.journal.lost(phase.name, "evaluation", failures)
        replies = {site: spool.replies[site] for site in sorted(spool.replies)}
        seconds = time.monotonic() - began
        for site, reply in replies.items():
            self.journal.write(
                draft.sequence, phase.name, phase.rounds, site, reply.metrics, reply.weight, seconds
            )
        everybody = pooled({site: reply.metrics for site, reply in replies.items()})
        self.journal.write(draft.sequence, phase.name, phase.rounds, None, everybody, 0.0, seconds)
        metrics = {"all": everybody, **{site: dict(reply.metrics) for site, reply in replies.items()}}
        sums = summed({site: dict(spool.tensors(site)) for site in replies})
        spool.clear()
        return {"metrics": metrics, "areas": areas(sums)}

    def _give_all(self, latest: Checkpoint | None) -> None:
        """At the end every connected site gets the whole model, what it has no data for included."""
        assert latest is not None
        members = [self.roster.members[site] for site in self.roster.refresh(latest)]
        content = {
            "order": self.study.order(self.study.phases[-1], 0).to_json(),
            "checkpoint": latest.to_json(),
        }
        failures = self.delivery.send(members, list(latest.parts), latest, content)
        self.journal.lost(latest.phase, "release", failures)

    def _manifest(self, phase: Phase, number: int) -> dict[str, object]:
        return {
            "study": self.study.name,
            "config": self.study.hash,
            "code": code_hash(),
            "phase": phase.name,
            "round": number,
            "rounds": phase.rounds,
            "privacy": self.study.privacy,
        }

    def _trained(self, checkpoint: Checkpoint, with_state: bool = False) -> Reader:
        """The tensors of a round, read one by one; `with_state` also those that stay at the coordinator."""
        parts = [part for part in checkpoint.trained if part in checkpoint.parts]
        if with_state and "server" in checkpoint.parts:
            parts.append("server")
        return Reader(
            self.checkpoints.objects, [digest for part in parts for digest in checkpoint.parts[part]]
        )


def _group(checkpoint: Checkpoint, order: str) -> str:
    return f"{checkpoint.phase}, round {checkpoint.round + 1}"


def _same(state: State, initial: Tensors) -> bool:
    """Whether `state` has all tensors of `initial`, in the same shapes."""
    parts = {part_of(name) for name in initial}
    if not parts <= set(state.parts):
        return False
    return all(
        name in state.part(part_of(name)) and state.part(part_of(name)).shape(name) == array.shape
        for name, array in initial.items()
    )


def _complete(previous: Reader, folded: Pairs) -> Iterator[tuple[str, np.ndarray]]:
    """`folded`, with the previous value of every tensor that it leaves out, in the order of folding."""
    waiting = sorted(previous, key=_place)
    for name, array in folded:
        while waiting and _place(waiting[0]) < _place(name):
            skipped = waiting.pop(0)
            yield skipped, previous[skipped]
        if not waiting or waiting.pop(0) != name:
            raise StateError(
                refusal(f"tensor {name!r}", "the strategy yields it out of order", "yield names in order")
            )
        yield name, array
    for name in waiting:
        yield name, previous[name]


def _place(name: str) -> tuple[int, str]:
    """The model's tensors come first, then the strategy's own."""
    return (part_of(name) in STATE, name)


def _advanced(task: Task, number: int, before: Reader, folded: Pairs) -> Iterator[tuple[str, np.ndarray]]:
    """What a task with a rule of its own makes of the sites' mean or sum. Its tensors are all in memory."""
    state: dict[str, np.ndarray] = {}
    model: dict[str, np.ndarray] = {}
    for name, array in folded:
        (state if part_of(name) in STATE else model)[name] = array
    yield from sorted(task.advance(number, dict(before), model).items())
    yield from sorted(state.items())
