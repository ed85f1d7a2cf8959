"""Public statistics of simulated studies: a panel of the test-only people, who are at no site."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.numpy

from pm1_core import atomic
from pm1_core.data.store import Store
from pm1_core.training.tasks.reference import statistics_of_panel
from simulations.workspace import Workspace


def wanted(config: Mapping[str, Any]) -> bool:
    """Whether the study takes public statistics, and names none."""
    privacy = config["privacy"]
    return privacy["unit"] != "none" and privacy["statistics"] == "public" and not privacy["reference"]


def added(config: dict[str, Any], workspace: Workspace) -> dict[str, Any]:
    """`config` with the panel's statistics, written beside the stores, if they are wanted and there is a panel."""
    if not wanted(config) or workspace.evaluation is None:
        return config
    store = Store.open(workspace.evaluation)
    file = workspace.folder / "panels" / f"{store.fingerprint[:16]}.safetensors"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            tensors = statistics_of_panel(store, Path(scratch))
        atomic.write_bytes(file, safetensors.numpy.save(dict(tensors)))
    return {**config, "privacy": {**config["privacy"], "reference": str(file)}}
