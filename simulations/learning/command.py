"""The grammar of `pm1-sim learn`, and what the command prints."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from configs import compose
from pm1_core.command import subcommand
from pm1_core.errors import ConfigError
from pm1_core.validate import refusal

if TYPE_CHECKING:
    from pm1_core.command import Subcommands
    from simulations.progress import Stages

_EPILOG = """\
Examples
  pm1-sim learn
  pm1-sim learn --seeds 0,1,2,3,4 people=4000 name=more
  pm1-sim learn --seeds 0 model=tiny people=400 test_people=200 name=look
Interrupted, the same command goes on; with further seeds it runs those. runs/NAME/reasons.json, if there is one,
is put beside the verdicts: claim -> why it does not appear."""

_ELSEWHERE = {"seed": "use --seeds 0,1,2", "resume": "run the same command again: what is done stays"}


def add_parser(commands: Subcommands) -> None:
    """The grammar of `learn`."""
    text = "does it learn what the paper says? claims over seeds, with baselines, ablations and intervals"
    sub = subcommand(commands, "learn", text, _EPILOG)
    sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="what to change in the configuration")
    sub.add_argument("--seeds", default="0,1,2", metavar="N,N,...", help="a study each (%(default)s)")
    sub.add_argument("--json", action="store_true", help="print the outcome as JSON on standard output")


def command(options: argparse.Namespace, stages: Stages) -> None:
    """Do what `options`, parsed by the grammar above, ask for."""
    seeds = seeds_of(options.seeds)
    for override in options.overrides:
        if remedy := _ELSEWHERE.get(override.partition("=")[0]):
            raise ConfigError(refusal(f"argument {override!r}", "is not a key of this command", remedy))
    config = compose.load("simulation", options.overrides)

    from simulations.learning.page import NAME, write_outcome
    from simulations.learning.work import learn

    folder, config, measured = learn(config, seeds, stages)
    results = write_outcome(folder, _header(config, seeds), measured)
    if options.json:
        files = {kind: str(folder / f"{NAME}.{kind}") for kind in ("json", "csv", "html", "md")}
        print(json.dumps({"run": str(folder), "files": files, "claims": results["claims"]}))
        return
    for row in results["claims"]:
        print(f"{row['verdict']:<16} {row['claim']} ({row['place']})")
    print(f"\nPage: {folder / f'{NAME}.html'}")


def seeds_of(text: str) -> list[int]:
    """Whole numbers between commas, each once. Raises ConfigError."""
    try:
        seeds = [int(piece) for piece in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or len(set(seeds)) < len(seeds):
        remedy = "list whole numbers, each once, such as 0,1,2"
        raise ConfigError(refusal("option --seeds", f"found {text!r}", remedy))
    return seeds


def _header(config: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """What a reader must know of the runs."""
    return {
        "study": config["study"]["name"],
        "size": config["model"]["size"],
        **{key: config[key] for key in ("people", "test_people", "sites")},
        "strategy": config["strategy"]["name"],
        "seeds": list(seeds),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "versions": {name: importlib.metadata.version(name) for name in ("pm1", "torch")},
    }
