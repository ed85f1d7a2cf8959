from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from pm1_core.data.definition import Column, StudySummary, Target
from pm1_core.data.store import Store
from pm1_core.errors import ConfigError
from pm1_core.fields import Modality, Split
from pm1_core.training.guide import Control
from pm1_core.training.order import Order
from pm1_core.training.tasks.phenotype import PhenotypeTask

COLUMNS = (
    Column("age", "continuous", "years", (), {}),
    Column("pressure", "continuous", "mmHg", (), {}),
    Column("constant", "continuous", "1", (), {}),
    Column("glaucoma", "binary", None, (), {}),
    Column("drops", "binary", None, (), {}),
    Column("smoking", "categorical", None, ("never", "previous", "current"), {}),
)
STUDY = StudySummary(
    "tiny", "GRCh38", COLUMNS, (Target("glaucoma", "Glaucoma", ("glaucoma", "drops")),), (), {}
)
FEATURES = len(STUDY.features)


class Site:
    """The part of a store that the task reads: people of one split and their phenotypes."""

    def __init__(self, values: np.ndarray, observed: np.ndarray) -> None:
        self.values, self.observed = values, observed

    def people(self, split: Split | None, modality: Modality | None = None) -> np.ndarray:
        assert modality in (None, Modality.PHENOTYPE)
        return np.arange(len(self.values), dtype=np.int64)

    def phenotypes(self, people: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.values[people], self.observed[people]

    def part(self, rows: slice) -> Store:
        return cast(Store, Site(self.values[rows], self.observed[rows]))


def some_people(count: int, seed: int = 0) -> Site:
    """Age drives pressure, pressure drives glaucoma, glaucoma nearly equals drops."""
    generator = np.random.default_rng(seed)
    age = generator.normal(60, 8, count)
    pressure = 16 + (age - 60) / 4 + generator.normal(0, 1, count)
    glaucoma = pressure + generator.normal(0, 0.5, count) > 16
    drops = glaucoma ^ (generator.random(count) < 0.05)
    smoking = np.eye(3)[generator.integers(0, 3, count)]
    values = np.column_stack([age, pressure, np.full(count, 7.0), glaucoma, drops, smoking]).astype(
        np.float32
    )
    observed = generator.random(values.shape) < 0.9
    return Site(np.where(observed, values, 0), observed)


def state_of(site: Site) -> dict[str, np.ndarray]:
    count = site.observed.sum(0)
    mean = site.values.sum(0) / count
    std = np.sqrt((((site.values - mean) ** 2) * site.observed).sum(0) / count)
    kept = std > 1e-4
    scaled = kept & np.array([feature.kind == "continuous" for feature in STUDY.features])
    found = {"count": count, "mean": np.where(scaled, mean, 0), "std": np.where(scaled, std, 1), "kept": kept}
    return {f"statistics.phenotype.{name}": array.astype(np.float32) for name, array in found.items()}


def parameters(batch_size: int = 64, epochs: int = 1, rate: float = 0.0478, **model: Any) -> dict[str, Any]:
    optimiser = {"name": "sgd", "learning_rate": rate, "momentum": 0.8, "clip_norm": 10.0}
    loop = {"batch_size": batch_size, "epochs": epochs, "device": "cpu", "optimiser": optimiser}
    return {"model": {"latent": 4, "depth": 2, **model}, "loop": loop}


def order(task: PhenotypeTask, round_number: int = 1) -> Order:
    return Order("phenotype", "phenotype", round_number, 10, 3, task.parameters)


def test_what_travels_is_named_after_the_part_and_follows_from_the_seed() -> None:
    task = PhenotypeTask(parameters(), STUDY)
    first, again, other = task.initial({}, 1), task.initial({}, 1), task.initial({}, 2)
    assert all(name.startswith("phenotype.") for name in first)
    assert task.needs == ("statistics.phenotype.",)
    np.testing.assert_array_equal(first["phenotype.encoder.0.weight"], again["phenotype.encoder.0.weight"])
    assert not np.array_equal(first["phenotype.encoder.0.weight"], other["phenotype.encoder.0.weight"])


@pytest.mark.parametrize("reduction", ["kind", "sum"])
def test_one_full_batch_step_on_two_sites_averages_to_the_pooled_step(reduction: str, tmp_path: Path) -> None:
    everybody = some_people(40)
    # One site misses pressure altogether, so that entries per person differ between sites.
    everybody.observed[:13, 1] = False
    everybody.values[:13, 1] = 0
    task = PhenotypeTask(parameters(0, 1, 0.1, copy_mask=0.0, reduction=reduction), STUDY)
    state, tensors = state_of(everybody), task.initial({}, 1)

    def step(rows: slice, folder: str) -> Any:
        (tmp_path / folder).mkdir()
        return task.train(everybody.part(rows), order(task), state, tensors, tmp_path / folder)

    pooled, small, large = step(slice(0, 40), "p"), step(slice(0, 13), "s"), step(slice(13, 40), "l")
    assert (small.weight, large.weight) == (13, 27)
    for name, array in pooled.tensors.items():
        average = (13 * small.tensors[name] + 27 * large.tensors[name]) / 40
        np.testing.assert_allclose(average, array, atol=1e-6)
        assert not np.array_equal(array, tensors[name])


@pytest.mark.parametrize("hide_targets", [0.0, 0.5])
def test_rounds_lower_every_figure_of_held_out_people(hide_targets: float, tmp_path: Path) -> None:
    people, held_out = some_people(512), some_people(256, 1).part(slice(None))
    task = PhenotypeTask(parameters(64, 15, hide_targets=hide_targets), STUDY)
    state, tensors = state_of(people), task.initial({}, 1)
    first = task.evaluate(held_out, order(task), state, tensors, tmp_path, Split.VALIDATION)
    for round_number in (1, 2):
        update = task.train(people.part(slice(None)), order(task, round_number), state, tensors, tmp_path)
        tensors = update.tensors
    last = task.evaluate(held_out, order(task), state, tensors, tmp_path, Split.VALIDATION)
    for name in ("loss", "continuous", "binary", "imputation", "targets"):
        assert last[name] < 0.9 * first[name], name
    assert last["examples"] == 256
    assert {"loss", "continuous", "binary", "gradient_norm"} <= set(update.metrics)


def test_hiding_targets_in_training_helps_where_the_target_is_hidden(tmp_path: Path) -> None:
    people, held_out = some_people(1024), some_people(512, 1).part(slice(None))
    state, found = state_of(people), {}
    for share in (0.0, 0.5):
        task = PhenotypeTask(parameters(64, 20, hide_targets=share), STUDY)
        (folder := tmp_path / str(share)).mkdir()
        tensors = task.train(
            people.part(slice(None)), order(task), state, task.initial({}, 1), folder
        ).tensors
        found[share] = task.evaluate(held_out, order(task), state, tensors, folder, Split.VALIDATION)[
            "targets"
        ]
    assert found[0.5] < found[0.0]


def test_a_guide_reaches_every_tensor_that_travels(tmp_path: Path) -> None:
    people = some_people(40)
    task = PhenotypeTask(parameters(), STUDY)
    tensors = task.initial({}, 1)
    guide = Control({name: np.zeros_like(array) for name, array in tensors.items()}, {})
    update = task.train(people.part(slice(None)), order(task), state_of(people), tensors, tmp_path, guide)
    found = guide.renewed()
    assert set(found) == set(update.tensors) == set(tensors)
    assert dict(update.examples) == {"phenotype": 40}
    assert all(array.any() for array in found.values())


def test_evaluation_is_the_same_every_time_and_in_every_round(tmp_path: Path) -> None:
    people = some_people(100)
    task = PhenotypeTask(parameters(), STUDY)
    state, tensors = state_of(people), task.initial({}, 1)
    first, again = (
        task.evaluate(people.part(slice(None)), order(task, n), state, tensors, tmp_path, Split.VALIDATION)
        for n in (1, 7)
    )
    assert first == again


def test_figures_do_not_depend_on_how_people_are_grouped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = some_people(100)
    task = PhenotypeTask(parameters(copy_mask=0.0), STUDY)
    state, tensors = state_of(people), task.initial({}, 1)

    def figures() -> dict[str, float]:
        return task.evaluate(people.part(slice(None)), order(task), state, tensors, tmp_path, Split.TEST)

    whole = figures()
    monkeypatch.setattr("pm1_core.training.tasks.phenotype._EVALUATED_AT_ONCE", 33)
    assert figures() == pytest.approx(whole, rel=1e-5)


def test_a_dropped_feature_neither_enters_nor_is_scored(tmp_path: Path) -> None:
    people = some_people(50)
    task = PhenotypeTask(parameters(), STUDY)
    state, tensors = state_of(people), task.initial({}, 1)
    assert state["statistics.phenotype.kept"].tolist() == [1, 1, 0, 1, 1, 1, 1, 1]
    before = task.evaluate(people.part(slice(None)), order(task), state, tensors, tmp_path, Split.TEST)
    people.values[:, 2] = 1e6
    assert (
        task.evaluate(people.part(slice(None)), order(task), state, tensors, tmp_path, Split.TEST) == before
    )


def test_initialising_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    PhenotypeTask(parameters(), STUDY).initial({}, 1)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_site_without_people_of_the_split_says_so(tmp_path: Path) -> None:
    task = PhenotypeTask(parameters(), STUDY)
    nobody = some_people(3).part(slice(0, 0))
    assert task.evaluate(nobody, order(task), {}, {}, tmp_path, Split.TEST) == {"examples": 0.0}


def test_an_unknown_model_key_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'latent'"):
        PhenotypeTask({"model": {"latnt": 3}}, STUDY)
