"""The fusion part under record-level terms: what leaves a site, and how far one person moves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pm1_core.data.store import Store
from pm1_core.data.summary import StudySummary
from pm1_core.fields import TOKENS_OF, Modality
from pm1_core.model import fusion_objectives
from pm1_core.model.fusion import FusionConfig, FusionTransformer
from pm1_core.privacy.terms import RecordTerms, to_order
from pm1_core.training.clipping import ClippedGradients
from pm1_core.training.order import Order
from pm1_core.training.parts import named_part
from pm1_core.training.private import Units, clipped_sums
from pm1_core.training.tasks import fusion
from pm1_core.training.tasks.fusion import FusionTask
from pm1_core.training.token_set import TokenSet

STUDY = StudySummary("tiny", "GRCh38", (), (), (), {})
MODEL = {
    "width": 8,
    "layers": 1,
    "heads": 2,
    "feedforward": 8,
    "genotype_width": 3,
    "phenotype_width": 5,
    "fundus_width": 4,
}
CALM = {"corruption": (1.0, 0.0, 0.0, 0.0)}
PARAMETERS = {
    "model": MODEL,
    "objective": CALM,
    "encoders": {},
    "loop": {"batch_size": 16, "optimiser": {"name": "sgd", "learning_rate": 0.1}},
}
TERMS = RecordTerms(noise_multiplier=1.0, clip=0.5, sample_rate=1.0, steps=2, people=12, group_size=4)


def order(terms: RecordTerms = TERMS) -> Order:
    return Order("fusion", "fusion", 1, 2, 42, PARAMETERS, privacy=to_order(terms))


def people(count: int, lacking: Modality | None = None, seed: int = 0) -> TokenSet:
    rng, config = np.random.default_rng(seed), FusionConfig(**MODEL)  # type: ignore[arg-type]
    tokens = {
        m: rng.normal(size=(count, span.stop - span.start, config.token_width(m))).astype(np.float32)
        for m, span in TOKENS_OF.items()
    }
    present = rng.random((count, 25)) < 0.9
    present[:, 22] = True
    if lacking:
        present[:, TOKENS_OF[lacking]] = False
    return TokenSet(np.arange(count), tokens, present)


@pytest.mark.parametrize("count", [0, 5])
def test_a_site_that_lacks_a_modality_sends_its_projections_with_noise_like_any_other(
    count: int, hospitals: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors left out, or as they came, would tell that nobody here has a photograph."""
    monkeypatch.setattr(fusion, "load_tokens", lambda *_: people(count, lacking=Modality.FUNDUS))
    task = FusionTask(PARAMETERS, STUDY)
    received = task.initial({}, 42)
    update = task.train(Store.open(hospitals["north"]), order(), {}, received, tmp_path)
    assert set(update.tensors) == set(received)
    for name, array in update.tensors.items():
        assert (array != received[name]).mean() > 0.99, name
    assert update.metrics == {"steps": 2.0}


def site_of(held: TokenSet, store: Store) -> tuple[FusionTransformer, Units]:
    task = FusionTask(PARAMETERS, STUDY)
    module = FusionTransformer(FusionConfig(**MODEL), 3)  # type: ignore[arg-type]
    units = task._groups(module, store, held, order())
    assert units
    return module, units


def sums_of(module: FusionTransformer, units: Units) -> dict[str, np.ndarray]:
    trained = named_part(module, "fusion.")
    clipped, everybody = ClippedGradients(module, trained), np.arange(units.count)
    return clipped_sums(clipped, trained, units, everybody, TERMS.clip, 2, torch.Generator())


def without(held: TokenSet, row: int) -> TokenSet:
    kept = np.delete(np.arange(len(held.people)), row)
    return TokenSet(held.people[kept], {m: t[kept] for m, t in held.tokens.items()}, held.present[kept])


def no_masks(present: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.zeros_like(present)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**20), row=st.integers(0, 7), scale=st.floats(0.01, 100))
def test_a_person_who_leaves_moves_the_sum_over_groups_by_twice_the_bound_at_most(
    seed: int, row: int, scale: float, hospitals: dict[str, Path]
) -> None:
    store, held = Store.open(hospitals["north"]), people(8, seed=seed)
    for tokens in held.tokens.values():
        tokens *= scale
    with pytest.MonkeyPatch.context() as patch:
        # The same masks on the same people in both, as the bound has it: here none.
        patch.setattr(fusion_objectives, "draw_masks", no_masks)
        both, rest = (sums_of(*site_of(some, store)) for some in (held, without(held, row)))
    moved = sum(float(np.square(both[name].astype(np.float64) - rest[name]).sum()) for name in both) ** 0.5
    assert moved <= 2 * TERMS.clip
    total = sum(float(np.square(array.astype(np.float64)).sum()) for array in both.values()) ** 0.5
    assert total <= TERMS.groups * TERMS.clip


def test_how_many_groups_there_are_follows_from_public_numbers_alone(hospitals: dict[str, Path]) -> None:
    """The number of units, and what sums are divided by, are the same for nobody, one person and eight."""
    store = Store.open(hospitals["north"])
    for count in (0, 1, 8):
        assert site_of(people(count), store)[1].count == TERMS.groups == 3
    assert TERMS.units == 3.0


def test_steps_over_groups_are_accounted_as_such() -> None:
    (mechanism,) = FusionTask(PARAMETERS, STUDY).mechanisms(order())
    assert (mechanism.kind, mechanism.steps, mechanism.sample_rate) == ("grouped", 2, 1.0)
