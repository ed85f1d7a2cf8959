"""Secure sums in Flower's own engines: its simulation on Ray, and a SuperLink with three SuperNodes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import short
from deployment import CLIENT_APP, COORDINATOR, SERVER_APP, Deployment
from studies import coordinate, run_key, site_paths

from pm1_core.checkpoint import CheckpointFolder
from server.study import Study
from simulations.grid import run_in_process


def secure_study() -> Study:
    study = short.short_study(timeout=300.0, gather=120.0, grace=None)
    statistics, phenotype = study.phases
    phases = replace(statistics, min_sites=3), replace(phenotype, rounds=1, min_sites=3)
    return replace(study, phases=phases, secure={"bits": 32, "range": 8.0, "threshold": 0.67})


@pytest.fixture(scope="module")
def here(stores: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in this process."""
    folder = tmp_path_factory.mktemp("here")
    run_in_process(coordinate(secure_study(), stores, folder), site_paths(stores, folder, secure=True))
    return folder


def parts(folder: Path) -> list[object]:
    return [checkpoint.parts for checkpoint in CheckpointFolder(folder / "checkpoints").verify()]


@pytest.mark.slow
def test_ray_opens_the_same_sums(stores: dict[str, Path], here: Path, tmp_path: Path) -> None:
    script = Path(__file__).with_name("secure_ray_run.py")
    listed = json.dumps({site: str(store) for site, store in stores.items()})
    command = [sys.executable, str(script), listed, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert parts(tmp_path) == parts(here)


@pytest.mark.slow
def test_a_site_and_the_coordinator_are_killed_in_a_deployment_and_the_sums_are_the_same(
    stores: dict[str, Path], here: Path, tmp_path: Path
) -> None:
    """SIGKILL to a SuperNode while its ClientApp works, and to the ServerApp in the middle of a secure sum."""
    there = tmp_path / "there"
    there.mkdir()
    (there / "study.json").write_text(secure_study().to_json())
    sites = {
        site: {name: str(getattr(paths, name)) for name in ("store", "folder", "trust", "identity", "peers")}
        for site, paths in zip(stores, site_paths(stores, there, secure=True), strict=True)
    }
    options = {
        "study": str(there / "study.json"),
        "definition": str(stores["south"].parent.parent / "study.yaml"),
        "run": str(there),
        "key": str(run_key(there)),
    }

    def stage(name: str) -> bool:
        log = there / "sites" / "south" / "outbox.jsonl"
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return any(line["what"] == name and line["phase"] == "phenotype" for line in lines)

    with Deployment(tmp_path / "deployment", sites) as deployment:
        deployment.submit(options)
        deployment.await_(
            "the first sum", lambda: len(list((there / "checkpoints").glob("0*.json"))) > 1, 300
        )
        deployment.await_("work at east", lambda: _works(deployment, "east"), 120)
        assert CLIENT_APP in {process.command for process in deployment.kill("east")}
        deployment.start("east")
        deployment.await_("masked words", lambda: stage("masked"), 300)
        assert deployment.kill(COORDINATOR, SERVER_APP)
        run = deployment.submit(options)
        assert deployment.wait(run, 900) == "finished:completed", deployment.said(run)
    assert parts(there) == parts(here)
    assert deployment.processes() == []


def _works(deployment: Deployment, site: str) -> bool:
    return any(process.command == CLIENT_APP for process in deployment.processes(site))
