"""Runs as a coordinator leaves them, written without a federation: signed checkpoints, study.json, keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import server.cli
from pm1_core.checkpoint import Checkpoint, CheckpointFolder
from pm1_core.gates import Gates
from pm1_core.signing import Signer, Trust, public_file
from server.registry import KEY, STUDY, Registry
from server.releases import Release
from server.study import Phase, Study

AREAS = {
    "diabetes.all": {"auc": 0.80, "cases": 120.0, "controls": 900.0},
    "diabetes.sex=F": {"auc": 0.78, "cases": 60.0, "controls": 450.0},
    "diabetes.sex=M": {"auc": 0.81, "cases": 60.0, "controls": 450.0},
    "gout.all": {"auc": 0.66, "cases": 40.0, "controls": 980.0},
    "gout.sex=F": {"auc": 0.31, "cases": 8.0, "controls": 500.0},
}
WORSE = {**AREAS, "diabetes.all": {"auc": 0.75, "cases": 120.0, "controls": 900.0}}
FUNDUS: dict[str, Any] = {
    "image": 32, "patch": 8, "width": 24, "depth": 2, "heads": 2, "decoder_width": 16, "decoder_depth": 1,
    "decoder_heads": 2, "lora_rank": 2, "base": None, "base_sha256": None, "base_seed": 3,
    "lora_alpha": 16.0, "lora_dropout": 0.1, "token": "cls",
}  # fmt: skip
FUSION: dict[str, Any] = {
    "width": 32, "layers": 2, "heads": 4, "feedforward": 64, "genotype_width": 4, "phenotype_width": 12,
    "fundus_width": 24,
}  # fmt: skip


class Run:
    """A folder of a run, and what its coordinator knows."""

    def __init__(self, folder: Path, gates: Gates | None = None, start_from: str = "") -> None:
        encoders = {"genotype": {"latent": 4}, "phenotype": {"latent": 12}, "fundus": FUNDUS}
        self.folder = folder
        self.study = Study(
            name="hearts",
            seed=1,
            phases=(
                Phase("fundus", "fundus", 1, parameters={"model": FUNDUS}),
                Phase("fusion", "fusion", 2, parameters={"model": FUSION, "encoders": encoders}),
            ),
            gates=gates or Gates(),
            start_from=start_from,
        )
        self.signer = Signer.create(folder / KEY)
        self.trust = Trust.load(public_file(folder / KEY))
        (folder / STUDY).write_text(self.study.to_json())
        self.checkpoints = CheckpointFolder(folder / "checkpoints", self.signer)

    def save(self, phase: str, number: int, tensors: Mapping[str, np.ndarray], **more: Any) -> Checkpoint:
        """One more checkpoint."""
        rounds = {phase.name: phase.rounds for phase in self.study.phases}[phase]
        facts: dict[str, Any] = {"sites": {"leeds": 300.0, "york": 120.0} if number else {}}
        facts["measured"] = {"seconds": 30.0}
        return self.checkpoints.save(
            self.checkpoints.latest(), tensors, study="hearts", config=self.study.hash, code="c" * 64,
            phase=phase, round=number, rounds=rounds, **(facts | more),
        )  # fmt: skip


def tensors(part: str, value: float) -> dict[str, np.ndarray]:
    """Two tensors of `part`, filled with `value`."""
    shapes = {f"{part}.weight": (2, 3), f"{part}.bias": (3,)}
    return {name: np.full(shape, value, np.float32) for name, shape in shapes.items()}


def whole_run(folder: Path, gates: Gates | None = None, areas: Mapping[str, Any] = AREAS) -> Run:
    """Five checkpoints: fundus 0, 1 and fusion 0, 1, 2, the last one with figures."""
    run = Run(folder, gates)
    for number in (0, 1):
        run.save("fundus", number, tensors("fundus", number))
    for number in (0, 1):
        run.save("fusion", number, tensors("fusion", number))
    metrics = {"all": {"validation.loss": 0.5, "test.loss": 0.6}, "leeds": {"validation.loss": 0.4}}
    run.save("fusion", 2, tensors("fusion", 2), areas=areas, metrics=metrics)
    return run


def promote(run: Run, name: str = "latest") -> Release:
    """Release a checkpoint of `run` under its own key."""
    registry = Registry(run.folder)
    checkpoint = registry.find(name)
    return registry.promote(checkpoint, run.study.gates, run.signer, "A. Example", "end of the study")[0]


def later(run: Run, areas: Mapping[str, Any] = AREAS) -> Checkpoint:
    """The last phase of `run` once more: another checkpoint with figures."""
    number = (run.checkpoints.sequences() or [0])[-1]
    return run.save("fusion", 2, tensors("fusion", number + 1.0), areas=areas)


def command(*arguments: object) -> int:
    """The exit code of `pm1-server checkpoints ...`."""
    return server.cli.main(["checkpoints", *map(str, arguments)])
