"""Server optimisers equal their papers: by hand, and over rounds on a small quadratic."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from folded import fold, scalars

from strategies import build

SITES = {"leeds": (1.0, 3.0, 20.0), "oxford": (2.0, -1.0, 30.0), "york": (0.5, 2.0, 50.0)}
"""Curvature a, optimum b and examples of the loss a/2 (x - b)^2 of each site."""

OPTIMUM = sum(a * b * n for a, b, n in SITES.values()) / sum(a * n for a, _, n in SITES.values())


def locally_trained(x: float, steps: int = 4, rate: float = 0.05) -> dict[str, float]:
    """Where each site's gradient descent from `x` ends, in float32 as it travels."""
    ends = {}
    for site, (a, b, _) in SITES.items():
        end = x
        for _ in range(steps):
            end -= rate * a * (end - b)
        ends[site] = float(np.float32(end))
    return ends


def mean_change(x: float) -> float:
    """Delta: the mean over sites, weighted by examples, of what they sent minus what they got."""
    whole = sum(n for _, _, n in SITES.values())
    return sum(SITES[site][2] / whole * (end - x) for site, end in locally_trained(x).items())


ETA, BETA1, BETA2, TAU = 0.1, 0.9, 0.99, 1e-3
OPTIONS = {"server_learning_rate": ETA, "beta1": BETA1, "tau": TAU}

SECOND: dict[str, Callable[[float, float], float]] = {
    "fedadagrad": lambda v, d: v + d * d,
    "fedadam": lambda v, d: BETA2 * v + (1 - BETA2) * d * d,
    "fedyogi": lambda v, d: v - (1 - BETA2) * d * d * math.copysign(1.0, v - d * d),
}


@pytest.mark.parametrize("name", SECOND)
def test_fedopt_equals_algorithm_2_of_reddi_et_al_over_rounds(name: str) -> None:
    options = OPTIONS if name == "fedadagrad" else {**OPTIONS, "beta2": BETA2}
    strategy = build({"name": name, **options})
    weights = {site: n for site, (_, _, n) in SITES.items()}
    model = {"w": np.array([10.0], np.float32)}
    tensors = {**model, **strategy.initial(model)}
    x, m, v = 10.0, 0.0, TAU**2
    for number in range(1, 13):
        delta = mean_change(x)
        m = BETA1 * m + (1 - BETA1) * delta
        v = SECOND[name](v, delta)
        tensors = fold(strategy, tensors, scalars(locally_trained(x), weights), number)
        x += ETA * m / (math.sqrt(v) + TAU)
        assert tensors["w"][0] == pytest.approx(x, abs=2e-6)
        assert tensors["server.m.w"][0] == pytest.approx(m, rel=1e-5)
        assert tensors["server.v.w"][0] == pytest.approx(v, rel=1e-5)


def test_fedavgm_equals_hsu_et_al_over_rounds() -> None:
    strategy = build({"name": "fedavgm", "momentum": 0.5, "server_learning_rate": 0.8})
    weights = {site: n for site, (_, _, n) in SITES.items()}
    model = {"w": np.array([10.0], np.float32)}
    tensors = {**model, **strategy.initial(model)}
    x, velocity = 10.0, 0.0
    for number in range(1, 13):
        velocity = 0.5 * velocity + mean_change(x)
        tensors = fold(strategy, tensors, scalars(locally_trained(x), weights), number)
        x += 0.8 * velocity
        assert tensors["w"][0] == pytest.approx(x, abs=2e-6)
        assert tensors["server.momentum.w"][0] == pytest.approx(velocity, abs=2e-6)


@pytest.mark.parametrize(
    ("name", "after", "m", "v"),
    [
        # Delta = 1 from v = tau^2 = 0.01 with eta 1, tau 0.1: by hand.
        ("fedadagrad", 1 / (math.sqrt(1.01) + 0.1), 1.0, 1.01),
        ("fedadam", 0.1 / (math.sqrt(0.0199) + 0.1), 0.1, 0.99 * 0.01 + 0.01),
        ("fedyogi", 0.1 / (math.sqrt(0.02) + 0.1), 0.1, 0.01 + 0.01),
    ],
)
def test_the_first_step_is_the_one_on_paper(name: str, after: float, m: float, v: float) -> None:
    strategy = build({"name": name, "server_learning_rate": 1.0, "tau": 0.1})
    model = {"w": np.zeros(1, np.float32)}
    tensors = fold(strategy, {**model, **strategy.initial(model)}, scalars({"a": 0.5, "b": 1.5}))
    assert tensors["w"][0] == pytest.approx(after, rel=1e-6)
    assert tensors["server.m.w"][0] == pytest.approx(m, rel=1e-6)
    assert tensors["server.v.w"][0] == pytest.approx(v, rel=1e-6)


def test_no_momentum_and_a_rate_of_one_is_fedavg() -> None:
    updates = scalars({"a": 0.1, "b": 0.7, "c": -3.2}, {"a": 1.0, "b": 2.0, "c": 5.0})
    model = {"w": np.array([0.3], np.float32)}
    momentum = build({"name": "fedavgm", "momentum": 0})
    after = fold(momentum, {**model, **momentum.initial(model)}, updates)["w"]
    np.testing.assert_allclose(after, fold(build({"name": "fedavg"}), model, updates)["w"], rtol=1e-7)
