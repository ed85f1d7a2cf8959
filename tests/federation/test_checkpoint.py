"""Checkpoints are content-addressed, signed, linked to their parent, and tell when they were touched."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pm1_core.checkpoint import Checkpoint, CheckpointFolder, ObjectStore, part_of
from pm1_core.errors import CheckpointError
from pm1_core.objects import Reader
from pm1_core.signing import Signer, Trust


def _run(folder: Path, signer: Signer | None = None) -> CheckpointFolder:
    checkpoints = CheckpointFolder(folder, signer)
    latest: Checkpoint | None = None
    for number in (1, 2, 3):
        tensors = {"fusion.weight": np.full((2, 2), number, np.float32)}
        if number == 1:
            tensors["genotype.22.weight"] = np.zeros(3, np.float32)
        latest = checkpoints.save(
            latest, tensors, study="s", config="c", phase="p", round=number, rounds=3, sites={"a": 10.0}
        )
    return checkpoints


def _signer(folder: Path, name: str = "coordinator") -> tuple[Signer, Trust]:
    signer = Signer.create(folder / f"{name}.pem")
    return signer, Trust.load(folder / f"{name}.pem.pub")


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


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=8), limit=st.integers(1, 64))
def test_a_part_in_shards_reads_like_one_in_one_piece(
    sizes: list[int], limit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    objects = ObjectStore(tmp_path_factory.mktemp("objects"))
    tensors = {f"t{i}": np.arange(size, dtype=np.float32) for i, size in enumerate(sizes)}
    digests = objects.put_all(iter(tensors.items()), limit)
    reader = Reader(objects, digests)
    assert list(reader) == sorted(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(reader[name], array)
        assert reader.shape(name) == array.shape
    held = [objects.get(digest) for digest in digests]
    assert all(len(shard) == 1 or sum(a.nbytes for a in shard.values()) <= limit for shard in held)


def test_a_part_may_be_left_out_from_one_checkpoint_on(tmp_path: Path) -> None:
    checkpoints = _run(tmp_path)
    last = checkpoints.save(
        checkpoints.latest(), {"fusion.weight": np.ones(2, np.float32)}, without=("genotype.22",),
        study="s", config="c", phase="q", round=0, rounds=1,
    )  # fmt: skip
    assert set(last.parts) == {"fusion"}
    assert len(checkpoints.verify()) == 4


def test_verify_walks_the_lineage(tmp_path: Path) -> None:
    signer, trust = _signer(tmp_path)
    assert [made.round for made in _run(tmp_path / "c", signer).verify(trust)] == [1, 2, 3]


def test_the_hash_is_the_same_on_every_machine_and_the_signature_covers_what_was_measured(
    tmp_path: Path,
) -> None:
    signer, trust = _signer(tmp_path)
    made = _run(tmp_path / "c", signer).load(3)
    slower = replace(made, measured={"seconds": 9.0})
    assert slower.hash == made.hash
    with pytest.raises(CheckpointError, match="its signature is not the coordinator's"):
        trust.require("manifest", slower.signed_bytes, slower.signature)
    again = _run(tmp_path / "again", signer).load(3)
    assert again.to_json() == made.to_json()


def test_a_draft_is_not_in_force_until_it_is_committed(tmp_path: Path) -> None:
    signer, trust = _signer(tmp_path)
    checkpoints = _run(tmp_path / "c", signer)
    draft = checkpoints.draft(
        checkpoints.latest(), {"fusion.weight": np.ones(2, np.float32)},
        study="s", config="c", phase="q", round=1, rounds=1,
    )  # fmt: skip
    assert checkpoints.sequences() == [1, 2, 3]
    done = checkpoints.commit(draft, metrics={"all": {"loss": 0.5}})
    assert checkpoints.latest() == done
    trust.require("manifest", done.signed_bytes, done.signature)


def test_a_manifest_of_another_format_is_refused_by_name(tmp_path: Path) -> None:
    manifest = _run(tmp_path).folder / "000003.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 1}))
    with pytest.raises(CheckpointError, match=r"000003.json: format 1; use a checkpoint of format 2"):
        CheckpointFolder(tmp_path).latest()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("byte", "the bytes do not match the name"),
        ("missing object", "found no such object"),
        ("manifest", "its hash does not match its content"),
        ("missing manifest", "found no such checkpoint"),
        ("torn manifest", "cannot be read"),
        ("no text", "cannot be read|its hash does not match"),
        ("unknown key", "unknown key 'colour'"),
    ],
)
def test_verify_names_the_first_broken_link(damage: str, sentence: str, tmp_path: Path) -> None:
    checkpoints = _run(tmp_path)
    manifest = tmp_path / "000002.json"
    part = checkpoints.objects.path(checkpoints.load(2).parts["fusion"][0])
    checkpoints = CheckpointFolder(tmp_path)
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
    elif damage == "no text":
        content = bytearray(manifest.read_bytes())
        content[40] |= 0x80
        manifest.write_bytes(bytes(content))
    elif damage == "unknown key":
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "colour": 1}))
    else:
        manifest.write_text(manifest.read_text()[:50])
    with pytest.raises(CheckpointError, match=sentence) as broken:
        checkpoints.verify()
    assert (part.name if "object" in damage or damage == "byte" else "000002.json") in str(broken.value)


def test_a_stranger_cannot_continue_a_lineage(tmp_path: Path) -> None:
    signer, trust = _signer(tmp_path)
    stranger, _ = _signer(tmp_path, "stranger")
    checkpoints = _run(tmp_path / "c", signer)
    theirs = CheckpointFolder(tmp_path / "c", stranger)
    theirs.save(
        checkpoints.latest(), {"fusion.weight": np.ones(2, np.float32)},
        study="s", config="c", phase="q", round=1, rounds=1,
    )  # fmt: skip
    assert len(checkpoints.verify()) == 4  # nothing is damaged
    with pytest.raises(CheckpointError, match=r"000004.json: its signature is not the coordinator's"):
        checkpoints.verify(trust)


def test_a_lineage_that_starts_from_another_inherits_its_parts(tmp_path: Path) -> None:
    signer, trust = _signer(tmp_path)
    first = _run(tmp_path / "first", signer)
    origin = first.load(3)
    second = CheckpointFolder(tmp_path / "second", signer)
    (tmp_path / "second").mkdir()
    (tmp_path / "first" / "objects").rename(tmp_path / "second" / "objects")
    (tmp_path / "second" / "origin.json").write_text(origin.to_json())
    root = second.save(
        None, {"fusion.weight": np.ones(2, np.float32)}, study="t", config="d", phase="p", round=0, rounds=1
    )
    assert root.parent == origin.hash
    assert set(root.parts) == {"fusion", "genotype.22"}
    assert root.parts["genotype.22"] == origin.parts["genotype.22"]
    assert second.verify(trust) == [root]
    (tmp_path / "second" / "origin.json").write_text(first.load(2).to_json())
    with pytest.raises(CheckpointError, match=r"000001.json: its parent is"):
        second.verify(trust)


def test_every_tensor_has_one_part() -> None:
    assert part_of("genotype.3.a.b") == "genotype.3"
    assert part_of("tokens.phenotype.mean") == "tokens"
