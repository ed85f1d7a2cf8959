"""Who is in a sum and with what row: told by what the protocol opens, and not by a sum under privacy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pm1_core.data.store import Store
from pm1_core.fields import Modality
from pm1_core.privacy.fixed_point import FixedPoint
from pm1_core.privacy.terms import RecordTerms, to_order
from pm1_core.update import Tensors
from simulations.attacks.figures import separation
from simulations.attacks.membership import statistics_of
from simulations.attacks.row_space import in_span, plain_descent, rows_read, rows_seen, updates_of
from simulations.attacks.secure import opened

SITES = 3
PLAIN = plain_descent({"latent": 4, "depth": 2})


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
def test_the_protocol_opens_the_plain_sum_and_nothing_of_one_site(bits: int) -> None:
    updates = list(np.random.default_rng(0).normal(size=(SITES, 4, 7)))
    encoding = FixedPoint.fitting(bits, 2.0, [1.0] * SITES)
    words = np.sum([encoding.encode(update.ravel(), 1.0) for update in updates], axis=0, dtype=encoding.dtype)
    found = opened(updates, bits, 2.0)
    np.testing.assert_array_equal(found.ravel(), encoding.decode(words, float(SITES)))
    np.testing.assert_allclose(found, np.mean(np.clip(updates, -2, 2), 0), atol=2 / encoding.scale)


@pytest.mark.parametrize("bits", [16, 32])
def test_people_are_found_in_what_the_protocol_opens(
    bits: int, north: Store, state: Tensors, tmp_path: Path
) -> None:
    people = north.people(None, Modality.PHENOTYPE)
    updates = updates_of([north], groups_of(people), state, PLAIN, tmp_path)
    total = opened(updates, bits, float(np.abs(updates).max()))
    assert area(in_span(total, rows_seen(north, people, state), SITES)) == 1.0


def test_people_are_not_found_in_a_noised_sum(north: Store, state: Tensors, tmp_path: Path) -> None:
    people = north.people(None, Modality.PHENOTYPE)
    terms = to_order(RecordTerms(noise_multiplier=2.0))
    rows, areas = rows_seen(north, people, state), []
    for _ in range(10):
        total = opened(updates_of([north], groups_of(people), state, PLAIN, tmp_path, terms), 32, 8.0)
        areas.append(area(in_span(total, rows, SITES)))
    assert np.median(areas) < 0.8


@pytest.mark.parametrize("people", [1, 3, 8])
def test_rows_are_read_out_of_a_sum_and_out_of_noise_none(people: int) -> None:
    rng = np.random.default_rng(people)
    binary = np.arange(60) < 40
    rows = np.where(binary, rng.random((people, 60)) < 0.2, rng.normal(size=(people, 60)))
    update = rng.normal(size=(50, people)) @ np.concatenate([rows, np.ones((people, 1))], axis=1)
    found = rows_read(update, people, binary)
    assert len(found) == people
    distance = np.abs(found[:, None] - rows).max(2)
    np.testing.assert_allclose(distance.min(0), 0, atol=1e-6)
    assert rows_read(rng.normal(size=(50, 61)), people, binary).shape == (0, 60)


def test_who_is_in_the_span_is_found_and_nobody_else() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 30))
    extended = np.concatenate([rows, np.ones((40, 1))], axis=1)
    update = rng.normal(size=(20, 5)) @ extended[:5]
    scores = in_span(update, rows, 5)
    assert scores[:5].min() > -1e-9
    assert scores[5:].max() < -0.5
