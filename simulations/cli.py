"""pm1-sim: the researcher's command line."""

from __future__ import annotations

import argparse
import json
import logging
import math
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs import compose
from pm1_core.command import grammar, guarded, subcommand
from pm1_core.errors import ConfigError
from pm1_core.validate import refusal
from simulations import sweep
from simulations.learning import command as learning

_OVERRIDES = """\
Overrides are Hydra's: key=value, group=choice. For example
  pm1-sim run study=ukb_eyepacs privacy=none sites=6
  pm1-sim run model=tiny people=400 name=quick study.phases.fusion.rounds=5
  pm1-sim run resume=ukb_eyepacs-small
`pm1-sim config` prints everything that can be set, with what it is set to."""

_ATTACK_NAMES = (
    "attacks to run: membership (some five minutes; attack.models=16 is fuller), audit, frequencies, inversion, "
    "row_space, inference, or all, the default; and what to change in the configuration"
)


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    root, commands = grammar("pm1-sim", "Federated studies of PM1 on one machine.", _OVERRIDES)
    for name, text in (
        ("run", "make the data, train the study, write runs/NAME/report.html"),
        ("cohort", "only write and prepare the simulated hospitals' files"),
        ("compare", "every phase federated beside pooled beside each site alone, at leisure"),
        ("search", "hyperparameters of the phenotype auto-encoder by Hyperband"),
        ("attack", "attack what a study gives away, write runs/NAME/attacks.html"),
        ("config", "print the composed configuration"),
    ):
        sub = subcommand(commands, name, text, _OVERRIDES)
        sub.add_argument(
            "overrides",
            nargs="*",
            metavar="NAME|KEY=VALUE" if name == "attack" else "KEY=VALUE",
            help=_ATTACK_NAMES if name == "attack" else "what to change in the configuration",
        )
        if name != "config":
            sub.add_argument(
                "--json", action="store_true", help="print the outcome as JSON on standard output"
            )
    sweep.add_parser(commands)
    learning.add_parser(commands)
    report = commands.add_parser("report", help="write a finished run's report again")
    report.add_argument("run", type=Path, help="folder of the run, e.g. runs/ukb_eyepacs-small")
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parser().parse_args(arguments)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    return guarded("pm1-sim", lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    # Imported here: torch and Flower take seconds, and --help should not.
    if options.command == "report":
        from simulations.report import write_report

        print(write_report(options.run))
        return
    if options.command == "attack":
        _attack(options)
        return
    if options.command == "sweep":
        from simulations.progress import Stages

        sweep.command(options, Stages())
        return
    if options.command == "learn":
        from simulations.progress import Stages

        learning.command(options, Stages())
        return
    config = compose.load("simulation", options.overrides)
    _require_bare_resume(config, options.overrides)
    if options.command == "config":
        print(compose.to_yaml(config), end="")
        return
    from simulations.progress import Stages

    stages = Stages()
    if options.command == "cohort":
        from simulations.workspace import simulated

        folder = simulated(config, stages).folder
        print(json.dumps({"cohort": str(folder)}) if options.json else folder)
        return
    if options.command == "compare":
        from simulations.comparison import compare_phases

        rows = compare_phases(config, stages)
        print(json.dumps(rows, indent=1) if options.json else _table(rows))
        return
    if options.command == "search":
        from simulations.search import search

        found = search(config, stages)
        print(json.dumps(found, indent=1) if options.json else _trials(found))
        return
    from simulations.real import require_bounds, verdicts
    from simulations.real_cohort import REAL
    from simulations.run import run

    report = run(config, stages)
    results = json.loads((report.parent / "results.json").read_text())
    if options.json:
        print(json.dumps({"run": str(report.parent), "report": str(report), "results": results}))
    else:
        from simulations.report_findings import findings
        from simulations.report_run import read_run

        finished = read_run(report.parent)
        for sentence in findings(finished.results, finished.participants):
            print("- " + re.sub(r"<[^>]+>", "", sentence))
        if config["study"]["scenario"] == REAL:
            print()
            for kept, sentence in verdicts(finished.results):
                print(f"{'PASS' if kept else 'MISSED'}  {sentence}")
        print(f"\nReport: {report}")
    if config["study"]["scenario"] == REAL:
        require_bounds(results)


def _attack(options: argparse.Namespace) -> None:
    """`pm1-sim attack [NAME ...] [KEY=VALUE ...]`: what has no = is the name of an attack."""
    from simulations.attacks.run import run_attacks
    from simulations.progress import Stages

    names = [item for item in options.overrides if "=" not in item]
    config = compose.load("simulation", [item for item in options.overrides if "=" in item])
    page = run_attacks(config, names, Stages())
    found = json.loads((page.parent / "attacks.json").read_text())
    if options.json:
        print(json.dumps({"run": str(page.parent), "page": str(page), "attacks": found}))
        return
    for outcome in found.values():
        print(outcome["title"], *(f"- {sentence}" for sentence in outcome["findings"]), sep="\n")
    print(f"\nPage: {page}")


def _require_bare_resume(config: dict[str, Any], overrides: Sequence[str]) -> None:
    """A run goes on as it began: anything else beside resume= would be silently ignored."""
    other = [item for item in overrides if item.partition("=")[0] not in ("resume", "runs")]
    if config["resume"] and other:
        raise ConfigError(
            refusal(f"argument {other[0]!r}", "stands beside resume=", "leave it out, or name another run")
        )


def _trials(found: dict[str, Any]) -> str:
    names = ("learning_rate", "batch_size", "depth", "momentum", "epochs", "loss", "state")
    lines = [" ".join(f"{name:>13}" for name in names)]
    for row in sorted(found["trials"], key=lambda row: math.inf if row["loss"] is None else row["loss"]):
        cells = (row[name] for name in names)
        lines.append(" ".join(f"{c:>13.4g}" if isinstance(c, float) else f"{c!s:>13}" for c in cells))
    return "\n".join([*lines, "", "the best one: " + " ".join(found["overrides"])])


def _table(rows: list[dict[str, object]]) -> str:
    lines = [f"{'phase':<14} {'trained':<14} {'people':>7} {'validation loss':>16} {'test loss':>12}"]
    for row in rows:
        figures = f"{row['people']:>7} {row['validation']:>16.4f} {row['test']:>12.4f}"
        lines.append(f"{row['phase']:<14} {row['trained']:<14} {figures}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
