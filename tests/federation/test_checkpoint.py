"""Checkpoints are content-addressed, linked to their parent, and tell when they were touched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pm1_core.checkpoint import Checkpoint, CheckpointFolder, ObjectStore
from pm1_core.errors import CheckpointError


def _run(folder: Path) -> CheckpointFolder:
    checkpoints = CheckpointFolder(folder)
    latest: Checkpoint | None = None
    for number in (1, 2, 3):
        tensors = {"fusion.weight": np.full((2, 2), number, np.float32)}
        if number == 1:
            tensors["genotype.22.weight"] = np.zeros(3, np.float32)
        latest = checkpoints.save(
            latest, tensors, study="s", config="c", phase="p", round_number=number, rounds=3,
            sites={"a": 10.0}, privacy="no differential privacy",
        )  # fmt: skip
    return checkpoints


def test_a_checkpoint_holds_every_part_and_stores_an_untouched_one_once(tmp_path: Path) -> None:
    checkpoints = _run(tmp_path)
    state = checkpoints.state(checkpoints.latest())
    assert set(state) == {"fusion.weight", "genotype.22.weight"}
    assert float(state["fusion.weight"][0, 0]) == 3
    assert len(list((tmp_path / "objects").iterdir())) == 4


def test_the_same_tensors_give_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {f"t{i}": rng.normal(size=5).astype(np.float32) for i in range(5)}
    objects = ObjectStore(tmp_path)
    assert objects.put(tensors) == objects.put(dict(reversed(list(tensors.items()))))


def test_verify_walks_the_lineage(tmp_path: Path) -> None:
    assert [checkpoint.round for checkpoint in _run(tmp_path).verify()] == [1, 2, 3]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("byte", "the bytes do not match the name"),
        ("missing object", "found no such object"),
        ("manifest", "its hash does not match its content"),
        ("missing manifest", "found no such checkpoint"),
        ("torn manifest", "cannot be read"),
    ],
)
def test_verify_names_the_first_broken_link(damage: str, sentence: str, tmp_path: Path) -> None:
    checkpoints = _run(tmp_path)
    manifest = tmp_path / "000002.json"
    part = tmp_path / "objects" / f"{checkpoints.load(2).parts['fusion']}.safetensors"
    if damage == "byte":
        content = bytearray(part.read_bytes())
        content[-1] ^= 1
        part.write_bytes(bytes(content))
    elif damage == "missing object":
        part.unlink()
    elif damage == "manifest":
        manifest.write_text(manifest.read_text().replace('"a": 10.0', '"a": 11.0'))
    elif damage == "missing manifest":
        manifest.unlink()
    else:
        manifest.write_text(manifest.read_text()[:50])
    with pytest.raises(CheckpointError, match=sentence):
        checkpoints.verify()
