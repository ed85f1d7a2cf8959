"""A study over a real SuperLink and SuperNodes, started as an operator and two hospitals would."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from deployment import CLIENT_APP, COORDINATOR, SERVER_APP, Deployment
from studies import coordinate, run_key, site_paths, tiny_study

from pm1_core.checkpoint import CheckpointFolder
from server.study import Study
from simulations.grid import run_in_process


def _short_study() -> Study:
    study = tiny_study(gather=120)
    phases = tuple(phase for phase in study.phases if phase.name in ("statistics", "phenotype"))
    return dataclasses.replace(study, phases=phases)


@pytest.mark.slow
def test_a_site_and_then_the_coordinator_are_killed_and_the_parts_are_those_of_an_undisturbed_study(
    hospitals: dict[str, Path], tmp_path: Path
) -> None:
    """SIGKILL to a SuperNode with its ClientApp in the middle of a round, later to the ServerApp."""
    study = _short_study()
    stores = {site: hospitals[site] for site in ("north", "south")}
    here, there = tmp_path / "here", tmp_path / "there"
    run_in_process(coordinate(study, stores, here), site_paths(stores, here))

    there.mkdir()
    (there / "study.json").write_text(study.to_json())
    sites = {
        site: {"store": paths.store, "folder": paths.folder, "trust": paths.trust}
        for site, paths in zip(stores, site_paths(stores, there), strict=True)
    }
    options = {
        "study": str(there / "study.json"),
        "definition": str(stores["north"].parent.parent / "study.yaml"),
        "run": str(there),
        "key": str(run_key(there)),
    }

    def reached(count: int) -> bool:
        return len(CheckpointFolder(there / "checkpoints").sequences()) >= count

    with Deployment(tmp_path / "deployment", sites) as deployment:
        deployment.submit(options)
        deployment.await_("round 1", lambda: reached(2), 300)
        deployment.await_("work at north", lambda: _works(deployment, "north"), 120)
        assert CLIENT_APP in {process.command for process in deployment.kill("north")}
        deployment.start("north")
        deployment.await_("the next phase", lambda: reached(4), 300)
        assert deployment.kill(COORDINATOR, SERVER_APP)
        run = deployment.submit(options)
        assert deployment.wait(run, 1200) == "finished:completed", deployment.said(run)

    expected, found = (CheckpointFolder(folder / "checkpoints") for folder in (here, there))
    assert [c.parts for c in expected.verify()] == [c.parts for c in found.verify()]
    assert {c.round: set(c.sites) for c in found.verify() if c.round} == {1: set(stores), 2: set(stores)}
    assert deployment.processes() == []


def _works(deployment: Deployment, site: str) -> bool:
    return any(process.command == CLIENT_APP for process in deployment.processes(site))
