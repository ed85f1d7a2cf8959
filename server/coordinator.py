"""Runs a study over the sites of a grid, phase by phase, with a checkpoint after every round."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flwr.serverapp import Grid

import strategies
from pm1_core.checkpoint import Checkpoint, CheckpointFolder, State
from pm1_core.data.summary import StudySummary
from pm1_core.errors import CheckpointError, FederationError
from pm1_core.fields import Split
from pm1_core.training.tasks import Task, build_task
from pm1_core.update import Tensors, Update
from pm1_core.validate import refusal
from server import rounds
from server.journal import Journal
from server.rounds import Participant
from server.study import Phase, Study
from strategies import records

Progress = Callable[[str, int, int], None]


@dataclass
class Coordinator:
    """A study, the folder of its run and the grid of its sites.

    folder: runs/NAME; `checkpoints/`, `metrics.jsonl`, `phases.json` and `tensorboard/` appear in it
    progress: called with (phase, rounds done, rounds) over the whole study
    """

    study: Study
    summary: StudySummary
    folder: Path
    grid: Grid
    progress: Progress = lambda phase, done, whole: None

    def run(self) -> Checkpoint:
        """Run what is left of the study and return its last checkpoint.

        Continues after the newest checkpoint in `folder`. Raises CheckpointError if that belongs to another
        study, FederationError if a phase finds too few sites.
        """
        checkpoints = CheckpointFolder(self.folder / "checkpoints")
        latest = checkpoints.latest()
        if latest and latest.config != self.study.hash:
            raise CheckpointError(
                refusal(
                    self.folder,
                    f"its checkpoints are of study configuration {latest.config[:12]}",
                    "resume with the configuration it was started with, or choose another run name",
                )
            )
        journal = Journal(self.folder, latest.sequence if latest else 0)
        whole = sum(phase.rounds for phase in self.study.phases)
        done = 0
        try:
            for phase in self.study.phases:
                first = 1
                if latest and self._is_past(phase, latest):
                    first = phase.rounds + 1
                elif latest and latest.phase == phase.name:
                    first = latest.round + 1
                done += first - 1
                if first <= phase.rounds:
                    latest = self._run_phase(phase, first, checkpoints, latest, journal, done, whole)
                    done += phase.rounds - first + 1
        finally:
            journal.close()
        assert latest is not None  # a study has at least one phase of at least one round
        return latest

    def _is_past(self, phase: Phase, latest: Checkpoint) -> bool:
        names = [other.name for other in self.study.phases]
        here, reached = names.index(phase.name), names.index(latest.phase)
        return here < reached or (here == reached and latest.round >= phase.rounds)

    def _run_phase(
        self,
        phase: Phase,
        first: int,
        checkpoints: CheckpointFolder,
        latest: Checkpoint | None,
        journal: Journal,
        done: int,
        whole: int,
    ) -> Checkpoint:
        order = self.study.order(phase, first)
        task = build_task(order, self.summary)
        state = checkpoints.state(latest)
        frozen = [f"{part}={digest}" for part, digest in state.selected(task.needs).items()]
        tensors: Tensors
        if first == 1:
            tensors = task.initial(state, self.study.seed)
        else:
            assert latest is not None
            tensors = self._last_tensors(state, task)
        participants = self._gather(phase, first, state, frozen, journal)
        strategy = (
            strategies.Summation() if task.aggregation == "sum" else strategies.build(self.study.strategy)
        )
        for number in range(first, phase.rounds + 1):
            began = time.monotonic()
            order = self.study.order(phase, number)
            request = records.pack_request(
                order.to_json(), tensors, {"parts": frozen, "validate": int(number > 1)}
            )
            answers = rounds.exchange(
                self.grid,
                dict.fromkeys(participants, request),
                "train",
                f"{phase.name}:{number}",
                self.study.timeout,
            )
            kept, failures = rounds.refuse_unfit(answers, tensors)
            journal.lost(phase.name, f"round {number}", failures)
            rounds.require_quorum(phase.name, number, len(kept), phase.min_sites, failures)
            arrays, means = strategy.aggregate_train(number, kept.values())
            assert arrays is not None
            tensors = task.advance(number, tensors, records.unpack_tensors(arrays))
            sequence = latest.sequence + 1 if latest else 1
            seconds = time.monotonic() - began
            updates = {site: records.update_of(reply.content) for site, reply in kept.items()}
            for site, update in updates.items():
                journal.write(sequence, phase.name, number, site, update.metrics, update.weight, seconds)
            weight = sum(update.weight for update in updates.values())
            averages = records.figures_of(means) if means else {}
            journal.write(sequence, phase.name, number, None, averages, weight, seconds)
            if number == phase.rounds:
                self._evaluate(phase, participants, tensors, frozen, sequence, journal)
            latest = checkpoints.save(
                latest,
                tensors,
                study=self.study.name,
                config=self.study.hash,
                phase=phase.name,
                round_number=number,
                rounds=phase.rounds,
                sites={site: update.weight for site, update in updates.items()},
                privacy=self.study.privacy,
            )
            self.progress(phase.name, done + number - first + 1, whole)
        assert latest is not None
        return latest

    def _last_tensors(self, state: State, task: Task) -> Tensors:
        """The tensors of the round before, read from the checkpoint: names and shapes are the task's own."""
        return {name: state[name] for name in task.initial(state, self.study.seed)}

    def _gather(
        self, phase: Phase, first: int, state: State, frozen: Iterable[str], journal: Journal
    ) -> list[Participant]:
        """Ask every connected site whether it takes part, and give it the frozen parts that it lacks."""
        order = self.study.order(phase, first)
        nodes = [Participant(f"node {node}", node) for node in self.grid.get_node_ids()]
        request = records.pack_request(order.to_json(), facts={"parts": list(frozen)})
        answers = rounds.exchange(
            self.grid, dict.fromkeys(nodes, request), "query.ready", f"{phase.name}:ready", self.study.timeout
        )
        absent = dict(answers.failures)
        counts: dict[str, dict[str, int]] = {}
        lacking: dict[Participant, list[str]] = {}
        for reply in answers.replies.values():
            facts = records.facts_of(reply.content, "site")
            site = str(facts["site"])
            try:
                examples = {str(split): records.count_of(facts, f"examples.{split}") for split in Split}
            except FederationError as error:
                absent[site] = str(error)
                continue
            if facts.get("study") != self.summary.hash:
                absent[site] = "its data were prepared for another study definition"
                continue
            if site in counts:
                absent[f"{site} (node {reply.metadata.src_node_id})"] = "another node has this site's name"
                continue
            if examples[Split.TRAIN] == 0:
                absent[site] = "has no training people of this phase's modalities"
                continue
            counts[site] = examples
            parts = facts["lacking"]
            lacking[Participant(site, reply.metadata.src_node_id)] = parts if isinstance(parts, list) else []
        without = self._send_parts(phase, order.to_json(), state, frozen, lacking)
        absent |= without
        counts = {site: examples for site, examples in counts.items() if site not in without}
        rounds.require_quorum(phase.name, first, len(counts), phase.min_sites, absent)
        journal.took_part(phase.name, counts, absent)
        return sorted((p for p in lacking if p.site in counts), key=lambda participant: participant.site)

    def _send_parts(
        self,
        phase: Phase,
        order: str,
        state: State,
        frozen: Iterable[str],
        lacking: dict[Participant, list[str]],
    ) -> dict[str, str]:
        """Give sites the frozen parts that they lack; a sentence for each that could not take them."""
        requests = {}
        for participant, parts in lacking.items():
            if parts:
                tensors = {name: array for part in parts for name, array in state.part(part).items()}
                requests[participant] = records.pack_request(order, tensors, {"parts": list(frozen)})
        answers = rounds.exchange(
            self.grid, requests, "query.parts", f"{phase.name}:parts", self.study.timeout
        )
        return answers.failures

    def _evaluate(
        self,
        phase: Phase,
        participants: list[Participant],
        tensors: Tensors,
        frozen: list[str],
        sequence: int,
        journal: Journal,
    ) -> None:
        """Figures of the phase's last model on validation and test people, averaged over people."""
        began = time.monotonic()
        order = self.study.order(phase, phase.rounds)
        request = records.pack_request(order.to_json(), tensors, {"parts": frozen})
        answers = rounds.exchange(
            self.grid,
            dict.fromkeys(participants, request),
            "evaluate",
            f"{phase.name}:evaluate",
            self.study.timeout,
        )
        kept, failures = rounds.refuse_unfit(answers, {})
        journal.lost(phase.name, "evaluation", failures)
        updates = {site: records.update_of(reply.content) for site, reply in kept.items()}
        seconds = time.monotonic() - began
        for site, update in updates.items():
            journal.write(sequence, phase.name, phase.rounds, site, update.metrics, update.weight, seconds)
        journal.write(sequence, phase.name, phase.rounds, None, pooled(updates), 0.0, seconds)


def pooled(updates: Mapping[str, Update]) -> dict[str, float]:
    """Figures averaged over sites with the number of people behind each figure ("SPLIT.examples")."""
    sums: dict[str, float] = {}
    people: dict[str, float] = {}
    for site in sorted(updates):
        metrics = updates[site].metrics
        for name, value in metrics.items():
            split = name.partition(".")[0]
            count = metrics.get(f"{split}.examples", 0.0)
            if name == f"{split}.examples":
                people[name] = people.get(name, 0.0) + value
            else:
                sums[name] = sums.get(name, 0.0) + value * count
                people[f"{name}/people"] = people.get(f"{name}/people", 0.0) + count
    means = {
        name: total / people[f"{name}/people"] for name, total in sums.items() if people[f"{name}/people"]
    }
    return {**means, **{name: count for name, count in people.items() if not name.endswith("/people")}}
