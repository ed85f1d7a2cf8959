"""Genotypes sought in the other modalities: who knows something is told from who does not, and a model that knows
nothing is not taken for safety."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation.studies import tiny_study

from pm1_core.data.store import Store
from pm1_core.fields import Modality
from pm1_core.training.local import train_locally
from pm1_core.training.pm1 import PM1, TokenArrays
from pm1_core.training.tasks import build_task
from simulations.attacks.inference import accuracies, guesses, powerless
from simulations.attacks.outcome import Cell
from simulations.pooled import PooledStore

Trained = tuple[Any, ...]


class Exchanged(PM1):
    """A model that is given other people's genotype tokens."""

    def raw_tokens(self, store: Store, people: np.ndarray) -> tuple[TokenArrays, np.ndarray]:
        tokens, present = super().raw_tokens(store, people)
        return {**tokens, Modality.GENOTYPE: tokens[Modality.GENOTYPE][::-1] + 5}, present


@pytest.fixture(scope="module")
def north(hospitals: dict[str, Path]) -> PooledStore:
    return PooledStore([Store.open(hospitals["north"])])


@pytest.fixture(scope="module")
def trained(north: PooledStore, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """What a PM1 is made of, after every phase of a small study on the hospital that has everything."""
    folder, state = tmp_path_factory.mktemp("trained"), dict[str, np.ndarray]()
    for phase in tiny_study().phases:
        orders = [tiny_study().order(phase, number) for number in range(1, phase.rounds + 1)]
        state |= train_locally(build_task(orders[0], north.study), north, orders, state, folder)
    return state, north.study, orders[-1].parameters["encoders"], orders[-1].parameters["model"]


def test_who_knows_ancestry_says_more_than_the_frequencies(trained: Trained, north: PooledStore) -> None:
    """Genotypes of these hospitals follow an axis that the ancestry label is the sign of."""
    people = north.people(None, Modality.GENOTYPE)
    true, said = guesses(PM1(*trained), north, north, people)
    assert all(dosages.shape == true.shape for dosages in said.values())
    usual = accuracies(true, said["population's commonest"])["above"]
    own = accuracies(true, said["commonest of the same ancestry"])["above"]
    assert isinstance(usual, dict)
    assert isinstance(own, dict)
    assert usual["value"] == pytest.approx(0.0, abs=1e-9)
    assert own["low"] > usual["high"]


def test_no_attacker_but_the_control_sees_genotypes(trained: Trained, north: PooledStore) -> None:
    """With other people's genotype tokens, all but the control say the same."""
    people = north.people(None, Modality.GENOTYPE)
    _, before = guesses(PM1(*trained), north, north, people)
    _, after = guesses(Exchanged(*trained), north, north, people)
    for name, dosages in before.items():
        if "control" not in name:
            np.testing.assert_array_equal(dosages, after[name])


def test_an_attacker_who_knows_some_genotypes_lies_between() -> None:
    rng = np.random.default_rng(0)
    true = rng.binomial(2, rng.uniform(0.2, 0.5, 60), (200, 60)).astype(np.uint8)
    half = np.where(rng.random(true.shape) < 0.5, true, rng.permuted(true, axis=0))
    found = accuracies(true, half)["above"]
    assert isinstance(found, dict)
    assert found["low"] <= found["value"] <= found["high"]
    assert found["value"] == pytest.approx(0.5, abs=0.05)


def test_a_model_that_rebuilds_nothing_is_said_to_be_without_power() -> None:
    def row(value: float) -> dict[str, Cell]:
        return {
            "attacker": "model, given the genotypes too (control)",
            "above": {"value": value, "low": value - 0.01, "high": value + 0.01},
        }

    (said,) = powerless([row(-0.008)])
    assert "learnt too little" in said
    assert powerless([row(0.4)]) == []
    assert powerless([]) == []
