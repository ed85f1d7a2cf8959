"""Fine-tuning a released model at one site is a study like any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from studies import coordinate, run_key, site_paths, tiny_study

from pm1_core.checkpoint import CheckpointFolder
from pm1_core.errors import CheckpointError
from pm1_core.signing import Signer, Trust, public_file
from server.origins import start_from
from server.registry import Registry
from server.study import Study
from simulations.grid import run_in_process

OFF = {f"gates__{gate}": "null" for gate in ("max_auc_fall", "min_group_auc", "min_sites", "min_people")} | {
    "study__phases__genotype__chromosomes": "[3]"
}


def _run(study: Study, stores: dict[str, Path], folder: Path) -> Registry:
    run_in_process(coordinate(study, stores, folder), site_paths(stores, folder), 1)
    return Registry(folder)


@pytest.mark.slow
def test_a_released_model_goes_on_learning_at_one_site(hospitals: dict[str, Path], tmp_path: Path) -> None:
    first = _run(tiny_study(**OFF), hospitals, tmp_path / "first")
    published = first.find()
    signer = Signer.load(run_key(tmp_path / "first"))
    first.promote(published, first.study(published).gates, signer, "A. Example", "end of the study")

    study = tiny_study(**OFF, start_from=published.hash, seed=7)
    assert study.hash != tiny_study(**OFF, seed=7).hash
    one = dict(list(hospitals.items())[:1])
    with pytest.raises(CheckpointError, match="it starts from nothing"):
        _run(study, one, tmp_path / "second")

    trust = Trust.load(public_file(run_key(tmp_path / "first")))
    start_from(tmp_path / "first", CheckpointFolder(tmp_path / "second/checkpoints"), trust, study.start_from)
    second = _run(study, one, tmp_path / "second")
    own = second.default_trust()
    found = second.verify(own, second.origin_trust(own))
    assert found.origin == published
    assert found.lineage[0].parent == published.hash
    assert all(set(made.sites) <= set(one) for made in found.lineage)
    begun = next(made for made in found.lineage if (made.phase, made.round) == ("fusion", 0))
    before, after = first.checkpoints.state(published), second.checkpoints.state(begun)
    for name in before.part("fusion"):
        np.testing.assert_array_equal(after[name], before[name])
    last = second.checkpoints.state(second.find())
    assert any((last[name] != before[name]).any() for name in before.part("fusion"))


@pytest.mark.slow
def test_the_fusion_alone_goes_on_over_the_encoders_of_a_release(
    hospitals: dict[str, Path], tmp_path: Path
) -> None:
    first = _run(tiny_study(**OFF), hospitals, tmp_path / "first")
    published = first.find()
    signer = Signer.load(run_key(tmp_path / "first"))
    first.promote(published, first.study(published).gates, signer, "A. Example", "end of the study")
    trust = Trust.load(public_file(run_key(tmp_path / "first")))
    checkpoints = CheckpointFolder(tmp_path / "second/checkpoints")
    start_from(tmp_path / "first", checkpoints, trust, published.hash)

    whole = tiny_study(**OFF, start_from=published.hash, seed=7)
    study = replace(whole, phases=tuple(phase for phase in whole.phases if phase.name == "fusion"))
    _run(study, {"north": hospitals["north"]}, tmp_path / "second")
    last = checkpoints.latest()
    assert last is not None
    assert set(last.sites) == {"north"}
    changed = {part for part in published.parts if last.parts[part] != published.parts[part]}
    assert changed == {"fusion"}
