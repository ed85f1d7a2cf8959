"""`pm1-sim sweep`: the trade-off between privacy and what a model is worth, over a grid of studies.

    runs/NAME/sweep.csv     a row per cell: its place in the grid, what privacy was spent, every figure
    runs/NAME/sweep.html    every figure against epsilon, with bands over seeds

Interrupted, the same command goes on: what has a result is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pm1_core import atomic
from pm1_core.command import subcommand
from pm1_core.errors import ConfigError, StateError
from pm1_core.validate import refusal, require_range
from simulations.sweep_code import VARIABLE, code_digest
from simulations.sweep_grid import AXES, DEFAULTS, Sweep, sweep_of
from simulations.sweep_result import error_file, read_result

if TYPE_CHECKING:
    from pm1_core.command import Subcommands
    from simulations.progress import Stages

_EVERY = 1.0  # seconds between two looks at what is done

EPILOG = f"""\
These may have several values:
  epsilon   of the whole study, or none
  unit      whose privacy: record (a person) or site
  sites, strategy, seed
Every other key of `pm1-sim config` may be given one.

Without arguments: {" ".join(DEFAULTS)}

Examples
  pm1-sim sweep
  pm1-sim sweep --dry-run strategy=fedavg,fedadam
  pm1-sim sweep name=clip epsilon=2,8 privacy.clip=0.3
  pm1-sim sweep --jobs 16 name=full model=small people=20000 test_people=4000 privacy.people=3000 \\
    study.phases.genotype.chromosomes=[] sites=3,6,12 strategy=fedavg,fedprox,fedadam unit=record,site \\
    seed=1,2,3,4,5
Interrupted, the same command goes on. Encoders are trained once for each epsilon, unit, number of sites and seed,
by federated averaging; the strategy is that of the fusion phase."""


@dataclass(frozen=True)
class Swept:
    """What a sweep came to: results of its cells in the grid's order, files, cells that failed with the reason."""

    results: list[dict[str, Any]]
    table: Path
    page: Path
    failed: dict[str, str]


def add_parser(commands: Subcommands) -> None:
    """The grammar of `sweep`."""
    text = "a grid of studies over epsilon, sites, strategy, unit and seed: one table and one page"
    sub = subcommand(commands, "sweep", text, EPILOG)
    sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE[,VALUE...]", help="the grid")
    sub.add_argument("--jobs", type=int, default=_cores(), metavar="N", help="cells at a time (%(default)s)")
    sub.add_argument("--dry-run", action="store_true", help="list the cells and what is left, run nothing")
    sub.add_argument("--json", action="store_true", help="print the outcome as JSON on standard output")


def command(options: argparse.Namespace, stages: Stages) -> None:
    """Do what `options`, parsed by the grammar above, ask for."""
    planned = sweep_of(options.overrides)
    if options.dry_run:
        print(_listing(planned, as_json=options.json))
        return
    swept = sweep(planned, options.jobs, stages)
    if options.json:
        print(json.dumps({"table": str(swept.table), "page": str(swept.page), "cells": swept.results}))
    else:
        print(f"Table: {swept.table}\nPage:  {swept.page}")
    if swept.failed:
        title, reason = next(iter(swept.failed.items()))
        found = (
            f"{len(swept.failed)} of {len(planned.cells)} cells failed, the first ({title}) with: {reason}"
        )
        raise StateError(refusal("sweep", found, "mend that and run the same command again"))


def sweep(planned: Sweep, jobs: int, stages: Stages) -> Swept:
    """Run what is left of a grid, `jobs` cells at a time, and write its table and page.

    Raises StateError if no cell came to a result.
    """
    from simulations.sweep_page import write_page
    from simulations.sweep_table import write_table

    require_range("option --jobs", jobs, 1, error=ConfigError)
    planned.folder.mkdir(parents=True, exist_ok=True)
    remedy = "wait until it has ended"
    with atomic.locked(planned.folder / "lock", remedy):
        if len(done(planned)) < len(planned.cells):
            _people(planned, stages)
            _launch(planned, jobs, stages)
        results, failed = done(planned), _failed(planned)
        if not results:
            reason = next(iter(failed.values()), "Hydra's launcher ended early")
            raise StateError(
                refusal("sweep", f"no cell has a result: {reason}", "mend that and run it again")
            )
        table = write_table(results, planned.folder)
        page = write_page(results, planned.arguments, planned.folder, len(planned.cells))
    return Swept(results, table, page, failed)


def done(planned: Sweep) -> list[dict[str, Any]]:
    """Results of those cells that have one, in the grid's order; their "values" are its axes."""
    found = ((cell, read_result(planned.folder, cell)) for cell in planned.cells)
    return [{**result, "values": cell.axes} for cell, result in found if result is not None]


def _people(planned: Sweep, stages: Stages) -> None:
    """Write and prepare what all cells need of people: the launcher's workers cannot start processes for it."""
    from simulations.workspace import simulated

    cells = {(cell.axes["sites"], cell.axes["seed"]): cell for cell in planned.cells}
    for cell in cells.values():
        simulated(dict(cell.config), stages)


def _launch(planned: Sweep, jobs: int, stages: Stages) -> None:
    """Hydra's multirun over the whole grid, in a process of its own, with a bar of cells."""
    log = planned.folder / "hydra.log"
    command = [
        *(sys.executable, "-m", "simulations.sweep_app", "--multirun", "hydra/launcher=joblib"),
        f"hydra.launcher.n_jobs={jobs}",
        "hydra.launcher.batch_size=1",
        f"hydra.sweep.dir={json.dumps(str(planned.folder.resolve() / 'hydra'))}",
        *("hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none"),
        *(f"+{argument}" for argument in planned.arguments),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", VARIABLE: code_digest()}
    whole, before = len(planned.cells), len(done(planned))
    with (
        log.open("w") as stream,
        stages.stage(f"cells of the grid, {jobs} at a time") as step,
        subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment) as process,
    ):
        try:
            while process.poll() is None:
                count = len(done(planned))
                if count > before and not stages.console.is_terminal:
                    stages.console.print(f"{count} of {whole} cells", highlight=False)
                before = count
                step("", count, whole)
                time.sleep(_EVERY)
        except BaseException:
            process.terminate()  # joblib's workers end with it
            raise
    if process.returncode:
        last = (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        stages.console.print(f"Hydra ended with {process.returncode}: {last} (see {log})", highlight=False)


def _failed(planned: Sweep) -> dict[str, str]:
    """Title of each cell without a result -> why."""
    reasons = {}
    for cell in planned.cells:
        file = error_file(planned.folder, cell)
        if read_result(planned.folder, cell) is None:
            reasons[cell.title] = file.read_text().strip() if file.exists() else "it was not run to its end"
    return reasons


def _listing(planned: Sweep, as_json: bool) -> str:
    """The grid as a table in text, or as JSON."""
    have = {result["hash"] for result in done(planned)}
    rows = [{**cell.axes, "hash": cell.hash[:16], "done": cell.hash in have} for cell in planned.cells]
    if as_json:
        return json.dumps({"folder": str(planned.folder), "cells": rows})
    head = " ".join(f"{key:<10}" for key in AXES) + " done"
    lines = [" ".join(f"{row[key]:<10}" for key in AXES) + (" yes" if row["done"] else " no") for row in rows]
    left = sum(not row["done"] for row in rows)
    return "\n".join([head, *lines, f"{len(rows)} cells in {planned.folder}, {left} to run"])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
