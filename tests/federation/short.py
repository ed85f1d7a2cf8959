"""A short study, of statistics and phenotypes, over sites that may be unruly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from mortal_work import fresh
from studies import coordinate, tiny_study
from unruly import Deed, UnrulyGrid

from pm1_core import atomic
from pm1_core.checkpoint import Checkpoint
from server.coordinator import Coordinator
from server.study import Study

LAST = ("train", "phenotype", 2)
"""Kind, phase and round of the last training."""


class StoppedError(Exception):
    """Raised to end a run between two rounds."""


@cache
def _configured() -> Study:
    study = tiny_study()
    return replace(study, phases=tuple(p for p in study.phases if p.name in ("statistics", "phenotype")))


def short_study(phase: Mapping[str, Any] | None = None, **changes: Any) -> Study:
    """phase: changes to that of phenotypes; changes: to the study, which waits a third of a second at most."""
    first, second = _configured().phases
    given = {"timeout": 0.3, "gather": 0.3, "grace": 0.0, **changes}
    return replace(_configured(), phases=(first, replace(second, **(phase or {}))), **given)


def coordinator(
    stores: Mapping[str, Path], folder: Path, study: Study | None = None, grid: UnrulyGrid | None = None
) -> Coordinator:
    """Of the short study, over `grid` or sites that do as they are asked."""
    made: Coordinator = coordinate(study or short_study(), dict(stores), folder)(
        grid or UnrulyGrid(stores, folder)
    )
    return made


def run(
    stores: Mapping[str, Path], folder: Path, study: Study | None = None, grid: UnrulyGrid | None = None
) -> Checkpoint:
    """Its last checkpoint."""
    with atomic.without_sync():
        return coordinator(stores, folder, study, grid).run()


def last_round(stores: dict[str, Path], begun: Path, folder: Path, deed: Deed, **changes: Any) -> Checkpoint:
    """The last round and its evaluation in folder/run, in which `east` behaves as told."""
    run_folder = fresh(begun, folder / "run")
    grid = UnrulyGrid(stores, run_folder, {("east", *LAST): deed})
    return run(stores, run_folder, short_study(**changes), grid)


def phases(folder: Path) -> dict[str, Any]:
    """phases.json of a run."""
    content: dict[str, Any] = json.loads((folder / "phases.json").read_text())
    return content
