from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from pm1_core.data.store import Store
from pm1_core.data.summary import StudySummary
from pm1_core.errors import CheckpointError, ConfigError, StateError
from pm1_core.fields import EYES, Modality, Split
from pm1_core.model.fundus_base import save_base
from pm1_core.model.fundus_encoder import FundusEncoder, FundusEncoderConfig
from pm1_core.training.adapters import PREFIX, build_encoder, fundus_config, pin_base
from pm1_core.training.guide import Control
from pm1_core.training.order import Order
from pm1_core.training.tasks.fundus import FundusTask, _Photographs
from pm1_core.update import Update

STUDY = StudySummary("tiny", "GRCh38", (), (), (), {}, photograph_size=48)
MODEL = {
    "image": 32,
    "patch": 8,
    "width": 32,
    "depth": 2,
    "heads": 4,
    "decoder_width": 16,
    "decoder_depth": 1,
    "decoder_heads": 2,
    "base_seed": 3,
}


class Site:
    """The part of a store that the task reads: photographs of one split, some of one eye only."""

    def __init__(self, pixels: np.ndarray, has: np.ndarray, name: str = "site") -> None:
        self.pixels, self.has = pixels, has
        self.study, self.fingerprint = STUDY, name

    def people(self, split: Split | None, modality: Modality | None = None) -> np.ndarray:
        assert modality in (None, Modality.FUNDUS)
        return np.flatnonzero(self.has.any(1)).astype(np.int64)

    def photographs(self, people: np.ndarray, eye: str) -> tuple[np.ndarray, np.ndarray]:
        place = EYES.index(eye)
        return self.pixels[people, place], self.has[people, place]

    def part(self, rows: slice) -> "Site":
        return Site(self.pixels[rows], self.has[rows], f"{self.fingerprint}[{rows}]")

    @property
    def store(self) -> Store:
        return cast(Store, self)


def some_people(n: int, seed: int = 0) -> Site:
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:1:48j, 0:1:48j]
    centre = generator.uniform(0.2, 0.8, (n, 2, 2, 1, 1))
    discs = np.exp(-((x - centre[:, :, 0]) ** 2 + (y - centre[:, :, 1]) ** 2) / 0.03)
    pixels = (discs[..., None] * np.array([220, 130, 70])).astype(np.uint8)
    has = generator.random((n, 2)) < 0.7
    has[:, 0] |= ~has.any(1)
    return Site(pixels, has)


def parameters(**changes: Any) -> dict[str, Any]:
    loop = {"batch_size": 8, "epochs": 1, "device": "cpu", "optimiser": {"learning_rate": 1e-2}}
    return {"model": {**MODEL, **changes.pop("model", {})}, "loop": {**loop, **changes}}


def order(settings: dict[str, Any], round_number: int = 1, rounds: int = 4) -> Order:
    return Order("fundus", "fundus", round_number, rounds, 42, settings)


def test_what_travels_is_the_adapters_alone() -> None:
    task = FundusTask(parameters(), STUDY)
    tensors = task.initial({}, 42)
    assert set(tensors) == {
        f"{PREFIX}blocks.{n}.attn.{m}.{side}"
        for n in range(2)
        for m in ("qkv", "proj")
        for side in ("lora_A", "lora_B")
    }
    assert all(array.dtype == np.float32 for array in tensors.values())
    assert all((array == 0).all() == name.endswith("lora_B") for name, array in tensors.items())


def test_rounds_lower_the_loss_and_weigh_by_people(tmp_path: Path) -> None:
    site, settings = some_people(24), parameters(epochs=2)
    task = FundusTask(settings, STUDY)
    tensors = task.initial({}, 42)
    first = task.evaluate(site.store, order(settings), {}, tensors, tmp_path, Split.VALIDATION)
    for round_number in range(1, 5):
        update = task.train(site.store, order(settings, round_number), {}, tensors, tmp_path)
        assert update.weight == 24
        assert set(update.tensors) == set(tensors)
        tensors = update.tensors
    last = task.evaluate(site.store, order(settings), {}, tensors, tmp_path, Split.VALIDATION)
    assert last["loss"] < 0.97 * first["loss"]
    assert last["examples"] == 24


def test_a_guide_reaches_every_tensor_that_travels(tmp_path: Path) -> None:
    task = FundusTask(settings := parameters(), STUDY)
    tensors = task.initial({}, 42)
    guide = Control({name: np.zeros_like(array) for name, array in tensors.items()}, {})
    update = task.train(some_people(10).store, order(settings), {}, tensors, tmp_path, guide)
    found = guide.renewed()
    assert set(found) == set(update.tensors) == set(tensors)
    assert dict(update.examples) == {"fundus": 10}
    # A starts at random and B at zero: the first step moves B only, so B has a gradient from the start.
    assert all(found[name].any() for name in found if name.endswith("lora_B"))


def test_a_repeated_round_gives_the_same_bytes(tmp_path: Path) -> None:
    site, settings = some_people(10), parameters()
    task = FundusTask(settings, STUDY)
    updates: list[Update] = []
    for folder in ("a", "b"):
        torch.manual_seed(len(updates))
        updates.append(task.train(site.store, order(settings), {}, task.initial({}, 42), tmp_path / folder))
    for name, array in updates[0].tensors.items():
        assert array.tobytes() == updates[1].tensors[name].tobytes()


def test_evaluation_hides_the_same_patches_in_every_round(tmp_path: Path) -> None:
    site, settings = some_people(10), parameters()
    task = FundusTask(settings, STUDY)
    tensors = task.initial({}, 42)
    found = [
        task.evaluate(site.store, order(settings, n), {}, tensors, tmp_path, Split.VALIDATION) for n in (1, 3)
    ]
    assert found[0] == found[1]


def test_the_loss_is_a_mean_over_people_then_eyes(tmp_path: Path) -> None:
    """So that sites weighted by people give the pooled loss, whatever share of them has both eyes."""
    site, settings = some_people(20), parameters()
    task = FundusTask(settings, STUDY)
    encoder = task._load(task.initial({}, 42)).eval()
    photographs = _Photographs.of(site.store, Split.TRAIN, 32, tmp_path)

    # The error of an image is made independent of the draw: every mask then gives the same.
    def errors_of_images(images: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return images.mean((1, 2, 3))

    encoder.reconstruction_errors = errors_of_images  # type: ignore[assignment,method-assign]
    draws = torch.Generator().manual_seed(0)
    pooled = task._errors(encoder, photographs, np.arange(20), draws)
    for person in range(20):
        eyes = site.pixels[person][site.has[person]]
        expected = encoder.prepare(torch.from_numpy(eyes)).mean()
        # Cached photographs are rounded to whole grey levels after resizing.
        assert float(pooled[person]) == pytest.approx(float(expected), abs=0.02)
    parts = [task._errors(encoder, photographs, np.arange(*span), draws) for span in ((0, 7), (7, 20))]
    assert float(pooled.mean()) == pytest.approx(float(parts[0].sum() + parts[1].sum()) / 20, rel=1e-5)


def test_photographs_at_the_networks_size_are_read_from_the_store(tmp_path: Path) -> None:
    settings = parameters(model={"image": 48})
    task = FundusTask(settings, STUDY)
    update = task.train(some_people(6).store, order(settings), {}, task.initial({}, 42), tmp_path)
    assert np.isfinite(update.metrics["loss"])
    assert not (tmp_path / "photographs").exists()


def test_the_finished_encoder_is_the_base_with_the_adapters_merged(tmp_path: Path) -> None:
    site, settings = some_people(12), parameters()
    task = FundusTask(settings, STUDY)
    update = task.train(site.store, order(settings), {}, task.initial({}, 42), tmp_path)
    encoder = build_encoder(settings["model"], update.tensors)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert list(encoder.state_dict()) == list(FundusEncoder(fundus_config(MODEL)).state_dict())
    images = torch.from_numpy(site.pixels[:4, 0])
    unmerged = task._load(update.tensors).eval().encode(images)
    torch.testing.assert_close(encoder.encode(images), unmerged, atol=1e-5, rtol=1e-5)
    plain = FundusEncoder(fundus_config(MODEL), seed=3).eval().encode(images)
    assert not torch.allclose(encoder.encode(images), plain, atol=1e-4)


def test_a_base_belongs_to_the_parameters_with_its_hash(tmp_path: Path) -> None:
    file = tmp_path / "base.safetensors"
    config = FundusEncoderConfig(**MODEL)  # type: ignore[arg-type]
    save_base(FundusEncoder(config, seed=9), file)
    with pytest.raises(ConfigError, match="base_sha256"):
        FundusTask(parameters(model={"base": str(file)}), STUDY)
    settings = parameters()
    settings["model"] = pin_base({**MODEL, "base": str(file)})
    task = FundusTask(settings, STUDY)
    tensors = task.initial({}, 42)
    task.train(some_people(6).store, order(settings), {}, tensors, tmp_path / "site")
    save_base(FundusEncoder(replace(config, base=None), seed=10), file)
    with pytest.raises(CheckpointError, match="SHA-256"):
        task.train(some_people(6).store, order(settings), {}, tensors, tmp_path / "site")


def test_nobody_in_a_split_is_zero_examples(tmp_path: Path) -> None:
    settings = parameters()
    task = FundusTask(settings, STUDY)
    empty = some_people(3).part(slice(0, 0))
    assert task.evaluate(
        empty.store, order(settings), {}, task.initial({}, 42), tmp_path, Split.VALIDATION
    ) == {"examples": 0.0}


def test_a_state_without_adapters_and_an_unknown_key_are_refused() -> None:
    with pytest.raises(StateError, match=r"fundus\.lora"):
        build_encoder(MODEL, {})
    with pytest.raises(ConfigError, match="imaeg"):
        FundusTask(parameters(model={"imaeg": 3}), STUDY)
