"""Records sought in updates: found in the clear, not in sums, not under privacy; and what the figures mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pm1_core.data.store import Store
from pm1_core.fields import Modality, Split
from pm1_core.model.fundus_encoder import FundusEncoder, FundusEncoderConfig
from pm1_core.privacy.terms import RecordTerms, to_order
from simulations.attacks.inversion import phenotype_round, recovered_row, row_figures
from simulations.attacks.membership import statistics_of
from simulations.attacks.photographs import inverted, picture_figures

PARAMETERS = {
    "model": {"latent": 4, "depth": 2, "copy_mask": 0.0},
    "loop": {"optimiser": {"name": "sgd", "learning_rate": 0.1}, "batch_size": 0},
}


@pytest.fixture(scope="module")
def north(hospitals: dict[str, Path]) -> Store:
    return Store.open(hospitals["north"])


def sought(
    store: Store, groups: list[np.ndarray], tmp_path: Path, privacy: dict | None = None
) -> dict[str, float]:
    """Figures of the first person's row, from one round over these groups."""
    state = statistics_of(store, tmp_path / "statistics")
    told = phenotype_round([store], groups, state, PARAMETERS, tmp_path, privacy)
    values, observed = store.phenotypes(groups[0][:1])
    mean, std, kept = (state[f"statistics.phenotype.{name}"] for name in ("mean", "std", "kept"))
    known = (observed & (kept > 0))[0]
    true = ((values[0] - mean) / std)[known].astype(np.float64)
    return row_figures(recovered_row(told.sent, told.came)[known], true)


def test_a_row_is_read_off_one_persons_update_and_mixed_up_in_a_sum(north: Store, tmp_path: Path) -> None:
    people = north.people(Split.TRAIN, Modality.PHENOTYPE)
    alone = sought(north, [people[:1]], tmp_path / "alone")
    assert alone["fields"] == 1.0
    assert alone["correlation"] > 0.999
    assert alone["error"] < 1e-3
    for name, groups in {"batch": [people[:8]], "sum": [people[k : k + 1] for k in range(3)]}.items():
        assert sought(north, groups, tmp_path / name)["fields"] < 0.6


def test_a_row_is_not_read_off_a_noised_update(north: Store, tmp_path: Path) -> None:
    terms = to_order(RecordTerms(noise_multiplier=1.0))
    people = north.people(Split.TRAIN, Modality.PHENOTYPE)
    found = [sought(north, [people[:1]], tmp_path / str(k), terms)["error"] for k in range(5)]
    assert np.median(found) > 0.3


def test_the_mean_recovers_what_is_near_it() -> None:
    true = np.array([0.05, -0.02, 1.0, -2.0])
    assert row_figures(np.zeros(4), true)["fields"] == 0.5
    assert row_figures(true, true) == {"fields": 1.0, "correlation": pytest.approx(1.0), "error": 0.0}


def test_a_picture_is_found_from_the_gradient_of_all_parameters() -> None:
    """The attack's own test: where everything is told, it finds more than it began with."""
    torch.manual_seed(0)
    config = FundusEncoderConfig(
        image=16, patch=8, width=16, depth=1, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2,
        mask_ratio=0.5,
    )  # fmt: skip
    encoder = FundusEncoder(config).eval()
    weights = [parameter for name, parameter in encoder.named_parameters() if "pos_embed" not in name]
    true, order = torch.rand(1, 3, 16, 16), encoder.draw_hidden(1, torch.Generator().manual_seed(0))

    def loss(images: torch.Tensor) -> torch.Tensor:
        return encoder.reconstruction_errors(images, order).mean()

    told = [
        torch.zeros_like(p) if g is None else g
        for g, p in zip(torch.autograd.grad(loss(true), weights, allow_unused=True), weights, strict=True)
    ]
    start = torch.full_like(true, 0.5)
    found = inverted(loss, weights, told, start, steps=300)
    assert float((found - true).square().mean()) < 0.5 * float((start - true).square().mean())


def test_figures_of_a_picture() -> None:
    rng = np.random.default_rng(0)
    true, mean = rng.random((8, 8, 3)), np.full((8, 8, 3), 0.5)
    assert picture_figures(true, true, mean) == {
        "psnr": pytest.approx(120.0),
        "correlation": pytest.approx(1.0),
    }
    assert picture_figures(mean, true, mean)["correlation"] == 0.0
    assert picture_figures(mean, mean + 0.1, mean)["psnr"] == pytest.approx(20.0)
