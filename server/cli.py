"""pm1-server: the coordinator's command line."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from configs import compose
from pm1_core import atomic
from pm1_core.checkpoint import Checkpoint, CheckpointFolder
from pm1_core.command import grammar, guarded
from pm1_core.errors import CheckpointError
from pm1_core.validate import refusal

_EPILOG = """\
Examples
  pm1-server study study=ukb_eyepacs model=paper --out study.json
  pm1-server checkpoints verify runs/ukb_eyepacs-small
A resolved study runs on real sites through Flower:
  flwr run . --run-config 'study="/srv/study.json" definition="/srv/study.yaml" run="/srv/runs/first"'"""


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    root, commands = grammar("pm1-server", "Coordinate a federated study of PM1.", _EPILOG)
    study = commands.add_parser("study", help="resolve a study and show its phases")
    study.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    study.add_argument("--out", type=Path, help="write the resolved study to this file")
    study.add_argument("--json", action="store_true", help="print the resolved study as JSON")
    config = commands.add_parser("config", help="print the composed configuration")
    config.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    checkpoints = commands.add_parser("checkpoints", help="look at the checkpoints of a run")
    checkpoints.add_argument("action", choices=("list", "show", "verify"))
    checkpoints.add_argument("run", type=Path, help="folder of the run")
    checkpoints.add_argument("--sequence", type=int, help="which checkpoint to show; default: the latest")
    checkpoints.add_argument("--json", action="store_true")
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parser().parse_args(arguments)
    actions = {"study": _study, "config": _config, "checkpoints": _checkpoints}
    return guarded("pm1-server", lambda: actions[options.command](options))


def _config(options: argparse.Namespace) -> None:
    print(compose.to_yaml(compose.load("server", options.overrides)), end="")


def _study(options: argparse.Namespace) -> None:
    # Imported here: building a study needs torch, and --help should not.
    from server.configure import build_study

    study = build_study(compose.load("server", options.overrides))
    if options.out:
        atomic.write_text(options.out, study.to_json() + "\n")
    if options.json:
        print(study.to_json())
        return
    print(f"study {study.name}, seed {study.seed}, {study.strategy}, {study.privacy}")
    print(f"{'phase':<14} {'task':<12} {'rounds':>6} {'least sites':>12}")
    for phase in study.phases:
        print(f"{phase.name:<14} {phase.task:<12} {phase.rounds:>6} {phase.min_sites:>12}")
    if options.out:
        print(f"written to {options.out}")


def _checkpoints(options: argparse.Namespace) -> None:
    folder = CheckpointFolder(options.run / "checkpoints")
    latest = folder.latest()
    if latest is None:
        raise CheckpointError(
            refusal(folder.folder, "found no checkpoint", "name the folder of a run, runs/NAME")
        )
    if options.action == "show":
        chosen = folder.load(options.sequence) if options.sequence else latest
        print(json.dumps({**asdict(chosen), "hash": chosen.hash}, indent=1))
        return
    lineage = folder.verify() if options.action == "verify" else [folder.load(n) for n in folder.sequences()]
    if options.json:
        print(json.dumps([{**asdict(checkpoint), "hash": checkpoint.hash} for checkpoint in lineage]))
        return
    if options.action == "list":
        for checkpoint in lineage:
            print(_line(checkpoint))
        return
    print(f"{len(lineage)} checkpoints, lineage whole from {lineage[0].hash[:12]} to {lineage[-1].hash[:12]}")


def _line(checkpoint: Checkpoint) -> str:
    sites = ", ".join(f"{site} {weight:g}" for site, weight in checkpoint.sites.items())
    round_of = f"{checkpoint.round}/{checkpoint.rounds}"
    return f"{checkpoint.sequence:>5} {checkpoint.hash[:12]} {checkpoint.phase:<14} {round_of:>7}  {sites}"


if __name__ == "__main__":
    sys.exit(main())
