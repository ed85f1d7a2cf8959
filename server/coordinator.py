"""Runs a study over the sites of a grid, phase by phase, with a signed checkpoint after every round."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from flwr.serverapp import Grid

import strategies
from pm1_core import atomic
from pm1_core.checkpoint import Checkpoint, CheckpointFolder
from pm1_core.data.summary import StudySummary
from pm1_core.errors import CheckpointError
from pm1_core.signing import Signer
from pm1_core.training.tasks import build_task
from pm1_core.validate import refusal
from server.delivery import Delivery
from server.exchange import Exchange
from server.journal import Journal
from server.leftovers import clear_away
from server.origins import require_origin
from server.phase_run import Desk, PhaseRun
from server.pulse import NAME as PULSE
from server.pulse import Pulse
from server.roster import Roster
from server.study import Phase, Study
from strategies import records

Progress = Callable[[str, int, int], None]


@dataclass
class Coordinator:
    """A study, the folder of its run, the grid of its sites and the key that checkpoints are signed with.

    folder: runs/NAME; `checkpoints/`, `study.json`, `metrics.jsonl`, `phases.json`, `status.json`,
        `coordinator.log` and `tensorboard/` appear in it
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
        study, StateError if another coordinator works in the folder, FederationError if a phase finds too few
        sites.
        """
        remedy = "wait until it has ended; a ServerApp outlives its SuperLink by some seconds"
        with atomic.locked(self.folder / "lock", remedy):
            return self._run()

    def _run(self) -> Checkpoint:
        checkpoints = CheckpointFolder(self.folder / "checkpoints", self.signer)
        require_origin(checkpoints, self.study.start_from)
        latest = checkpoints.latest()
        if latest and latest.config != self.study.hash:
            raise CheckpointError(
                refusal(
                    self.folder,
                    f"its checkpoints are of study configuration {latest.config[:12]}",
                    "resume with the configuration it was started with, or choose another run name",
                )
            )
        clear_away(self.folder, checkpoints)
        atomic.write_text(self.folder / "study.json", self.study.to_json() + "\n")
        journal = Journal(self.folder, latest.sequence if latest else 0)
        pulse = Pulse(self.folder / PULSE)
        exchange = Exchange(self.grid, journal.strange, pulse)
        roster = Roster(self.study, self.summary.hash, exchange, self.folder / "roster.json")
        delivery = Delivery(exchange, checkpoints.objects, self.study.timeout)
        desk = Desk(self.study, self.folder, checkpoints, journal, exchange, roster, delivery)
        names = [phase.name for phase in self.study.phases]
        whole, done = sum(phase.rounds for phase in self.study.phases), 0
        try:
            for phase in self.study.phases:
                if latest is None or names.index(phase.name) >= names.index(latest.phase):
                    latest = self._phase(desk, phase).run(latest, partial(self._told, phase, done, whole))
                done += phase.rounds
            assert latest is not None  # a study has at least one phase of at least one round
            shutil.rmtree(self.folder / "spool", ignore_errors=True)  # no round is under way any more
            self._give_all(desk, latest)
            pulse.ended(None)
        except BaseException as error:
            pulse.ended(error)
            raise
        finally:
            journal.close()
        return latest

    def _phase(self, desk: Desk, phase: Phase) -> PhaseRun:
        task = build_task(self.study.order(phase, 0), self.summary, self.tasks)
        summed = task.aggregation == "sum"
        strategy = strategies.Summation() if summed else strategies.build(self.study.strategy)
        return PhaseRun(desk, phase, task, strategy)

    def _told(self, phase: Phase, before: int, whole: int, number: int) -> None:
        self.progress(phase.name, before + number, whole)

    def _give_all(self, desk: Desk, latest: Checkpoint) -> None:
        """At the end every connected site gets the whole model, parts included that it has no data for."""
        members = [desk.roster.members[site] for site in desk.roster.refresh(latest)]
        order = self.study.order(self.study.phases[-1], 0).to_json()
        facts: dict[str, records.Fact] = {"order": order, "checkpoint": latest.to_json()}
        failures = desk.delivery.finish(members, latest, facts)
        desk.journal.lost(latest.phase, "release", failures)
