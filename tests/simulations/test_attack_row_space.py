"""Whether somebody is in a sum: told by a secure sum that the protocol opened, and not by one under privacy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from privacy.secure_sites import Sum, keys

from pm1_core.data.store import Store
from pm1_core.fields import Modality
from pm1_core.privacy.fixed_point import FixedPoint
from pm1_core.privacy.secure_sum import Terms
from pm1_core.privacy.terms import RecordTerms, to_order
from pm1_core.update import Tensors
from simulations.attacks.figures import separation
from simulations.attacks.inversion import phenotype_round
from simulations.attacks.membership import statistics_of
from simulations.attacks.row_space import first_layer, in_span, opened, rows_seen, sum_seen

SITES = 3
PLAIN = {
    "model": {"latent": 4, "depth": 2, "copy_mask": 0.0},
    "loop": {"optimiser": {"name": "sgd", "learning_rate": 0.1}, "batch_size": 0},
}


@pytest.fixture(scope="module")
def north(hospitals: dict[str, Path]) -> Store:
    return Store.open(hospitals["north"])


@pytest.fixture(scope="module")
def state(north: Store, tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    return statistics_of(north, tmp_path_factory.mktemp("statistics"))


def area(scores: np.ndarray) -> float:
    """The first SITES are members."""
    return float(separation(scores, np.arange(len(scores)) < SITES)["auc"]["value"])


def groups_of(people: np.ndarray) -> list[np.ndarray]:
    return [people[k : k + 1] for k in range(SITES)]


@pytest.mark.parametrize("bits", [16, 32])
def test_people_are_found_in_what_the_protocol_opens(
    bits: int, north: Store, state: Tensors, tmp_path: Path
) -> None:
    people = north.people(None, Modality.PHENOTYPE)
    updates = []
    for number, group in enumerate(groups_of(people)):
        told = phenotype_round([north], [group], state, PLAIN, tmp_path / str(number))
        updates.append(first_layer(told.sent, told.came))
    limit = max(float(np.abs(update).max()) for update in updates)
    encoding = FixedPoint.fitting(bits, limit, [1.0] * SITES)
    given = {site: encoding.encode(u.ravel(), 1.0) for site, u in zip(keys(SITES), updates, strict=True)}
    terms = Terms("run", "phenotype", 1, 0, keys(SITES), updates[0].size, bits, 0)
    total = encoding.decode(Sum(terms, given).run(), float(SITES)).reshape(updates[0].shape)
    np.testing.assert_array_equal(total, opened(updates, bits))
    assert area(in_span(total, rows_seen(north, people, state), SITES)) == 1.0


def test_people_are_not_found_in_a_noised_sum(north: Store, state: Tensors, tmp_path: Path) -> None:
    people = north.people(None, Modality.PHENOTYPE)
    terms = to_order(RecordTerms(noise_multiplier=2.0))
    rows = rows_seen(north, people, state)
    areas = [
        area(
            in_span(sum_seen([north], groups_of(people), state, PLAIN, tmp_path / str(k), terms), rows, SITES)
        )
        for k in range(10)
    ]
    assert np.median(areas) < 0.8


def test_who_is_in_the_span_is_found_and_nobody_else() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 30))
    extended = np.concatenate([rows, np.ones((40, 1))], axis=1)
    update = rng.normal(size=(20, 5)) @ extended[:5]
    scores = in_span(update, rows, 5)
    assert scores[:5].min() > -1e-9
    assert scores[5:].max() < -0.5
