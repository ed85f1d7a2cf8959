"""Every strategy through a whole study of hospitals, with its state in the checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation.studies import coordinate, site_paths, tiny_study
from folded import EVERY, ROBUST

from pm1_core.checkpoint import CheckpointFolder, State, part_of
from pm1_core.errors import PM1Error
from server.study import Study
from simulations.grid import run_in_process

OPTIONS = {"fedbn": {"local": "[*0.weight*]"}}


@pytest.fixture(scope="session")
def seven(hospitals: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Seven sites with phenotypes, the two there are under several names: as many as a robust rule asks for."""
    folder = tmp_path_factory.mktemp("seven")
    stores = {}
    for i in range(7):
        store = folder / f"site{i}"
        shutil.copytree(hospitals[("north", "south")[i % 2]], store)
        content = json.loads((store / "store.json").read_text())
        (store / "store.json").write_text(json.dumps({**content, "site": store.name}))
        stores[store.name] = store
    return stores


def study_of(name: str, **options: Any) -> Study:
    """Statistics and two rounds of phenotypes under a strategy."""
    given = {**OPTIONS.get(name, {}), **options}
    study = tiny_study(strategy=name, **{f"strategy__{option}": value for option, value in given.items()})
    phases = tuple(phase for phase in study.phases if phase.task in ("statistics", "phenotype"))
    return Study(study.name, study.seed, phases, strategy=study.strategy)


def run(
    study: Study, hospitals: dict[str, Path], folder: Path, stop_after: tuple[str, int] | None = None
) -> None:
    """Run what is left of a study; `stop_after` (phase, rounds done in all) ends it like a failure would."""

    class StopError(PM1Error):
        pass

    def progress(phase: str, done: int, whole: int) -> None:
        if (phase, done) == stop_after:
            raise StopError("stopped")

    def start(grid: Any) -> Any:
        coordinator = coordinate(study, hospitals, folder)(grid)
        coordinator.progress = progress
        return coordinator

    try:
        run_in_process(start, site_paths(hospitals, folder))
    except StopError:
        assert stop_after


def last(folder: Path) -> State:
    """The tensors of the newest checkpoint."""
    checkpoints = CheckpointFolder(folder / "checkpoints")
    return checkpoints.state(checkpoints.latest())


@pytest.mark.parametrize("name", EVERY)
def test_a_study_ends_with_a_trained_model_and_nothing_of_the_strategy(
    name: str, hospitals: dict[str, Path], seven: dict[str, Path], tmp_path: Path
) -> None:
    run(study_of(name), seven if name in ROBUST else hospitals, tmp_path)
    folder = CheckpointFolder(tmp_path / "checkpoints")
    state = last(tmp_path)
    assert not {part_of(tensor) for tensor in state} & {"control", "server"}
    first = next(
        folder.state(checkpoint)
        for checkpoint in map(folder.load, folder.sequences())
        if checkpoint.phase == "phenotype"
    )
    moved = {n for n, array in state.part("phenotype").items() if not np.array_equal(array, first[n])}
    local = {n for n in state.part("phenotype") if name == "fedbn" and "0.weight" in n}
    assert moved
    assert moved.isdisjoint(local)
    assert (name == "fedbn") == bool(local)


@pytest.mark.parametrize("name", ["fedadam", "fedavgm", "scaffold", "fedbn", "ditto"])
def test_a_study_that_was_stopped_ends_with_the_bytes_of_one_that_was_not(
    name: str, hospitals: dict[str, Path], tmp_path: Path
) -> None:
    study = study_of(name)
    run(study, hospitals, tmp_path / "whole")
    run(study, hospitals, tmp_path / "stopped", ("phenotype", 3))
    assert len(CheckpointFolder(tmp_path / "stopped" / "checkpoints").sequences()) < len(
        CheckpointFolder(tmp_path / "whole" / "checkpoints").sequences()
    )
    run(study, hospitals, tmp_path / "stopped")
    assert last(tmp_path / "stopped").parts == last(tmp_path / "whole").parts


def test_momentum_of_zero_is_fedavg(hospitals: dict[str, Path], tmp_path: Path) -> None:
    run(study_of("fedavg"), hospitals, tmp_path / "plain")
    run(study_of("fedavgm", momentum=0.0), hospitals, tmp_path / "momentum")
    plain, momentum = last(tmp_path / "plain"), last(tmp_path / "momentum")
    for name in plain.part("phenotype"):
        np.testing.assert_allclose(momentum[name], plain[name], atol=1e-6)
