"""A study over a real SuperLink and SuperNodes, started as an operator and two hospitals would."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from deployment import COORDINATOR, Deployment
from studies import coordinate, run_key, site_paths, tiny_study

from pm1_core.checkpoint import CheckpointFolder
from server.study import Study
from simulations.grid import run_in_process


def _short_study() -> Study:
    study = tiny_study()
    phases = tuple(phase for phase in study.phases if phase.name in ("statistics", "phenotype"))
    return dataclasses.replace(study, phases=phases)


@pytest.mark.slow
def test_a_study_over_processes_ends_with_the_parts_of_one_in_process(
    hospitals: dict[str, Path], tmp_path: Path
) -> None:
    study = _short_study()
    stores = {site: hospitals[site] for site in ("north", "south")}
    here, there = tmp_path / "here", tmp_path / "there"
    run_in_process(coordinate(study, stores, here), site_paths(stores, here))

    there.mkdir()
    (there / "study.json").write_text(study.to_json())
    definition = stores["north"].parent.parent / "study.yaml"
    sites = {
        site: {"store": paths.store, "folder": paths.folder, "trust": paths.trust}
        for site, paths in zip(stores, site_paths(stores, there), strict=True)
    }
    with Deployment(tmp_path / "deployment", sites) as deployment:
        run = deployment.submit(
            {
                "study": str(there / "study.json"),
                "definition": str(definition),
                "run": str(there),
                "key": str(run_key(there)),
            }
        )
        assert deployment.wait(run, 400) == "finished:completed", deployment.said(run)

    expected, found = (CheckpointFolder(folder / "checkpoints").latest() for folder in (here, there))
    assert expected is not None
    assert found is not None
    assert found.parts == expected.parts
    commands = {name for name in deployment.memory.peaks if name[0] != "operator"}
    assert {(COORDINATOR, "flower-superlink"), ("north", "flwr-clientapp")} <= commands
    assert deployment.processes() == []
