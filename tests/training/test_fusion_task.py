from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from pm1_core.data.store import Store
from pm1_core.data.summary import StudySummary
from pm1_core.errors import ConfigError, StateError
from pm1_core.fields import TOKENS_OF, Modality, Split
from pm1_core.model.fusion_objectives import FusionObjective
from pm1_core.training.guide import Control
from pm1_core.training.order import Order
from pm1_core.training.tasks import fusion
from pm1_core.training.tasks.fusion import FusionTask
from pm1_core.training.token_set import TokenSet

STUDY = StudySummary("tiny", "GRCh38", (), (), (), {})
WIDTHS = {Modality.GENOTYPE: 3, Modality.PHENOTYPE: 5, Modality.FUNDUS: 4}
MODEL = {
    "width": 16,
    "layers": 2,
    "heads": 2,
    "feedforward": 32,
    **{f"{m}_width": width for m, width in WIDTHS.items()},
}
NOBODY = cast(Store, None)


def some_people(n: int, seed: int = 0) -> TokenSet:
    """Tokens that one hidden cause drives, some of them missing."""
    generator = np.random.default_rng(seed)
    weights = np.random.default_rng(99)
    cause = generator.normal(size=(n, 3))
    present = np.ones((n, 25), bool)
    tokens = {}
    for modality, places in TOKENS_OF.items():
        shape = (places.stop - places.start, WIDTHS[modality])
        tokens[modality] = (
            (cause @ weights.normal(size=(3, shape[0] * shape[1])) / 3**0.5).reshape(n, *shape)
        ).astype(np.float32)
        present[:, places] &= generator.random((n, 1)) < 0.8
    present[:, 22] |= ~present.any(1)
    return TokenSet(np.arange(n), tokens, present)


def rows(held: TokenSet, chosen: slice) -> TokenSet:
    return TokenSet(held.people[chosen], {m: t[chosen] for m, t in held.tokens.items()}, held.present[chosen])


def parameters(objective: dict[str, Any] | None = None, **loop: Any) -> dict[str, Any]:
    optimiser = {"name": "qhadam", "learning_rate": 3e-3, "clip_norm": 10.0}
    settings = {"batch_size": 16, "epochs": 4, "device": "cpu", "optimiser": optimiser, **loop}
    return {"model": MODEL, "objective": objective or {}, "encoders": {}, "loop": settings}


def order(settings: dict[str, Any], round_number: int = 1, rounds: int = 6) -> Order:
    return Order("fusion", "fusion", round_number, rounds, 42, settings)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> dict[str, TokenSet]:
    """What each site's cache gives; the folder's name tells which site asks."""
    sites: dict[str, TokenSet] = {}

    def load_tokens(store: Store, state: Any, settings: Any, folder: Path, split: Split) -> TokenSet:
        return sites[folder.name]

    monkeypatch.setattr(fusion, "load_tokens", load_tokens)
    return sites


def test_rounds_teach_it_to_predict_hidden_modalities(held: dict[str, TokenSet], tmp_path: Path) -> None:
    held["a"], settings = some_people(64), parameters()
    task = FusionTask(settings, STUDY)
    tensors = task.initial({}, 42)
    folder = tmp_path / "a"
    first = task.evaluate(NOBODY, order(settings), {}, tensors, folder, Split.VALIDATION)
    for round_number in range(1, 7):
        update = task.train(NOBODY, order(settings, round_number), {}, tensors, folder)
        assert update.weight == 64
        tensors = update.tensors
    last = task.evaluate(NOBODY, order(settings), {}, tensors, folder, Split.VALIDATION)
    assert last["loss"] < 0.8 * first["loss"]
    assert last["mask.phenotype"] < 0.7 * first["mask.phenotype"]
    assert {"mask", "recon", "contrast", "anchor", "examples", "loss"} <= set(last)
    assert {f"{part}.{m}" for part in ("mask", "recon", "cross") for m in Modality} <= set(last)
    assert {"mask", "recon", "contrast", "loss"} <= set(update.metrics)
    assert last["loss"] == pytest.approx(
        0.5 * (last["mask"] + last["recon"]) + 0.5 * last["contrast"], rel=1e-5
    )


def test_a_repeated_round_gives_the_same_bytes(held: dict[str, TokenSet], tmp_path: Path) -> None:
    held["a"] = held["b"] = some_people(20)
    settings = parameters()
    task = FusionTask(settings, STUDY)
    updates = [
        task.train(NOBODY, order(settings), {}, task.initial({}, 42), tmp_path / name) for name in ("a", "b")
    ]
    for name, array in updates[0].tensors.items():
        assert name.startswith("fusion.")
        assert array.tobytes() == updates[1].tensors[name].tobytes()


def test_sites_with_full_batches_equal_pooled_training_without_contrast(
    held: dict[str, TokenSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L_recon adds over people. Nothing is drawn here, so that sites and pool see the same objective."""
    everybody = some_people(30)
    held["pool"], held["a"], held["b"] = (
        everybody,
        rows(everybody, slice(0, 11)),
        rows(everybody, slice(11, 30)),
    )
    calm = {"contrast": 0.0, "corruption": (1.0, 0.0, 0.0, 0.0)}
    sgd = {"name": "sgd", "learning_rate": 0.05}
    settings = parameters(calm, batch_size=0, epochs=1, optimiser=sgd)
    task = FusionTask(settings, STUDY)
    monkeypatch.setattr(FusionObjective, "probabilities", lambda self: torch.zeros(25))
    pooled = federated = task.initial({}, 42)
    for round_number in (1, 2, 3):
        command = order(settings, round_number)
        pooled = task.train(NOBODY, command, {}, pooled, tmp_path / "pool").tensors
        updates = [task.train(NOBODY, command, {}, federated, tmp_path / name) for name in ("a", "b")]
        total = sum(update.weight for update in updates)
        federated = {
            name: np.add(*(u.tensors[name] * np.float32(u.weight / total) for u in updates))
            for name in federated
        }
    for name, array in pooled.items():
        np.testing.assert_allclose(federated[name], array, atol=1e-6)


def test_a_site_with_one_modality_takes_part_without_contrast(
    held: dict[str, TokenSet], tmp_path: Path
) -> None:
    people = some_people(12)
    people.present[:] = False
    people.present[:, 23] = True
    held["a"], settings = people, parameters()
    task = FusionTask(settings, STUDY)
    received = task.initial({}, 42)
    update = task.train(NOBODY, order(settings), {}, received, tmp_path / "a")
    assert update.metrics["contrast"] == 0
    assert update.metrics["skipped_steps"] == 0
    tensors = {**received, **update.tensors}
    metrics = task.evaluate(NOBODY, order(settings), {}, tensors, tmp_path / "a", Split.VALIDATION)
    assert "anchor" not in metrics
    assert not any(name.startswith("cross.") for name in metrics)


def test_projections_of_a_modality_that_a_site_lacks_are_left_out(
    held: dict[str, TokenSet], tmp_path: Path
) -> None:
    held["a"] = people = some_people(12)
    people.present[:, TOKENS_OF[Modality.GENOTYPE]] = False
    people.present[:, 22] = True
    decaying = {"name": "adamw", "learning_rate": 3e-3, "weight_decay": 0.5}
    task = FusionTask(settings := parameters(optimiser=decaying), STUDY)
    received = task.initial({}, 42)
    update = task.train(NOBODY, order(settings), {}, received, tmp_path / "a")
    left_out = set(received) - set(update.tensors)
    assert left_out == {
        f"fusion.{side}.genotype.{kind}" for side in ("inputs", "outputs") for kind in ("weight", "bias")
    }
    assert {task.modality_of(name) for name in left_out} == {Modality.GENOTYPE}
    guide = Control({name: np.zeros_like(array) for name, array in received.items()}, {})
    task.train(NOBODY, order(settings), {}, received, tmp_path / "a", guide)
    assert set(guide.renewed()) == set(update.tensors)
    eyes = int(people.present[:, 23:].any(1).sum())
    assert dict(update.examples) == {"genotype": 0, "phenotype": 12, "fundus": eyes}


def test_only_projections_belong_to_one_modality() -> None:
    task = FusionTask(parameters(), STUDY)
    owners = {name: task.modality_of(name) for name in task.initial({}, 42)}
    assert owners["fusion.inputs.fundus.weight"] is owners["fusion.outputs.fundus.bias"] is Modality.FUNDUS
    assert owners["fusion.positions"] is owners["fusion.layers.0.qkv.weight"] is None
    assert sum(owner is not None for owner in owners.values()) == 12


def test_a_site_whose_modalities_grow_goes_on_with_the_moments_that_it_has(
    held: dict[str, TokenSet], tmp_path: Path
) -> None:
    held["a"] = people = some_people(12)
    whole = people.present.copy()
    people.present[:, TOKENS_OF[Modality.GENOTYPE]] = False
    people.present[:, 22] = True
    task = FusionTask(settings := parameters(), STUDY)
    received = task.initial({}, 42)
    first = task.train(NOBODY, order(settings), {}, received, tmp_path / "a")
    people.present[:] = whole | people.present
    second = task.train(NOBODY, order(settings, 2), {}, {**received, **first.tensors}, tmp_path / "a")
    assert set(second.tensors) == set(received)


def test_nobody_in_a_split_is_zero_examples(held: dict[str, TokenSet], tmp_path: Path) -> None:
    held["a"], settings = rows(some_people(3), slice(0, 0)), parameters()
    task = FusionTask(settings, STUDY)
    tensors = task.initial({}, 42)
    assert task.evaluate(NOBODY, order(settings), {}, tensors, tmp_path / "a", Split.TEST) == {
        "examples": 0.0
    }


def test_it_needs_encoders_and_token_statistics() -> None:
    assert {"tokens.", "genotype.", "phenotype.", "fundus.", "statistics."} <= set(
        FusionTask(parameters(), STUDY).needs
    )


def test_wrong_parameters_and_other_tensors_are_refused(held: dict[str, TokenSet], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="widht"):
        FusionTask({"model": {"widht": 3}}, STUDY)
    with pytest.raises(ConfigError, match="masking"):
        FusionTask({"objective": {"masking": "F5"}}, STUDY)
    held["a"], settings = some_people(4), parameters()
    task = FusionTask(settings, STUDY)
    tensors = {name: array for name, array in task.initial({}, 42).items() if name != "fusion.cls"}
    with pytest.raises(StateError, match="cls"):
        task.train(NOBODY, order(settings), {}, tensors, tmp_path / "a")
