"""Guided training against the papers' formulas, on gradients that are known by hand."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quadratics import MEAN, NORM, RATE, START, STEPS, ZERO, W, close, content, files, order, train

from pm1_core.errors import InputError

# ---- FedProx ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw", "qhadam"])
def test_a_proximal_term_of_zero_is_plain_training_to_the_byte(optimiser: str, tmp_path: Path) -> None:
    plain, proximal = (
        train(order(method, name=optimiser, batch_size=3), START, tmp_path / str(len(method)))
        for method in ({}, {"proximal": 0.0})
    )
    assert content(plain) == content(proximal)
    assert files(tmp_path / "0") == files(tmp_path / "1")


def test_a_proximal_step_is_that_of_the_papers_objective(tmp_path: Path) -> None:
    update = train(order({"proximal": 2.0}), START, tmp_path)
    for name, start in START.items():
        w = start.astype(np.float64)
        for _ in range(STEPS):
            w = w - RATE * ((w - MEAN[name]) + 2.0 * (w - start))
        close(update.tensors[name], w)


@settings(deadline=None, max_examples=20)
@given(st.floats(0, 8), st.floats(0, 8))
def test_the_larger_the_proximal_term_the_nearer_to_the_received_model(one: float, other: float) -> None:
    with TemporaryDirectory() as folder:
        away = [
            np.linalg.norm(train(order({"proximal": mu}), START, Path(folder) / f"{mu}").tensors[W])
            for mu in sorted((one, other))
        ]
        assert away[1] <= away[0] + 1e-6


# ---- SCAFFOLD -----------------------------------------------------------------------------------------------


def test_control_variates_are_those_of_option_two_under_gradient_descent(tmp_path: Path) -> None:
    """Two rounds of algorithm 1 with batches, for a common variate that other sites had a part in."""
    received, own = dict(START), {name: np.zeros_like(array) for name, array in START.items()}
    common = {W: np.array([0.3, -0.2, 0.1], np.float32), NORM: np.array([-0.5, 0.4], np.float32)}
    for round_number in (1, 2):
        asked = order({"control": True}, round_number, batch_size=4, epochs=2)
        sent = {**received, **{"control." + name: array for name, array in common.items()}}
        update = train(asked, sent, tmp_path)
        steps = int(update.metrics["steps"])
        assert steps == 6
        assert set(update.tensors) == {W, NORM, "control." + W, "control." + NORM}
        for name in START:
            trained = update.tensors[name]
            option_two = own[name] - common[name] + (received[name] - trained) / (steps * RATE)
            change = update.tensors["control." + name]
            close(change, option_two - own[name])
            own[name] = own[name] + change
        received = {name: update.tensors[name] for name in START}


def test_a_corrected_step_adds_common_less_own_to_the_gradient(tmp_path: Path) -> None:
    first = train(order({"control": True}, epochs=1), {**START, **ZERO}, tmp_path)
    common = {"control." + name: np.full_like(array, 0.25) for name, array in START.items()}
    second = train(order({"control": True}, 2, epochs=1), {**START, **common}, tmp_path)
    for name, start in START.items():
        own = start - MEAN[name]
        close(first.tensors["control." + name], own)
        close(second.tensors[name], start - RATE * ((start - MEAN[name]) + 0.25 - own))
        close(second.tensors["control." + name], np.zeros_like(own))


def test_variates_are_gradients_whatever_the_optimiser_and_after_clipping(tmp_path: Path) -> None:
    plain = train(order({"control": True}, name="adam", epochs=1), {**START, **ZERO}, tmp_path / "plain")
    clipped = train(
        order({"control": True}, name="adam", epochs=1, clip_norm=0.5),
        {**START, **ZERO},
        tmp_path / "clipped",
    )
    gradient = {name: START[name] - MEAN[name] for name in START}
    norm = np.sqrt(sum(float((g**2).sum()) for g in gradient.values()))
    for name in START:
        close(plain.tensors["control." + name], gradient[name])
        close(clipped.tensors["control." + name], gradient[name] * 0.5 / norm)


def test_skipped_steps_change_no_variate(tmp_path: Path) -> None:
    update = train(order({"control": True}, skip_norm=1e-3), {**START, **ZERO}, tmp_path)
    assert update.metrics["skipped_steps"] == STEPS
    for name, start in START.items():
        np.testing.assert_array_equal(update.tensors["control." + name], 0)
        np.testing.assert_array_equal(update.tensors[name], start)


def test_a_strategy_that_sends_no_variates_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"control\.quadratic"):
        train(order({"control": True}), START, tmp_path)
