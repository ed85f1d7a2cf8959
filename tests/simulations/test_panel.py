"""Simulated studies that take public statistics have them of people at no site, all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from configs import compose
from pm1_core.data.store import Store
from simulations import panel
from simulations.workspace import Workspace


def test_statistics_of_a_panel_are_those_of_everybody_in_it(
    hospitals: dict[str, Path], tmp_path: Path
) -> None:
    config = compose.load("simulation", ["privacy=site", "aggregation=secure"])
    workspace = Workspace(tmp_path, tmp_path / "study.yaml", {}, hospitals["north"])
    assert panel.wanted(config)
    found = panel.added(config, workspace)
    assert not panel.wanted(found)
    tensors = safetensors.numpy.load_file(found["privacy"]["reference"])
    store = Store.open(hospitals["north"])
    values, observed = store.phenotypes(np.arange(len(store)))
    place = next(i for i, feature in enumerate(store.study.features) if feature.name == "age")
    everybody = values[observed[:, place], place].mean(dtype=np.float64)
    assert tensors["statistics.phenotype.mean"][place] == pytest.approx(everybody, rel=1e-6)
    assert panel.added(config, workspace) == found


def test_whoever_names_a_reference_or_needs_none_is_left_alone(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, tmp_path / "study.yaml", {}, tmp_path / "absent")
    for arguments in (["privacy=site", "privacy.reference=mine.safetensors"], ["privacy=record"], []):
        config = compose.load("simulation", arguments)
        assert panel.added(config, workspace) == config
