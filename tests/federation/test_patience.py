"""Early stopping: a phase ends once validation has not become better for a while, on its best model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from studies import coordinate, site_paths, tiny_study

from configs import compose
from pm1_core.checkpoint import Checkpoint, CheckpointFolder
from pm1_core.errors import ConfigError
from server.configure import build_study
from server.patience import LOSS
from simulations.grid import run_in_process

ROUNDS = 12
OTHERS = [f"~study.phases.{name}" for name in ("genotype", "fundus", "tokens", "fusion")]
# A rate at which the model first learns and then diverges.
PHENOTYPE = [
    f"study.phases.phenotype.rounds={ROUNDS}",
    "study.phases.phenotype.patience=2",
    "study.phases.phenotype.loop.epochs=1",
    "study.phases.phenotype.loop.optimiser.learning_rate=0.3",
]


def study() -> Any:
    return build_study(compose.load("simulation", ["model=tiny", *OTHERS, *PHENOTYPE]))


def lineage(folder: Path) -> list[Checkpoint]:
    return [made for made in CheckpointFolder(folder / "checkpoints").verify() if made.phase == "phenotype"]


def test_a_phase_ends_on_its_best_model_once_patience_runs_out(
    hospitals: dict[str, Path], tmp_path: Path
) -> None:
    stores = {site: hospitals[site] for site in ("north", "south")}
    run_in_process(coordinate(study(), stores, tmp_path), site_paths(stores, tmp_path))
    made = lineage(tmp_path)
    last = made[-1]
    assert last.round < ROUNDS, "it did not end early"
    assert last.round == last.rounds
    assert all(before.rounds == ROUNDS for before in made[:-1])
    losses = {m.round - 1: m.metrics["all"][LOSS] for m in made[2:-1]}
    best = min(losses, key=lambda number: losses[number])
    assert last.round - 1 - best == 2, "two models after the best, none of them better"
    assert last.parts["phenotype"] == made[best].parts["phenotype"]


def test_a_coordinator_that_was_killed_stops_at_the_same_round_with_the_same_bytes(
    hospitals: dict[str, Path], tmp_path: Path
) -> None:
    stores = {"north": hospitals["north"]}
    hashes = []
    for name, killed in (("whole", None), ("killed", 3)):
        folder = tmp_path / name
        coordinator = coordinate(study(), stores, folder)

        def mortal(grid: Any, coordinator: Any = coordinator, killed: int | None = killed) -> Any:
            made = coordinator(grid)

            def progress(phase: str, done: int, whole: int) -> None:
                if phase == "phenotype" and done - 2 == killed:
                    raise KeyboardInterrupt

            made.progress = progress
            return made

        if killed:
            with pytest.raises(KeyboardInterrupt):
                run_in_process(mortal, site_paths(stores, folder))
        run_in_process(coordinator, site_paths(stores, folder))
        hashes.append(lineage(folder)[-1].parts)
    assert hashes[0] == hashes[1]


def test_patience_is_refused_by_name_under_differential_privacy() -> None:
    private = ["privacy=record", "study.phases.phenotype.patience=2"]
    with pytest.raises(
        ConfigError, match=r"phase 'phenotype', patience: found 2, under differential privacy"
    ):
        build_study(compose.load("server", ["model=tiny", *private]))


def test_a_precision_is_refused_by_name_under_record_level_privacy() -> None:
    private = ["privacy=record", "study.phases.fusion.loop.precision=bfloat16"]
    with pytest.raises(ConfigError, match=r"phase 'fusion', loop.precision: found 'bfloat16' under record"):
        build_study(compose.load("server", ["model=tiny", *private]))


def test_without_patience_all_rounds_run() -> None:
    assert all(phase.patience == 0 for phase in tiny_study().phases)
