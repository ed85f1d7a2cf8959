"""The demonstration of docs/containers.md by its own commands, in namespaces of this machine.

with Demonstration(folder) as demonstration:
    demonstration.submit()
    assert demonstration.wait(600) == "finished"
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from composed import ROOT
from harness import Harness
from owned import give

from pm1_core.checkpoint import CheckpointFolder

SITES = ("birmingham", "glasgow", "leeds")
_OVERRIDES = (
    "model=tiny",
    "aggregation=secure",
    "study.phases.statistics.min_sites=3",
    "study.phases.phenotype.min_sites=3",
    "study.phases.phenotype.rounds=2",
    "~study.phases.genotype",
    "~study.phases.fundus",
    "~study.phases.tokens",
    "~study.phases.fusion",
)
"""Statistics and a phenotype model in secure sums, the study of the page."""


class Demonstration:
    """Coordinator and three sites in containers below `folder`, started when entered.

    overrides: further ones of the study
    """

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.demo = folder / "demo"
        self._overrides = (*_OVERRIDES, *overrides)
        self._before = ""
        self.demo.mkdir(parents=True)
        give(self.demo)
        settings = (ROOT / "examples/demo/demo.env").read_text().splitlines()
        variables = dict(line.split("=", 1) for line in settings if not line.startswith("#"))
        placed = {name: value.replace("./demo", str(self.demo), 1) for name, value in variables.items()}
        self.harness = Harness(folder / "harness", "demo", placed, {"OMP_NUM_THREADS": "1"})

    def __enter__(self) -> Demonstration:
        try:
            self.harness.run("demo-setup", seconds=900)
            self.harness.start(seconds=600)
        except BaseException:
            self.harness.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.harness.close()

    def submit(self) -> None:
        """Propose the study, approve it at every site, start it or go on with it."""
        if not (self.demo / "exchange/study.json").exists():
            self._server("study", "resolve", *self._overrides, "--out", "study.json")
        start = ("study", "submit", "study.json", "--definition", "/var/lib/pm1/study.yaml")
        self._server(*start, "--dry-run")
        (proposal,) = (self.demo / "coordinator/proposals").glob("*.json")
        shutil.copy(proposal, self.demo / "exchange")
        give(self.demo / "exchange")
        for site in SITES:
            place = str(self.demo / site)
            self.harness.run("pm1-site", "approve", proposal.name, "--yes", PM1_SITE=place)
        self._before = self.status().get("started", "")
        self._server(*start)

    def told(self) -> dict[str, Any]:
        """What `pm1-server study status` answers."""
        return dict(json.loads(self._server("study", "status", "--json")))

    def wait(self, seconds: float, look: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """What the run says of itself when it has ended. look: called again and again meanwhile."""

        def ended() -> bool:
            look()
            status = self.status()
            return status.get("started", "") != self._before and status["state"] != "running"

        self.harness.await_("the study's end", ended, seconds)
        return self.status()

    def unplugged(self, seconds: float) -> str:
        """Submit the study, pull the cables of all doors in its phenotype phase for `seconds`, and go on with it.

        Returns why it stopped. Raises TimeoutError if it does not stop meanwhile, or does not end afterwards.
        """
        cut: list[float] = []

        def look() -> None:
            status = self.status()
            if not cut and status.get("phase") == "phenotype" and status.get("waiting"):
                self._plug("down")
                cut.append(time.monotonic())

        self.submit()
        stopped = self.wait(1200, look)
        self.harness.await_("the cable", lambda: time.monotonic() - cut[0] > seconds, seconds + 60)
        self._plug("up")
        self.submit()
        ended = self.wait(1200)
        assert ended["state"] == "finished", ended
        return str(stopped["why"])

    def status(self) -> dict[str, Any]:
        """status.json of the run; empty while there is none."""
        found = sorted((self.demo / "coordinator/runs").glob("*/status.json"))
        return dict(json.loads(found[0].read_text())) if found else {}

    @property
    def checkpoints(self) -> CheckpointFolder:
        """Of the run."""
        (found,) = (self.demo / "coordinator/runs").glob("*/checkpoints")
        return CheckpointFolder(found)

    def _server(self, *words: str) -> str:
        return self.harness.run("pm1-server", *words)

    def _plug(self, state: str) -> None:
        for site in SITES:
            self.harness.plug(f"{site}-door", "outside", state)
