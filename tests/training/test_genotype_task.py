from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from pm1_core.data.store import Store
from pm1_core.data.summary import StudySummary
from pm1_core.errors import ConfigError, StateError
from pm1_core.evaluation.genotype import dosage_confusion, weighted_accuracy
from pm1_core.fields import Modality, Split
from pm1_core.training.guide import Control
from pm1_core.training.order import Order
from pm1_core.training.tasks.genotype import GenotypeTask

SNPS = 21
STUDY = StudySummary("tiny", "GRCh38", (), (), (), {21: 0, 22: SNPS})
MODEL = {"latent": 6, "width": 8, "depth": 1}


class Site:
    """The part of a store that the task reads: people of one split and their dosages."""

    def __init__(self, dosages: np.ndarray) -> None:
        self.held = dosages

    def people(self, split: Split | None, modality: Modality | None = None) -> np.ndarray:
        assert modality in (None, Modality.GENOTYPE)
        return np.arange(len(self.held), dtype=np.int64)

    def dosages(self, chromosome: int, people: np.ndarray) -> np.ndarray:
        assert chromosome == 22
        return self.held[people]


def site(dosages: np.ndarray) -> Store:
    return cast(Store, Site(dosages))


def linked_dosages(people: int, seed: int = 0, missing: float = 0.05) -> np.ndarray:
    """Two copies each of one of four founders per block of seven SNPs, with holes."""
    generator = np.random.default_rng(seed)
    founders = np.random.default_rng(7).random((4, SNPS)) < 0.4
    chosen = generator.integers(4, size=(2, people, SNPS // 7)).repeat(7, axis=2)
    dosages = founders[chosen, np.arange(SNPS)].sum(0).astype(np.uint8)
    dosages[generator.random(dosages.shape) < missing] = 3
    return dosages


def state_of(dosages: np.ndarray) -> dict[str, np.ndarray]:
    counts = np.stack([(dosages == dosage).sum(0) for dosage in range(3)], 1).astype(np.float32)
    return {"statistics.genotype.22.counts": counts}


def parameters(
    batch_size: int = 32, epochs: int = 1, rate: float = 3e-3, name: str = "adam", **other: Any
) -> dict[str, Any]:
    optimiser = {"name": name, "learning_rate": rate}
    loop = {"batch_size": batch_size, "epochs": epochs, "device": "cpu", "optimiser": optimiser}
    return {"chromosome": 22, "model": {**MODEL, **other.pop("model", {})}, "loop": loop, **other}


def order(task_parameters: dict[str, Any], round_number: int = 1) -> Order:
    return Order("genotype.22", "genotype", round_number, 10, 3, task_parameters)


def test_what_travels_is_named_after_the_chromosome() -> None:
    task = GenotypeTask(parameters(), STUDY)
    tensors = task.initial({}, 1)
    assert all(name.startswith("genotype.22.") for name in tensors)
    assert all(array.dtype == np.float32 for array in tensors.values())
    assert task.needs == ("statistics.genotype.22.",)
    assert task.modalities == {Modality.GENOTYPE}


def test_initial_tensors_follow_from_the_seed_and_leave_the_global_generator_alone() -> None:
    task = GenotypeTask(parameters(), STUDY)
    before = torch.random.get_rng_state()
    first, again, other = task.initial({}, 1), task.initial({}, 1), task.initial({}, 2)
    assert torch.equal(before, torch.random.get_rng_state())
    name = "genotype.22.posterior.weight"
    np.testing.assert_array_equal(first[name], again[name])
    assert not np.array_equal(first[name], other[name])


@pytest.mark.parametrize("architecture", ["convolutional", "linear", "shallow"])
def test_one_full_batch_step_on_two_sites_averages_to_the_pooled_step(
    architecture: str, tmp_path: Path
) -> None:
    # The posterior's noise is a site's own, so the law is about the deterministic part: the variance is fixed
    # near zero by its bias.
    dosages = linked_dosages(30)
    task = GenotypeTask(parameters(0, 1, 0.1, "sgd", architecture=architecture), STUDY)
    state, tensors = state_of(dosages), dict(task.initial({}, 1))
    latent = MODEL["latent"]
    for name, value in (("weight", 0.0), ("bias", -60.0)):
        for layer in ("posterior", "encoder.2"):
            key = f"genotype.22.{layer}.{name}"
            if key in tensors and len(tensors[key]) == 2 * latent:
                tensors[key][latent:] = value

    def step(rows: slice, folder: str) -> Any:
        (tmp_path / folder).mkdir()
        return task.train(site(dosages[rows]), order(task.parameters), state, tensors, tmp_path / folder)  # type: ignore[arg-type]

    pooled, small, large = step(slice(0, 30), "p"), step(slice(0, 8), "s"), step(slice(8, 30), "l")
    assert (small.weight, large.weight) == (8, 22)
    moved = 0.0
    for name, array in pooled.tensors.items():
        average = (8 * small.tensors[name] + 22 * large.tensors[name]) / 30
        np.testing.assert_allclose(average, array, atol=1e-6)
        moved = max(moved, float(np.abs(array - tensors[name]).max()))
    assert moved > 1e-3


@pytest.mark.parametrize("architecture", ["convolutional", "linear", "shallow"])
def test_rounds_lower_the_loss_of_held_out_people(architecture: str, tmp_path: Path) -> None:
    train, held_out = linked_dosages(192), linked_dosages(64, 1)
    task = GenotypeTask(parameters(32, 10, 5e-3, architecture=architecture), STUDY)
    state, tensors = state_of(train), task.initial({}, 1)
    first = task.evaluate(site(held_out), order(parameters()), state, tensors, tmp_path, Split.VALIDATION)
    for round_number in (1, 2, 3):
        asked = Order("genotype.22", "genotype", round_number, 3, 3, task.parameters)
        update = task.train(site(train), asked, state, tensors, tmp_path)
        tensors = update.tensors
    last = task.evaluate(site(held_out), order(parameters()), state, tensors, tmp_path, Split.VALIDATION)
    assert last["loss"] < 0.75 * first["loss"]
    assert last["weighted_accuracy"] > first["weighted_accuracy"] + 0.2
    assert last["examples"] == 64
    assert {"loss", "cross_entropy", "kl", "gradient_norm", "skipped_steps"} <= set(update.metrics)


@pytest.mark.parametrize("architecture", ["convolutional", "linear", "shallow"])
def test_a_guide_reaches_every_tensor_that_travels(architecture: str, tmp_path: Path) -> None:
    dosages = linked_dosages(40)
    task = GenotypeTask(parameters(architecture=architecture), STUDY)
    tensors = task.initial({}, 1)
    guide = Control({name: np.zeros_like(array) for name, array in tensors.items()}, {})
    asked = order(dict(task.parameters))
    update = task.train(site(dosages), asked, state_of(dosages), tensors, tmp_path, guide)
    found = guide.renewed()
    assert set(found) == set(update.tensors) == set(tensors)
    assert dict(update.examples) == {"genotype": 40}
    assert sum(array.any() for array in found.values()) > len(found) / 2


def test_figures_of_an_evaluation_are_those_of_all_people_at_once(tmp_path: Path) -> None:
    dosages = linked_dosages(300)
    task = GenotypeTask(parameters(), STUDY)
    tensors = task.initial({}, 1)
    metrics = task.evaluate(
        site(dosages), order(parameters()), state_of(dosages), tensors, tmp_path, Split.TEST
    )
    module = task._load(tensors).eval()
    with torch.no_grad():
        predicted = module(torch.from_numpy(dosages))[0].argmax(-1).numpy()
    expected = weighted_accuracy(dosage_confusion(dosages, predicted))
    assert metrics["weighted_accuracy"] == pytest.approx(expected)
    assert metrics["loss"] == pytest.approx(
        metrics["cross_entropy"] + 0.0913 * metrics["kl"] / SNPS, rel=1e-5
    )


def test_a_repeated_round_is_repeated_to_the_bit(tmp_path: Path) -> None:
    dosages = linked_dosages(40)
    task = GenotypeTask(parameters(), STUDY)
    state, tensors = state_of(dosages), task.initial({}, 1)
    for round_number in (1, 2):
        asked = order(parameters(), round_number)
        first, again = (task.train(site(dosages), asked, state, tensors, tmp_path) for _ in range(2))
        for name, array in first.tensors.items():
            np.testing.assert_array_equal(array, again.tensors[name])
        tensors = first.tensors


def test_kl_weight_rises_over_rounds_even_for_a_site_that_was_absent(tmp_path: Path) -> None:
    dosages = linked_dosages(64)
    task = GenotypeTask(parameters(32, 2, 0.0, model={"kl_anneal_steps": 8, "beta": 5.0}), STUDY)
    state, tensors = state_of(dosages), task.initial({}, 1)
    shares = []
    for round_number in (1, 2, 3, 9):
        (folder := tmp_path / str(round_number)).mkdir()
        asked = order(dict(task.parameters), round_number)
        found = task.train(site(dosages), asked, state, tensors, folder).metrics
        shares.append((found["loss"] - found["cross_entropy"]) / (5.0 / SNPS * found["kl"]))
    np.testing.assert_allclose(shares, [1.5 / 8, 5.5 / 8, 1.0, 1.0], rtol=5e-3)


def test_a_diverged_posterior_skips_the_step_and_keeps_the_weights(tmp_path: Path) -> None:
    dosages = linked_dosages(16)
    task = GenotypeTask(parameters(model={"kl_anneal_steps": 0}), STUDY)
    tensors = dict(task.initial({}, 1))
    tensors["genotype.22.posterior.bias"][MODEL["latent"] :] = 200.0
    update = task.train(site(dosages), order(dict(task.parameters)), state_of(dosages), tensors, tmp_path)
    assert update.metrics["skipped_steps"] == 1
    for name, array in update.tensors.items():
        np.testing.assert_array_equal(array, tensors[name])


def test_a_site_without_people_of_the_split_says_so(tmp_path: Path) -> None:
    task = GenotypeTask(parameters(), STUDY)
    empty = site(np.zeros((0, SNPS), np.uint8))
    assert task.evaluate(empty, order(parameters()), {}, {}, tmp_path, Split.TEST) == {"examples": 0.0}
    assert task.examples(empty) == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"chromosome": 21}, "use one of the study's: 22"),
        ({"chromosome": "22"}, "found '22'"),
        ({"model": {"widht": 8}}, "did you mean 'width'"),
    ],
)
def test_wrong_parameters_are_refused_by_name(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GenotypeTask({**parameters(), **wrong}, STUDY)


def test_tensors_of_another_model_are_refused(tmp_path: Path) -> None:
    tensors = GenotypeTask(parameters(), STUDY).initial({}, 1)
    other = GenotypeTask(parameters(model={"latent": 7}), STUDY)
    dosages = linked_dosages(4)
    with pytest.raises(StateError, match="model configuration"):
        other.train(site(dosages), order(parameters()), state_of(dosages), tensors, tmp_path)


def test_study_needs_no_more_than_chromosome_sizes() -> None:
    study = cast(StudySummary, SimpleNamespace(chromosome_sizes={22: 5}))
    assert GenotypeTask(parameters(), study).snps == 5
