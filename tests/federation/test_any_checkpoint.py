"""Whatever a checkpoint holds, though the right key signed it: the same model, or a sentence."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lineages import Run, promote, whole_run
from mortal_work import fresh
from mutations import changed, damaged, mutated, sentence, writes_only
from short import short_study
from studies import run_key
from unruly import UnrulyGrid

from pm1_core.checkpoint import Checkpoint, CheckpointFolder
from pm1_core.errors import CheckpointError, PM1Error
from pm1_core.objects import ObjectStore, Reader, packed, unpacked
from pm1_core.signing import Signer
from server import shards
from server.export import export
from server.origins import start_from
from server.registry import Registry
from strategies import records

_settings = settings(max_examples=60, suppress_health_check=list(HealthCheck))


def signed_anew(content: Any, signer: Signer) -> str:
    """A manifest of any content, with the hash and signature that belong to it."""
    if not isinstance(content, dict):
        return json.dumps(content)
    inner = {key: value for key, value in content.items() if key not in ("hash", "signer", "signature")}
    told = json.dumps({k: v for k, v in inner.items() if k != "measured"}, sort_keys=True)
    digest = hashlib.sha256(told.encode()).hexdigest()
    message = {"hash": digest, "measured": inner.get("measured")}
    signature = signer.sign(json.dumps(message, sort_keys=True).encode())
    signs = {"hash": digest, "signer": signer.fingerprint, "signature": signature}
    return json.dumps({**signs, **inner, "hash": digest})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return whole_run(tmp_path_factory.mktemp("runs") / "first")


@_settings
@given(data=st.data())
def test_a_manifest_of_any_content_under_the_right_signature_is_one_or_a_sentence(
    run: Run, data: st.DataObject
) -> None:
    """What is taken for one can be written down again as it came."""
    content = json.loads(run.checkpoints.load(5).to_json())
    assert Checkpoint.from_json(signed_anew(content, run.signer)) == run.checkpoints.load(5)
    text = signed_anew(changed(content, data), run.signer)

    def read() -> None:
        made = Checkpoint.from_json(text)
        run.trust.require("manifest", made.signed_bytes, made.signature)
        assert Checkpoint.from_json(made.to_json()) == made
        assert all(
            not set(digest) - set("0123456789abcdef") for held in made.parts.values() for digest in held
        )

    sentence(read, CheckpointError)


def lying(header: dict[str, Any], data: bytes) -> bytes:
    """A safetensors file of any header."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
BODY = bytes(24)
_HEADERS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F64", "U8", "BOOL", "BF16", "F8_E4M3", "", "../x", 5, None]),
        "shape": st.lists(st.sampled_from([0, 1, 2, 3, 6, -1, 2**31, 2**63, 1.5, "3"]), max_size=3)
        | st.none(),
        "data_offsets": st.lists(st.sampled_from([0, 8, 12, 24, 25, -8, 2**40, 2**64, None]), max_size=3),
    }
)


def _held(folder: Path, content: bytes) -> tuple[ObjectStore, str]:
    digest = hashlib.sha256(content).hexdigest()
    (folder / "objects").mkdir(exist_ok=True)
    objects = ObjectStore(folder / "objects")
    objects.put_bytes(digest, content)
    return objects, digest


def _read_in_every_way(folder: Path, content: bytes) -> list[str]:
    """What is said to the content by each way to read a file of tensors, "" where it is read.

    The first three read all arrays of an object.
    """
    said = []
    objects, digest = _held(folder, content)
    file = objects.path(digest)
    for read in (
        lambda: unpacked(digest, content),
        lambda: objects.get(digest),
        lambda: dict(Reader(objects, [digest])),
        lambda: [entry.read() for entry in shards.entries(file)],
        lambda: shards.write(folder / "copy", shards.entries(file), {}),
    ):
        with writes_only(folder / "copy", folder):
            said.append(sentence(read, CheckpointError))
        if (folder / "copy").exists():
            assert (folder / "copy").stat().st_size <= 2 * len(content) + 200
            (folder / "copy").unlink()
    file.unlink()
    return said


def _agreed(said: list[str]) -> bool:
    """Whether the ways to all arrays of an object take and refuse the same."""
    return bool(said[0]) == bool(said[1]) == bool(said[2])


@_settings
@given(entry=_HEADERS, name=st.sampled_from(["a", "../../x", "__metadata__", "", "a\0b", "/"]))
def test_a_header_that_lies_about_its_tensors_is_a_sentence(
    tmp_path: Path, entry: dict[str, Any], name: str
) -> None:
    assert _agreed(_read_in_every_way(tmp_path, lying({name: entry, "w": ENTRY}, BODY)))
    assert _agreed(_read_in_every_way(tmp_path, lying({name: entry}, BODY)))


@_settings
@given(data=st.data())
def test_a_damaged_file_of_tensors_is_a_sentence(tmp_path: Path, data: st.DataObject) -> None:
    whole = packed({"fusion.w": np.ones((2, 3), np.float32), "fusion.b": np.ones(3, np.float16)})[1]
    assert _agreed(_read_in_every_way(tmp_path, damaged(whole, data, [b"[", b'{"a":', b"\xff" * 8])))


@pytest.mark.parametrize("size", [0, 7, 2**20, 2**40, 2**63, 2**64 - 1])
def test_a_header_of_any_claimed_size_is_a_sentence(size: int, tmp_path: Path) -> None:
    assert all(_read_in_every_way(tmp_path, struct.pack("<Q", size) + b'{"w":1}'))


def test_types_that_numpy_lacks_are_named(tmp_path: Path) -> None:
    content = lying({"w": {"dtype": "BF16", "shape": [12], "data_offsets": [0, 24]}}, BODY)
    objects, digest = _held(tmp_path, content)
    with pytest.raises(CheckpointError, match="'w' is of BF16"):
        shards.entries(objects.path(digest))[0].read()


@pytest.fixture(scope="module")
def exported(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    promote(run)
    registry = Registry(run.folder)
    folder = tmp_path_factory.mktemp("exports") / "model"
    export(registry, registry.find("released"), folder, parts=())
    return folder


@settings(_settings, max_examples=80)
@given(data=st.data())
def test_an_export_that_was_touched_starts_no_run_but_the_same(
    run: Run, exported: Path, tmp_path: Path, data: st.DataObject
) -> None:
    """Any file of it changed, or a link that leads away; what is taken over stays in the run's own folder."""
    there, second = tmp_path / "hands/on/export", tmp_path / "second"
    for folder in (there, second):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(exported, there)
    name = data.draw(
        st.sampled_from(["checkpoint.json", "release.json", "objects.json", "model.safetensors"])
    )
    file = there / name
    how = data.draw(st.sampled_from(["sign", "mutate", "mutate", "link", "folder"]))
    before = file.read_bytes()
    if how in ("link", "folder"):
        file.unlink()
        file.mkdir() if how == "folder" else file.symlink_to(tmp_path / "secret")
    elif name == "model.safetensors":
        file.write_bytes(damaged(before, data))
    elif how == "sign" and name == "checkpoint.json":
        file.write_text(signed_anew(changed(json.loads(before), data), run.signer))
    else:
        file.write_bytes(mutated(before, data))
    checkpoints = CheckpointFolder(second / "checkpoints")

    def start() -> None:
        assert start_from(there, checkpoints, run.trust).parts == run.checkpoints.load(5).parts

    with writes_only(second, tmp_path):
        sentence(start, PM1Error)
    for held in (second / "checkpoints/objects").glob("*"):
        assert hashlib.sha256(held.read_bytes()).hexdigest() == held.stem


@pytest.fixture
def asked(stores: dict[str, Path], begun: Path, tmp_path: Path) -> tuple[UnrulyGrid, Path]:
    """A site in the middle of a study, a few floors below the test's folder."""
    folder = fresh(begun, tmp_path / "hospital/data/run")
    return UnrulyGrid({"east": stores["east"]}, folder), folder


def test_whatever_the_coordinator_signs_stays_in_the_sites_folder(
    asked: tuple[UnrulyGrid, Path], tmp_path: Path
) -> None:
    """A checkpoint and an order of any content, names that lead out of folders among them."""
    grid, folder = asked
    checkpoints = CheckpointFolder(folder / "checkpoints", Signer.load(run_key(folder)))
    latest, signer, study = checkpoints.latest(), checkpoints.signer, short_study()
    assert latest is not None
    assert signer is not None
    order = json.loads(study.order(study.phases[1], 2).to_json())
    paths = st.sampled_from(["../../../../x", "../../../x", str(tmp_path / "x"), "a/../../../x"])

    @settings(_settings, max_examples=40)
    @given(data=st.data())
    def signed(data: st.DataObject) -> None:
        manifest = json.loads(latest.to_json())
        of_order = data.draw(st.booleans())
        given = changed(order if of_order else manifest, data, paths)
        facts = {
            "order": json.dumps(given if of_order else order),
            "checkpoint": latest.to_json() if of_order else signed_anew(given, signer),
        }
        content = records.pack("order", facts)
        kind = data.draw(st.sampled_from(["query.ready", "query.objects", "query.advertise"]))
        message = super(UnrulyGrid, grid).create_message(content, kind, 2, "test", ttl=60.0)
        with writes_only(folder / "sites/east", tmp_path):
            reply: Message = grid._answer(message)
        assert not reply.has_error() or "details stay at the site" not in str(reply.error.reason)

    signed()


@pytest.mark.parametrize("config", ["../../../../x", "/tmp/x", "..", "", "c"])
def test_a_signed_checkpoint_cannot_name_the_folder_that_a_site_writes_to(
    config: str, asked: tuple[UnrulyGrid, Path], tmp_path: Path
) -> None:
    grid, folder = asked
    checkpoints = CheckpointFolder(folder / "checkpoints")
    latest = checkpoints.latest()
    assert latest is not None
    text = signed_anew({**json.loads(latest.to_json()), "config": config}, Signer.load(run_key(folder)))
    content = records.pack("order", {"order": "{}", "checkpoint": text})
    message = super(UnrulyGrid, grid).create_message(content, "query.objects", 2, "test", ttl=60.0)
    with writes_only(folder / "sites/east/failures.log", tmp_path):
        reply = grid._answer(message)
    assert "name it by a SHA-256" in str(reply.error.reason)
