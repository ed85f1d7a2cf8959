"""What each encoding of updates saves in bytes and costs in accuracy: the same small study, four times.

python -m bench.encodings
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.report import keep, scratch_folder, show
from configs import compose
from pm1_core.checkpoint import CheckpointFolder
from pm1_core.encoding import ENCODINGS
from server.configure import build_study
from simulations.progress import Stages
from simulations.run import federate
from simulations.workspace import simulated

OVERRIDES = [
    "people=600",
    "test_people=50",
    "sites=3",
    "study.phases.genotype.chromosomes=[22]",
    "study.phases.genotype.rounds=6",
    "study.phases.phenotype.rounds=10",
    "study.phases.fundus.rounds=3",
    "study.phases.fusion.rounds=6",
]
SHOWN = {"genotype.22": "weighted_accuracy", "phenotype": "loss", "fundus": "loss", "fusion": "loss"}


def encodings(scratch: Path) -> dict[str, Any]:
    """Encoding -> phase -> bytes per site and round, and a figure on test people; ratios to "full"."""
    found: dict[str, Any] = {}
    for name in ENCODINGS:
        config = compose.load(
            "simulation", [*OVERRIDES, f"encoding={name}", f"cohorts={scratch / 'cohorts'}"]
        )
        stages = Stages()
        workspace = simulated(config, stages)
        folder = scratch / name
        federate(build_study(config), workspace, folder, "in_process", stages, workers=2)
        found[name] = {
            phase: {"bytes": _bytes(folder, phase), figure: _figure(folder, phase, figure)}
            for phase, figure in SHOWN.items()
        }
    ratios = {
        name: {
            phase: {key: value / found["full"][phase][key] for key, value in figures.items()}
            for phase, figures in phases.items()
        }
        for name, phases in found.items()
        if name != "full"
    }
    return {"found": found, "ratios": ratios}


def _bytes(folder: Path, phase: str) -> float:
    """Mean bytes of tensors of a trained round at a site."""
    sizes = []
    for log in sorted(folder.glob("sites/*/outbox.jsonl")):
        for line in map(json.loads, log.read_text().splitlines()):
            if line.get("what") == "train" and line["phase"] == phase:
                sizes.append(line["bytes"])
    return sum(sizes) / len(sizes)


def _figure(folder: Path, phase: str, name: str) -> float:
    """A figure on all test people from the phase's last checkpoint."""
    checkpoints = CheckpointFolder(folder / "checkpoints")
    last = [c for c in map(checkpoints.load, checkpoints.sequences()) if c.phase == phase][-1]
    return last.metrics["all"][f"test.{name}"]


if __name__ == "__main__":
    with scratch_folder() as place:
        measured = encodings(place)
    keep("encodings", measured)
    show(measured)
