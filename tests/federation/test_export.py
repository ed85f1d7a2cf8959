"""An export is what Hugging Face's tools read, equals the checkpoint to the bit, and is whole or absent."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from huggingface_hub import ModelCard
from lineages import AREAS, FUNDUS, FUSION, Run, whole_run
from timm.models.vision_transformer import VisionTransformer

import server.cli
from pm1_core.checkpoint import CheckpointFolder
from pm1_core.errors import CheckpointError, InputError
from pm1_core.model.fundus_base import load_base
from pm1_core.model.fundus_encoder import FundusEncoder, FundusEncoderConfig
from pm1_core.model.fundus_lora import attach_lora, initial_lora, load_lora
from pm1_core.model.fusion import FusionConfig, FusionTransformer
from pm1_core.training.parts import dump_part, load_part
from server import export as exporting
from server import shards
from server.export import export
from server.origins import start_from
from server.registry import Registry


def _adapters() -> dict[str, np.ndarray]:
    """Adapters that change something: B is not zero."""
    rng = np.random.default_rng(0)
    drawn = initial_lora(FundusEncoderConfig(**FUNDUS), seed=1)
    return {
        f"fundus.lora.{name}": rng.normal(0, 0.2, tuple(tensor.shape)).astype(np.float32)
        for name, tensor in drawn.items()
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A released checkpoint with a real fundus part and a real fusion part, and a candidate after it."""
    run = Run(tmp_path_factory.mktemp("runs") / "first")
    run.save("fundus", 1, _adapters())
    fusion = dump_part(FusionTransformer(FusionConfig(**FUSION), seed=4), "fusion.")
    measured = {"seconds": 60.0, "energy_joules": 7.2e5, "energy_sites": 2.0}
    metrics = {"all": {"validation.loss": 0.5}}
    last = run.save("fusion", 2, fusion, areas=AREAS, metrics=metrics, measured=measured)
    registry = Registry(run.folder)
    registry.promote(last, run.study.gates, run.signer, "A. Example", "end of the study")
    run.save("fusion", 2, {"fusion.cls": np.zeros((1, 1, 32), np.float32)})
    return run


def _export(run: Run, folder: Path, name: str = "released", **options: Any) -> exporting.Exported:
    registry = Registry(run.folder)
    return export(registry, registry.find(name), folder, **options)


def _command(*arguments: object) -> int:
    return server.cli.main(["checkpoints", "export", *map(str, arguments)])


def test_one_file_holds_every_tensor_to_the_bit(run: Run, tmp_path: Path) -> None:
    done = _export(run, tmp_path / "out")
    state = run.checkpoints.state(run.checkpoints.load(2))
    loaded = safetensors.numpy.load_file(tmp_path / "out/model.safetensors")
    assert set(loaded) == set(state)
    for name, array in loaded.items():
        np.testing.assert_array_equal(array, state[name])
    assert done.parameters == sum(array.size for array in loaded.values())
    assert set(done.files) == {
        "README.md", "config.json", "model.safetensors", "checkpoint.json", "release.json", "objects.json",
        "coordinator.pub", "fundus/README.md", "fundus/adapter_config.json", "fundus/adapter_model.safetensors",
    }  # fmt: skip


def test_a_large_model_is_in_shards_with_an_index(run: Run, tmp_path: Path) -> None:
    assert _command(run.folder, "released", "--out", tmp_path / "out", "--shard-size", "20KB") == 0
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert [file.name for file in files] == [
        f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)
    ]
    assert len(files) > 2
    whole: dict[str, np.ndarray] = {}
    for file in files:
        held = safetensors.numpy.load_file(file)
        assert all(index["weight_map"][name] == file.name for name in held)
        assert len(held) == 1 or sum(array.nbytes for array in held.values()) <= 20_000
        whole |= held
    assert set(whole) == set(index["weight_map"]) == set(run.checkpoints.state(run.checkpoints.load(2)))
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in whole.values())


def test_the_configuration_builds_the_model(run: Run, tmp_path: Path) -> None:
    _export(run, tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    state = safetensors.numpy.load_file(tmp_path / "out/model.safetensors")
    load_part(FusionTransformer(FusionConfig(**config["fusion"])), state, "fusion.")
    assert set(config["encoders"]) == {"fundus"}  # no other encoder is in this checkpoint
    assert "base" not in config["encoders"]["fundus"]
    FundusEncoderConfig(**config["encoders"]["fundus"])
    assert config["checkpoint"] == run.checkpoints.load(2).hash


def test_peft_loads_the_adapters_on_a_timm_base_and_gives_the_same_tokens(run: Run, tmp_path: Path) -> None:
    from peft import PeftModel

    _export(run, tmp_path / "out", parts=["fundus"])
    config = FundusEncoderConfig(**FUNDUS)
    adapted = attach_lora(FundusEncoder(config, config.base_seed))
    load_lora(adapted, {n.removeprefix("fundus.lora."): torch.from_numpy(a) for n, a in _adapters().items()})
    photographs = torch.randint(0, 256, (3, 40, 40, 3), generator=torch.Generator().manual_seed(0)).byte()

    base = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=0,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    weights = FundusEncoder(config, config.base_seed).state_dict()
    base.load_state_dict({name: weights[name] for name in base.state_dict()})
    images = adapted.prepare(photographs)
    plain = base.eval().forward_features(images)[:, 0].detach()
    model: Any = PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
    with torch.no_grad():
        token = model.base_model.model.forward_features(images)[:, 0]
        expected = adapted.eval().encode(photographs)
    torch.testing.assert_close(token, expected, rtol=0, atol=1e-6)
    assert not torch.allclose(token, plain, atol=1e-3)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "checkpoint.json", "release.json",
        "coordinator.pub",
    }  # fmt: skip


def test_a_merged_encoder_loads_as_its_base_did_and_gives_the_adapted_tokens(
    run: Run, tmp_path: Path
) -> None:
    assert _command(run.folder, "released", "--out", tmp_path / "out", "--merge") == 0
    merged = tmp_path / "out" / "fundus" / "merged.safetensors"
    config = FundusEncoderConfig(**FUNDUS)
    plain = load_base(merged, config)
    adapted = attach_lora(FundusEncoder(config, seed=FUNDUS["base_seed"]))
    names = {name.removeprefix("fundus.lora."): torch.from_numpy(a) for name, a in _adapters().items()}
    load_lora(adapted, names)
    photographs = torch.randint(0, 256, (3, 40, 40, 3), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(plain.eval().encode(photographs), adapted.eval().encode(photographs))
    assert not torch.equal(
        plain.state_dict()["blocks.0.attn.qkv.weight"],
        FundusEncoder(config, seed=FUNDUS["base_seed"]).state_dict()["blocks.0.attn.qkv.weight"],
    )


def test_without_adapters_there_is_nothing_to_merge(run: Run, tmp_path: Path) -> None:
    bare = Run(tmp_path / "bare")
    last = bare.save("fusion", 2, {"fusion.cls": np.zeros((1, 1, 32), np.float32)})
    with pytest.raises(InputError, match="the checkpoint has no adapters; leave --merge out"):
        export(Registry(bare.folder), last, tmp_path / "out", merged=True)
    assert not (tmp_path / "out").exists()


def test_the_model_card_says_what_the_manifest_says(run: Run, tmp_path: Path) -> None:
    _export(run, tmp_path / "out", licence="cc-by-nc-4.0")
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.license == "cc-by-nc-4.0"
    assert card.data.library_name == "pm1"
    assert "federated-learning" in (card.data.tags or [])
    results = {result.task_name: result.metric_value for result in card.data.eval_results or []}
    assert results == {"diabetes": 0.8, "gout": 0.66}
    for piece in (
        "**Released** by A. Example",
        run.checkpoints.load(2).hash,
        run.signer.fingerprint,
        "2 with 420 examples (leeds 300, york 120)",
        "| diabetes | sex=F | 0.780 | 60 | 450 |",
        "No differential privacy.",
        "0.2 kWh, measured by counters of processors and GPUs at up to 2 sites in 1 of 3 checkpoints",
        "| `fusion` |",
    ):
        assert piece in card.text
    adapters = ModelCard.load(tmp_path / "out/fundus/README.md")
    assert adapters.data.library_name == "peft"
    assert "seed=3" in adapters.text


def test_the_public_key_comes_along_wherever_it_lay(tmp_path: Path) -> None:
    whole = whole_run(tmp_path / "run")
    shutil.move(whole.folder / "keys", tmp_path / "keys")
    key = tmp_path / "keys/coordinator.pem.pub"
    assert _command(whole.folder, "--out", tmp_path / "out", "--part", "fusion", "--key", key) == 0
    assert (tmp_path / "out/coordinator.pub").read_bytes() == key.read_bytes()
    assert _command(whole.folder, "--out", tmp_path / "other", "--part", "fusion") == 0
    assert not (tmp_path / "other/coordinator.pub").exists()


def test_a_candidate_is_called_one_and_unmeasured_energy_is_not_guessed(tmp_path: Path) -> None:
    whole = whole_run(tmp_path / "run")
    _export(whole, tmp_path / "out", "latest", parts=["fusion"])
    card = (tmp_path / "out/README.md").read_text()
    assert "A candidate: not released" in card
    assert "Not measured: no site's machine offered a meter" in card
    assert not (tmp_path / "out/release.json").exists()


def test_a_part_alone_may_be_exported(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _command(run.folder, "released", "--out", tmp_path / "out", "--part", "fusion", "--json") == 0
    done = json.loads(capsys.readouterr().out)
    assert "objects.json" not in done["files"]
    assert all(
        entry.name.startswith("fusion.") for entry in shards.entries(tmp_path / "out/model.safetensors")
    )
    assert _command(run.folder, "--out", tmp_path / "other", "--part", "fusions") == 2
    assert "did you mean 'fusion'?" in capsys.readouterr().err


@pytest.mark.parametrize("shard_bytes", [10**9, 5_000])
def test_another_run_may_start_from_an_export(shard_bytes: int, run: Run, tmp_path: Path) -> None:
    _export(run, tmp_path / "out", shard_bytes=shard_bytes)
    second = CheckpointFolder(tmp_path / "second")
    origin = start_from(tmp_path / "out", second, run.trust, run.checkpoints.load(2).hash)
    assert origin == run.checkpoints.load(2)
    for digests in origin.parts.values():
        for digest in digests:
            assert second.objects.read(digest) == run.checkpoints.objects.read(digest)


def test_an_export_that_was_changed_or_holds_a_part_is_no_start(run: Run, tmp_path: Path) -> None:
    second = CheckpointFolder(tmp_path / "second")
    _export(run, tmp_path / "part", parts=["fusion"])
    with pytest.raises(InputError, match="it holds a part of the model"):
        start_from(tmp_path / "part", second, run.trust)
    _export(run, tmp_path / "candidate", "latest")
    with pytest.raises(InputError, match="nothing in it is released"):
        start_from(tmp_path / "candidate", second, run.trust)
    _export(run, tmp_path / "out")
    model = tmp_path / "out/model.safetensors"
    content = bytearray(model.read_bytes())
    content[-2] ^= 1
    model.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"the tensors from 'fusion\.\S+' on are not those"):
        start_from(tmp_path / "out", second, run.trust)
    assert second.origin() is None


def test_a_damaged_checkpoint_is_not_exported(tmp_path: Path) -> None:
    whole = whole_run(tmp_path / "run")
    shard = whole.checkpoints.objects.path(whole.checkpoints.load(5).parts["fusion"][0])
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="the bytes do not match the name"):
        _export(whole, tmp_path / "out", "latest")
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_never_replaced(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.doc").write_text("years of work")
    assert _command(run.folder, "--out", tmp_path) == 2
    assert "found something there" in capsys.readouterr().err
    assert (tmp_path / "thesis.doc").read_text() == "years of work"


@pytest.mark.parametrize("instant", ["first shard", "second shard", "card", "fsync"])
def test_a_full_disk_leaves_no_half_export_and_ends_with_a_sentence(
    instant: str,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    written = 0
    write = shards.write

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def filling(*arguments: Any) -> None:
        nonlocal written
        written += 1
        if written == ("first shard", "second shard").index(instant) + 1:
            arguments[0].write_bytes(b"half")
            full()
        write(*arguments)

    with monkeypatch.context() as broken:
        if "shard" in instant:
            broken.setattr(exporting, "write", filling)
        elif instant == "card":
            broken.setattr(exporting, "model_card", full)
        else:
            broken.setattr(os, "fsync", full)
        assert _command(run.folder, "released", "--out", tmp_path / "out", "--shard-size", "20KB") == 2
    printed = capsys.readouterr().err
    assert "the disk is full; free some space" in printed
    assert len(printed.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
    assert _command(run.folder, "released", "--out", tmp_path / "out") == 0


def test_a_read_only_place_is_said(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read_only(*_: Any, dir: Path, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(dir))

    monkeypatch.setattr(tempfile, "mkdtemp", read_only)
    assert _command(run.folder, "--out", tmp_path / "out") == 2
    assert f"{tmp_path}: the file system is read-only" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", ["", "0GB", "5 parsecs", "-1GB"])
def test_a_size_that_is_none_is_refused(size: str, run: Run, tmp_path: Path) -> None:
    assert _command(run.folder, "--out", tmp_path / "out", f"--shard-size={size}") == 2


def test_the_study_may_lie_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = whole_run(tmp_path / "run")
    shutil.move(whole.folder / "study.json", tmp_path / "study.json")
    arguments = [whole.folder, "--out", tmp_path / "out", "--part", "fusion"]
    assert _command(*arguments) == 2
    assert "give the resolved study of this run with --study FILE" in capsys.readouterr().err
    assert _command(*arguments, "--study", tmp_path / "study.json") == 0


HAS_MLFLOW = importlib.util.find_spec("mlflow") is not None


@pytest.mark.skipif(HAS_MLFLOW, reason="MLflow is installed")
def test_without_mlflow_a_sentence_says_how_to_get_it(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _command(run.folder, "--out", tmp_path / "out", "--mlflow", "sqlite:///x.db") == 2
    assert "MLflow is not installed; install it: pip install 'pm1[mlflow]'" in capsys.readouterr().err


@pytest.mark.skipif(not HAS_MLFLOW, reason="MLflow is an optional extra: pip install 'pm1[mlflow]'")
@pytest.mark.filterwarnings("default")
def test_mlflow_registers_an_export_as_a_version(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import mlflow

    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for version in (1, 2):
        out = tmp_path / f"out{version}"
        assert _command(run.folder, "released", "--out", out, "--mlflow", uri) == 0
        assert f"registered as version {version}" in capsys.readouterr().out
    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    found = client.get_model_version("hearts", "2")
    assert found.tags["pm1.checkpoint"] == run.checkpoints.load(2).hash
    assert found.tags["pm1.stage"] == "released"
    figures = client.get_run(found.run_id).data.metrics
    assert figures["auc/diabetes.all"] == 0.8
    stored = Path(mlflow.artifacts.download_artifacts(found.source, tracking_uri=uri))
    assert (stored / "model.safetensors").read_bytes() == (tmp_path / "out2/model.safetensors").read_bytes()
