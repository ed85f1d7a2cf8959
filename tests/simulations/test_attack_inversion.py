"""Records sought in updates: found in the clear and in sums, not under privacy; and what the figures mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pm1_core.data.store import Store
from pm1_core.fields import Modality, Split
from pm1_core.model.fundus_encoder import FundusEncoder, FundusEncoderConfig
from pm1_core.privacy.terms import RecordTerms, to_order
from pm1_core.update import Tensors
from simulations.attacks.inversion import matched, seen_of
from simulations.attacks.membership import statistics_of
from simulations.attacks.photographs import inverted, picture_figures
from simulations.attacks.row_space import plain_descent, rows_read, rows_seen, updates_of

PARAMETERS = plain_descent({"latent": 4, "depth": 2})


@pytest.fixture(scope="module")
def north(hospitals: dict[str, Path]) -> Store:
    return Store.open(hospitals["north"])


@pytest.fixture(scope="module")
def state(north: Store, tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    return statistics_of(north, tmp_path_factory.mktemp("statistics"))


def shares(
    store: Store, state: Tensors, folder: Path, privacy: dict[str, object] | None = None
) -> tuple[float, float]:
    """Of the fields of one person, and of the next who was not there: how many are found in the one's update."""
    people = store.people(Split.TRAIN, Modality.PHENOTYPE)[:2]
    (update,) = updates_of([store], [people[:1]], state, PARAMETERS, folder, privacy)
    known = store.phenotypes(people)[1] & (state["statistics.phenotype.kept"] > 0)
    binary = np.array([feature.kind == "binary" for feature in store.study.features])
    one, other = matched(rows_read(update, 1, binary), rows_seen(store, people, state), known)
    return float(one), float(other)


def test_a_row_is_read_off_one_persons_update(north: Store, state: Tensors, tmp_path: Path) -> None:
    one, other = shares(north, state, tmp_path)
    assert one == 1.0
    assert other < 0.8


def test_a_row_is_not_read_off_a_noised_update(north: Store, state: Tensors, tmp_path: Path) -> None:
    terms = to_order(RecordTerms(noise_multiplier=1.0))
    assert np.median([shares(north, state, tmp_path / str(k), terms)[0] for k in range(5)]) < 0.8


def test_the_mean_recovers_what_is_near_it_and_the_best_row_counts() -> None:
    true = np.array([[0.05, -0.02, 1.0, -2.0], [0.0, 0.5, 0.5, 0.5]])
    known = np.array([[True, True, True, True], [True, True, False, False]])
    np.testing.assert_array_equal(matched(np.empty((0, 4)), true, known), [0.5, 0.5])
    np.testing.assert_array_equal(matched(true[1:], true, known), [0.5, 1.0])


def test_every_sight_is_of_a_whole_number_of_people_and_sums_of_three_sites_at_least() -> None:
    seen = seen_of([1.0, 4.0])
    assert len({one.words for one in seen}) == len(seen)
    assert all(one.bits is None or one.sites >= 3 for one in seen)


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
        "ssim": pytest.approx(1.0),
        "correlation": pytest.approx(1.0),
    }
    assert picture_figures(mean, true, mean)["correlation"] == 0.0
    assert picture_figures(mean, mean + 0.1, mean)["psnr"] == pytest.approx(20.0)
    assert picture_figures(np.roll(true, 1, 0), true, mean)["ssim"] < 0.5
