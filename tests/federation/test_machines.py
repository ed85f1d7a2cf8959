"""Sites of one study train on machines of their own: other batches, another precision, several processes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from studies import coordinate, site_paths, tiny_study

from pm1_core.checkpoint import CheckpointFolder, State
from pm1_core.data.store import Store
from pm1_core.fields import Modality, Split
from server.study import Study
from simulations.grid import run_in_process

DESCENT = {"name": "sgd", "learning_rate": 0.05, "momentum": 0.8, "weight_decay": 0.0}


def study() -> Study:
    """Statistics and phenotypes, by plain descent: what is added in another order stays close by."""
    changes = {f"study__phases__phenotype__loop__optimiser__{key}": value for key, value in DESCENT.items()}
    whole = tiny_study(study__phases__phenotype__loop__batch_size=16, **changes)
    return replace(whole, phases=tuple(p for p in whole.phases if p.name in ("statistics", "phenotype")))


def run(stores: dict[str, Path], folder: Path, machines: dict[str, dict[str, str]]) -> State:
    sites = [
        replace(paths, **machines.get(site, {}))
        for site, paths in zip(stores, site_paths(stores, folder), strict=True)
    ]
    run_in_process(coordinate(study(), stores, folder), sites)
    checkpoints = CheckpointFolder(folder / "checkpoints")
    latest = checkpoints.latest()
    assert latest
    return checkpoints.state(latest)


def figures(folder: Path) -> dict[str, dict[str, float]]:
    """Site -> figures of its first round of phenotypes."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        line["site"]: line["metrics"]
        for line in lines
        if (line["phase"], line["round"], line["split"]) == ("phenotype", 1, "train") and line["site"]
    }


def test_sites_of_one_study_have_batches_and_precisions_of_their_own(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    machines = {"east": {"batch_size": "phenotype:4"}, "west": {"precision": "bfloat16"}}
    run(stores, tmp_path, machines)
    people = len(Store.open(stores["south"]).people(Split.TRAIN, Modality.PHENOTYPE))
    south, east, west = (figures(tmp_path)[site] for site in ("south", "east", "west"))
    assert [site["steps"] for site in (south, east, west)] == [math.ceil(people / n) for n in (16, 4, 16)]
    # They have the same people: the third differs from the first by rounding alone.
    assert west["loss"] != south["loss"]
    assert west["loss"] == pytest.approx(south["loss"], rel=0.02)


@pytest.mark.slow
def test_a_site_of_two_processes_takes_the_study_to_the_same_model(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    one = run(stores, tmp_path / "one", {})
    two = run(stores, tmp_path / "two", {"east": {"processes": "2"}})
    assert figures(tmp_path / "two")["east"]["loss"] == pytest.approx(
        figures(tmp_path / "one")["east"]["loss"], rel=1e-5
    )
    for name in one:
        np.testing.assert_allclose(two[name], one[name], atol=1e-5, err_msg=name)


def test_a_site_whose_machine_makes_no_sense_says_so_and_the_others_go_on(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    run(stores, tmp_path, {"east": {"processes": "many"}})
    absent = json.loads((tmp_path / "phases.json").read_text())["phenotype"]["absent"]
    assert absent == {
        "east": "site's processes, all: found 'many'; use a whole number, as many as there are GPUs."
    }
